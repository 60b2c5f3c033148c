"""Which era a route's backends speak, and what stands between them and a session."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest
import trio
import trio.testing

from sessionproxy.core.circuit import FAILURES, Circuit
from sessionproxy.core.exchange import Exchange
from sessionproxy.core.memory import Opening
from sessionproxy.core.ports import Backend, Identity, Upstream
from sessionproxy.core.relay import Relay
from sessionproxy.core.timers import Timers
from sessionproxy.eras.launcher import AFTER_PING, OURSELVES, EraLauncher
from sessionproxy.eras.rounds import Rounds
from sessionproxy.eras.to_handshake import ToHandshake
from sessionproxy.eras.to_modern import ToModern
from sessionproxy.errors import BackendStartFailed, Exit, InitializeRefused, RouteResting
from sessionproxy.wire.welcome import discover_params, initialize_params
from tests.core.fakes import KEY, FakeSink, FakeUpstream, Steady

from .rig import Kinds, Server, Servers, moments, world

ALICE = Identity("r", "alice", "k")
MODERN = Opening(discover_params(OURSELVES), "server/discover")
HANDSHAKE = Opening(initialize_params(OURSELVES))
PROBE_TIMEOUT = 10.0


def launcher_of(
    servers: Servers,
    *,
    shared_sessions: bool = False,
    handshake_first: bool = False,
    circuit: Circuit | None = None,
) -> EraLauncher:
    timers = Timers(Steady())
    return EraLauncher(
        servers,
        timers,
        Rounds(KEY),
        shared_sessions=shared_sessions,
        probe_timeout=PROBE_TIMEOUT,
        handshake_first=handshake_first,
        circuit=circuit,
    )


async def launched(launcher: EraLauncher, opening: Opening = MODERN) -> type[Backend]:
    """Return what stands between a session and its backend."""
    async with launcher.launch(ALICE, "label", FakeUpstream(), opening) as backend:
        return type(backend)


# -- the verdict -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "stands", "eras"),
    [
        ("modern", ToModern, "2026-07-28, perhaps older revisions too"),
        ("dual", ToModern, "2026-07-28, perhaps older revisions too"),
        ("handshake", ToHandshake, "2025-11-25 or older"),
        ("silent", ToHandshake, "2025-11-25 or older, it seems: it said nothing"),
        ("mute", ToHandshake, "2025-11-25 or older, it seems: it said nothing"),
        ("exits", ToHandshake, "2025-11-25 or older, it seems: it said nothing"),
    ],
)
async def test_a_backend_is_asked_first_on_a_process_of_its_own(
    kind: Kinds, stands: type[Backend], eras: str
) -> None:
    """DESIGN 9; 2026-07-28 basic/transports/stdio#backward-compatibility."""
    servers = Servers(kind)
    launcher = launcher_of(servers)
    assert launcher.eras == "not known yet"
    with anyio.fail_after(PROBE_TIMEOUT + 1):
        assert await launched(launcher) is stands
    assert launcher.eras == eras
    assert servers.labels == ["probe", "label"]
    assert servers.started[0].openings[0] == "server/discover"
    assert servers.started[1].openings == []  # the session itself is to speak first
    assert not servers.running


@pytest.mark.parametrize(
    ("kind", "stands", "eras", "openings"),
    [
        (
            "dual",
            ToHandshake,
            "2026-07-28, perhaps older revisions too",
            ["discover", "initialize"],
        ),
        ("modern", ToModern, "2026-07-28", ["discover", "initialize"]),
        ("handshake", ToHandshake, "2025-11-25 or older", ["discover"]),
        ("mute", ToHandshake, "2025-11-25 or older, it seems: it said nothing", ["discover"]),
    ],
)
async def test_what_keeps_sessions_in_one_era_alone_is_spoken_to_in_that_if_it_can_be(
    kind: Kinds, stands: type[Backend], eras: str, openings: Sequence[str]
) -> None:
    """DESIGN 5.1: without a session there, conversations would share what it keeps."""
    servers = Servers(kind)
    launcher = launcher_of(servers, handshake_first=True)
    for _ in range(2):
        assert await launched(launcher) is stands
    assert launcher.eras == eras
    asked = [server.openings[0] for server in servers.started if server.openings]
    assert [each.removeprefix("server/") for each in asked] == openings
    assert not servers.running


