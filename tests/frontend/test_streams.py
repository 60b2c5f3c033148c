"""DESIGN sections 4 and 5: what an answer comes as, and what survives a lost connection."""

import anyio
import pytest

from sessionproxy.frontend.stream import Streams
from sessionproxy.wire import HANDSHAKE_VERSIONS
from tests.rig.embedded import Embedded, embedded, session, until
from tests.rig.hooks import InFlight
from tests.rig.http import PATIENCE, Client, EndOfStream, Json, connect

TOKEN = {"progressToken": "t"}
LIST_CHANGED = {"note": {"method": "notifications/tools/list_changed"}}

pytestmark = pytest.mark.usefixtures("both_ways")


def streams_of(proxy: Embedded) -> Streams:
    (only,) = proxy.manager.registry.awake()
    assert isinstance(only.client, Streams)
    return only.client


# -- JSON or events --------------------------------------------------------------------------------


async def test_an_answer_that_nothing_precedes_is_json() -> None:
    """DESIGN 4: application/json."""
    async with session() as (_, client), client.doing() as incoming:
        assert incoming.status == 200
        assert incoming.response.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "step", [{"progress": 1}, {"log": "x"}, {"ask": {"method": "roots/list"}}, LIST_CHANGED]
)
async def test_an_answer_that_something_precedes_is_a_stream_that_ends_with_it(step: Json) -> None:
    """DESIGN 4; 2025-11-25 basic/transports#sending-messages-to-the-server, item 6."""
    async with session() as (_, client):
        async with client.doing(step, _meta=TOKEN) as incoming:
            assert incoming.is_stream
            before = await incoming.message()
            if "id" in before:
                await client.respond(before["id"], result={"roots": []})
            assert "result" in await incoming.message()
            with pytest.raises(EndOfStream):
                await incoming.message()


async def test_a_silent_call_becomes_a_stream_with_comments_after_the_keepalive() -> None:
    """DESIGN 4: after `keepalive` seconds, with SSE comments as keep-alive after that."""
    async with session(keepalive=0.1) as (_, client):
        async with client.doing({"wait": "go"}) as incoming:
            assert incoming.is_stream
            for _ in range(3):
                await incoming.comment()
            await client.do({"release": "go"}, number=2)
            assert "result" in await incoming.message()


async def test_a_silent_get_stream_sends_comments() -> None:
    """DESIGN 4: a half-open connection is found by failed keep-alives."""
    async with session(keepalive=0.1) as (_, client), client.listen() as stream:
        for _ in range(3):
            await stream.comment()


@pytest.mark.parametrize("version", HANDSHAKE_VERSIONS)
async def test_streams_begin_with_an_empty_event_in_2025_11_25_alone(version: str) -> None:
    """DESIGN 4; 2025-11-25 basic/transports: a server primes its client with an id and no data."""
    async with embedded() as proxy, connect(proxy.url, version=version) as client:
        async with client.doing({"log": "x"}) as incoming, client.listen() as stream:
            await incoming.answer()
            await client.do({"then": [LIST_CHANGED]}, number=2)
            await stream.message()
    for read in (incoming, stream):
        primed = [event for event in read.events if not event.data]
        assert len(primed) == (1 if version == "2025-11-25" else 0)
        assert primed == read.events[: len(primed)]
        assert all(event.id for event in primed)


async def test_event_ids_are_unique_in_a_session_and_tell_the_stream() -> None:
    """2025-11-25 basic/transports#resumability-and-redelivery, item 1."""
    async with session() as (_, client), client.listen() as stream:
        ids: list[str | None] = []
        for _ in range(3):
            async with client.doing({"log": "x"}, {"log": "y"}, {"then": [LIST_CHANGED]}) as read:
                await read.answer()
            ids += [event.id for event in read.events]
            await stream.message()
    ids += [event.id for event in stream.events]
    assert None not in ids
    # The empty event has the id of the one before the first: 0, which nothing else has.
    assert len(set(ids)) == len(ids)


async def test_an_answer_above_one_mebibyte_is_json_while_it_can_be() -> None:
    """DESIGN 5.13: Python clients refuse such an event by default."""
    async with session() as (_, client):
        async with client.doing({"fill": 2_000_000}) as incoming:
            assert not incoming.is_stream
            answer = await incoming.message()
    assert len(answer["result"]["structuredContent"]["fill"]) == 2_000_000


async def test_an_answer_above_one_mebibyte_goes_out_whole_on_a_stream_that_has_begun() -> None:
    """DESIGN 5.13."""
    async with session() as (_, client):
        assert len((await client.do({"log": "x"}, {"fill": 2_000_000}))["fill"]) == 2_000_000


@pytest.mark.parametrize("listens", [False, True], ids=["no GET stream", "GET stream"])
async def test_a_thousand_progress_notes_arrive_in_order_on_their_call(listens: bool) -> None:
    """DESIGN 5.3, 13: all, in order."""
    async with session() as (_, client):
        if listens:
            async with client.listen() as stream:
                notes = await _progress(client)
                await client.do({"then": [LIST_CHANGED]})
                assert (await stream.message())["method"] == "notifications/tools/list_changed"
        else:
            notes = await _progress(client)
    assert notes == list(range(1, 1001))


