"""A backend of the modern era for clients of both: rounds, log levels, pings, notifications."""

from collections.abc import Mapping

import anyio
import msgspec
import pytest

from sessionproxy.core.exchange import Outcome
from sessionproxy.core.state import StopReason
from sessionproxy.eras.driven import MAX_ROUNDS
from sessionproxy.errors import Exit
from tests.core.fakes import FakeClient, FakeSink

from .rig import (
    ACCEPTED,
    ALL,
    CANCELLED,
    FORM,
    VERSION,
    Asked,
    Handshake,
    Json,
    Request,
    World,
    methods,
    moments,
    world,
)

META = "io.modelcontextprotocol/"


def wants(
    asked: Asked, questions: Mapping[str, object] | None = None, state: object = None
) -> None:
    """Have the server ask for input."""
    result: Json = {"resultType": "input_required"}
    if questions is not None:
        result["inputRequests"] = questions
    if state is not None:
        result["requestState"] = state
    asked.answer(result)


def elicitation(message: str = "?") -> Json:
    return {"method": "elicitation/create", "params": {**FORM, "message": message}}


def reply(client: Handshake, sent: Json, answer: Outcome | None = None) -> bool:
    """Answer a request that came on a stream."""
    outcome = answer or Outcome(result=msgspec.json.encode(ACCEPTED))
    return client.session.answer(str(sent["id"]).encode(), outcome)


def asked_of(request: Request) -> list[Json]:
    return [message for message in request.said if "id" in message]


# -- openings and plain requests -------------------------------------------------------------------


async def test_initialize_becomes_a_discovery_and_its_answer_a_welcome() -> None:
    """DESIGN 9: drive `server/discover`."""
    async with world("modern") as found:
        client = await found.handshake(capabilities={"roots": {}})
        assert found.server.openings == ["server/discover"]
        assert found.server.opening["_meta"] == {
            f"{META}protocolVersion": VERSION,
            f"{META}clientCapabilities": {"roots": {}},
            f"{META}clientInfo": {"name": "h", "version": "1"},
        }
        assert client.session.version == "2025-11-25"


async def test_requests_get_the_envelope_of_their_clients_initialize() -> None:
    """DESIGN 9: put the `_meta` envelope on; what the client wrote stays (DESIGN 5.4)."""
    async with world("modern") as found:
        client = await found.handshake()
        request = client.send(
            "tools/call", {"name": "x", "more": [1], "_meta": {"progressToken": "t", "a": 1}}
        )
        asked = found.server.last
        assert asked.params == {
            "name": "x",
            "more": [1],
            "_meta": {
                "progressToken": asked.id,
                "a": 1,
                f"{META}protocolVersion": VERSION,
                f"{META}clientCapabilities": ALL,
                f"{META}clientInfo": {"name": "h", "version": "1"},
                f"{META}logLevel": "info",
            },
        }
        asked.progress(1)
        asked.answer({"resultType": "complete", "content": ["x"], "odd": 1})
        assert request.said[0]["params"] == {"progressToken": "t", "progress": 1}
        assert request.result == {"resultType": "complete", "content": ["x"], "odd": 1}
        assert client.session.leases == 0


async def test_a_request_without_parameters_gets_an_envelope_too() -> None:
    async with world("modern") as found:
        client = await found.handshake()
        client.send("tools/list", {})
        assert f"{META}protocolVersion" in found.server.last.meta


async def test_a_request_with_very_many_members_reaches_the_backend_whole() -> None:
    many = {f"k{number}": number for number in range(60_000)}
    async with world("modern") as found:
        client = await found.handshake()
        request = client.call("act", many, token="t")
        assert found.server.last.params["arguments"] == many
        wants(found.server.last, {"q": elicitation()}, "state")
        reply(client, asked_of(request)[0])
        again = found.server.last
        assert again.params["arguments"] == many
        assert again.params["inputResponses"] == {"q": ACCEPTED}
        assert again.params["requestState"] == "state"
        assert f"{META}protocolVersion" in again.meta


async def test_an_error_of_the_backend_is_the_clients() -> None:
    async with world("modern") as found:
        client = await found.handshake()
        request = client.call()
        found.server.last.refuse(-32602, "no", {"a": 1})
        assert request.error == {"code": -32602, "message": "no", "data": {"a": 1}}


async def test_a_ping_is_answered_here() -> None:
    """2026-07-28 has none."""
    async with world("modern") as found:
        client = await found.handshake()
        assert client.send("ping", {}).result == {}
        assert methods([{"method": asked.method} for asked in found.server.requests]) == []


