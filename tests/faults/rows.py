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
MODERN: Final = "tests/faults/test_modern.py"
SECURE: Final = "tests/faults/test_security.py"
AUTH: Final = "tests/frontend/test_auth.py"
BINDING: Final = "tests/frontend/test_binding.py"
DOOR: Final = "tests/frontend/test_door.py"
HANDLES: Final = "tests/frontend/test_handles.py"
PIPED: Final = "tests/frontend/test_stdio.py"
SSE: Final = "tests/frontend/test_sse.py"
GUARD: Final = "tests/http/test_guard.py"
TOKENS: Final = "tests/http/test_auth.py"
CALLS: Final = "tests/eras/test_calls.py"
ROUNDS: Final = "tests/eras/test_rounds.py"
ERAS: Final = "tests/eras/test_launcher.py"
CATALOGUE: Final = "tests/core/test_catalogue.py"
CONVERSATIONS: Final = "tests/core/test_conversations.py"
ATTACHMENTS: Final = "tests/core/test_attachments.py"
REGISTRY: Final = "tests/core/test_registry.py"
HTTP: Final = "tests/backends/test_http.py"
LEGACY: Final = "tests/backends/test_legacy.py"
TEMPLATE: Final = "tests/backends/test_template.py"
TARGET: Final = "tests/backends/test_target.py"
UPSTREAMS: Final = "tests/backends/test_upstreams.py"
SHARE: Final = "tests/backends/test_share.py"
SHARED: Final = "tests/backends/test_shared.py"