async def test_the_verdict_is_remembered() -> None:
    servers = Servers("modern")
    launcher = launcher_of(servers)
    for _ in range(3):
        await launched(launcher)
    assert servers.labels == ["probe", "label", "label", "label"]


async def test_two_who_come_at_once_find_out_once() -> None:
    servers = Servers("silent")
    launcher = launcher_of(servers)
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(launched, launcher)
    assert servers.labels.count("probe") == 1


async def test_one_who_gives_up_leaves_the_finding_out_to_the_next() -> None:
    servers = Servers("silent")
    launcher = launcher_of(servers)
    with anyio.move_on_after(AFTER_PING / 2):
        await launched(launcher)
    assert not servers.running
    assert await launched(launcher) is ToHandshake
    assert servers.labels == ["probe", "probe", "label"]


async def test_no_server_is_taken_for_mute_because_nothing_ran() -> None:
    """FAULTS F42: time in which the proxy stood still counts for no limit."""
    async with world("mute") as found, anyio.create_task_group() as tasks:
        kinds: list[type[Backend]] = []

        async def ask() -> None:
            kinds.append(await launched(found.launcher))

        tasks.start_soon(ask)
        await anyio.sleep(PROBE_TIMEOUT / 2)
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        clock.jump(1000)
        await anyio.sleep(PROBE_TIMEOUT / 2 - 1)
        assert found.launcher.eras == "not known yet"
        await anyio.sleep(2)
        assert found.launcher.eras != "not known yet"
        tasks.cancel_scope.cancel()


async def test_a_handshake_client_needs_no_verdict_and_no_bridge() -> None:
    """Its backend is spoken to in the era of the client that opens the session (DESIGN 9)."""
    for kind in ("handshake", "dual"):
        servers = Servers(kind)
        assert await launched(launcher_of(servers), HANDSHAKE) is Relay
        assert servers.labels == ["label"]


async def test_where_sessions_are_shared_a_bridge_is_there_for_modern_clients_to_come() -> None:
    servers = Servers("handshake")
    launcher = launcher_of(servers, shared_sessions=True)
    assert await launched(launcher, HANDSHAKE) is ToHandshake


async def test_an_answer_soon_after_the_pings_counts() -> None:
    """Some servers answer out of order."""

    class Slow(Servers):
        @asynccontextmanager
        async def launch(
            self, identity: Identity, label: str, upstream: Upstream, opening: Opening
        ) -> AsyncGenerator[Relay]:
            async with super().launch(identity, label, upstream, opening) as relay:
                server = self.started[-1]
                server.kind = "silent"

                async def answer() -> None:
                    await anyio.sleep(AFTER_PING * 0.9)
                    server.say({"id": 1, "result": {"supportedVersions": ["2026-07-28"]}})

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(answer)
                    yield relay
                    tasks.cancel_scope.cancel()

    assert await launched(launcher_of(Slow())) is ToModern