async def test_modern_requests_go_through_untouched() -> None:
    async with world("modern") as found:
        client = await found.modern()
        request = client.call("act", {"x": 1}, requestState="theirs", inputResponses={"k": {}})
        asked = found.server.last
        assert asked.params["requestState"] == "theirs"
        assert asked.meta[f"{META}clientInfo"] == {"name": "c", "version": "1"}
        wants(asked, {"q": elicitation()}, "next")
        assert request.result["requestState"] == "next"
        assert client.session.leases == 0


# -- rounds ----------------------------------------------------------------------------------------


async def test_what_the_backend_wants_is_asked_on_the_clients_stream() -> None:
    """DESIGN 9: answer `input_required` by asking the client over its stream and retrying."""
    async with world("modern") as found:
        client = await found.handshake()
        request = client.call("act", {"x": 1})
        first = found.server.last
        questions = {"a": elicitation("a"), "b": {"method": "roots/list"}}
        wants(first, questions, "state")
        sent = asked_of(request)
        assert [message["method"] for message in sent] == ["elicitation/create", "roots/list"]
        assert sent[0]["params"] == {**FORM, "message": "a"}
        assert reply(client, sent[1], Outcome(result=b'{"roots":[]}'))
        assert found.server.last is first
        assert reply(client, sent[0])
        second = found.server.last
        assert second.id != first.id
        assert second.params["arguments"] == {"x": 1}
        assert second.params["inputResponses"] == {"a": ACCEPTED, "b": {"roots": []}}
        assert second.params["requestState"] == "state"
        assert second.meta == {**first.meta}
        second.answer({"resultType": "complete", "content": ["done"]})
        assert request.result["content"] == ["done"]
        assert client.session.leases == 0


async def test_a_round_without_state_brings_none_back() -> None:
    """2026-07-28 basic/patterns/mrtr#client-requirements: then it must not be there."""
    async with world("modern") as found:
        client = await found.handshake()
        request = client.call()
        wants(found.server.last, {"a": elicitation()}, "state")
        reply(client, asked_of(request)[0])
        wants(found.server.last, {"b": elicitation()})
        reply(client, asked_of(request)[1])
        last = found.server.last
        assert "requestState" not in last.params
        assert last.params["inputResponses"] == {"b": ACCEPTED}


async def test_a_round_with_state_alone_is_a_pause_and_a_repetition() -> None:
    """2026-07-28 basic/patterns/mrtr#client-requirements; with the SDK's pauses, so that a backend
    that only puts off is not called in a loop."""
    async with world("modern") as found:
        client = await found.handshake()
        request = client.call()
        pauses: list[float] = []
        for number in range(6):
            wants(found.server.last, state=number)
            seen, begun = len(found.server.requests), anyio.current_time()
            while len(found.server.requests) == seen:  # noqa: ASYNC110 - virtual time
                await anyio.sleep(0.001)
            pauses.append(round(anyio.current_time() - begun, 2))
            assert found.server.last.params["requestState"] == number
            assert "inputResponses" not in found.server.last.params
            if number == 3:
                wants(found.server.last, {"a": elicitation()}, "x")
                reply(client, asked_of(request)[0])
        assert pauses == [0.05, 0.1, 0.2, 0.25, 0.05, 0.1]
        found.server.last.answer()
        assert request.result == {"content": []}


async def test_a_backend_that_asks_on_and_on_is_given_up() -> None:
    """As clients of its own era do, after ten rounds."""
    async with world("modern") as found:
        client = await found.handshake()
        request = client.call()
        for number in range(MAX_ROUNDS):
            wants(found.server.last, {"a": elicitation()}, number)
            reply(client, asked_of(request)[-1])
        assert request.waits
        wants(found.server.last, {"a": elicitation()}, "more")
        assert request.failure == "backend_asks_on"
        assert len(found.server.requests) == MAX_ROUNDS + 1
        assert client.session.leases == 0


@pytest.mark.parametrize("questions", [None, {}, [], "x", {"a": "b"}])
async def test_a_backend_that_wants_nothing_that_can_be_brought_is_given_up(
    questions: object,
) -> None:
    """2026-07-28 basic/patterns/mrtr#server-requirements: at least one of the two. Sent again as it
    was, the request would be another execution (DESIGN 5.12)."""
    async with world("modern") as found:
        client = await found.handshake()
        request = client.call()
        wants(found.server.last, questions)  # pyright: ignore[reportArgumentType]
        await moments(5)
        assert request.failure == "backend_asks_on"
        assert len(found.server.requests) == 1


