"""Launches backends that every client can talk to, whatever its era and theirs.

Which eras a route's backends speak is found out once, with a process of its own: a server that
speaks both decides by the first message it gets, and cannot be asked again (2026-07-28
basic/transports/stdio#backward-compatibility). Neighbours: `assembly` puts it around the
launcher of a transport.
"""

import enum
import logging
import secrets
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import anyio
import msgspec
from msgspec import Raw

from ..core.aside import Aside
from ..core.caller import Nobody, ask, send
from ..core.circuit import Circuit
from ..core.exchange import Outcome
from ..core.memory import Opening
from ..core.ports import Backend, Identity, Launcher, Upstream
from ..core.start import not_started
from ..core.timers import Timers
from ..errors import InitializeRefused
from ..wire import HANDSHAKE_VERSIONS, MODERN_VERSIONS, Envelope, code_of
from ..wire.welcome import discover_params, initialize_params
from .rounds import Rounds
from .to_handshake import ToHandshake
from .to_modern import ToModern

logger: Final = logging.getLogger(__name__)

OURSELVES: Final = Envelope(MODERN_VERSIONS[-1], b"{}", b'{"name":"sessionproxy","version":"1"}')
"""The envelope of requests on nobody's behalf."""

EVERYBODY: Final = OURSELVES._replace(
    capabilities=b'{"sampling":{},"elicitation":{"form":{},"url":{}},"roots":{}}'
)
"""The envelope of the one client that a backend sees whom all sessions share. What one of them
cannot be asked is declined when it is asked."""

MODERN_ERRORS: Final = frozenset({-32020, -32021, -32022})
"""Codes that only a modern server answers with (2026-07-28 basic#error-codes)."""

AFTER_PING: Final = 2.0
"""Seconds that an answer to the probe may come later than one to a ping sent behind it: some
servers of the handshake era say nothing to what they do not know."""


class Verdict(enum.Enum):
    """What a server was found to be that was asked `server/discover` first."""

    MODERN = "modern"
    HANDSHAKE = "handshake"
    SILENT = "said nothing"  # and is taken for one of the handshake era until it refuses that


class EraLauncher:
    """A `Launcher`. The era of a backend is the one its session was opened in, where it can be."""

    def __init__(
        self,
        launcher: Launcher,
        timers: Timers,
        rounds: Rounds,
        *,
        shared_sessions: bool,
        probe_timeout: float,
        handshake_first: bool = False,
        shared: Launcher | None = None,
        aside: Aside | None = None,
        circuit: Circuit | None = None,
    ) -> None:
        """`shared_sessions`: clients of both eras may meet in one session. `probe_timeout`: seconds
        that a backend is asked for. `handshake_first`: what speaks both eras keeps sessions in that
        one alone, and is spoken to so whoever comes. `shared`: gives all sessions one backend, that
        `launcher` starts for it; its era is then the same for all, and handshake if it speaks that.
        `aside` stops the backends that were only asked; None: they are waited for. `circuit`: the
        route's."""
        self._launcher = launcher
        self._aside = aside
        self._circuit = circuit or Circuit()
        self._shared = shared
        self._timers = timers
        self._rounds = rounds
        self._shared_sessions = shared_sessions
        self._probe_timeout = probe_timeout
        self._handshake_first = handshake_first
        self._probing = anyio.Lock()
        self._verdict: Verdict | None = None
        self._speaks_handshake: bool | None = None

    @property
    def eras(self) -> str:
        """What is known of the route's backends, in words."""
        if self._verdict is None:
            return "not known yet"
        if self._verdict is not Verdict.MODERN:
            seems = "" if self._verdict is Verdict.HANDSHAKE else ", it seems: it said nothing"
            return f"2025-11-25 or older{seems}"
        alone = self._speaks_handshake is False
        return "2026-07-28" if alone else "2026-07-28, perhaps older revisions too"

    @asynccontextmanager
    async def launch(
        self, identity: Identity, label: str, upstream: Upstream, opening: Opening
    ) -> AsyncGenerator[Backend]:
        if self._shared is not None:
            async with AsyncExitStack() as held:
                yield await self._share(held, self._shared, identity, label, upstream, opening)
            return
        modern = await self._is_modern(identity, opening)
        bridge = self._bridge(identity, upstream, opening, modern=modern)
        launching = self._launcher.launch(identity, label, bridge or upstream, opening)
        async with launching as backend:
            try:
                yield _across(bridge, backend)
            finally:
                if bridge is not None:
                    bridge.close()

    def _bridge(
        self, identity: Identity, upstream: Upstream, opening: Opening, *, modern: bool
    ) -> ToModern | ToHandshake | None:
        """Return what has to stand between a session and its backend; None: nothing."""
        if modern:
            return ToModern(upstream, self._timers)
        if not opening.modern and not self._shared_sessions:
            return None
        life = secrets.token_hex(8)  # also of another proxy, before or after this one
        return ToHandshake(identity, life, upstream, self._timers, self._rounds)

    async def _share(
        self,
        held: AsyncExitStack,
        shared: Launcher,
        identity: Identity,
        label: str,
        upstream: Upstream,
        opening: Opening,
    ) -> Backend:
        """Enter a share of the one backend. Whether it speaks the handshake is known once it has
        been asked to."""

        async def enter(*, modern: bool) -> Backend:
            first = Opening(initialize_params(EVERYBODY))
            if modern:
                first = Opening(discover_params(EVERYBODY), "server/discover")
            bridge = self._bridge(identity, upstream, opening, modern=modern)
            launching = shared.launch(identity, label, bridge or upstream, first)
            backend = await held.enter_async_context(launching)
            if bridge is not None:
                held.callback(bridge.close)
            return _across(bridge, backend)

        modern = self._speaks_handshake is False
        try:
            return await enter(modern=modern)
        except InitializeRefused:
            if modern or not await self._probed(identity):
                raise
        self._speaks_handshake = False
        return await enter(modern=True)

    async def refused(self, identity: Identity, opening: Opening) -> bool:
        """A backend has refused its opening: return whether it is worth another try, in the modern
        era."""
        if self._shared is not None or self._speaks_handshake is False:
            return False
        if opening.modern and self._verdict is not Verdict.SILENT:
            if self._verdict is Verdict.HANDSHAKE:
                # It refuses what it was found to speak. It may have been found so by a caller whom
                # it would not even tell what it is: the next one asks again.
                self._verdict = None
            return False
        if not await self._probed(identity, again=True):
            return False
        # What it refused may have been the client's fault.
        return await self._takes_handshake(identity) is False

    async def _is_modern(self, identity: Identity, opening: Opening) -> bool:
        if not opening.modern:
            return self._speaks_handshake is False
        if not await self._probed(identity):
            return False
        return not self._handshake_first or await self._takes_handshake(identity) is False

    async def _takes_handshake(self, identity: Identity) -> bool | None:
        """Return whether the route's backends speak the handshake, too. Finds out once, unless one
        does not say: None.

        Raises: as `_probed`.
        """
        async with self._probing:
            if self._speaks_handshake is None:
                self._speaks_handshake = await self._greets(identity)
                if self._speaks_handshake is not None:
                    logger.info("the backend speaks %s", self.eras)
            return self._speaks_handshake

    async def _probed(self, identity: Identity, *, again: bool = False) -> bool:
        """Return whether the route's backends speak the modern era. Finds out once; `again`: once
        more, if the last one said nothing.

        Raises: BackendStartFailed, Shortage: the one that was to be asked did not start.
            RouteResting: it was not started.
        """
        async with self._probing:
            if self._verdict is None or (again and self._verdict is Verdict.SILENT):
                self._verdict = await self._probe(identity)
                logger.info("the backend speaks %s", self.eras)
            return self._verdict is Verdict.MODERN

    async def _probe(self, identity: Identity) -> Verdict:
        """Ask a backend of our own which era it speaks."""
        opening = Opening(discover_params(OURSELVES), "server/discover")
        found = None
        async with self._spare(identity, opening) as backend:
            with self._timers.pauses.move_on_after(self._probe_timeout):
                found = await _asked(backend, opening)
        return Verdict.SILENT if found is None else _verdict_on(found)

    async def _greets(self, identity: Identity) -> bool | None:
        """Return whether a backend of our own takes an `initialize` that nothing is wrong with.
        None: it gives no answer, or wants to know first who that is."""
        opening = Opening(initialize_params(OURSELVES))
        found = Outcome()
        async with self._spare(identity, opening) as backend:
            with self._timers.pauses.move_on_after(self._probe_timeout):
                found = await ask(backend, opening.method, opening.params)
        if found.result is None and (found.error is None or code_of(found.error) == -32603):
            return None
        return found.result is not None

    @asynccontextmanager
    async def _spare(self, identity: Identity, opening: Opening) -> AsyncGenerator[Backend]:
        who = Identity(identity.route, identity.owner, "probe")
        launching = self._launcher.launch(who, "probe", Nobody(), opening)
        lent = launching if self._aside is None else self._aside.lend(launching)
        with self._circuit.trying():
            async with lent as backend:
                yield backend


