"""A modern client's request at a handshake backend: asked, parked, taken up, given up."""

import weakref
from collections.abc import Sequence

import anyio
import msgspec
import pytest

from sessionproxy.core.state import EndReason, SessionState, StopReason
from sessionproxy.eras import turns
from sessionproxy.eras.calls import GATHER, MAX_KEPT, MAX_KEPT_BYTES, MAX_ROUNDS, PARKED, Call
from sessionproxy.eras.rounds import SEALED_FOR
from sessionproxy.eras.turns import MAX_STORED, MAX_TURNS, STORED

from .rig import (
    ACCEPTED,
    ALL,
    CANCELLED,
    FORM,
    Json,
    Modern,
    Question,
    Request,
    World,
    moments,
    world,
)

SAMPLING: Json = {"messages": [], "maxTokens": 1}


async def asked(found: World, client: Modern, questions: int = 1, **more: object) -> Request:
    """Return a request whose client was asked something."""
    request = client.call(**more)  # pyright: ignore[reportArgumentType]
    for _ in range(questions):
        found.server.ask()
    await moments()
    assert request.is_asked
    return request


def outcomes(questions: Sequence[Question]) -> list[Json | None]:
    return [question.result or question.error for question in questions]


# -- one round -------------------------------------------------------------------------------------


async def test_an_answer_without_a_question_is_the_backends_with_what_the_revision_requires() -> (
    None
):
    """DESIGN 9; 2026-07-28 basic#results."""
    async with world() as found:
        client = await found.modern()
        request = client.call("act", {"x": 1})
        server = found.server
        assert server.last.params == {"name": "act", "arguments": {"x": 1}}
        server.last.answer({"content": [1], "strange": {"kept": True}})
        assert request.result == {
            "resultType": "complete",
            "content": [1],
            "strange": {"kept": True},
            "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "s", "version": "1"}},
        }


@pytest.mark.parametrize("method", ["tools/call", "prompts/get", "resources/read"])
async def test_a_question_goes_to_the_client_and_its_answer_to_the_backend(method: str) -> None:
    """2026-07-28 basic/patterns/mrtr#basic-workflow."""
    async with world() as found:
        client = await found.modern()
        first = client.call(method=method)
        question = found.server.ask("elicitation/create", FORM)
        assert first.waits
        await moments()
        (key,) = first.questions
        assert first.questions == {key: {"method": "elicitation/create", "params": FORM}}
        assert question.is_open
        answers = {key: ACCEPTED}
        second = client.call(method=method, inputResponses=answers, requestState=first.state)
        assert question.result == ACCEPTED
        assert second.waits
        found.server.last.answer({"done": True})
        assert second.result["done"]
        assert len(found.server.requests) == 1


@pytest.mark.parametrize("method", ["completion/complete", "made/up"])
async def test_other_requests_are_never_answered_with_a_question(method: str) -> None:
    """2026-07-28 basic/patterns/mrtr#supported-requests; DESIGN 9: elsewhere roots gets an empty
    list and the rest an error."""
    async with world() as found:
        client = await found.modern()
        request = client.call(method=method)
        questions = [
            found.server.ask("elicitation/create"),
            found.server.ask("sampling/createMessage", SAMPLING),
            found.server.ask("roots/list", {}),
        ]
        await moments()
        assert request.waits
        assert questions[0].error is not None
        assert questions[1].error is not None
        assert questions[2].result == {"roots": []}
        found.server.last.answer({})
        assert request.result["resultType"] == "complete"


async def test_with_nothing_in_flight_roots_get_an_empty_list_and_the_rest_an_error() -> None:
    """DESIGN 9."""
    async with world() as found:
        await found.modern()
        questions = [
            found.server.ask("elicitation/create"),
            found.server.ask("sampling/createMessage", SAMPLING),
            found.server.ask("roots/list", {}),
        ]
        assert questions[0].error is not None
        assert questions[1].error is not None
        assert questions[2].result == {"roots": []}


async def test_questions_within_a_moment_travel_together_and_later_ones_in_the_next_round() -> None:
    """DESIGN 9: requests that come within 50 ms travel together."""
    async with world() as found:
        client = await found.modern()
        first = client.call()
        early = [found.server.ask(), found.server.ask("roots/list", {})]
        await anyio.sleep(GATHER * 0.9)
        early.append(found.server.ask("sampling/createMessage", SAMPLING))
        assert first.waits
        await anyio.sleep(GATHER * 0.2)
        assert len(first.questions) == 3
        late = found.server.ask()
        await moments()
        second = client.retry(first)
        assert outcomes(early) == [ACCEPTED] * 3
        assert late.is_open
        await moments()
        assert len(second.questions) == 1
        assert not second.questions.keys() & first.questions.keys()
        third = client.retry(second)
        assert late.result == ACCEPTED
        found.server.last.answer()
        assert third.result["resultType"] == "complete"


async def test_what_was_not_answered_is_asked_again_and_what_was_not_asked_is_ignored() -> None:
    """2026-07-28 basic/patterns/mrtr#error-handling."""
    async with world() as found:
        client = await found.modern()
        first = client.call()
        questions = [found.server.ask(), found.server.ask()]
        await moments()
        keys = list(first.questions)
        second = client.retry(first, {keys[0]: ACCEPTED, "made-up": {"action": "decline"}})
        assert outcomes(questions) == [ACCEPTED, None]
        await moments()
        assert list(second.questions) == keys[1:]
        third = client.retry(second)
        assert outcomes(questions) == [ACCEPTED] * 2
        found.server.last.answer()
        assert third.result["resultType"] == "complete"


