"""Puts the pieces of one proxy together, for as long as it runs.

Neighbours: `app` says what was decided before anything runs, and serves what this yields; `route`
is what stands behind one server's sessions, `front` what stands before them.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import anyio

from .backends import Pool, SharedLauncher, Target, Template
from .backends.composite import CompositeLauncher
from .backends.hooked import HookedLauncher
from .backends.introduction import Introduction
from .backends.parts import Member
from .backends.tapped import PartLauncher
from .config import Mode, OnLoss, Settings
from .core.admission import Admission
from .core.circuit import Circuit
from .core.exchange import Hook
from .core.hooks import RequestHook
from .core.manager import Limits, SessionManager
from .core.ports import PART, Launcher
from .core.state import EndReason
from .front import Front, Fronts, shares_sessions
from .frontend import Endpoint
from .frontend.listening import Listeners
from .frontend.pipes import Pipes
from .frontend.sse import LegacySse
from .frontend.stdio import Stdio
from .ground import Ground
from .plan import (
    Custom,
    Plan,
    Planned,
    Source,
    Starts,
    backend_limits_from,
    limits_from,
    part_limits_from,
    whole_limits_from,
)
from .route import Route

if TYPE_CHECKING:
    from .ops.tracing import Tracing

ROUTE: Final = "default"
"""Name of what is served at the endpoint."""

ALL: Final = "all"
"""Its name where one of several servers has that one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """The pieces of a proxy that serves."""

    front: Front
    servers: Mapping[str, Front]
    """Of several servers each alone, by its name."""
    each: bool
    """Those have endpoints, too."""
    routes: Sequence[Route]
    members: Sequence[Member]
    """The servers, where they are put together."""
    admission: Admission
    """Of all backends."""

    @property
    def managers(self) -> Sequence[SessionManager]:
        """Of clients' sessions, and of the parts that servers have in them."""
        fronts = [front.manager for front in self.fronts]
        return (*fronts, *(member.manager for member in self.members))

    @property
    def manager(self) -> SessionManager:
        return self.front.manager

    @property
    def endpoint(self) -> Endpoint:
        return self.front.endpoint

    @property
    def listeners(self) -> Listeners:
        return self.front.listeners

    @property
    def sse(self) -> LegacySse:
        return self.front.sse

    @property
    def stdio(self) -> Callable[[Pipes], Stdio]:
        return self.front.stdio

    @property
    def launcher(self) -> Starts:
        """What launches the backends of the first server."""
        return self.routes[0].transport

    @property
    def pool(self) -> Pool | None:
        return self.routes[0].pool

    @property
    def shared(self) -> SharedLauncher:
        return self.routes[0].shared

    @property
    def fronts(self) -> Sequence[Front]:
        return (self.front, *(f for f in self.servers.values() if f is not self.front))

    def end_streams(self) -> None:
        """End what waits for news: there will be none."""
        for front in self.fronts:
            front.listeners.end_all()

    async def drain(self, patience: float) -> bool:
        """Take nothing new, give what is in flight `patience` seconds, then end every session.

        Returns whether all in flight had ended by itself.
        """
        all_ended = True

        async def drain(front: Front) -> None:
            nonlocal all_ended
            all_ended = await front.manager.drain(patience) and all_ended

        async with anyio.create_task_group() as tasks:
            for front in self.fronts:
                tasks.start_soon(drain, front)
        return all_ended

    def hurry(self) -> None:
        """Cut all waiting short: what is in flight, and backends that are being stopped."""
        for route in self.routes:
            route.transport.hurry()
        for front in self.fronts:
            front.manager.hurry()

    def end_all(self, reason: EndReason) -> None:
        for front in self.fronts:
            front.manager.end_all(reason)