@pytest.mark.parametrize(
    ("answer", "modern"),
    [
        ({"result": {"supportedVersions": ["2026-07-28"]}}, True),
        ({"result": {"supportedVersions": ["2025-11-25", "2026-07-28"]}}, True),
        ({"result": {"supportedVersions": ["2025-11-25"]}}, False),
        ({"result": {"supportedVersions": []}}, False),
        ({"result": {}}, False),
        ({"result": []}, False),
        ({"error": {"code": -32601, "message": "?"}}, False),
        ({"error": {"code": -32602, "message": "before initialize"}}, False),
        ({"error": {"code": -32000, "message": "?"}}, False),
        ({"error": {"code": -32020, "message": "?"}}, True),
        ({"error": {"code": -32021, "message": "?", "data": {"requiredCapabilities": {}}}}, True),
        ({"error": {"code": -32022, "message": "?"}}, True),
        ({"error": {"code": -32022, "message": "?", "data": {"supported": ["2026-07-28"]}}}, True),
        ({"error": {"code": -32022, "message": "?", "data": {"supported": ["2027-01-01"]}}}, True),
        ({"error": {"code": -32022, "message": "?", "data": {"supported": ["2025-11-25"]}}}, False),
    ],
)
async def test_the_answer_to_the_probe_decides(answer: dict[str, object], modern: bool) -> None:
    """2026-07-28 basic/transports/stdio#backward-compatibility; basic#error-codes."""

    class Answering(Servers):
        @asynccontextmanager
        async def launch(
            self, identity: Identity, label: str, upstream: Upstream, opening: Opening
        ) -> AsyncGenerator[Relay]:
            async with super().launch(identity, label, upstream, opening) as relay:
                server = self.started[-1]
                server.kind = "mute"
                open_ = server._open  # pyright: ignore[reportPrivateUsage]

                def opened(asked: object) -> None:
                    open_(asked)  # pyright: ignore[reportArgumentType]
                    if server.openings == ["server/discover"]:
                        server.say({"id": 1, **answer})

                server._open = opened  # pyright: ignore[reportPrivateUsage]
                yield relay

    assert await launched(launcher_of(Answering())) is (ToModern if modern else ToHandshake)


async def test_a_backend_that_cannot_be_started_says_so_and_leaves_the_question_open() -> None:
    """FAULTS F01."""

    class Broken(Servers):
        broken = True

        @asynccontextmanager
        async def launch(
            self, identity: Identity, label: str, upstream: Upstream, opening: Opening
        ) -> AsyncGenerator[Relay]:
            if self.broken:
                raise BackendStartFailed("no such command")
            async with super().launch(identity, label, upstream, opening) as relay:
                yield relay

    servers = Broken("modern")
    launcher = launcher_of(servers)
    with pytest.raises(BackendStartFailed):
        await launched(launcher)
    assert launcher.eras == "not known yet"
    servers.broken = False
    assert await launched(launcher) is ToModern


# -- refused openings ------------------------------------------------------------------------------


async def test_backends_that_are_only_asked_count_for_the_routes_rest_and_heed_it() -> None:
    """DESIGN 7: nothing is started while it rests."""

    class Broken(Servers):
        @asynccontextmanager
        async def launch(
            self, identity: Identity, label: str, upstream: Upstream, opening: Opening
        ) -> AsyncGenerator[Relay]:
            self.labels.append(label)
            raise BackendStartFailed("no such command")
            yield

    servers, circuit = Broken("modern"), Circuit()
    launcher = launcher_of(servers, circuit=circuit)
    for _ in range(FAILURES):
        with pytest.raises(BackendStartFailed):
            await launched(launcher)
    with pytest.raises(RouteResting):
        await launched(launcher)
    assert servers.labels == ["probe"] * FAILURES
    assert circuit.rests(anyio.current_time())


async def test_a_handshake_client_of_a_modern_server_gets_its_session_all_the_same() -> None:
    """The session is launched again, in the modern era; the next ones are so from the start."""
    async with world("modern") as found:
        client = await found.handshake()
        assert found.servers.labels[1:] == ["probe", "probe", client.session.label]
        assert [server.openings for server in found.servers.started] == [
            ["initialize"],
            ["server/discover"],
            ["initialize"],
            ["server/discover"],
        ]
        assert found.launcher.eras == "2026-07-28"
        request = client.call()
        found.server.last.answer({"content": ["x"]})
        assert request.result["content"] == ["x"]
        before = len(found.servers.started)
        await found.handshake("bob")
        assert len(found.servers.started) == before + 1


async def test_a_server_that_refuses_everything_is_refused_to_its_client() -> None:
    async with world("refuses") as found:
        with pytest.raises(InitializeRefused):
            await found.handshake()
        await moments(5)
        assert not found.servers.running
        with pytest.raises(InitializeRefused):
            await found.modern()


