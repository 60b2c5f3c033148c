"""Which test shows each row of FAULTS, and what belongs to a later issue.

Neighbours: `test_rows` fails where a row has neither, or names a test that does not exist.
"""

from typing import Final

BACKENDS: Final = "tests/faults/test_backends.py"
PIPES: Final = "tests/faults/test_pipes.py"
FAILURES: Final = "tests/frontend/test_failures.py"
CLIENTS: Final = "tests/faults/test_clients.py"
RUNGS: Final = "tests/backends/test_rungs.py"
NETWORK: Final = "tests/faults/test_network.py"
BOUNDS: Final = "tests/faults/test_http_bounds.py"
RESOURCES: Final = "tests/faults/test_resources.py"
TIME: Final = "tests/faults/test_time.py"
SHUTDOWN: Final = "tests/faults/test_shutdown.py"
PAUSES: Final = "tests/core/test_pauses.py"
SERVE: Final = "tests/test_serve.py"
STDIO: Final = "tests/backends/test_stdio.py"
GUARDED: Final = "tests/backends/test_guarded.py"
CONTAINMENT: Final = "tests/backends/test_containment.py"
ENDPOINT: Final = "tests/frontend/test_endpoint.py"
LIFE: Final = "tests/frontend/test_life.py"
RELAYING: Final = "tests/frontend/test_relaying.py"
STREAM: Final = "tests/frontend/test_stream.py"
STREAMS: Final = "tests/frontend/test_streams.py"