def _across(bridge: ToModern | ToHandshake | None, backend: Backend) -> Backend:
    """Return the backend as a session sees it."""
    if bridge is None:
        return backend
    bridge.backend = backend
    return bridge


async def _asked(backend: Backend, opening: Opening) -> Outcome | None:
    """Return the answer to a probe. None: none came, but one to a ping behind it, or the backend's
    end.

    Raises: BackendStartFailed: it wants to know first who that is, so nothing is known of it.
    """
    answer = send(backend, opening.method, opening.params, OURSELVES)
    ping = send(backend, "ping", None)
    found: Outcome | None = None
    async with anyio.create_task_group() as tasks:

        async def give_up() -> None:
            await ping.outcome()
            await anyio.sleep(AFTER_PING)
            tasks.cancel_scope.cancel()

        tasks.start_soon(give_up)
        found = await answer.outcome()
        tasks.cancel_scope.cancel()
    failure = None if found is None else found.failure
    if failure is not None and failure.of_caller:
        raise not_started(failure)
    return None if failure is not None else found


class _Discovered(msgspec.Struct):
    versions: list[str] = msgspec.field(name="supportedVersions")


class _Refused(msgspec.Struct):
    data: Raw = Raw(b"null")


class _Supported(msgspec.Struct):
    supported: list[str]


def _verdict_on(outcome: Outcome) -> Verdict:
    """Return what a server is that answers the probe so (2026-07-28
    basic/transports/stdio#backward-compatibility)."""
    return Verdict.MODERN if _is_modern_answer(outcome) else Verdict.HANDSHAKE


def _is_modern_answer(outcome: Outcome) -> bool:
    """Return whether only a server of the modern era answers so, and one that speaks a revision of
    ours where it says which."""
    try:
        if outcome.result is not None:
            versions = msgspec.json.decode(outcome.result, type=_Discovered).versions
            return any(version in MODERN_VERSIONS for version in versions)
        if outcome.error is None or code_of(outcome.error) not in MODERN_ERRORS:
            return False
        data = msgspec.json.decode(outcome.error, type=_Refused).data
        supported = msgspec.json.decode(data, type=_Supported).supported
    except (msgspec.DecodeError, RecursionError):
        return outcome.error is not None
    return any(version in MODERN_VERSIONS for version in supported) or not any(
        version in HANDSHAKE_VERSIONS for version in supported
    )