async def test_a_client_whose_opening_is_wrong_changes_nothing_for_the_others() -> None:
    """A server of both eras has refused what this client sent, not the handshake."""
    servers = Servers("dual")
    launcher = launcher_of(servers)
    assert not await launcher.refused(ALICE, HANDSHAKE)
    assert await launched(launcher, HANDSHAKE) is Relay
    probes = servers.labels.count("probe")
    assert not await launcher.refused(ALICE, HANDSHAKE)
    assert servers.labels.count("probe") == probes


@pytest.mark.parametrize("kind", ["mute", "silent", "exits"])
async def test_a_modern_server_that_said_nothing_is_asked_again_once_it_refuses_the_handshake(
    kind: Kinds,
) -> None:
    """As one that took too long to start: the verdict on it was none."""
    servers = Servers(kind)
    launcher = launcher_of(servers)
    assert await launched(launcher) is ToHandshake
    servers.kind = "modern"
    assert await launcher.refused(ALICE, MODERN)
    assert await launched(launcher) is ToModern
    assert await launched(launcher, HANDSHAKE) is ToModern


async def test_what_a_handshake_server_refuses_is_not_tried_in_the_other_era() -> None:
    servers = Servers("handshake")
    launcher = launcher_of(servers)
    assert not await launcher.refused(ALICE, HANDSHAKE)
    assert servers.labels == ["probe"]
    assert not await launcher.refused(ALICE, HANDSHAKE)
    assert not await launcher.refused(ALICE, MODERN)
    assert servers.labels == ["probe"]


async def test_a_server_that_refuses_what_it_was_found_to_speak_is_asked_again() -> None:
    """An upstream may tell a caller whom it does not know nothing, not even what it is."""
    servers = Servers("handshake")
    launcher = launcher_of(servers)
    assert await launched(launcher) is ToHandshake
    servers.kind = "modern"  # to the callers after that
    assert not await launcher.refused(ALICE, MODERN)
    assert await launched(launcher) is ToModern
    assert servers.labels.count("probe") == 2


# -- what is left behind ---------------------------------------------------------------------------


async def test_nothing_waits_in_a_bridge_whose_backend_is_stopped() -> None:
    servers = Servers("modern")
    launcher = launcher_of(servers)
    timers = launcher._timers  # pyright: ignore[reportPrivateUsage] - they are what may be left
    async with launcher.launch(ALICE, "label", FakeUpstream(), MODERN) as backend:
        server = servers.running[0]
        server.era = "modern"
        backend.request(Exchange("tools/call", b"{}", client_id=b"1", sink=FakeSink()))
        server.last.answer({"resultType": "input_required", "requestState": "later"})
        assert len(timers) == 1
    assert len(timers) == 0


async def test_each_life_of_a_backend_is_told_from_all_others() -> None:
    """Also from those of another process with the same key: a note outlives it."""
    lives: set[str] = set()
    for launcher in (launcher_of(Servers()), launcher_of(Servers())):
        for _ in range(3):
            async with launcher.launch(ALICE, "label", FakeUpstream(), MODERN) as backend:
                assert isinstance(backend, ToHandshake)
                lives.add(backend._life)  # pyright: ignore[reportPrivateUsage]
    assert len(lives) == 6


async def test_a_probe_declines_what_it_is_asked() -> None:
    """Nobody is there."""

    class Asking(Servers):
        @asynccontextmanager
        async def launch(
            self, identity: Identity, label: str, upstream: Upstream, opening: Opening
        ) -> AsyncGenerator[Relay]:
            async with super().launch(identity, label, upstream, opening) as relay:
                if label == "probe":
                    self.questions = [
                        self.started[-1].ask("roots/list", {}),
                        self.started[-1].ask(),
                    ]
                yield relay

    servers = Asking("handshake")
    await launched(launcher_of(servers))
    assert servers.questions[0].result == {"roots": []}
    assert servers.questions[1].error is not None


async def test_a_probe_whose_backend_ends_does_not_wait() -> None:
    servers = Servers("mute")
    launcher = launcher_of(servers)

    async def end() -> None:
        await anyio.sleep(1)
        server: Server = servers.started[0]
        server.exit(Exit(code=1))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(end)
        with anyio.fail_after(PROBE_TIMEOUT / 2):
            assert await launched(launcher) is ToHandshake