async def _progress(client: Client) -> list[int]:
    async with client.doing({"progress": 1000}, _meta=TOKEN) as incoming:
        *notes, answer = await incoming.rest()
    assert "result" in answer
    return [note["params"]["progress"] for note in notes]


# -- which stream ----------------------------------------------------------------------------------


async def test_what_belongs_to_a_call_goes_out_on_its_stream_only() -> None:
    """2025-11-25 basic/transports#multiple-connections, item 2."""
    async with session() as (_, client), client.listen() as stream:
        async with client.doing({"progress": 1}, {"log": "x"}, _meta=TOKEN) as incoming:
            assert len(await incoming.rest()) == 3
        await client.do({"then": [LIST_CHANGED]})
        assert (await stream.message())["method"] == "notifications/tools/list_changed"


async def test_what_belongs_to_no_call_goes_out_on_the_get_stream_only() -> None:
    """2025-11-25 basic/transports#listening-for-messages-from-the-server, item 4."""
    async with session() as (_, client), client.listen() as stream:
        async with client.doing(LIST_CHANGED, {"log": "x"}) as incoming:
            *before, _ = await incoming.rest()
        assert [message["method"] for message in before] == ["notifications/message"]
        assert (await stream.message())["method"] == "notifications/tools/list_changed"


async def test_what_comes_while_nobody_listens_waits_for_the_get_stream() -> None:
    """DESIGN 5.3: none is dropped."""
    async with session() as (_, client):
        asks = {"ask": [{"method": "roots/list"}, {"method": "roots/list"}]}
        await client.do({"then": [{"log": 1}, asks, {"release": "answered"}]})
        async with client.listen() as stream:
            assert (await stream.message())["params"]["data"] == 1
            numbers = [(await stream.message())["id"] for _ in range(2)]
            for number in numbers:
                await client.respond(number, result={"roots": []})
        assert len(set(numbers)) == 2
        await client.do({"wait": "answered"})


async def test_a_second_get_stream_takes_over_and_the_first_is_closed() -> None:
    """DESIGN 4: a second GET takes over; a message goes out on one stream only."""
    async with session() as (_, client), client.listen() as first:
        async with client.listen() as second:
            assert await first.rest() == []
            await client.do({"then": [{"log": "x"}]})
            assert (await second.message())["params"]["data"] == "x"
    assert all(not event.data for event in first.events)


async def test_two_calls_with_one_id_each_get_their_own_answer() -> None:
    """DESIGN 5.11, FAULTS F32: the answer goes to the POST that asked, whatever its id."""
    async with session() as (_, client):
        async with (
            client.doing({"log": ""}, {"wait": "second"}, echo="a", number=1) as first,
            client.doing({"release": "second"}, echo="b", number=1) as second,
        ):
            one, two = await first.answer(), await second.answer()
    assert (one["id"], two["id"]) == (1, 1)
    assert one["result"]["structuredContent"]["echo"] == "a"
    assert two["result"]["structuredContent"]["echo"] == "b"


@pytest.mark.parametrize("number", ["1", "_GET_stream", 0, -1, 2**70, 'a"\\\n\u2028ö', ""])
async def test_an_answer_has_the_id_of_its_request(number: object) -> None:
    """JSON-RPC 2.0 section 5; FAULTS F32."""
    async with session() as (_, client):
        assert (await client.request("tools/list", number=number))["id"] == number


# -- lost connections ------------------------------------------------------------------------------


@pytest.mark.parametrize("version", HANDSHAKE_VERSIONS)
async def test_a_lost_connection_does_not_cancel_and_the_answer_is_kept(version: str) -> None:
    """DESIGN 5.9, FAULTS F26; 2025-11-25 basic/transports: Disconnection SHOULD NOT be
    interpreted as the client cancelling its request."""
    hook = InFlight()
    async with embedded(observers=[hook]) as proxy, connect(proxy.url, version=version) as client:
        steps = ({"progress": 1}, {"wait": "go"}, {"progress": {"progress": 2}})
        async with client.doing(*steps, _meta=TOKEN, echo="kept", number=7) as incoming:
            await incoming.message()
        await hook.lost()
        found = await client.do({"release": "go"}, {"tells": "seen"})
        await until(lambda: hook.calls[0].outcome is not None)
        async with client.listen(incoming.last_id) as resumed:
            note, answer = await resumed.rest()
    assert "notifications/cancelled" not in [message.get("method") for message in found["seen"]]
    assert note["params"] == {"progressToken": "t", "progress": 2}
    assert answer["id"] == 7
    assert answer["result"]["structuredContent"]["echo"] == "kept"