async def test_a_call_has_at_most_nine_rounds_then_the_user_gives_no_answer() -> None:
    """DESIGN 9: clients stop at ten."""
    async with world() as found:
        client = await found.modern()
        request = client.call()
        for number in range(1, MAX_ROUNDS + 1):
            question = found.server.ask()
            await moments()
            assert request.is_asked, number
            request = client.retry(request)
            assert question.result == ACCEPTED
        question = found.server.ask()
        await moments()
        assert request.waits
        assert question.result == {"action": "cancel"}
        found.server.last.answer({"content": ["enough"]})
        assert request.result["content"] == ["enough"]


async def test_a_question_that_the_backend_takes_back_is_not_asked() -> None:
    async with world() as found:
        client = await found.modern()
        request = client.call()
        question = found.server.ask()
        found.server.take_back(question)
        await moments()
        assert request.waits
        found.server.last.answer()
        assert question.is_open
        assert request.result["resultType"] == "complete"


async def test_answers_to_a_question_taken_back_meanwhile_go_nowhere() -> None:
    async with world() as found:
        client = await found.modern()
        first = await asked(found, client)
        question = found.server.ask()
        found.server.take_back(question)
        second = client.retry(first)
        await moments()
        assert question.is_open
        assert second.waits
        found.server.last.answer()
        assert second.result["resultType"] == "complete"


# -- what the client declared ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capabilities", "method", "params", "is_asked"),
    [
        ({"elicitation": {}}, "elicitation/create", FORM, True),
        ({"elicitation": {}}, "elicitation/create", {"message": "?"}, True),
        ({"elicitation": {"form": {}}}, "elicitation/create", FORM, True),
        ({"elicitation": {"url": {}}}, "elicitation/create", {"mode": "url", "url": "x"}, True),
        ({"elicitation": {}}, "elicitation/create", {"mode": "url", "url": "x"}, False),
        ({"elicitation": {"form": {}}}, "elicitation/create", {"mode": "url"}, False),
        ({"elicitation": {"url": {}}}, "elicitation/create", FORM, False),
        ({"elicitation": {"url": {}}}, "elicitation/create", {"message": "?"}, False),
        ({"roots": {}}, "elicitation/create", FORM, False),
        ({"sampling": {}}, "sampling/createMessage", SAMPLING, True),
        ({"sampling": {}}, "sampling/createMessage", {**SAMPLING, "tools": []}, False),
        ({"sampling": {}}, "sampling/createMessage", {**SAMPLING, "toolChoice": {}}, False),
        ({"sampling": {"tools": {}}}, "sampling/createMessage", {**SAMPLING, "tools": []}, True),
        ({}, "sampling/createMessage", SAMPLING, False),
        ({"roots": {}}, "roots/list", {}, True),
        ({}, "roots/list", {}, False),
    ],
)
async def test_a_client_is_asked_what_it_declared_and_nothing_else(
    capabilities: Json, method: str, params: Json, is_asked: bool
) -> None:
    """2026-07-28 basic/patterns/mrtr#server-requirements; client/elicitation#capabilities;
    client/sampling#capabilities. DESIGN 9: what it did not declare is declined, not failed."""
    async with world() as found:
        client = await found.modern(capabilities=capabilities)
        request = client.call()
        question = found.server.ask(method, params)
        await moments()
        assert request.is_asked is is_asked
        if is_asked:
            (shown,) = request.questions.values()
            assert shown == {"method": method, "params": params}
            client.retry(request)
            assert question.result == ACCEPTED
        elif method == "elicitation/create":
            assert question.result == {"action": "decline"}
        elif method == "roots/list":
            assert question.result == {"roots": []}
        else:
            assert question.error is not None
            assert question.error["code"] == -32021
        found.server.last.answer()


async def test_context_of_other_servers_is_not_asked_of_a_client_that_has_none() -> None:
    """2026-07-28 client/sampling: servers should not, without `sampling.context`."""
    wanting: Json = {**SAMPLING, "includeContext": "allServers"}
    async with world() as found:
        shown: list[object] = []
        for number, declared in enumerate((Json(), Json(context={}))):
            client = await found.modern(key=f"c:{number}", capabilities={"sampling": declared})
            request = client.call()
            found.servers.started[-1].ask("sampling/createMessage", wanting)
            await moments()
            shown += [question["params"] for question in request.questions.values()]
        assert shown == [SAMPLING, wanting]


async def test_a_later_caller_that_declares_less_is_asked_less() -> None:
    """DESIGN 9: what a later caller lacks is declined."""
    async with world() as found:
        await found.modern()
        lesser = await found.modern(capabilities={})
        request = lesser.call()
        question = found.server.ask()
        await moments()
        assert question.result == {"action": "decline"}
        assert request.waits


async def test_a_retry_that_declares_less_than_before_is_asked_less() -> None:
    async with world() as found:
        client = await found.modern()
        first = await asked(found, client)
        late = found.server.ask()
        lesser = await found.modern(capabilities={})
        second = lesser.retry(first)
        await moments()
        assert second.waits
        assert late.result == {"action": "decline"}


async def test_a_question_goes_to_a_request_whose_client_can_be_asked_if_there_is_one() -> None:
    """DESIGN 8: the newest one that can carry it; here by the part of a capability too."""
    async with world() as found:
        able = await found.modern(capabilities={"elicitation": {"url": {}}})
        unable = await found.modern(capabilities={"elicitation": {}})
        first, second = able.call("first"), unable.call("second")
        question = found.server.ask("elicitation/create", {"mode": "url", "url": "x"})
        await moments()
        assert first.is_asked
        assert second.waits
        able.retry(first, name="first")
        assert question.result == ACCEPTED