async def test_answers_that_come_while_it_is_still_being_asked_are_waited_for() -> None:
    """What is not put to a client is answered at once: the backend goes on once, with all of it."""

    class Quick(FakeSink):
        def message(self, message: object) -> None:
            super().message(message)  # pyright: ignore[reportArgumentType]
            ask = self.messages[-1].ask
            assert ask is not None
            ask.answer(Outcome(result=b'{"n":%d}' % len(self.messages)))

    async with world("modern") as found:
        client = await found.handshake()
        client.call(sink=Quick())
        wants(found.server.last, {"a": elicitation(), "b": elicitation(), "c": elicitation()}, "s")
        assert len(found.server.requests) == 2
        assert found.server.last.params["inputResponses"] == {
            "a": {"n": 1},
            "b": {"n": 2},
            "c": {"n": 3},
        }


@pytest.mark.parametrize(
    ("method", "answer"),
    [("elicitation/create", {"action": "cancel"}), ("roots/list", {"roots": []})],
)
async def test_a_question_that_the_client_fails_over_is_answered_as_by_nobody(
    method: str, answer: Json
) -> None:
    async with world("modern") as found:
        client = await found.handshake()
        request = client.call()
        wants(found.server.last, {"a": {"method": method, "params": {}}}, "s")
        reply(client, asked_of(request)[0], Outcome(error=b'{"code":-1,"message":"no"}'))
        assert found.server.last.params["inputResponses"] == {"a": answer}


async def test_a_model_that_gives_no_answer_fails_the_request_and_takes_the_rest_back() -> None:
    """As a client of the modern era fails it: what a model would have said cannot be made up."""
    async with world("modern") as found:
        client = await found.handshake()
        request = client.call()
        sampling: Json = {"method": "sampling/createMessage", "params": {"messages": []}}
        wants(found.server.last, {"a": sampling, "b": elicitation()}, "s")
        sent = asked_of(request)
        reply(client, sent[0], Outcome(error=b'{"code":-1,"message":"rejected"}'))
        assert request.error == {"code": -1, "message": "rejected"}
        (note,) = [message for message in request.said if "id" not in message]
        assert note["method"] == "notifications/cancelled"
        assert note["params"] == {"reason": "the request is over", "requestId": sent[1]["id"]}
        assert not reply(client, sent[1])
        assert len(found.server.requests) == 1
        assert client.session.leases == 0


async def test_an_elicitation_with_a_url_gets_the_id_that_its_client_expects() -> None:
    """2025-11-25 client/elicitation#url-mode-elicitation-requests; later there is none."""
    url: Json = {"mode": "url", "message": "?", "url": "http://x"}
    async with world("modern") as found:
        client = await found.handshake()
        request = client.call()
        wants(
            found.server.last,
            {n: {"method": "elicitation/create", "params": url} for n in "ab"},
            "s",
        )
        shown = [msgspec.convert(message["params"], Json) for message in asked_of(request)]
        ids = {str(params.pop("elicitationId")) for params in shown}
        assert shown == [url, url]
        assert len(ids) == 2


async def test_progress_goes_on_from_round_to_round() -> None:
    """2025-11-25 basic/utilities/progress: it must increase."""
    async with world("modern") as found:
        client = await found.handshake()
        request = client.call(token="t")
        found.server.last.progress(5)
        wants(found.server.last, {"a": elicitation()}, "s")
        reply(client, asked_of(request)[0])
        found.server.last.progress(1)
        found.server.last.progress(6)
        told = [message["params"] for message in request.said if "id" not in message]
        assert told == [
            {"progressToken": "t", "progress": 5},
            {"progressToken": "t", "progress": 6},
        ]


async def test_a_result_that_only_speaks_of_input_is_a_result() -> None:
    async with world("modern") as found:
        client = await found.handshake()
        request = client.call()
        found.server.last.answer({"resultType": "complete", "content": ["input_required"]})
        assert request.result["content"] == ["input_required"]


# -- ends ------------------------------------------------------------------------------------------


async def test_a_cancellation_between_rounds_takes_the_questions_back() -> None:
    """DESIGN 5.9: cancelling is forwarded."""
    async with world("modern") as found:
        client = await found.handshake()
        request = client.call()
        wants(found.server.last, {"a": elicitation()}, "s")
        (sent,) = asked_of(request)
        client.cancel()
        assert request.failure == CANCELLED
        assert methods(request.said)[1:] == ["notifications/cancelled"]
        assert not reply(client, sent)
        assert len(found.server.requests) == 1
        assert client.session.leases == 0


