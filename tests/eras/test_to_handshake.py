"""A backend of the handshake era for clients of both: openings, logs, notifications."""

import msgspec
import pytest

from sessionproxy.core.caller import UNHEARD
from sessionproxy.core.exchange import Exchange, Outcome
from sessionproxy.core.memory import Opening
from sessionproxy.errors import Exit
from tests.core.fakes import FakeClient, FakeSink

from .rig import ACCEPTED, ALL, FORM, Handshake, Json, World, methods, moments, world

ACKNOWLEDGED: Json = {"method": "notifications/initialized", "params": {}}


async def joined(found: World, origin: object, *, key: str = "c:") -> Handshake:
    """Return a handshake client that has a share in a conversation, which it opens if need be."""
    session = found.manager.conversation("alice", key)
    if session is None:
        params = {"protocolVersion": "2025-06-18", "capabilities": ALL, "clientInfo": {"name": "h"}}
        opening = Opening(msgspec.json.encode(params))
        session = found.manager.converse("alice", key, opening, found.client)
    await found.manager.ready(session)
    return Handshake(session, origin)


def levels(found: World) -> list[object]:
    return found.server.levels


# -- openings --------------------------------------------------------------------------------------


async def test_the_backend_is_opened_once_with_what_its_first_client_says_of_itself() -> None:
    """DESIGN 9: `initialize` once per backend with the opening client's own info and
    capabilities."""
    async with world() as found:
        await found.modern(capabilities={"sampling": {}, "roots": {"listChanged": True}})
        await found.modern(capabilities={})
        assert found.server.openings == ["initialize"]
        assert found.server.opening == {
            "protocolVersion": "2025-11-25",
            "capabilities": {"sampling": {}, "roots": {"listChanged": True}},
            "clientInfo": {"name": "c", "version": "1"},
        }
        assert found.server.notes == [ACKNOWLEDGED]


async def test_a_welcome_reaches_a_modern_session_as_a_discovery() -> None:
    """2026-07-28 server/discover#response."""
    async with world() as found:
        client = await found.modern()
        welcome: Json = msgspec.json.decode(client.session.welcome or b"")
        assert welcome["resultType"] == "complete"
        assert welcome["instructions"] == "be kind"
        assert welcome["capabilities"] == {
            "tools": {},
            "logging": {},
            "resources": {"subscribe": True},
        }


async def test_a_handshake_clients_own_opening_goes_through_as_it_is() -> None:
    async with world(shared_sessions=True) as found:
        client = await joined(found, "one")
        assert found.server.opening["protocolVersion"] == "2025-06-18"
        assert msgspec.json.decode(client.session.welcome or b"")["serverInfo"]["name"] == "s"


async def test_the_backend_hears_once_that_it_is_initialized_whoever_says_so() -> None:
    """A client that attaches to a running backend says it too."""
    async with world(shared_sessions=True) as found:
        first, second = await joined(found, "one"), await joined(found, "two")
        first.session.notify("notifications/initialized", None)
        second.session.notify("notifications/initialized", None)
        await found.modern()
        assert found.server.notes == [ACKNOWLEDGED]


async def test_a_modern_call_does_not_wait_for_a_handshake_client_that_never_said_it() -> None:
    async with world(shared_sessions=True) as found:
        await joined(found, "one")
        client = await found.modern()
        client.call()
        assert found.server.notes == [ACKNOWLEDGED]
        assert found.server.last.method == "tools/call"


async def test_a_refused_opening_is_the_clients_to_know() -> None:
    async with world("refuses") as found:
        with pytest.raises(Exception, match="refused"):
            await found.modern()


# -- requests --------------------------------------------------------------------------------------


async def test_a_request_reaches_the_backend_without_what_the_revision_added() -> None:
    """2026-07-28 basic#_meta; what else stands there is the client's own (DESIGN 5.4)."""
    async with world() as found:
        client = await found.modern(log_level="error")
        params = msgspec.json.decode(msgspec.json.encode({"name": "x", "unknown": [1]}))
        meta: Json = {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
            "traceparent": "00-1",
            "progressToken": "t",
        }
        encoded = msgspec.json.encode({**params, "_meta": meta, "inputResponses": {}})
        client.send("tools/call", encoded)
        asked = found.server.last
        assert asked.params == {
            "name": "x",
            "unknown": [1],
            "_meta": {"traceparent": "00-1", "progressToken": asked.id},
        }


async def test_a_request_with_very_many_members_reaches_the_backend_whole() -> None:
    many = {f"k{number}": number for number in range(60_000)}
    async with world() as found:
        client = await found.modern()
        request = client.call("act", many, token=5)
        asked = found.server.last
        assert asked.params["arguments"] == many
        assert asked.meta == {"progressToken": asked.id}
        asked.progress(1)
        assert request.said[0]["params"] == {"progressToken": 5, "progress": 1}
        found.server.ask()
        await moments()
        assert client.retry(request, arguments={**many, "k7": 8}).failure == "invalid_request_state"
        assert client.retry(request, arguments=many).waits