async def test_a_question_goes_to_a_request_that_waits_before_one_that_is_parked() -> None:
    """DESIGN 8: there its client is asked at once."""
    async with world() as found:
        client = await found.modern()
        waiting = client.call("waiting")
        parked = await asked(found, client, name="parked")
        question = found.server.ask()
        await moments()
        assert waiting.is_asked
        client.retry(waiting, name="waiting")
        assert question.result == ACCEPTED
        assert client.retry(parked, name="parked").waits


async def test_the_id_of_an_elicitation_is_left_out() -> None:
    """2026-07-28 changelog: `elicitationId` of URL elicitations was removed."""
    params: Json = {"mode": "url", "message": "?", "url": "http://x", "elicitationId": "1"}
    async with world() as found:
        client = await found.modern()
        request = client.call()
        found.server.ask("elicitation/create", params)
        await moments()
        (shown,) = request.questions.values()
        assert shown["params"] == {"mode": "url", "message": "?", "url": "http://x"}


# -- the same retry twice, another one, a lost one -------------------------------------------------


async def test_a_retry_that_was_sent_twice_waits_together_with_the_first() -> None:
    """DESIGN 9: identical ones join it."""
    async with world() as found:
        client = await found.modern()
        first = await asked(found, client)
        retries = [client.retry(first) for _ in range(3)]
        assert all(retry.waits for retry in retries)
        found.server.last.answer({"content": ["once"]})
        assert [retry.result["content"] for retry in retries] == [["once"]] * 3
        assert len(found.server.requests) == 1


async def test_a_retry_sent_again_gets_what_the_first_got_for_a_minute() -> None:
    """DESIGN 9: or get its stored result for 60 s."""
    async with world() as found:
        client = await found.modern()
        first = await asked(found, client)
        second = client.retry(first)
        found.server.last.answer({"content": ["once"]})
        await anyio.sleep(STORED - 1)
        assert client.retry(first).result == second.result
        await anyio.sleep(2)
        assert client.retry(first).failure == "no_longer_waiting"
        assert len(found.server.requests) == 1


async def test_a_retry_sent_again_gets_the_next_question_too() -> None:
    async with world() as found:
        client = await found.modern()
        first = await asked(found, client)
        second = client.retry(first)
        found.server.ask()
        await moments()
        assert client.retry(first).result == second.result
        assert second.is_asked


async def test_a_retry_with_other_answers_is_refused() -> None:
    """DESIGN 9: different ones are refused, whether the first waits or was answered."""
    async with world() as found:
        client = await found.modern()
        first = await asked(found, client)
        (key,) = first.questions
        client.retry(first)
        assert client.retry(first, {key: {"action": "decline"}}).failure == "invalid_request_state"
        assert client.retry(first, {}).failure == "invalid_request_state"
        found.server.last.answer()
        assert client.retry(first, {key: {"action": "decline"}}).failure == "invalid_request_state"


async def test_answers_in_other_places_are_the_same_answers() -> None:
    """What the client sends besides, and in which order, does not make it another retry."""
    async with world() as found:
        client = await found.modern()
        first = await asked(found, client, questions=2)
        one, two = first.questions
        client.retry(first, {one: ACCEPTED, two: ACCEPTED})
        again = client.retry(first, {two: ACCEPTED, one: ACCEPTED, "more": {}})
        assert again.waits


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "other"},
        {"arguments": {"x": 2}},
        {"arguments": {}},
        {"method": "prompts/get"},
        {"requestState": "v1.AAAA"},
        {"requestState": ""},
    ],
)
async def test_a_retry_of_another_request_is_refused(changed: dict[str, object]) -> None:
    """2026-07-28 basic/patterns/mrtr#server-requirements: state presented on a request that does
    not match."""
    async with world() as found:
        client = await found.modern()
        first = await asked(found, client, arguments={"x": 1})
        retry = client.retry(first, **{"arguments": {"x": 1}, **changed})  # pyright: ignore[reportArgumentType]
        assert retry.failure == "invalid_request_state"
        assert client.retry(first, arguments={"x": 1}).waits


async def test_parameters_in_other_words_are_the_same_parameters() -> None:
    async with world() as found:
        client = await found.modern()
        first = await asked(found, client, arguments={"a": 1.0, "b": [1, {"c": "é"}]})
        retry = client.retry(first, arguments={"b": [1, {"c": "é"}], "a": 1.0}, _more=1)
        assert retry.waits


async def test_answers_larger_than_the_parameters_leave_those_the_same() -> None:
    """Whether parameters are small is not for the answers beside them to say."""
    async with world() as found:
        client = await found.modern()
        first = await asked(found, client, arguments={"b": 1, "a": 2})
        answers = {key: {**ACCEPTED, "more": "x" * 200_000} for key in first.questions}
        assert client.retry(first, answers, arguments={"a": 2, "b": 1}).waits


async def test_a_state_that_was_altered_is_refused() -> None:
    async with world() as found:
        client = await found.modern()
        first = await asked(found, client)
        state = first.state
        for at in range(3, len(state), 7):
            other = "A" if state[at] != "A" else "B"
            altered = state[:at] + other + state[at + 1 :]
            assert client.retry(first, requestState=altered).failure == "invalid_request_state"


async def test_a_state_of_another_owner_or_conversation_is_refused() -> None:
    """DESIGN 9: another owner's. The frontend looks first; this is what it relies on."""
    async with world() as found:
        alice = await found.modern()
        others = [await found.modern(owner="bob"), await found.modern(key="c:other")]
        request = alice.call()
        found.servers.running[0].ask()
        await moments()
        for other in others:
            assert other.retry(request).failure == "invalid_request_state"
        assert alice.retry(request).waits