async def test_a_call_whose_client_is_gone_before_a_stream_began_runs_to_its_end() -> None:
    """DESIGN 5.9."""
    hook = InFlight()
    async with session(observers=[hook]) as (_, client):
        with anyio.move_on_after(0.1):
            async with client.doing({"wait": "go"}, number=7):
                pass
        await client.do({"release": "go"})
        await until(lambda: hook.calls[0].outcome is not None)
        assert hook.calls[0].outcome is not None
        assert hook.calls[0].outcome.failure is None
        seen = (await client.do({"tells": "seen"}))["seen"]
    assert "notifications/cancelled" not in [message.get("method") for message in seen]


async def test_a_resumed_call_goes_on_where_it_was_left() -> None:
    """2025-11-25 basic/transports#resumability-and-redelivery, item 2; always via GET."""
    hook = InFlight()
    async with session(observers=[hook]) as (_, client):
        steps = ({"progress": 3}, {"wait": "go"}, {"progress": {"progress": 4}})
        async with client.doing(*steps, _meta=TOKEN) as incoming:
            await incoming.message()  # one of three
        await hook.lost()
        async with client.listen(incoming.last_id) as resumed:
            for number in (2, 3):
                assert (await resumed.message())["params"]["progress"] == number
            await client.do({"release": "go"}, number=2)
            assert (await resumed.message())["params"]["progress"] == 4
            assert "result" in await resumed.message()
            with pytest.raises(EndOfStream):
                await resumed.message()


async def test_a_resumed_call_can_be_resumed_again() -> None:
    """2025-11-25 basic/transports#resumability-and-redelivery."""
    async with session() as (_, client):
        async with client.doing({"progress": 3}, _meta=TOKEN) as incoming:
            await incoming.rest()
        ids = [event.id for event in incoming.events]
        for after, left in ((0, 4), (2, 2), (1, 3), (4, 0)):
            async with client.listen(ids[after]) as resumed:
                assert len(await resumed.rest()) == left


async def test_the_get_stream_is_resumed_with_what_came_meanwhile_and_nothing_else() -> None:
    """2025-11-25 basic/transports#resumability-and-redelivery, item 2: MUST NOT replay messages
    that would have been delivered on a different stream."""
    async with session() as (proxy, client):
        async with client.listen() as stream:
            await client.do({"then": [{"log": 1}, {"log": 2}]})
            assert (await stream.message())["params"]["data"] == 1
        await until(lambda: not streams_of(proxy).listening)
        async with client.doing({"log": "of the call"}, {"then": [{"log": 3}]}) as incoming:
            await incoming.answer()
        async with client.listen(stream.last_id) as resumed:
            assert [(await resumed.message())["params"]["data"] for _ in range(2)] == [2, 3]


@pytest.mark.parametrize(
    "last", ["x", "-", "1-", "99-1", "1-1-1", "-1-1", "1-9999999999999999999999999999999999", "²-1"]
)
async def test_a_last_event_id_of_no_kept_stream_gets_400(last: str) -> None:
    """Our choice: silence would hide that messages are lost."""
    async with session() as (_, client):
        sent = client.http.build_request(
            "GET",
            client.url,
            headers={
                **{name.encode(): value.encode() for name, value in client.headers.items()},
                b"last-event-id": last.encode("latin-1"),
            },
        )
        with anyio.fail_after(PATIENCE):
            assert (await client.http.send(sent)).status_code == 400


async def test_an_event_id_of_one_session_opens_nothing_in_another() -> None:
    """DESIGN 5.1."""
    async with embedded() as proxy, connect(proxy.url) as one, connect(proxy.url) as two:
        async with one.doing({"log": "secret"}) as incoming:
            await incoming.answer()
        first = incoming.events[0].id
        assert first is not None
        response = await two.send("GET", last_event_id=first)
        assert response.status_code == 400
        assert "secret" not in response.text


async def test_a_question_of_a_call_whose_client_is_gone_goes_to_the_get_stream() -> None:
    """DESIGN 4: one stream only, and one that is read if possible."""
    hook = InFlight()
    async with session(observers=[hook]) as (_, client), client.listen() as stream:
        async with client.doing(
            {"log": ""}, {"wait": "go"}, {"ask": {"method": "roots/list"}}
        ) as i:
            await i.message()
        await hook.lost()
        await client.do({"release": "go"})
        ask = await stream.until("roots/list")
        await client.respond(ask["id"], result={"roots": []})
        await until(lambda: hook.calls[0].outcome is not None)


async def test_streams_end_with_their_session() -> None:
    """2025-11-25 basic/transports: the server MAY terminate the stream if the session expires."""
    async with session() as (_, client):
        async with client.listen() as stream, client.doing({"log": ""}, {"wait": "never"}) as call:
            await call.message()
            await client.delete()
            assert await stream.rest() == []
            assert "error" in await call.answer()


# -- readers that do not keep up -------------------------------------------------------------------


async def test_a_reader_that_keeps_up_gets_all_of_a_flood() -> None:
    """DESIGN 5.3: none is dropped while its reader keeps up."""
    async with session() as (_, client):
        async with client.doing({"flood": 3_000_000}) as incoming:
            *logged, answer = await incoming.rest()
    assert [message["params"]["data"][0] for message in logged] == list(range(3000))
    assert "result" in answer
