"""FAULTS: what networks do. A client's cable is pulled: it sends no FIN, no RST, and no answer."""

import json
import socket
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import anyio.to_thread
import pytest

from sessionproxy import serve
from sessionproxy.config import Settings
from sessionproxy.core.state import SessionState, StopReason
from sessionproxy.frontend.stream import Streams
from tests.rig.embedded import Embedded, until
from tests.rig.hooks import InFlight
from tests.rig.http import PATIENCE, Json, calling, request
from tests.rig.invariants import Watch, watched
from tests.rig.modern import on_the_wire
from tests.rig.netns import Cable, cable
from tests.rig.peers import head, posted

pytestmark = pytest.mark.netns

UNANSWERED: Final = 1.0
"""Seconds of TCP_USER_TIMEOUT here; 30 in earnest."""

COMMENT: Final = 0.2
"""Seconds between two comments on a stream; 15 in earnest."""


@pytest.fixture
def wire() -> Generator[Cable]:
    with cable() as laid:
        yield laid


@asynccontextmanager
async def reachable(
    wire: Cable, monkeypatch: pytest.MonkeyPatch, hook: InFlight, **settings: float
) -> AsyncGenerator[Watch[Embedded]]:
    """Serve at this end of the cable, on the socket that the command line would have made."""
    monkeypatch.setattr(serve, "USER_TIMEOUT", UNANSWERED)
    listening = serve.listen(Settings(host=wire.here, port=0, insecure=True))
    served: dict[str, Any] = {"allow_host": [wire.here], "keepalive": COMMENT, **settings}
    async with watched(observers=[hook], listening=listening, **served) as watch:
        yield watch


async def read_some(sock: socket.socket) -> bytes:
    return await anyio.to_thread.run_sync(sock.recv, 65536)


async def test_a_call_goes_on_when_its_client_vanishes_and_its_answer_is_kept(
    wire: Cable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS F28: comments that nobody acknowledges, TCP_USER_TIMEOUT, and then as F26."""
    hook = InFlight()
    async with reachable(wire, monkeypatch, hook) as watch, watch.client("alice") as alice:
        call: Json = request("tools/call", calling({"log": "x"}, {"wait": "go"}, echo="kept"))
        watch.history.sent(alice.session, "tools/call").left = True
        with wire.connected(watch.proxy.port, seconds=PATIENCE) as vanishing:
            vanishing.sendall(posted(alice, call, host=wire.here))
            while b"notifications/message" not in await read_some(vanishing):
                pass
            wire.pull()
            assert hook.calls[0].sink.attached
            await hook.lost()
        wire.plug()
        found = await alice.do({"release": "go"}, {"tells": "seen"})
        await until(lambda: hook.calls[0].outcome is not None)
        async with alice.listen("1-1") as resumed:
            (answer,) = await resumed.rest()
    assert "notifications/cancelled" not in [message.get("method") for message in found["seen"]]
    assert answer["result"]["structuredContent"]["echo"] == "kept"


async def test_a_session_whose_client_vanished_from_its_stream_stops_after_linger(
    wire: Cable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS F28: the session then idles out; DESIGN 7: found half-open by failed keep-alive."""
    hook = InFlight()
    async with (
        reachable(wire, monkeypatch, hook, linger=COMMENT, idle=0) as watch,
        watch.client("alice") as alice,
    ):
        session = watch.proxy.manager.find("local", alice.id)
        streams = session.client
        assert isinstance(streams, Streams)
        with wire.connected(watch.proxy.port, seconds=PATIENCE) as vanishing:
            vanishing.sendall(head(alice, "GET", host=wire.here))
            await until(lambda: streams.listening)
            wire.pull()
            await until(lambda: not streams.listening)
            await until(lambda: session.state is SessionState.ASLEEP)
        assert session.stop_reason is StopReason.DISCONNECTED
        assert len(watch.proxy.processes()) == 1  # the bystander's


async def test_a_client_that_vanishes_before_anything_was_written_is_found_by_the_first_comment(
    wire: Cable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS F28: a silent call becomes a stream, and its first bytes are not acknowledged."""
    hook = InFlight()
    async with reachable(wire, monkeypatch, hook) as watch, watch.client("alice") as alice:
        watch.history.sent(alice.session, "tools/call").left = True
        with wire.connected(watch.proxy.port, seconds=PATIENCE) as vanishing:
            wait = posted(alice, request("tools/call", calling({"wait": "go"})), host=wire.here)
            vanishing.sendall(wait)
            await until(lambda: bool(hook.calls))
            wire.pull()
            await hook.lost()
        await alice.do({"release": "go"})
        await until(lambda: hook.calls[0].outcome is not None)


async def test_a_pause_of_the_network_shorter_than_the_limit_is_no_loss(
    wire: Cable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS F28: what was sent meanwhile arrives."""
    hook = InFlight()
    monkeypatch.setattr(f"{__name__}.UNANSWERED", 60.0)
    async with reachable(wire, monkeypatch, hook) as watch, watch.client("alice") as alice:
        steps = ({"log": "x"}, {"wait": "go"}, {"log": "meanwhile"})
        watch.history.sent(alice.session, "tools/call").left = True
        with wire.connected(watch.proxy.port, seconds=PATIENCE) as client:
            call = request("tools/call", calling(*steps, echo="the end"))
            client.sendall(posted(alice, call, host=wire.here))
            found = b""
            while b"notifications/message" not in found:
                found += await read_some(client)
            wire.pull()
            await alice.do({"release": "go"})
            await until(lambda: hook.calls[0].outcome is not None)
            wire.plug()
            while b"the end" not in found:
                found += await read_some(client)
        assert json.dumps("meanwhile").encode() in found


async def test_a_modern_client_that_vanishes_has_cancelled(
    wire: Cable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS F28: comments that nobody acknowledges, and then as F27: the backend hears of it."""
    hook = InFlight()
    async with reachable(wire, monkeypatch, hook) as watch, watch.modern("alice") as alice:
        entry, params = alice.begins("tools/call", calling({"until_cancelled": 1}))
        entry.left = True
        with wire.connected(watch.proxy.port, seconds=PATIENCE) as vanishing:
            vanishing.sendall(on_the_wire(alice.build("tools/call", params)))
            await until(lambda: bool(hook.calls))
            wire.pull()
            assert hook.calls[0].outcome is None
            await until(lambda: hook.calls[0].outcome is not None)
        wire.plug()
        _, answer = await alice.ask(calling({"sleep": 0.05}, {"tells": "seen"}))
    seen = answer["result"]["structuredContent"]["seen"]
    assert "notifications/cancelled" in [message.get("method") for message in seen]