async def test_an_expired_state_is_refused() -> None:
    """By the wall clock (FAULTS F41)."""
    async with world() as found:
        client = await found.modern()
        first = await asked(found, client)
        found.wall += SEALED_FOR + 1
        assert client.retry(first).failure == "invalid_request_state"
        found.wall -= 2
        assert client.retry(first).waits


async def test_answers_that_are_no_map_of_objects_are_refused_and_may_be_sent_again() -> None:
    """2026-07-28 basic/patterns/mrtr#error-handling."""
    async with world() as found:
        client = await found.modern()
        first = await asked(found, client)
        (key,) = first.questions
        wrongs: list[object] = [[], "yes", 7, {key: "yes"}, {key: None}, {key: ACCEPTED, "more": 1}]
        for wrong in wrongs:
            retry = client.call(inputResponses=wrong, requestState=first.state)
            assert retry.failure == "invalid_message"
        assert client.retry(first).waits


async def test_a_retry_without_answers_is_asked_again() -> None:
    async with world() as found:
        client = await found.modern()
        first = await asked(found, client)
        second = client.call(requestState=first.state)
        await moments()
        assert second.questions == first.questions


# -- parked ----------------------------------------------------------------------------------------


async def test_a_parked_call_keeps_its_session_from_being_idle() -> None:
    """DESIGN 9: parked is a lease; DESIGN 7: a call longer than the limit is never cut by it."""
    async with world(idle=20) as found:
        client = await found.modern()
        first = await asked(found, client)
        await anyio.sleep(PARKED - 10)
        assert client.session.state is SessionState.READY
        assert client.session.leases == 1
        second = client.retry(first)
        found.server.last.answer()
        assert second.result["resultType"] == "complete"
        assert client.session.leases == 0
        await anyio.sleep(25)
        assert client.session.stop_reason is StopReason.IDLE


async def test_the_lease_is_never_given_back_for_a_moment_between_two_rounds() -> None:
    async with world() as found:
        client = await found.modern()
        seen: list[int] = []
        session = client.session
        given_back = type(session).returned

        def returned(self: object, exchange: object) -> None:
            given_back(self, exchange)  # pyright: ignore[reportArgumentType]
            seen.append(session.leases)

        type(session).returned = returned
        try:
            request = client.call()
            for _ in range(3):
                found.server.ask()
                await moments()
                request = client.retry(request)
            assert min(seen) == 1
            assert session.leases == 1
        finally:
            type(session).returned = given_back
        found.server.last.answer()
        assert session.leases == 0


async def test_a_parked_call_that_nobody_comes_back_for_is_cancelled_at_the_backend() -> None:
    """DESIGN 9: its TTL is 300 s; the questions are answered `cancel`; a late retry gets a tool
    error."""
    async with world() as found:
        client = await found.modern()
        first = client.call()
        questions = [found.server.ask(), found.server.ask("sampling/createMessage", SAMPLING)]
        await moments()
        questions.append(found.server.ask("roots/list", {}))
        await anyio.sleep(PARKED - 1)
        assert not found.server.last.cancelled
        await anyio.sleep(2)
        assert found.server.last.cancelled
        assert questions[0].result == {"action": "cancel"}
        assert questions[1].error is not None
        assert questions[2].result == {"roots": []}
        assert client.session.leases == 0
        late = client.retry(first)
        assert late.failure == "no_longer_waiting"
        failure = late.exchange.outcome and late.exchange.outcome.failure
        assert str(failure) == "The request is no longer waiting for these answers; call again."


async def test_each_round_has_its_own_time() -> None:
    async with world() as found:
        client = await found.modern()
        request = client.call()
        for _ in range(3):
            found.server.ask()
            await moments()
            await anyio.sleep(PARKED - 10)
            request = client.retry(request)
            assert request.waits
        found.server.last.answer()
        assert request.result["resultType"] == "complete"


async def test_what_the_backend_tells_meanwhile_is_kept_and_comes_before_the_answer() -> None:
    """DESIGN 9: notifications kept in between; DESIGN 5.3: in their order."""
    async with world() as found:
        client = await found.modern(log_level="debug")
        first = client.call(token="a")
        found.server.last.progress(1)
        found.server.ask()
        await moments()
        found.server.log("info", "one")
        found.server.last.progress(2)
        found.server.note("notifications/made_up", x=1)
        second = client.retry(first, token="b")
        found.server.last.progress(3)
        found.server.last.answer()
        assert [note["params"] for note in first.said] == [{"progressToken": "a", "progress": 1}]
        assert [note["params"] for note in second.said] == [
            {"level": "info", "data": "one"},
            {"progressToken": "b", "progress": 2},
            {"x": 1},
            {"progressToken": "b", "progress": 3},
        ]


async def test_what_is_kept_comes_before_an_answer_that_came_meanwhile() -> None:
    async with world() as found:
        client = await found.modern(log_level="debug")
        first = await asked(found, client)
        found.server.log("info", "one")
        found.server.last.answer({"content": ["early"]})
        second = client.retry(first)
        assert [note["method"] for note in second.said] == ["notifications/message"]
        assert second.result["content"] == ["early"]


