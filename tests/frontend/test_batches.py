"""2025-03-26 basic/transports: a POST body may be an array. No other revision has it."""

import pytest

from sessionproxy.core.exchange import Outcome
from sessionproxy.core.session import Session
from sessionproxy.errors import BackendBusy
from sessionproxy.wire import HANDSHAKE_VERSIONS
from tests.rig.embedded import embedded, until
from tests.rig.http import PATIENCE, Json, calling, connect, notification, request

BATCHING = "2025-03-26"
PINGS = [request("ping", number="a"), request("ping", number=2)]


@pytest.mark.parametrize("version", HANDSHAKE_VERSIONS)
async def test_batches_are_served_in_2025_03_26_alone(version: str) -> None:
    """2025-03-26 basic#batching; removed in 2025-06-18."""
    async with embedded() as proxy, connect(proxy.url, version=version) as client:
        response = await client.post(PINGS)
        if version == BATCHING:
            answers = {answer["id"]: answer["result"] for answer in response.json()}
            assert answers == {"a": {}, 2: {}}
        else:
            assert response.status_code == 400
            assert response.json()["id"] is None


async def test_the_backend_gets_the_messages_of_a_batch_one_by_one_and_in_order() -> None:
    """DESIGN 5.4; its own revision may be another."""
    batch: list[Json] = [
        notification("x/one"),
        request("tools/list", number="a"),
        {"jsonrpc": "2.0", "id": "no question", "result": {}},
        notification("x/two", {"n": 2}),
    ]
    async with embedded() as proxy, connect(proxy.url, version=BATCHING) as client:
        response = await client.post(batch)
        assert [answer["id"] for answer in response.json()] == ["a"]
        seen = (await client.do({"tells": "seen"}))["seen"][2:-1]
    assert [message["method"] for message in seen if message["method"] != "tools/list"] == [
        "x/one", "x/two",
    ]  # fmt: skip


async def test_a_batch_that_is_sent_again_for_want_of_room_is_passed_on_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DESIGN 5.3: nothing of it went on before the answer that the backend could not take."""
    answered, tries = Session.answer, iter([False, True])

    def full_at_first(session: Session, client_id: bytes, outcome: Outcome) -> bool:
        if not next(tries):
            raise BackendBusy("no room")
        return answered(session, client_id, outcome)

    monkeypatch.setattr(Session, "answer", full_at_first)
    batch: list[Json] = [notification("x/once"), {"jsonrpc": "2.0", "id": 9, "result": {}}]
    async with embedded() as proxy, connect(proxy.url, version=BATCHING) as client:
        assert (await client.post(batch)).status_code == 503
        assert (await client.post(batch)).status_code == 202
        seen = (await client.do({"tells": "seen"}))["seen"]
    assert [message["method"] for message in seen].count("x/once") == 1


async def test_a_batch_without_requests_gets_202() -> None:
    """2025-03-26 basic/transports: solely of responses and notifications."""
    async with embedded() as proxy, connect(proxy.url, version=BATCHING) as client:
        response = await client.post([notification("x"), notification("y")])
        assert (response.status_code, response.content) == (202, b"")


async def test_what_precedes_the_answers_makes_a_batch_a_stream_that_ends_with_the_last() -> None:
    """2025-03-26 basic/transports: each request gets one response on the stream."""
    calls = [
        request("tools/call", calling({"log": "x"}, {"wait": "go"}, echo=1), number=1),
        request("tools/call", calling({"release": "go"}, echo=2), number=1),
    ]
    async with embedded() as proxy, connect(proxy.url, version=BATCHING) as client:
        response = await client.post(calls)
        assert response.headers["content-type"] == "text/event-stream"
        assert response.text.count('"structuredContent"') == 2


@pytest.mark.parametrize(
    "batch",
    [
        [],
        [1],
        [[]],
        [*PINGS, {"jsonrpc": "2.0"}],
        PINGS * 51,
        [request("initialize", {})],
        [*PINGS, {"jsonrpc": "2.0", "id": None, "method": "ping"}],
    ],
    ids=["empty", "number", "nested", "no message", "too many", "initialize", "null id"],
)
async def test_a_batch_with_anything_wrong_is_refused_as_a_whole(batch: list[Json]) -> None:
    """JSON-RPC 2.0 section 6; 2025-03-26 basic/lifecycle: initialize MUST NOT be part of one."""
    async with embedded() as proxy, connect(proxy.url, version=BATCHING) as client:
        response = await client.post(batch)
        assert response.status_code == 400
        assert len((await client.do({"tells": "seen"}))["seen"]) == 3


async def test_a_sleeping_session_tells_each_call_of_a_batch() -> None:
    """DESIGN 5.12."""
    calls = [request("tools/call", calling(), number=n) for n in (1, 2)]
    async with embedded() as proxy, connect(proxy.url, version=BATCHING) as client:
        await client.do({"then": [{"exit": 0}]})
        await until(lambda: proxy.manager.registry.awake() == (), seconds=PATIENCE)
        told = (await client.post([*calls, request("tools/list", number=3)])).json()
        assert [answer["id"] for answer in told if answer["result"].get("isError")] == [1, 2]
        again = (await client.post(calls)).json()
        assert sorted(a["result"]["structuredContent"]["count"] for a in again) == [2, 3]