async def test_a_cancellation_while_the_backend_works_reaches_it() -> None:
    async with world("modern") as found:
        client = await found.handshake()
        request = client.call()
        wants(found.server.last, {"a": elicitation()}, "s")
        reply(client, asked_of(request)[0])
        client.cancel()
        assert found.server.last.cancelled
        assert request.failure == CANCELLED


async def test_a_cancellation_during_a_pause_ends_it() -> None:
    async with world("modern") as found:
        client = await found.handshake()
        request = client.call()
        wants(found.server.last, state="later")
        client.cancel()
        await moments(5)
        assert request.failure == CANCELLED
        assert len(found.server.requests) == 1


async def test_two_requests_with_one_id_are_both_cancelled_by_nobody() -> None:
    """FAULTS F32: an ambiguous id cancels none."""
    async with world("modern") as found:
        client = await found.handshake()
        requests = [client.call(), client.call()]
        client.cancel()
        assert all(request.waits for request in requests)


async def test_a_backend_that_dies_between_rounds_fails_the_request() -> None:
    """FAULTS F06."""
    for state in ("s", None):
        async with world("modern") as found:
            client = await found.handshake()
            request = client.call()
            if state is None:
                wants(found.server.last, state="later")
            else:
                wants(found.server.last, {"a": elicitation()}, state)
            server = found.server
            server.exit()
            assert request.failure == "backend_gone"
            await moments(5)
            assert client.session.leases == 0
            assert len(server.requests) == 1
            if state is not None:
                assert methods(request.said)[1:] == ["notifications/cancelled"]


async def test_a_session_that_is_stopped_between_rounds_leaves_nothing_waiting() -> None:
    async with world("modern") as found:
        client = await found.handshake()
        pausing, asking = client.call(), client.call(client_id=b"2")
        server = found.server
        wants(server.requests[0], state="later")
        wants(server.requests[1], {"a": elicitation()}, "s")
        client.session.stop(StopReason.IDLE)
        assert [pausing.failure, asking.failure] == ["backend_gone"] * 2
        await moments(5)
        assert client.session.leases == 0
        assert len(server.requests) == 2


async def test_a_request_that_the_backend_cannot_take_fails() -> None:
    async with world("modern") as found:
        client = await found.handshake()
        found.server.busy = True
        assert client.call().failure == "backend_busy"
        assert client.session.leases == 0


async def test_a_question_that_the_client_cannot_be_asked_any_more_is_answered_by_nobody() -> None:
    """DESIGN 7: a client that is away for as long as the idle limit."""
    async with world("modern", idle=10) as found:
        client = await found.handshake()
        client.call(sink=FakeSink(attached=False))
        wants(found.server.last, {"a": elicitation()}, "s")
        await anyio.sleep(15)
        assert found.server.last.params["inputResponses"] == {"a": {"action": "cancel"}}


async def test_requests_that_a_modern_backend_must_not_send_are_refused() -> None:
    """2026-07-28 basic/transports/stdio#receiving-messages."""
    async with world("modern") as found:
        client = await found.handshake()
        client.call()
        question = found.server.ask()
        assert question.error is not None
        assert question.error["code"] == -32601
        found.server.busy = True
        found.server.ask()  # and costs nobody anything where it cannot be told


# -- log levels and notifications ------------------------------------------------------------------


async def test_a_level_that_is_set_goes_with_every_request() -> None:
    """DESIGN 9: per-request log level."""
    async with world("modern") as found:
        client = await found.handshake()
        assert client.send("logging/setLevel", {"level": "warning"}).result == {}
        client.call()
        assert found.server.last.meta[f"{META}logLevel"] == "warning"


@pytest.mark.parametrize("level", ["loud", 7, None])
async def test_a_level_that_is_none_is_refused(level: object) -> None:
    """2025-11-25 server/utilities/logging#error-handling."""
    async with world("modern") as found:
        client = await found.handshake()
        assert client.send("logging/setLevel", {"level": level}).error["code"] == -32602
        client.call()
        assert found.server.last.meta[f"{META}logLevel"] == "info"


async def test_clients_of_one_session_have_levels_of_their_own() -> None:
    async with world("modern") as found:
        client = await found.handshake()
        one, two = Handshake(client.session, "one"), Handshake(client.session, "two")
        one.send("logging/setLevel", {"level": "error"})
        for each in (one, two):
            each.call()
        asked = [request.meta[f"{META}logLevel"] for request in found.server.requests]
        assert asked == ["error", "info"]