async def test_an_error_of_the_backend_is_the_clients_with_its_data() -> None:
    async with world() as found:
        client = await found.modern()
        request = client.call(method="resources/read")
        found.server.last.refuse(-32002, "no", {"uri": "x"})
        assert request.error == {"code": -32602, "message": "no", "data": {"uri": "x"}}
        request = client.call()
        found.server.last.refuse(-32001, "not yet", 7)
        assert request.error == {"code": -32001, "message": "not yet", "data": 7}


async def test_subscriptions_on_behalf_of_listeners_reach_the_backend() -> None:
    """The frontend sends them as the requests of the handshake era that they are."""
    async with world() as found:
        client = await found.modern()
        exchange = Exchange("resources/subscribe", b'{"uri":"x"}', client_id=b"", sink=FakeSink())
        client.session.request(exchange)
        assert found.server.last.params == {"uri": "x"}
        found.server.last.answer({})
        assert client.session.leases == 0


async def test_a_request_that_the_backend_cannot_take_fails_and_leaves_nothing() -> None:
    async with world() as found:
        client = await found.modern()
        found.server.busy = True
        assert client.call().failure == "backend_busy"
        assert client.session.leases == 0


async def test_ids_and_tokens_of_two_clients_are_their_own() -> None:
    """DESIGN 5.11: real clients send every request with the same id."""
    async with world(shared_sessions=True) as found:
        modern, other = await found.modern(), await joined(found, "one")
        requests = [modern.call("m", token="t"), other.call("h", token="t")]
        for asked in found.server.requests:
            asked.progress(1 if asked.params["name"] == "m" else 2)
            asked.answer({"content": [asked.params["name"]]})
        assert [request.result["content"] for request in requests] == [["m"], ["h"]]
        assert [[n["params"] for n in request.said] for request in requests] == [
            [{"progressToken": "t", "progress": 1}],
            [{"progressToken": "t", "progress": 2}],
        ]


async def test_a_handshake_client_cancels_its_own_requests_alone() -> None:
    async with world(shared_sessions=True) as found:
        modern, one, two = await found.modern(), await joined(found, 1), await joined(found, 2)
        requests = [modern.call("m"), one.call("one"), two.call("two")]
        one.cancel()
        assert [request.waits for request in requests] == [True, False, True]
        assert [asked.cancelled for asked in found.server.requests] == [False, True, False]
        found.server.requests[0].answer()
        parked = modern.call("p")
        found.server.ask()
        await moments()
        assert parked.is_asked
        for named in (1.5, None, Json()):
            one.session.notify(
                "notifications/cancelled", msgspec.json.encode({"requestId": named}), None
            )
        assert modern.retry(parked, name="p").waits


# -- log messages ----------------------------------------------------------------------------------


async def test_the_backends_level_is_the_lowest_that_was_asked_for() -> None:
    """DESIGN 9."""
    async with world() as found:
        for level in ("error", "warning", "error", None, "debug", "info"):
            (await found.modern(log_level=level)).call()
        assert levels(found) == ["error", "warning", "debug"]


async def test_a_retry_may_ask_for_more_log_messages_than_the_first_request() -> None:
    async with world() as found:
        client = await found.modern(log_level="error")
        first = client.call()
        found.server.ask()
        await moments()
        louder = await found.modern(log_level="debug")
        second = louder.retry(first)
        assert levels(found) == ["error", "debug"]
        found.server.log("debug", "x")
        assert len(second.said) == 1


@pytest.mark.parametrize(
    ("asked", "level", "heard"),
    [
        ("debug", "debug", True),
        ("info", "debug", False),
        ("warning", "warning", True),
        ("warning", "critical", True),
        ("emergency", "alert", False),
        ("info", "made-up", True),
        (None, "emergency", False),
    ],
)
async def test_a_request_hears_what_it_asked_for(
    asked: str | None, level: str, heard: bool
) -> None:
    """2026-07-28 server/utilities/logging#per-request-log-level."""
    async with world() as found:
        client = await found.modern(log_level=asked)
        request = client.call()
        found.server.log(level, "x")
        assert bool(request.said) is heard


async def test_a_log_message_goes_to_a_request_that_asked_though_another_is_newer() -> None:
    """A pipe does not say whose it is: the newest that can carry it (DESIGN 8)."""
    async with world() as found:
        quiet, loud = await found.modern(), await found.modern(log_level="info")
        requests = [loud.call(), loud.call(), quiet.call()]
        found.server.log("info", "x")
        found.server.log("debug", "nobody's")
        assert [len(request.said) for request in requests] == [0, 1, 0]


async def test_log_messages_outside_all_requests_go_to_no_modern_client() -> None:
    async with world() as found:
        client = FakeClient()
        await found.modern(log_level="debug", client=client)
        found.server.log("error", "x")
        assert methods(client.said()) == ["notifications/message"]  # pyright: ignore[reportArgumentType]


async def test_a_log_message_kept_for_a_retry_that_does_not_ask_is_dropped() -> None:
    async with world() as found:
        loud, quiet = await found.modern(log_level="info"), await found.modern()
        first = loud.call()
        found.server.ask()
        await moments()
        found.server.log("info", "x")
        found.server.note("notifications/made_up")
        second = quiet.retry(first)
        assert methods(second.said) == ["notifications/made_up"]