TESTS: Final[dict[str, tuple[str, ...]]] = {
    # -- backends ---------------------------------------------------------------------------------
    "F01": (
        f"{BACKENDS}::test_a_command_that_cannot_be_started_is_an_error_with_the_reason",
        f"{BACKENDS}::test_a_command_that_fails_again_and_again_rests",
        f"{RUNGS}::test_a_command_that_cannot_be_executed_is_told",
        f"{RUNGS}::test_a_word_that_no_process_can_be_given_is_told",
        f"{RUNGS}::test_relative_paths_are_read_where_the_proxy_was_started",
        f"{RUNGS}::test_a_command_may_have_any_name",
    ),
    "F02": (
        f"{BACKENDS}::test_a_backend_that_ends_before_it_says_anything_names_its_exit_status",
        f"{FAILURES}::test_stderr_is_not_shown_where_it_is_not_exposed",
    ),
    "F03": (
        f"{BACKENDS}::test_a_backend_that_dies_before_it_answers_initialize_leaves_no_session",
    ),
    "F04": (
        f"{BACKENDS}::"
        "test_a_backend_that_dies_right_after_its_welcome_leaves_a_session_that_sleeps",
    ),
    "F05": (
        f"{BACKENDS}::test_a_backend_that_never_answers_initialize_is_stopped_at_the_limit",
        f"{FAILURES}::test_a_backend_that_does_not_start_gets_an_error_and_leaves_nothing",
        f"{RUNGS}::test_a_start_that_holds_up_the_guardian_costs_no_other_session",
        f"{GUARDED}::test_a_start_that_holds_it_up_costs_itself_alone",
    ),
    "F06": (
        f"{BACKENDS}::test_a_backend_that_dies_fails_all_its_calls_and_its_session_goes_on",
        f"{PIPES}::test_an_exit_is_told_although_a_child_goes_on_writing_to_the_pipe",
        f"{RUNGS}::test_how_a_backend_ended_is_told",
    ),
    "F07": (
        f"{BACKENDS}::test_a_backend_that_leaves_while_idle_is_noticed_at_once_and_not_replaced",
    ),
    "F08": (
        f"{BACKENDS}::"
        "test_a_call_that_hangs_is_cancelled_at_the_limit_and_the_third_in_a_row_is_the_last",
        f"{FAILURES}::test_a_backend_silent_past_the_call_limit_gets_the_limit_named",
    ),
    "F09": (f"{BACKENDS}::test_a_backend_that_is_stopped_by_a_signal_is_one_that_hangs",),
    "F10": (
        f"{PIPES}::test_lines_that_are_no_messages_are_dropped_and_logged_once_a_second",
        f"{PIPES}::test_a_backend_that_writes_hardly_anything_but_garbage_is_killed",
        f"{PIPES}::test_a_backend_that_writes_garbage_instead_of_a_welcome_does_not_start",
        f"{PIPES}::test_the_more_lines_a_backend_writes_the_less_is_read_at_once",
        f"{PIPES}::test_a_spare_that_talks_without_being_asked_is_read_when_it_is_taken",
        f"{PIPES}::test_a_backend_that_floods_its_stdout_holds_nobody_up",
    ),
    "F11": (
        f"{PIPES}::test_what_a_backend_writes_that_is_no_message_is_dropped_and_the_pipe_survives",
        f"{PIPES}::test_a_batch_of_a_backend_is_passed_on_as_single_messages",
        f"{PIPES}::test_what_a_client_posts_that_is_no_message_is_refused_and_harms_nobody",
    ),
    "F12": (
        f"{PIPES}::test_half_a_line_and_then_the_end_is_a_death",
        f"{PIPES}::test_half_a_line_and_then_silence_changes_nothing",
    ),
    "F13": (
        f"{PIPES}::test_a_line_far_above_the_limit_is_discarded_as_it_comes",
        "tests/wire/test_lines.py::test_a_line_that_is_too_long_is_not_held_in_memory",
    ),
    "F14": (
        f"{PIPES}::test_a_long_line_within_the_limit_is_delivered_as_json",
        "tests/wire/test_lines.py::test_a_line_that_drips_in_costs_about_its_own_size",
    ),
    "F15": (
        f"{PIPES}::test_a_flood_on_stderr_is_drained_and_logged_at_a_bounded_rate",
        "tests/backends/test_stderr.py::test_beyond_a_rate_the_reader_is_to_pause",
        "tests/backends/test_stderr.py::test_what_is_kept_is_bounded_in_bytes",
    ),
    "F16": (
        f"{PIPES}::test_what_waits_for_a_backend_that_does_not_read_is_bounded",
        f"{PIPES}::test_calls_that_find_no_room_leave_nothing_in_memory",
    ),
    "F17": (
        f"{BACKENDS}::test_a_backend_that_ignores_its_end_is_brought_down_by_the_ladder",
        f"{STDIO}::test_one_that_ignores_it_gets_sigterm_after_the_grace",
        f"{STDIO}::test_each_process_gets_sigterm_once_and_the_tree_as_much_time_as_its_leader",
    ),
    "F18": (f"{BACKENDS}::test_a_backend_that_ignores_its_end_is_brought_down_by_the_ladder",),
    "F19": (f"{BACKENDS}::test_a_child_of_a_backend_that_left_politely_is_ended_with_it",),
    # -- containment ------------------------------------------------------------------------------
    "F20": (
        f"{RUNGS}::test_a_deleted_session_leaves_no_process",
        f"{RUNGS}::test_a_stray_is_killed_and_counted_when_no_backend_is_left",
    ),
    "F21": (
        "tests/clients/test_endings.py::test_nothing_is_left_however_a_session_ends",
        "tests/clients/test_sandbox.py::"
        "test_an_ordinary_users_browser_has_its_sandbox_and_ends_with_its_starter",
    ),
    "F22": (
        f"{RUNGS}::test_no_foreign_process_is_signalled_after_its_pid_was_reused",
        f"{CONTAINMENT}::test_a_process_with_a_reused_pid_is_never_signalled",
        f"{CONTAINMENT}::test_a_record_that_does_not_know_when_its_process_started_means_nobody",
    ),
    "F24": (
        f"{RUNGS}::test_a_killed_proxy_takes_all_along",
        f"{RUNGS}::test_a_restart_sweeps_what_a_killed_proxy_and_guardian_left",
        f"{SHUTDOWN}::test_a_restart_sweeps_what_the_journal_tells_of",
    ),
    # -- limits, clocks and endings ---------------------------------------------------------------
    "F23": (
        f"{SHUTDOWN}::test_a_drain_lets_what_runs_finish_and_takes_nothing_new",
        f"{SHUTDOWN}::test_a_second_signal_cuts_short_what_is_in_flight",
        f"{SHUTDOWN}::test_a_second_signal_cuts_short_the_stopping_of_backends",
        f"{SHUTDOWN}::test_a_second_signal_cuts_short_the_stopping_of_warm_spares",
        f"{SERVE}::test_after_the_drain_limit_what_is_in_flight_is_ended",
    ),
    "F25": (f"{SHUTDOWN}::test_an_id_from_before_a_restart_is_unknown",),
    "F38": (
        f"{RESOURCES}::test_a_storm_is_admitted_as_far_as_the_queue_goes",
        f"{RESOURCES}::test_who_finds_the_queue_full_is_refused_at_once",
        f"{RESOURCES}::test_an_owner_at_its_limit_is_refused_before_the_queue_is_full",
    ),
    "F40": (
        f"{RESOURCES}::test_without_descriptors_new_sessions_get_503_and_it_recovers_by_itself",
        f"{RESOURCES}::test_without_descriptors_connections_are_closed_and_it_goes_on",
        f"{RESOURCES}::test_without_descriptors_a_backend_that_does_not_want_to_end_is_killed",
        f"{RESOURCES}::test_on_a_full_disk_new_sessions_get_503_and_it_recovers_by_itself",
        f"{RESOURCES}::test_a_full_disk_does_not_keep_a_backend_from_ending",
        f"{RESOURCES}::test_what_the_machine_lacks_is_no_fault_of_the_backends",
        f"{RUNGS}::test_a_shell_that_cannot_fork_says_no_more_than_that",
        f"{RESOURCES}::test_without_a_thread_what_it_would_do_is_done_all_the_same",
        f"{RESOURCES}::test_a_look_that_fails_fails_for_all_who_wait_for_it",
        f"{RESOURCES}::test_a_look_that_is_given_up_is_taken_by_another_who_waits_for_it",
        f"{STDIO}::test_without_a_descriptor_a_backend_is_killed_and_stays_on_record",
        f"{STDIO}::test_a_tree_is_ended_as_soon_as_somebody_can_look",
        f"{CONTAINMENT}::test_what_is_known_is_signalled_although_nobody_can_look",
        f"{CONTAINMENT}::test_without_descriptors_a_process_is_not_taken_for_gone",
        f"{CONTAINMENT}::test_orphans_are_looked_for_again_after_nobody_could_look",
        f"{GUARDED}::test_what_nobody_can_look_at_is_not_started",
    ),
    "F41": (f"{TIME}::test_a_wall_clock_that_is_set_changes_nothing",),
    "F42": (
        f"{TIME}::test_after_a_pause_no_session_is_reaped_and_no_call_has_timed_out",
        f"{PAUSES}::test_no_backend_is_idle_because_nothing_ran",
        f"{PAUSES}::test_no_client_has_left_for_good_because_nothing_ran",
        f"{PAUSES}::test_no_sleeper_and_no_elder_ends_because_nothing_ran",
    ),
    "F43": (
        f"{TIME}::test_an_event_loop_that_stands_still_is_told_and_times_nobody_out",
        f"{PAUSES}::test_no_backend_is_silent_because_nothing_ran",
        f"{PAUSES}::test_no_start_is_given_up_because_nothing_ran",
        f"{PAUSES}::test_nobody_leaves_the_queue_because_nothing_ran",
        f"{BOUNDS}::test_a_body_is_not_late_because_nothing_ran",
    ),
    "F45": (
        "tests/core/test_same_tick.py::"
        "test_a_request_in_the_tick_of_the_idle_limit_is_served_or_told_never_both_or_neither",
        "tests/core/test_same_tick.py::"
        "test_a_crash_or_a_delete_in_the_same_tick_changes_nothing_of_that",
    ),
    "F47": (
        f"{BOUNDS}::test_a_head_that_does_not_end_gets_408",
        f"{BOUNDS}::test_a_head_that_comes_in_drips_has_no_more_time",
        f"{BOUNDS}::test_a_connection_that_says_nothing_is_closed",
        f"{BOUNDS}::test_blank_lines_buy_no_time",
        f"{BOUNDS}::test_a_body_that_does_not_end_gets_408",
        f"{BOUNDS}::test_a_body_that_goes_on_after_its_answer_is_cut_off",
        f"{BOUNDS}::test_a_body_that_the_proxy_does_not_read_is_not_late",
        f"{BOUNDS}::test_a_head_without_measure_gets_431",
        f"{BOUNDS}::test_connections_above_the_limit_get_503",
        f"{BOUNDS}::test_a_crowd_of_idle_connections_does_not_keep_backends_from_starting",
    ),
    # -- clients and the network ------------------------------------------------------------------
    "F26": (
        f"{CLIENTS}::test_a_call_goes_on_when_its_stream_is_lost_and_its_answer_is_kept",
        f"{CLIENTS}::test_an_answer_that_nobody_fetches_is_dropped_in_time",
        f"{CLIENTS}::test_a_client_that_hangs_up_behind_another_request_is_noticed_at_once",
        f"{CLIENTS}::test_who_leaves_while_it_is_asked_something_does_not_keep_its_session_alive",
        f"{STREAM}::test_streams_that_ended_are_bounded_in_number",
        f"{STREAM}::test_large_streams_that_ended_are_bounded_in_bytes_and_the_newest_is_kept",
        f"{STREAMS}::test_a_lost_connection_does_not_cancel_and_the_answer_is_kept",
        f"{STREAMS}::test_a_resumed_call_goes_on_where_it_was_left",
        f"{STREAM}::test_one_who_resumes_behind_what_was_given_up_is_told_how_many_it_lacks",
        f"{STREAM}::test_a_stream_whose_answer_is_kept_no_more_is_not_resumed",
    ),
    "F28": (
        f"{NETWORK}::test_a_call_goes_on_when_its_client_vanishes_and_its_answer_is_kept",
        f"{NETWORK}::test_a_session_whose_client_vanished_from_its_stream_stops_after_linger",
        f"{NETWORK}::"
        "test_a_client_that_vanishes_before_anything_was_written_is_found_by_the_first_comment",
        f"{NETWORK}::test_a_pause_of_the_network_shorter_than_the_limit_is_no_loss",
    ),
    "F29": (
        f"{CLIENTS}::test_a_stalled_reader_of_the_get_stream_harms_no_call_of_its_session",
        f"{CLIENTS}::"
        "test_a_stalled_reader_of_what_must_not_be_dropped_is_cut_off_and_counts_as_gone",
        f"{STREAM}::test_while_nobody_reads_the_last_of_many_small_messages_are_kept",
        f"{STREAM}::test_log_messages_are_dropped_before_anything_else",
        f"{STREAM}::test_a_huge_message_makes_room_for_no_second_one",
    ),
    "F30": (f"{CLIENTS}::test_a_stalled_reader_of_a_call_fills_only_that_calls_buffer",),
    "F31": (
        f"{CLIENTS}::test_many_stalled_readers_cost_at_most_a_mebibyte_each",
        f"{STREAM}::test_a_stream_weighs_a_mebibyte_at_most",
    ),
    "F32": (
        f"{CLIENTS}::test_every_post_gets_its_own_answer_whatever_its_id",
        f"{CLIENTS}::test_a_cancellation_of_an_id_that_names_two_cancels_none",
        f"{RELAYING}::test_a_cancellation_that_names_no_call_or_two_cancels_none",
    ),
    "F33": (f"{CLIENTS}::test_answers_out_of_order_doubled_unknown_or_late_are_routed_or_dropped",),
    "F34": (
        f"{CLIENTS}::test_progress_that_belongs_to_nothing_or_goes_back_is_dropped",
        f"{CLIENTS}::test_calls_with_one_progress_token_each_get_their_own_progress",
        f"{CLIENTS}::test_params_nested_too_deep_never_carry_the_clients_own_token",
    ),
    "F35": (
        f"{CLIENTS}::test_a_request_of_the_backend_with_nothing_in_flight_goes_to_the_get_stream",
        f"{CLIENTS}::"
        "test_a_request_of_the_backend_with_two_calls_in_flight_goes_out_once_and_on_one",
    ),
    "F36": (f"{CLIENTS}::test_a_client_that_gets_404_opens_a_new_session_in_the_place_of_the_old",),
    "F37": (
        f"{CLIENTS}::test_all_ids_that_name_no_session_of_the_caller_get_one_answer",
        f"{ENDPOINT}::test_all_ids_that_name_no_session_of_the_caller_get_the_same_answer",
    ),
    "F39": (
        f"{CLIENTS}::test_a_client_that_hangs_up_in_the_queue_leaves_it",
        f"{CLIENTS}::test_a_client_that_hangs_up_while_its_backend_starts_leaves_nothing",
        f"{CLIENTS}::test_a_client_that_hung_up_on_the_stream_of_initialize_resumes_it",
        f"{CLIENTS}::test_a_client_that_never_resumes_initialize_keeps_no_backend",
    ),
    "F44": (
        f"{CLIENTS}::test_delete_in_a_call_ends_it_and_the_whole_tree",
        f"{LIFE}::test_delete_fails_the_calls_in_flight",
    ),
    "F46": (
        f"{LIFE}::test_a_call_longer_than_the_idle_limit_is_never_cut_by_it",
        f"{LIFE}::test_an_open_get_stream_keeps_no_backend_and_survives_its_stop",
    ),
    "F48": (
        f"{CLIENTS}::test_a_body_that_is_not_as_its_head_says_executes_nothing",
        f"{ENDPOINT}::test_a_body_above_the_limit_gets_413_before_it_is_read",
        f"{ENDPOINT}::test_a_chunked_body_above_the_limit_gets_413",
        "tests/frontend/test_fastlane.py::test_a_body_above_the_limit_gets_413_with_a_known_head",
        f"{ENDPOINT}::test_a_body_at_the_limit_is_served",
        f"{ENDPOINT}::test_a_content_encoding_gets_415",
    ),
    "F50": (
        f"{CLIENTS}::test_after_a_loss_calls_are_told_once_then_run_and_none_twice",
        f"{CLIENTS}::"
        "test_calls_that_come_at_once_after_a_loss_are_told_or_run_and_start_one_backend",
        f"{CLIENTS}::test_with_annotate_a_loss_is_noted_on_the_result_that_ran",
        f"{CLIENTS}::test_with_not_found_a_loss_ends_the_session",
        f"{LIFE}::test_methods_that_use_state_but_are_no_tools_are_told_by_an_error",
        f"{LIFE}::test_a_telling_that_did_not_reach_its_client_is_repeated",
        f"{LIFE}::test_waking_brings_a_backend_to_where_its_client_believes_it_is",
    ),
}
"""For each row, the node ids of the tests that show it, without parameters."""

LATER: Final[dict[str, str]] = {
    "F23": "the modern era: in-flight requests finish there too, listen streams get their result",
    "F25": "`persist_sessions`: an id that outlives a restart of the proxy wakes",
    "F27": "the modern era: a lost connection is a cancel",
    "F35": "the modern era: a static answer to roots/list, capabilities, parked exchanges",
    "F41": "tokens and requestState, which obey the wall clock: authentication, the modern era",
    "F44": "DELETE by another principal than the one owner there is: authentication",
    "F49": "reloading the configuration with running sessions",
}
"""What of a row is not yet there. A row may be here and above: then a part of it is shown."""