async def test_a_client_that_cannot_be_asked_is_not_said_to_be_able() -> None:
    """DESIGN 6: only to attached clients that declared the capability."""

    class Lesser(FakeSink):
        def takes(self, method: str) -> int:
            return 0 if method == "elicitation/create" else 2

    async with world("modern") as found:
        client = await found.handshake()
        client.call(sink=Lesser())
        declared = found.server.last.meta[f"{META}clientCapabilities"]
        assert declared == {key: value for key, value in ALL.items() if key != "elicitation"}


async def test_a_log_message_goes_to_a_request_that_asked_for_it() -> None:
    """2026-07-28 server/utilities/logging#per-request-log-level; a pipe says not whose it is."""
    async with world("modern") as found:
        loud, quiet = await found.modern(log_level="info"), await found.modern()
        requests = [loud.call(), quiet.call()]
        found.server.log("info", "x")
        found.server.log("debug", "nobody's")
        assert [len(request.said) for request in requests] == [1, 0]


async def test_a_notification_goes_to_the_request_that_is_driven() -> None:
    async with world("modern") as found:
        client = await found.handshake()
        request = client.call()
        found.server.note("notifications/made_up", x=1)
        assert methods(request.said) == ["notifications/made_up"]


async def test_notifications_of_the_era_stay_here_and_unknown_ones_go_on() -> None:
    """DESIGN 5.4: unknown methods."""
    async with world("modern") as found:
        client = await found.handshake()
        client.session.notify("notifications/roots/list_changed", None)
        client.session.notify("notifications/made_up", b'{"x":1}')
        assert found.server.notes == [{"method": "notifications/made_up", "params": {"x": 1}}]


# -- changes (more of it in `test_subscription`) ---------------------------------------------------


async def listening(found: World) -> Asked:
    """Take the newest `subscriptions/listen`."""
    await moments()
    asked = found.server.last
    assert asked.method == "subscriptions/listen"
    found.server.note(
        "notifications/subscriptions/acknowledged",
        _meta={f"{META}subscriptionId": asked.id},
        notifications=asked.params["notifications"],
    )
    return asked


async def test_changes_are_listened_for_on_the_clients_behalf() -> None:
    """DESIGN 9: list_changed over `subscriptions/listen`; it is no lease."""
    async with world("modern", announces=True) as found:
        client = await found.handshake()
        asked = await listening(found)
        assert asked.params["notifications"] == {
            "toolsListChanged": True,
            "resourcesListChanged": True,
        }
        changed = {"_meta": {f"{META}subscriptionId": asked.id, "a": 1}}
        found.server.note("notifications/tools/list_changed", **changed)
        told = {"method": "notifications/tools/list_changed", "params": {"_meta": {"a": 1}}}
        assert found.client.said() == [{"jsonrpc": "2.0", **told}]
        assert client.session.leases == 0


async def test_a_modern_clients_session_hears_of_changed_lists_too() -> None:
    """DESIGN 9: a list_changed of any backend of the route makes the catalogue fetch anew."""
    async with world("modern", announces=True) as found:
        heard: list[str] = []
        found.manager.lists_changed = heard.append
        await found.modern(client=FakeClient())
        asked = await listening(found)
        found.server.note(
            "notifications/tools/list_changed", _meta={f"{META}subscriptionId": asked.id}
        )
        assert heard == ["notifications/tools/list_changed"]


@pytest.mark.parametrize(
    "method", ["notifications/tools/list_changed", "notifications/resources/updated"]
)
async def test_a_change_that_belongs_to_no_subscription_is_no_part_of_a_modern_call(
    method: str,
) -> None:
    """2026-07-28 basic/transports/streamable-http#receiving-messages, basic/patterns/subscriptions:
    a client is told of what it asked for, and on its subscription."""
    async with world("modern") as found:
        client = await found.modern()
        request = client.call()
        found.server.note(method, uri="u")
        found.server.note("notifications/unknown")
        assert [message["method"] for message in request.said] == ["notifications/unknown"]


async def test_a_level_is_set_again_on_waking() -> None:
    """DESIGN 7."""
    async with world("modern") as found:
        client = await found.handshake()
        client.send("logging/setLevel", {"level": "error"})
        found.server.exit(Exit(code=0))
        await moments()
        await found.manager.ready(client.session)
        client.call()
        assert found.server.last.meta[f"{META}logLevel"] == "error"