async def test_a_handshake_clients_level_does_not_take_from_modern_ones() -> None:
    async with world(shared_sessions=True) as found:
        other = await joined(found, "one")
        assert other.send("logging/setLevel", {"level": "error"}).result == {}
        modern = await found.modern(log_level="info")
        request = modern.call()
        (await found.modern(log_level="emergency")).call(method="completion/complete")
        found.server.last.answer({})
        answer = other.send("logging/setLevel", {"level": "critical"})
        assert answer.result == {}
        assert levels(found) == ["error", "info", "info"]
        theirs = other.call()
        found.server.log("warning", "too little for the newest")
        found.server.log("critical", "x")
        assert [note["params"] for note in theirs.said] == [{"level": "critical", "data": "x"}]
        assert request.waits
        assert other.send("logging/setLevel", {"level": "debug"}).result == {}
        assert levels(found)[-1] == "debug"


async def test_a_level_that_is_none_is_the_backends_to_refuse() -> None:
    async with world(shared_sessions=True) as found:
        other = await joined(found, "one")
        other.send("logging/setLevel", {"level": "loud"})
        assert levels(found) == ["loud"]


async def test_a_level_set_by_a_handshake_client_is_set_again_on_waking() -> None:
    """DESIGN 7: replayed on waking, as the client set it."""
    async with world(shared_sessions=True) as found:
        other = await joined(found, "one")
        (await found.modern(log_level="info")).call()
        other.send("logging/setLevel", {"level": "critical"})
        found.server.exit(Exit(code=0))
        await moments()
        await joined(found, "one")
        assert levels(found) == ["critical"]


# -- other notifications ---------------------------------------------------------------------------


async def test_what_belongs_to_no_request_goes_to_none() -> None:
    """It is for those who listen (2026-07-28 basic/patterns/subscriptions)."""
    async with world() as found:
        client = FakeClient()
        modern = await found.modern(client=client)
        request = modern.call()
        found.server.note("notifications/tools/list_changed")
        found.server.note("notifications/resources/updated", uri="x")
        assert request.said == []
        assert methods(client.said()) == [  # pyright: ignore[reportArgumentType]
            "notifications/tools/list_changed",
            "notifications/resources/updated",
        ]


async def test_the_catalogue_hears_once_that_a_list_has_changed() -> None:
    async with world() as found:
        heard: list[str] = []
        found.manager.lists_changed = heard.append
        client = await found.modern()
        client.call()
        found.server.note("notifications/tools/list_changed")
        assert heard == ["notifications/tools/list_changed"]


async def test_a_notification_for_a_call_goes_to_it() -> None:
    async with world() as found:
        client = FakeClient()
        modern = await found.modern(client=client)
        request = modern.call()
        found.server.note("notifications/made_up", x=1)
        assert methods(request.said) == ["notifications/made_up"]
        assert client.said() == []


async def test_with_several_calls_it_goes_to_the_newest_that_is_read() -> None:
    """DESIGN 8; a parked one is read later."""
    async with world() as found:
        client = await found.modern()
        waiting = client.call("waiting")
        parked = client.call("parked")
        found.server.ask()
        await moments()
        assert parked.is_asked
        found.server.note("notifications/made_up")
        assert len(waiting.said) == 1


# -- questions where clients of both eras meet -----------------------------------------------------


async def test_a_question_of_a_handshake_clients_call_goes_out_on_its_stream() -> None:
    async with world(shared_sessions=True) as found:
        other = await joined(found, "one")
        theirs = other.call()
        question = found.server.ask()
        (sent,) = theirs.said
        assert sent["method"] == "elicitation/create"
        answer = Outcome(result=msgspec.json.encode(ACCEPTED))
        assert other.session.answer(str(sent["id"]).encode(), answer)
        assert question.result == ACCEPTED


async def test_a_question_goes_past_a_request_whose_client_cannot_be_asked() -> None:
    """DESIGN 6: only to clients that declared the capability."""

    class Unable(FakeSink):
        def takes(self, method: str) -> int:
            return 0

    async with world(shared_sessions=True) as found:
        modern, other = await found.modern(), await joined(found, "one")
        able = modern.call()
        other.call(sink=Unable())
        question = found.server.ask()
        await moments()
        assert able.is_asked
        modern.retry(able)
        assert question.result == ACCEPTED


async def test_what_comes_during_our_own_request_is_not_lost_with_it() -> None:
    """Nobody reads the answer to a log level that the bridge sets."""
    async with world() as found:
        await found.modern()
        server = found.server
        server.relay.request(Exchange("made/up", None, client_id=b"", sink=UNHEARD))
        assert server.last.method == "made/up"
        assert server.ask("roots/list", {}).result == {"roots": []}
        assert server.ask("elicitation/create", FORM).error is not None
        server.note("notifications/made_up")
        assert methods(found.client.said()) == ["notifications/made_up"]  # pyright: ignore[reportArgumentType]