async def test_what_is_kept_is_bounded_and_the_oldest_goes_first() -> None:
    """DESIGN 5.3: bounded in memory."""
    async with world() as found:
        client = await found.modern(log_level="debug")
        first = await asked(found, client)
        for number in range(MAX_KEPT + 10):
            found.server.log("info", str(number))
        second = client.retry(first)
        assert len(second.said) == MAX_KEPT
        assert second.said[0]["params"] == {"level": "info", "data": "10"}
        found.server.ask()
        await moments()
        for number in range(10):
            found.server.log("info", str(number) * (MAX_KEPT_BYTES // 4))
        third = client.retry(second)
        assert 2 <= len(third.said) <= 4
        assert str(third.said[-1]["params"]).count("9") > 1000


async def test_progress_is_told_under_the_token_of_the_request_that_waits() -> None:
    """2026-07-28 basic/patterns/progress: tokens of active requests alone."""
    async with world() as found:
        client = await found.modern()
        first = await asked(found, client, token="first")
        found.server.last.progress(1)
        silent = client.retry(first)
        found.server.last.progress(2)
        assert silent.said == []
        found.server.ask()
        await moments()
        third = client.retry(silent, token=7)
        found.server.last.progress(3)
        joined = client.retry(silent, token="joined")
        found.server.last.progress(4)
        joined.hang_up()
        found.server.last.progress(5)
        assert [note["params"] for note in third.said] == [
            {"progressToken": 7, "progress": 3},
            {"progressToken": 7, "progress": 5},
        ]
        assert [note["params"] for note in joined.said] == [
            {"progressToken": "joined", "progress": 4}
        ]


# -- answers and ends while it is parked -----------------------------------------------------------


async def test_an_answer_that_came_without_waiting_is_kept_for_the_client() -> None:
    """The backend did not wait for what it asked; its client comes back all the same."""
    async with world(idle=20) as found:
        client = await found.modern()
        first = await asked(found, client)
        found.server.last.answer({"content": ["early"]})
        await anyio.sleep(100)
        assert client.session.state is SessionState.READY
        second = client.retry(first)
        assert second.result["content"] == ["early"]
        await anyio.sleep(1)
        assert client.retry(first).result == second.result
        assert client.session.leases == 0


async def test_an_answer_that_nobody_fetches_is_forgotten() -> None:
    async with world() as found:
        client = await found.modern()
        first = await asked(found, client)
        found.server.last.answer({"content": ["early"]})
        await anyio.sleep(PARKED + 1)
        assert client.session.leases == 0
        assert not found.server.last.cancelled
        assert client.retry(first).failure == "no_longer_waiting"


async def test_answers_reach_a_question_whose_carrier_was_answered_meanwhile() -> None:
    """A pipe does not say whose question it is: it may be that of another call (DESIGN 8)."""
    async with world() as found:
        client = await found.modern()
        slow, quick = client.call("slow"), client.call("quick")
        question = found.server.ask()
        await moments()
        assert slow.waits
        found.server.requests[1].answer({"content": ["quick"]})
        again = client.retry(quick, name="quick")
        assert again.result["content"] == ["quick"]
        assert question.result == ACCEPTED
        found.server.requests[0].answer({"content": ["slow"]})
        assert slow.result["content"] == ["slow"]


async def test_a_question_whose_carrier_is_answered_first_goes_to_another_call() -> None:
    async with world() as found:
        client = await found.modern()
        slow, quick = client.call("slow"), client.call("quick")
        question = found.server.ask()
        found.server.requests[1].answer({"content": ["quick"]})
        assert quick.result["content"] == ["quick"]
        assert question.is_open
        await moments()
        again = client.retry(slow, name="slow")
        assert question.result == ACCEPTED
        found.server.requests[0].answer()
        assert again.result["resultType"] == "complete"


async def test_a_question_that_its_only_call_does_not_wait_for_gets_no_answer_of_a_user() -> None:
    async with world() as found:
        client = await found.modern()
        request = client.call()
        question = found.server.ask()
        found.server.last.answer({"content": ["already"]})
        assert request.result["content"] == ["already"]
        assert question.result == {"action": "cancel"}


async def test_a_backend_that_dies_while_a_call_is_parked_leaves_nothing_waiting() -> None:
    """FAULTS F06; then the retry is told of the loss, or that nothing waits."""
    async with world() as found:
        client = await found.modern()
        first = await asked(found, client)
        found.server.exit()
        await moments()
        session = client.session
        assert session.leases == 0
        assert session.stop_reason is StopReason.BACKEND_EXIT
        client = await found.modern()
        assert client.retry(first).failure == "no_longer_waiting"


async def test_a_backend_that_dies_during_a_round_fails_its_request() -> None:
    async with world() as found:
        client = await found.modern()
        first = await asked(found, client)
        second = client.retry(first)
        found.server.ask()
        found.server.exit()
        assert second.failure == "backend_gone"
        await moments()
        assert client.session.leases == 0


async def test_a_session_that_is_stopped_or_ended_takes_its_parked_calls_along() -> None:
    async with world() as found:
        for killed in (False, True):
            client = await found.modern(key=f"c:{killed}")
            client.call()
            found.server.ask()
            await moments()
            assert client.session.leases == 1
            if killed:
                found.manager.end(client.session, EndReason.KILLED)
            else:
                client.session.stop(StopReason.IDLE)
            await moments(5)
            assert client.session.leases == 0
            assert not found.servers.running


async def test_a_state_of_another_life_of_the_backend_waits_for_nothing() -> None:
    """Also where calls, rounds and parameters are the same: numbers begin again with each life."""
    async with world() as found:
        client = await found.modern()
        first = await asked(found, client)
        client.session.stop(StopReason.IDLE)
        await moments(5)
        client = await found.modern()
        second = await asked(found, client)
        assert client.retry(first).failure == "no_longer_waiting"
        assert client.retry(second).waits


# -- clients that hang up --------------------------------------------------------------------------


async def test_a_client_that_hangs_up_has_cancelled() -> None:
    """2026-07-28 basic/transports/streamable-http#cancellation; FAULTS F27."""
    async with world() as found:
        client = await found.modern()
        request = client.call()
        question = found.server.ask()
        request.hang_up()
        assert request.failure == CANCELLED
        assert found.server.last.cancelled
        assert question.result == {"action": "cancel"}
        await moments()
        assert client.session.leases == 0
        found.server.last.answer({"content": ["late"]})
        assert request.failure == CANCELLED


async def test_a_client_that_hangs_up_on_its_retry_has_cancelled_too() -> None:
    async with world() as found:
        client = await found.modern()
        first = await asked(found, client)
        second = client.retry(first)
        second.hang_up()
        assert found.server.last.cancelled
        assert client.session.leases == 0
        assert client.retry(first).failure == "no_longer_waiting"


async def test_a_client_that_hangs_up_while_others_wait_leaves_the_call_to_them() -> None:
    async with world() as found:
        client = await found.modern()
        first = await asked(found, client)
        retries = [client.retry(first) for _ in range(3)]
        retries[0].hang_up()
        retries[2].hang_up()
        assert not found.server.last.cancelled
        found.server.last.answer({"content": ["once"]})
        assert [retry.failure for retry in retries] == [CANCELLED, "", CANCELLED]
        assert retries[1].result["content"] == ["once"]
        assert client.session.leases == 0


async def test_the_last_of_several_that_hangs_up_cancels() -> None:
    async with world() as found:
        client = await found.modern()
        first = await asked(found, client)
        retries = [client.retry(first) for _ in range(2)]
        for retry in retries:
            retry.hang_up()
        assert found.server.last.cancelled
        assert client.session.leases == 0


async def test_hanging_up_after_the_answer_changes_nothing() -> None:
    """As a client does that was asked something: it closes the request's connection."""
    async with world() as found:
        client = await found.modern()
        first = await asked(found, client)
        first.hang_up()
        assert not found.server.last.cancelled
        assert client.session.leases == 1
        assert client.retry(first).waits


async def test_a_call_past_the_call_limit_fails_and_is_cancelled() -> None:
    """DESIGN 11: backend silent past the call limit; the time of the client does not count."""
    async with world(call_timeout=30) as found:
        client = await found.modern()
        first = await asked(found, client)
        await anyio.sleep(100)
        second = client.retry(first)
        await anyio.sleep(29)
        assert second.waits
        await anyio.sleep(2)
        assert second.failure == "backend_silent"
        assert found.server.last.cancelled
        assert client.session.leases == 0


# -- several at once -------------------------------------------------------------------------------


async def test_parked_calls_and_ordinary_ones_do_not_disturb_each_other() -> None:
    """Each of several parked calls is taken up by its own retry, whatever the order."""
    async with world() as found:
        client = await found.modern()
        parked: list[Request] = []
        questions: list[Question] = []
        for number in range(5):
            parked.append(client.call(f"p{number}"))
            questions.append(found.server.ask("elicitation/create", {**FORM, "message": number}))
            await moments()
        plain = [client.call(f"q{number}") for number in range(5)]
        for number in (3, 0, 4, 1, 2):
            found.server.requests[5 + number].answer({"content": [f"q{number}"]})
        assert [request.result["content"] for request in plain] == [[f"q{n}"] for n in range(5)]
        for number in (4, 0, 2, 3, 1):
            answers = {key: {"action": "accept", "n": number} for key in parked[number].questions}
            retry = client.retry(parked[number], answers, name=f"p{number}")
            assert questions[number].result == {"action": "accept", "n": number}
            found.server.requests[number].answer({"content": [f"p{number}"]})
            assert retry.result["content"] == [f"p{number}"]
        assert client.session.leases == 0


async def test_two_overlapping_calls_both_elicit_on_a_reused_backend_the_second_time_too() -> None:
    """DESIGN 8."""
    async with world() as found:
        client = await found.modern()
        for _ in range(2):
            before = len(found.server.requests)
            calls = [client.call("one"), client.call("two")]
            questions = [found.server.ask(), found.server.ask()]
            await moments()
            carriers = [call for call in calls if call.is_asked]
            assert carriers == calls[1:]
            waiting = client.retry(calls[1], name="two")
            assert outcomes(questions) == [ACCEPTED] * 2
            for asked_for in found.server.requests[before:]:
                asked_for.answer({"content": [asked_for.params["name"]]})
            assert calls[0].result["content"] == ["one"]
            assert waiting.result["content"] == ["two"]


# -- where the user has to go first ----------------------------------------------------------------

URLS: Json = {"elicitations": [{"mode": "url", "elicitationId": "7", "url": "u", "message": "go"}]}


async def test_places_to_go_first_become_a_round_and_the_request_is_begun_again() -> None:
    """2025-11-25 client/elicitation#url-mode-with-elicitation-required-error."""
    async with world(idle=20) as found:
        client = await found.modern()
        first = client.call("act", {"x": 1}, token="a")
        found.server.last.refuse(-32042, "go there", URLS)
        await moments()
        (shown,) = first.questions.values()
        assert shown["params"] == {"mode": "url", "url": "u", "message": "go"}
        await anyio.sleep(100)
        assert client.session.leases == 1
        assert client.session.state is SessionState.READY
        second = client.retry(first, arguments={"x": 1}, token="b")
        assert [request.params["name"] for request in found.server.requests] == ["act", "act"]
        assert found.server.last.params["arguments"] == {"x": 1}
        found.server.last.progress(1)
        found.server.last.answer({"content": ["done"]})
        assert second.result["content"] == ["done"]
        assert [note["params"] for note in second.said] == [{"progressToken": "b", "progress": 1}]
        assert client.session.leases == 0


@pytest.mark.parametrize("action", ["decline", "cancel"])
async def test_a_user_who_does_not_go_gets_what_the_backend_said(action: str) -> None:
    """Asking on would bring the same again, round after round. The code is one that the revision
    has (2026-07-28 basic#error-codes)."""
    async with world() as found:
        client = await found.modern()
        first = client.call()
        found.server.last.refuse(-32042, "go there", URLS)
        await moments()
        second = client.retry(first, {key: {"action": action} for key in first.questions})
        assert second.error == {"code": -32603, "message": "go there", "data": URLS}
        assert len(found.server.requests) == 1


async def test_places_that_a_client_cannot_show_are_what_it_has_to_declare() -> None:
    """2026-07-28 basic#_meta: the capability that is missing; basic#error-codes: -32042 is not
    emitted any more."""
    async with world() as found:
        client = await found.modern(capabilities={"elicitation": {}})
        request = client.call()
        found.server.last.refuse(-32042, "go there", URLS)
        data: Json = {**URLS, "requiredCapabilities": {"elicitation": {"url": {}}}}
        assert request.error == {"code": -32021, "message": "go there", "data": data}


async def test_places_to_go_end_with_the_rounds_too() -> None:
    async with world() as found:
        client = await found.modern()
        request = client.call()
        for _ in range(MAX_ROUNDS):
            found.server.last.refuse(-32042, "go there", URLS)
            await moments()
            request = client.retry(request)
        found.server.last.refuse(-32042, "go there", URLS)
        await moments()
        assert request.error["code"] == -32603
        assert len(found.server.requests) == MAX_ROUNDS + 1


@pytest.mark.parametrize("stopped", [False, True])
async def test_a_backend_that_goes_before_its_user_was_told_where_to_leaves_nothing(
    stopped: bool,
) -> None:
    """Nothing holds a session whose backend is gone; who waits is told so, and not sent away."""
    async with world() as found:
        client = await found.modern()
        request = client.call()
        found.server.last.refuse(-32042, "go there", URLS)
        if stopped:
            client.session.stop(StopReason.IDLE)
        else:
            found.server.exit()
        await moments()
        assert request.failure == "backend_gone"
        assert client.session.leases == 0


async def test_a_session_that_ends_while_the_user_is_away_there_leaves_nothing() -> None:
    async with world() as found:
        client = await found.modern()
        first = client.call()
        found.server.last.refuse(-32042, "go there", URLS)
        await moments()
        assert first.is_asked
        found.server.exit()
        await moments()
        assert client.session.leases == 0


async def test_answers_that_come_early_are_kept_as_far_as_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DESIGN 5.3: one is, whatever its size; who comes back to another one is told why not, and
    one that was fetched, or is not waited for any more, takes no room."""
    monkeypatch.setattr(turns, "MAX_STORED", 1000)
    large: Json = {"content": ["x" * 900]}
    async with world() as found:
        client = await found.modern()
        parked: list[Request] = []
        for number in range(3):
            parked.append(await asked(found, client, arguments={"n": number}))
            found.server.last.answer(large)
        first, second, third = parked
        assert client.retry(second, arguments={"n": 1}).failure == "result_too_large"
        assert client.retry(first, arguments={"n": 0}).result["content"] == large["content"]
        last = await asked(found, client, arguments={"n": 3})
        found.server.last.answer(large)
        assert client.retry(third, arguments={"n": 2}).failure == "result_too_large"
        assert client.retry(last, arguments={"n": 3}).result["content"] == large["content"]


# -- a backend that does not read ------------------------------------------------------------------


async def test_answers_that_the_backend_cannot_take_may_be_sent_again() -> None:
    """FAULTS F16; as for an answer of a handshake client."""
    async with world() as found:
        client = await found.modern()
        first = client.call()
        question = found.server.ask()
        await moments()
        found.server.busy = True
        assert client.retry(first).failure == "answer_not_taken"
        assert client.session.leases == 1
        found.server.busy = False
        (key,) = first.questions
        other = client.retry(first, {key: {"action": "decline"}})
        assert other.failure == "invalid_request_state"
        second = client.retry(first)
        assert question.result == ACCEPTED
        found.server.last.answer()
        assert second.result["resultType"] == "complete"


async def test_a_call_ends_though_the_backend_cannot_be_told() -> None:
    async with world() as found:
        client = await found.modern()
        await asked(found, client)
        hung = client.call()
        found.server.ask()
        refused = client.call("refused")
        found.server.busy = True
        hung.hang_up()
        await anyio.sleep(PARKED + 1)
        assert hung.failure == CANCELLED
        refused.hang_up()
        assert client.session.leases == 0
        assert client.call("more").failure == "backend_busy"


async def test_what_is_declined_needs_no_room() -> None:
    async with world() as found:
        client = await found.modern(capabilities={})
        client.call()
        found.server.busy = True
        found.server.ask()
        found.server.ask("roots/list", {})
        found.server.busy = False
        assert found.server.ask().result == {"action": "decline"}


# -- bounds ----------------------------------------------------------------------------------------


async def test_of_too_many_rounds_the_oldest_is_forgotten_and_its_call_cancelled() -> None:
    async with world() as found:
        client = await found.modern()
        parked: list[Request] = []
        for number in range(MAX_TURNS):
            parked.append(client.call(f"n{number}"))
            found.server.ask()
            await moments(GATHER * 1.1)
        first = client.retry(parked[1], name="n1")
        found.server.requests[1].answer()
        assert first.result["resultType"] == "complete"
        await asked(found, client, name="one more")  # for which the answered one makes room
        assert client.retry(parked[1], name="n1").failure == "no_longer_waiting"
        await asked(found, client, name="and another")
        assert found.server.requests[0].cancelled
        assert client.retry(parked[0], name="n0").failure == "no_longer_waiting"
        assert client.retry(parked[2], name="n2").waits


async def test_the_answers_that_are_kept_are_bounded() -> None:
    """DESIGN 5.3: bounded in memory."""
    async with world() as found:
        client = await found.modern()
        size = MAX_STORED // 2
        firsts: list[Request] = []
        for _ in range(3):
            firsts.append(await asked(found, client))
            client.retry(firsts[-1])
            found.server.last.answer({"content": ["x" * (size - 1000)]})
        failures = [client.retry(first).failure for first in firsts]
        assert failures == ["no_longer_waiting", "", ""]


async def test_an_answer_larger_than_what_is_kept_is_not_kept() -> None:
    async with world() as found:
        client = await found.modern()
        small = await asked(found, client)
        client.retry(small)
        found.server.last.answer()
        large = await asked(found, client)
        assert client.retry(large).waits
        found.server.last.answer({"content": ["x" * MAX_STORED]})
        assert client.retry(large).failure == "no_longer_waiting"


async def test_a_call_that_is_over_leaves_nothing_behind() -> None:
    """No lease, no timer, no call: whatever way it went."""

    async def answered(found: World, client: Modern) -> None:
        client.call()
        found.server.last.answer()

    async def taken_up(found: World, client: Modern) -> None:
        client.retry(await asked(found, client))
        found.server.last.answer()
        await anyio.sleep(STORED + 1)

    async def expired(found: World, client: Modern) -> None:
        await asked(found, client)
        await anyio.sleep(PARKED + 1)

    async def hung_up(found: World, client: Modern) -> None:
        client.call().hang_up()

    async def hung_up_in_a_round(found: World, client: Modern) -> None:
        client.retry(await asked(found, client)).hang_up()

    async def early(found: World, client: Modern) -> None:
        first = await asked(found, client)
        found.server.last.answer()
        client.retry(first)
        await anyio.sleep(STORED + 1)

    async def early_and_expired(found: World, client: Modern) -> None:
        await asked(found, client)
        found.server.last.answer()
        await anyio.sleep(PARKED + 1)

    async def sent_away(found: World, client: Modern) -> None:
        first = client.call()
        found.server.last.refuse(-32042, "go", URLS)
        await moments()
        client.retry(first, {key: {"action": "decline"} for key in first.questions})
        await anyio.sleep(STORED + 1)

    async def busy(found: World, client: Modern) -> None:
        first = await asked(found, client)
        found.server.busy = True
        client.retry(first)
        found.server.busy = False
        client.retry(first)
        found.server.last.answer()
        await anyio.sleep(STORED + 1)

    ways = (
        busy,
        answered,
        taken_up,
        expired,
        hung_up,
        hung_up_in_a_round,
        early,
        early_and_expired,
        sent_away,
    )
    async with world() as found:
        client = await found.modern()
        timers = found.manager.timers
        for way in ways:
            calls = _Calls()
            with calls:
                await way(found, client)
            await moments()
            found.server.requests.clear()
            assert len(timers) == 0, way.__name__
            assert client.session.leases == 0, way.__name__
            assert calls.alive() == 0, way.__name__


class _Calls:
    """Counts the calls that were made while it was entered, and are not garbage."""

    def __init__(self) -> None:
        self._made: list[weakref.ref[Call]] = []

    def __enter__(self) -> None:
        self._init = Call.__init__
        made = self._made
        init = self._init

        def counted(call: Call, *args: object) -> None:
            made.append(weakref.ref(call))
            init(call, *args)  # pyright: ignore[reportArgumentType]

        Call.__init__ = counted  # pyright: ignore[reportAttributeAccessIssue]

    def __exit__(self, *exc: object) -> None:
        Call.__init__ = self._init

    def alive(self) -> int:
        """As many as only the cyclic collector would find, and more."""
        assert self._made
        return sum(ref() is not None for ref in self._made)


async def test_a_call_is_named_after_its_state() -> None:
    async with world() as found:
        client = await found.modern()
        first = client.call()
        (inner,) = found.server.relay.in_flight()
        call = inner.sink
        assert repr(call) == "<Call 1 tools/call waited for rounds=0>"
        found.server.ask()
        await moments()
        assert repr(call) == "<Call 1 tools/call parked rounds=1>"
        client.retry(first)
        found.server.last.answer()
        assert repr(call) == "<Call 1 tools/call over rounds=1>"


async def test_large_questions_are_passed_on_whole() -> None:
    """Members are not taken apart where there may be a million of them."""
    many = {f"k{number}": number for number in range(60_000)}
    params: Json = {**FORM, "elicitationId": "1", "requestedSchema": many}
    async with world() as found:
        client = await found.modern()
        request = client.call()
        found.server.ask("elicitation/create", params)
        await moments()
        (shown,) = request.questions.values()
        assert shown["params"] == {**FORM, "requestedSchema": many}
        answers = {key: {"action": "accept", "content": many} for key in request.questions}
        client.retry(request, answers)
        assert ALL  # the whole of it has got through, or this would have raised
        assert len(msgspec.json.encode(answers)) > 256 * 1024