TESTS: Final[dict[str, tuple[str, ...]]] = {
    # -- backends ---------------------------------------------------------------------------------
    "F01": (
        f"{BACKENDS}::test_a_command_that_cannot_be_started_is_an_error_with_the_reason",
        f"{BACKENDS}::test_a_command_that_fails_again_and_again_rests",
        f"{RUNGS}::test_a_command_that_cannot_be_executed_is_told",
        f"{RUNGS}::test_a_word_that_no_process_can_be_given_is_told",
        f"{RUNGS}::test_relative_paths_are_read_where_the_proxy_was_started",
        f"{RUNGS}::test_a_command_may_have_any_name",
        f"{MODERN}::test_a_backend_that_cannot_be_started_is_an_error_with_the_reason",
        f"{MODERN}::test_a_route_that_does_not_start_rests_for_clients_of_both_eras",
        f"{CATALOGUE}::test_a_backend_that_does_not_start_makes_its_route_rest",
        f"{CATALOGUE}::test_a_route_that_rests_is_not_asked_what_it_offers",
        f"{ERAS}::test_backends_that_are_only_asked_count_for_the_routes_rest_and_heed_it",
        f"{UPSTREAMS}::test_an_upstream_that_is_not_there_fails_the_start_and_leaves_nothing",
        f"{UPSTREAMS}::test_a_refused_credential_is_told_and_makes_nobody_else_wait",
    ),
    "F02": (
        f"{BACKENDS}::test_a_backend_that_ends_before_it_says_anything_names_its_exit_status",
        f"{FAILURES}::test_stderr_is_not_shown_where_it_is_not_exposed",
        f"{MODERN}::test_a_route_that_does_not_start_rests_for_clients_of_both_eras",
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
        f"{UPSTREAMS}::test_an_upstream_that_never_answers_initialize_is_given_up_in_time",
    ),
    "F06": (
        f"{BACKENDS}::test_a_backend_that_dies_fails_all_its_calls_and_its_session_goes_on",
        f"{PIPES}::test_an_exit_is_told_although_a_child_goes_on_writing_to_the_pipe",
        f"{RUNGS}::test_how_a_backend_ended_is_told",
        f"{MODERN}::test_a_backend_that_dies_fails_all_its_calls_and_the_next_is_told_once",
        f"{UPSTREAMS}::"
        "test_a_call_over_which_the_upstream_fails_has_an_unknown_end_and_is_not_repeated",
        f"{UPSTREAMS}::test_an_answer_that_cannot_be_taken_up_has_an_unknown_end",
    ),
    "F07": (
        f"{BACKENDS}::test_a_backend_that_leaves_while_idle_is_noticed_at_once_and_not_replaced",
        f"{UPSTREAMS}::test_a_lost_session_is_noticed_by_its_get_stream_while_nobody_asks",
    ),
    "F08": (
        f"{BACKENDS}::"
        "test_a_call_that_hangs_is_cancelled_at_the_limit_and_the_third_in_a_row_is_the_last",
        f"{FAILURES}::test_a_backend_silent_past_the_call_limit_gets_the_limit_named",
        f"{MODERN}::test_a_call_that_hangs_ends_at_the_limit_and_is_cancelled",
        f"{UPSTREAMS}::test_a_silent_call_ends_with_the_call_limit_and_is_cancelled_upstream",
    ),
    "F09": (f"{BACKENDS}::test_a_backend_that_is_stopped_by_a_signal_is_one_that_hangs",),
    "F10": (
        f"{PIPES}::test_lines_that_are_no_messages_are_dropped_and_logged_once_a_second",
        f"{PIPES}::test_a_backend_that_writes_hardly_anything_but_garbage_is_killed",
        f"{PIPES}::test_a_backend_that_writes_garbage_instead_of_a_welcome_does_not_start",
        f"{PIPES}::test_the_more_lines_a_backend_writes_the_less_is_read_at_once",
        f"{PIPES}::test_a_spare_that_talks_without_being_asked_is_read_when_it_is_taken",
        f"{PIPES}::test_a_backend_that_floods_its_stdout_holds_nobody_up",
        f"{UPSTREAMS}::test_an_upstream_that_floods_garbage_ends_its_own_session_alone",
    ),
    "F11": (
        f"{PIPES}::test_what_a_backend_writes_that_is_no_message_is_dropped_and_the_pipe_survives",
        f"{PIPES}::test_a_batch_of_a_backend_is_passed_on_as_single_messages",
        f"{PIPES}::test_what_a_client_posts_that_is_no_message_is_refused_and_harms_nobody",
        f"{UPSTREAMS}::test_what_is_no_answer_fails_the_call_and_not_the_session",
    ),
    "F12": (
        f"{PIPES}::test_half_a_line_and_then_the_end_is_a_death",
        f"{PIPES}::test_half_a_line_and_then_silence_changes_nothing",
    ),
    "F13": (
        f"{PIPES}::test_a_line_far_above_the_limit_is_discarded_as_it_comes",
        "tests/wire/test_lines.py::test_a_line_that_is_too_long_is_not_held_in_memory",
        f"{UPSTREAMS}::test_a_message_past_the_limit_fails_its_call_alone_and_is_not_kept",
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
        f"{UPSTREAMS}::test_what_an_upstream_does_not_take_is_bounded",
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
        f"{MODERN}::test_a_drain_lets_what_runs_finish_tells_who_listens_and_takes_nothing_new",
        f"{PIPED}::test_a_signal_lets_what_is_in_flight_end_first",
        f"{PIPED}::test_a_signal_ends_a_listener_with_its_result",
        f"{SSE}::test_a_signal_ends_every_stream_in_order",
    ),
    "F25": (
        f"{SHUTDOWN}::test_an_id_from_before_a_restart_is_unknown",
        f"{MODERN}::test_after_a_kill_of_the_proxy_nobody_takes_another_backend_for_the_one_before",
        f"{HANDLES}::test_a_handle_from_before_a_restart_has_ended",
    ),
    "F38": (
        f"{RESOURCES}::test_a_storm_is_admitted_as_far_as_the_queue_goes",
        f"{RESOURCES}::test_who_finds_the_queue_full_is_refused_at_once",
        f"{RESOURCES}::test_an_owner_at_its_limit_is_refused_before_the_queue_is_full",
        f"{MODERN}::test_a_storm_of_conversations_is_admitted_as_far_as_the_queue_goes",
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
    "F41": (
        f"{TIME}::test_a_wall_clock_that_is_set_changes_nothing",
        f"{TIME}::test_a_state_is_good_by_the_wall_clock",
        f"{ROUNDS}::test_a_note_is_good_for_a_time_of_the_wall_clock",
        f"{CALLS}::test_an_expired_state_is_refused",
    ),
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
    "F27": (
        f"{MODERN}::test_a_client_that_hangs_up_has_cancelled",
        f"{MODERN}::test_hanging_up_cancels_ones_own_request_alone",
        f"{CALLS}::test_a_client_that_hangs_up_on_its_retry_has_cancelled_too",
        f"{CALLS}::test_the_last_of_several_that_hangs_up_cancels",
        f"{HTTP}::test_a_modern_client_that_hangs_up_closes_the_stream_upstream",
        f"{UPSTREAMS}::test_a_cancelled_call_of_the_modern_era_is_cancelled_by_closing_its_stream",
    ),
    "F28": (
        f"{NETWORK}::test_a_call_goes_on_when_its_client_vanishes_and_its_answer_is_kept",
        f"{NETWORK}::test_a_session_whose_client_vanished_from_its_stream_stops_after_linger",
        f"{NETWORK}::"
        "test_a_client_that_vanishes_before_anything_was_written_is_found_by_the_first_comment",
        f"{NETWORK}::test_a_pause_of_the_network_shorter_than_the_limit_is_no_loss",
        f"{NETWORK}::test_a_modern_client_that_vanishes_has_cancelled",
    ),
    "F29": (
        f"{CLIENTS}::test_a_stalled_reader_of_the_get_stream_harms_no_call_of_its_session",
        f"{CLIENTS}::"
        "test_a_stalled_reader_of_what_must_not_be_dropped_is_cut_off_and_counts_as_gone",
        f"{STREAM}::test_while_nobody_reads_the_last_of_many_small_messages_are_kept",
        f"{STREAM}::test_log_messages_are_dropped_before_anything_else",
        f"{STREAM}::test_a_huge_message_makes_room_for_no_second_one",
        f"{MODERN}::test_a_stalled_reader_of_a_listening_stream_harms_no_call",
        f"{SSE}::test_a_client_that_reads_nothing_is_cut_off_and_harms_nobody",
    ),
    "F30": (
        f"{CLIENTS}::test_a_stalled_reader_of_a_call_fills_only_that_calls_buffer",
        f"{MODERN}::test_a_stalled_reader_of_a_call_is_cut_off_and_has_cancelled",
        f"{PIPED}::test_a_client_that_reads_nothing_of_what_must_not_be_dropped_is_cut_off",
    ),
    "F31": (
        f"{CLIENTS}::test_many_stalled_readers_cost_at_most_a_mebibyte_each",
        f"{STREAM}::test_a_stream_weighs_a_mebibyte_at_most",
    ),
    "F32": (
        f"{CLIENTS}::test_every_post_gets_its_own_answer_whatever_its_id",
        f"{CLIENTS}::test_a_cancellation_of_an_id_that_names_two_cancels_none",
        f"{RELAYING}::test_a_cancellation_that_names_no_call_or_two_cancels_none",
        f"{MODERN}::test_requests_with_one_id_each_get_their_own_answer",
        f"{PIPED}::test_a_cancellation_that_names_two_modern_requests_cancels_neither",
        f"{SHARED}::test_a_thousand_overlapping_calls_are_never_mixed",
    ),
    "F33": (
        f"{CLIENTS}::test_answers_out_of_order_doubled_unknown_or_late_are_routed_or_dropped",
        f"{MODERN}::test_answers_doubled_unknown_or_late_are_dropped_and_so_is_stray_progress",
    ),
    "F34": (
        f"{CLIENTS}::test_progress_that_belongs_to_nothing_or_goes_back_is_dropped",
        f"{CLIENTS}::test_calls_with_one_progress_token_each_get_their_own_progress",
        f"{CLIENTS}::test_params_nested_too_deep_never_carry_the_clients_own_token",
        f"{MODERN}::test_answers_doubled_unknown_or_late_are_dropped_and_so_is_stray_progress",
        f"{CALLS}::test_progress_is_told_under_the_token_of_the_request_that_waits",
        f"{SHARE}::test_progress_belongs_to_its_token",
    ),
    "F35": (
        f"{CLIENTS}::test_a_request_of_the_backend_with_nothing_in_flight_goes_to_the_get_stream",
        f"{CLIENTS}::"
        "test_a_request_of_the_backend_with_two_calls_in_flight_goes_out_once_and_on_one",
        f"{MODERN}::test_with_nothing_in_flight_roots_get_an_empty_list_and_the_rest_an_error",
        f"{MODERN}::test_a_question_goes_to_the_newest_call_whose_client_can_be_asked",
        f"{MODERN}::test_a_question_that_nobody_can_be_asked_is_declined",
        f"{CALLS}::test_a_later_caller_that_declares_less_is_asked_less",
        f"{CALLS}::test_a_question_goes_to_a_request_that_waits_before_one_that_is_parked",
        f"{SHARED}::test_a_question_that_may_be_anothers_is_refused_and_says_why",
        f"{ATTACHMENTS}::test_with_nobody_to_ask_roots_get_an_empty_list_and_the_rest_an_error",
        f"{UPSTREAMS}::test_overlapping_calls_are_told_asked_and_logged_to_each_on_its_own_stream",
    ),
    "F36": (f"{CLIENTS}::test_a_client_that_gets_404_opens_a_new_session_in_the_place_of_the_old",),
    "F37": (
        f"{CLIENTS}::test_all_ids_that_name_no_session_of_the_caller_get_one_answer",
        f"{ENDPOINT}::test_all_ids_that_name_no_session_of_the_caller_get_the_same_answer",
        f"{AUTH}::test_a_foreign_credential_on_a_session_is_answered_as_an_unknown_one",
        f"{HANDLES}::test_forged_and_never_issued_get_one_answer",
        f"{HANDLES}::test_another_owners_handle_is_an_unknown_one",
        f"{SSE}::test_an_id_that_is_no_open_streams_is_answered_as_unknown_whatever_it_is",
    ),
    "F39": (
        f"{CLIENTS}::test_a_client_that_hangs_up_in_the_queue_leaves_it",
        f"{CLIENTS}::test_a_client_that_hangs_up_while_its_backend_starts_leaves_nothing",
        f"{CLIENTS}::test_a_client_that_hung_up_on_the_stream_of_initialize_resumes_it",
        f"{CLIENTS}::test_a_client_that_never_resumes_initialize_keeps_no_backend",
        f"{MODERN}::test_who_hangs_up_while_its_backend_starts_leaves_it_to_the_next_call",
        f"{SSE}::test_a_client_that_leaves_while_its_backend_starts_leaves_nothing",
        f"{PIPED}::test_the_end_of_stdin_while_the_backend_starts_leaves_nothing",
    ),
    "F44": (
        f"{CLIENTS}::test_delete_in_a_call_ends_it_and_the_whole_tree",
        f"{LIFE}::test_delete_fails_the_calls_in_flight",
        f"{AUTH}::test_a_foreign_credential_on_a_session_is_answered_as_an_unknown_one",
    ),
    "F46": (
        f"{LIFE}::test_a_call_longer_than_the_idle_limit_is_never_cut_by_it",
        f"{LIFE}::test_an_open_get_stream_keeps_no_backend_and_survives_its_stop",
        f"{CALLS}::test_a_parked_call_keeps_its_session_from_being_idle",
        f"{CALLS}::test_the_lease_is_never_given_back_for_a_moment_between_two_rounds",
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
        f"{MODERN}::test_a_backend_that_dies_fails_all_its_calls_and_the_next_is_told_once",
        f"{MODERN}::"
        "test_calls_that_come_at_once_after_a_loss_are_told_or_run_and_start_one_backend",
        f"{MODERN}::test_with_annotate_a_loss_is_noted_on_the_result_that_ran",
        f"{MODERN}::test_who_opens_a_conversation_again_that_has_ended_is_told_why",
        f"{MODERN}::test_a_round_that_comes_after_a_loss_is_told_that_the_call_may_have_run",
        f"{CONVERSATIONS}::test_a_loss_that_was_not_told_yet_outlives_a_start_that_fails",
        f"{CONVERSATIONS}::test_how_one_owners_conversations_ended_is_not_forgotten_for_anothers",
        f"{HANDLES}::test_a_session_that_sleeps_is_woken_by_its_handle_and_tells_what_was_lost",
        f"{PIPED}::test_a_loss_of_state_is_told_once_before_anything_is_executed_again",
        f"{UPSTREAMS}::test_a_session_that_the_upstream_lost_with_its_state_is_told_as_lost",
    ),
}
"""For each row, the node ids of the tests that show it, without parameters."""

SECURITY: Final[dict[str, tuple[str, ...]]] = {
    "Host, Origin": (
        f"{ENDPOINT}::test_a_request_from_elsewhere_gets_403_before_its_body_is_read",
        f"{SECURE}::test_modern_requests_pass_the_same_guards_before_anything_is_started",
        f"{SSE}::test_the_guards_are_those_of_the_endpoint",
        f"{GUARD}::test_a_name_that_only_looks_like_ours_is_refused",
        f"{AUTH}::test_the_guard_stands_before_the_credential",
    ),
    "content type": (
        f"{SECURE}::test_modern_requests_pass_the_same_guards_before_anything_is_started",
        f"{SSE}::test_what_is_no_message_is_refused_where_it_was_posted",
        f"{ENDPOINT}::test_a_content_encoding_gets_415",
    ),
    "credentials": (
        f"{AUTH}::test_without_a_credential_nothing_is_told_and_nothing_started",
        f"{AUTH}::test_a_modern_request_without_a_credential_is_refused_too",
        f"{AUTH}::test_a_credential_goes_no_further_than_the_front",
        f"{AUTH}::test_two_credentials_are_none",
        f"{AUTH}::test_the_streams_of_a_revoked_token_end_and_those_of_others_stay",
        f"{AUTH}::test_a_listener_of_a_revoked_token_hears_nothing_more",
        f"{AUTH}::test_what_is_whole_after_its_token_was_revoked_is_not_executed",
        f"{TOKENS}::test_a_wrong_line_is_named_by_file_and_number_and_not_shown",
        f"{TARGET}::test_a_callers_credential_stays_here_unless_the_operator_says_otherwise",
        f"{TARGET}::test_requests_that_wait_together_keep_each_its_own_credential",
        f"{TARGET}::test_the_operators_headers_go_with_every_request_and_into_no_log",
        f"{HTTP}::test_no_log_line_has_an_id_of_the_upstreams_or_a_header",
        f"{SECURE}::test_nothing_that_opens_a_session_is_in_the_log",
    ),
    "session hijacking": (
        f"{AUTH}::test_a_foreign_credential_on_a_session_is_answered_as_an_unknown_one",
        f"{AUTH}::test_the_same_key_of_two_owners_names_two_conversations",
        f"{HANDLES}::test_another_owners_handle_is_an_unknown_one",
        f"{HANDLES}::test_forged_and_never_issued_get_one_answer",
        f"{SSE}::test_a_stream_is_its_owners_alone",
        f"{BINDING}::test_without_authentication_beyond_loopback_a_name_must_be_beyond_guessing",
        f"{BINDING}::test_without_a_cookie_of_ours_a_client_gets_one",
        f"{BINDING}::test_the_name_in_a_path_is_in_no_log",
        f"{SECURE}::test_a_modern_request_reaches_no_session_by_an_id_that_it_carries",
        f"{SECURE}::test_who_listens_hears_nothing_of_another_owners_conversation",
    ),
    "commands": (
        f"{SECURE}::test_a_name_of_a_conversation_goes_nowhere_but_into_a_look_up",
        f"{TEMPLATE}::test_a_backend_inherits_what_it_needs_to_run_and_nothing_else",
        f"{TEMPLATE}::test_a_variable_that_cannot_be_passed_on_is_a_wrong_setting",
    ),
    "headers": (
        f"{SECURE}::test_a_header_that_says_what_the_body_says_is_refused_when_it_comes_twice",
        f"{HANDLES}::test_what_the_header_says_must_be_what_the_body_says",
        f"{SECURE}::test_an_argument_that_goes_into_a_header_brings_no_other_along",
        f"{SECURE}::test_no_header_of_an_upstream_reaches_a_client",
        f"{SECURE}::test_a_session_id_that_an_upstream_must_not_give_harms_nobody",
    ),
    "requestState": (
        f"{SECURE}::test_a_state_is_worth_nothing_to_another_owner",
        f"{CALLS}::test_a_state_that_was_altered_is_refused",
        f"{CALLS}::test_a_state_of_another_owner_or_conversation_is_refused",
        f"{CALLS}::test_a_retry_of_another_request_is_refused",
        f"{CALLS}::test_a_retry_with_other_answers_is_refused",
        f"{CALLS}::test_an_expired_state_is_refused",
        f"{ROUNDS}::test_a_note_tells_its_client_nothing",
    ),
    "redirects and other places": (
        f"{UPSTREAMS}::test_a_redirect_is_not_followed_and_nothing_goes_there",
        f"{LEGACY}::test_an_endpoint_of_another_origin_is_not_posted_to",
        f"{SECURE}::test_nothing_that_a_client_sends_says_where_an_upstream_is",
        f"{UPSTREAMS}::test_cookies_of_the_upstream_come_back_to_it_within_their_session_alone",
    ),
    "TLS": (
        f"{DOOR}::test_calls_and_streams_go_over_tls",
        f"{DOOR}::test_a_handshake_that_does_not_end_is_cut_off",
        f"{DOOR}::test_what_is_no_tls_is_closed",
        f"{TARGET}::test_a_certificate_that_nobody_vouches_for_is_not_accepted",
    ),
    "several users": (
        f"{SHARED}::test_users_of_both_eras_are_never_mixed",
        f"{SHARED}::test_users_who_are_not_known_never_get_a_log_message_of_an_earlier_request",
        f"{REGISTRY}::test_an_owner_with_very_many_sleepers_evicts_none_of_anothers",
        f"{CONVERSATIONS}::test_how_one_owners_conversations_ended_is_not_forgotten_for_anothers",
    ),
}
"""For each topic of the rules at the end of FAULTS, the tests that show it, as far as it is there.
"""

LATER: Final[dict[str, str]] = {
    "F25": "`persist_sessions`: an id that outlives a restart of the proxy wakes, and who uses a "
    "name of its own making again after one is told that its state is lost",
    "F41": "tokens that expire, which obey the wall clock: those of JWT",
    "F49": "reloading the configuration with running sessions",
}
"""What of a row is not yet there. A row may be here and above: then a part of it is shown."""