@dataclass(frozen=True, kw_only=True, slots=True)
class Assembly:
    """What the pieces are made of."""

    settings: Settings
    plan: Plan
    version: str
    """Of this program."""
    ground: Ground
    fronts: Fronts
    hooks: Sequence[RequestHook]
    observers: Sequence[Hook]
    around: Callable[[Launcher], Launcher] | None = None
    """Puts something between the sessions at the endpoint and what is behind them."""
    tracing: "Tracing | None" = None

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Running]:
        """Run them."""
        admission = backend_limits_from(self.settings).admission(self.ground.pauses)
        async with AsyncExitStack() as held:
            routes = [
                await held.enter_async_context(self._route(planned, admission))
                for planned in self.plan.servers
            ]
            running = await self._in_front(held, routes, admission)
            try:
                yield running
            finally:
                running.end_streams()

    def _route(self, planned: Planned, admission: Admission) -> Route:
        return Route(
            self.ground,
            planned,
            admission,
            shared_sessions=shares_sessions(self.settings),
            knows_users=self.fronts.knows_users,
            hooks=self._observers(planned),
        )

    def _observers(self, planned: Planned) -> Sequence[Hook]:
        if self.tracing is None:
            return self.observers
        traced = self.tracing.hook(server=planned.name, provider=provider_of(planned.source))
        return (traced, *self.observers)

    async def _in_front(
        self, held: AsyncExitStack, routes: Sequence[Route], admission: Admission
    ) -> Running:
        members: list[Member] = []
        if self.plan.is_several:
            members = [await self._member(held, route, admission) for route in routes]
            front = await self._together(held, members)
            servers = {route.name: await self._alone(held, route, admission) for route in routes}
            for member in members:
                _tell_both(member, servers[member.name], front)
        else:
            front = await self._alone(held, routes[0], admission, name=ROUTE)
            servers = {routes[0].name: front}
        return Running(
            front=front,
            servers=servers,
            each=self.plan.each,
            routes=routes,
            members=members,
            admission=admission,
        )

    # -- several servers as one --------------------------------------------------------------------

    async def _member(self, held: AsyncExitStack, route: Route, admission: Admission) -> Member:
        member = Member(
            route.name, route.names, stand=route.stand, within=route.within, about=route.about
        )
        member.manager = self._parts(route, place_of(route, admission))
        member.spares = self._parts(route, None)
        for manager in (member.manager, member.spares):
            await held.enter_async_context(manager)
        return member

    def _parts(self, route: Route, admission: Admission | None) -> SessionManager:
        return SessionManager(
            route.name + PART,
            self._traced(PartLauncher(route.backends), serves=False),
            part_limits_from(route.settings, take_places=route.takes_place),
            self.ground.ids,
            stateless=is_stateless(route.settings),
            admission=admission,
            pauses=self.ground.pauses,
            timers=self.ground.timers,
            circuit=route.circuit,
        )

    async def _together(self, held: AsyncExitStack, members: Sequence[Member]) -> Front:
        name = self.plan.name or "sessionproxy"
        introduction = Introduction(name, self.version, self.plan.instructions)
        annotates = self.settings.on_loss is OnLoss.ANNOTATE
        launcher = CompositeLauncher(members, introduction, annotates=annotates)
        await held.enter_async_context(launcher)
        return await self._front(
            held,
            *(self._name(), launcher, whole_limits_from(self.settings), Circuit(), None),
            stateless=all(is_stateless(server.settings) for server in self.plan.servers),
        )

    def _name(self) -> str:
        """Return what all together are called in logs and metrics: as none of the servers is."""
        taken, found = {server.name for server in self.plan.servers}, ROUTE
        while found in taken:
            found = ALL if found == ROUTE else f"{found}-"
        return found

    # -- one server --------------------------------------------------------------------------------

    async def _alone(
        self, held: AsyncExitStack, route: Route, admission: Admission, *, name: str | None = None
    ) -> Front:
        limits = limits_from(route.settings, take_places=route.takes_place)
        place = place_of(route, admission)
        front = await self._front(
            held,
            *(name or route.name, route.alone, limits, route.circuit, place),
            stateless=is_stateless(route.settings),
        )
        if not self.hooks:
            route.knows(front.catalogue)
        return front

    async def _front(
        self,
        held: AsyncExitStack,
        name: str,
        launcher: Launcher,
        limits: Limits,
        circuit: Circuit,
        admission: Admission | None,
        *,
        stateless: bool,
    ) -> Front:
        if self.around is not None:
            launcher = self.around(launcher)
        if self.hooks:
            hooked = HookedLauncher(launcher, self.hooks)
            launcher = await held.enter_async_context(hooked)
        launcher = self._traced(launcher)
        return await held.enter_async_context(
            self.fronts.open(
                *(name, launcher, limits, circuit, admission),
                stateless=stateless,
                by_owner=bool(self.hooks) or any(p.sees_users for p in self.plan.servers),
            )
        )

    def _traced(self, launcher: Launcher, *, serves: bool = True) -> Launcher:
        return launcher if self.tracing is None else self.tracing.launcher(launcher, serves=serves)


def is_stateless(settings: Settings) -> bool:
    """Return whether no backend of a server is one client's, for as long as its session lasts."""
    return settings.mode is not Mode.SESSION


def provider_of(source: Source) -> str:
    """Return what kind of backend it is, as spans tell it."""
    if isinstance(source, Template):
        return "stdio"
    if isinstance(source, Target):
        return "http"
    return source.kind if isinstance(source, Custom) else "memory"


def _tell_both(member: Member, alone: Front, together: Front) -> None:
    """Have both catalogues told of changes, whichever session they come up in: of the server's own
    endpoint, or of all servers together. There the whole session tells its own catalogue."""

    def changed(method: str) -> None:
        alone.catalogue.changed(method)
        together.catalogue.changed(method)

    member.manager.lists_changed = alone.catalogue.changed
    alone.manager.lists_changed = changed


def place_of(route: Route, admission: Admission) -> Admission | None:
    """Return what lets the sessions of a route in, where each has a backend of its own."""
    counts = route.takes_place and not is_stateless(route.settings)
    return admission if counts else None
