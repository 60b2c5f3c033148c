"""A proxy without a port: what it fronts, used by code of this process.

Neighbours: `client.client` connects to a server by it, `client.proxy` to what it has put together.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from ..app import tracing_from
from ..assembly import Assembly, Running
from ..config import OnLoss, Settings
from ..core.exchange import Hook
from ..core.hooks import RequestHook
from ..core.memory import Opening
from ..core.ports import Launcher
from ..front import LOCAL, Fronts
from ..frontend.serving import Serving
from ..http import Anybody, Guard
from ..plan import Plan
from ..version import VERSION
from .handlers import Handlers
from .link import Desk, Link, opening_params
from .relayed import Tap, TapLauncher
from .runtime import common_ground


class Connection(NamedTuple):
    """While it is open."""

    running: Running
    link: Link
    tap: Tap


@asynccontextmanager
async def running(
    settings: Settings,
    plan: Plan,
    *,
    hooks: Sequence[RequestHook] = (),
    observers: Sequence[Hook] = (),
    around: Callable[[Launcher], Launcher] | None = None,
) -> AsyncGenerator[Running]:
    """Run what a plan names. `around`: puts something behind all its sessions.

    Raises: ConfigError: the state directory cannot be used.
    """
    async with common_ground(settings) as ground:
        fronts = Fronts(
            settings=settings,
            ground=ground,
            guard=Guard(local=True, authenticated=False),
            authenticator=Anybody(LOCAL),
            serving=Serving(
                max_body=settings.max_body,
                keepalive=settings.keepalive,
                on_loss=OnLoss.TELL,
                idle=None,
                start_timeout=settings.start_timeout,
                expose_stderr=True,
            ),
            knows_users=True,
        )
        assembly = Assembly(
            settings=settings,
            plan=plan,
            version=VERSION,
            ground=ground,
            fronts=fronts,
            hooks=hooks,
            observers=observers,
            around=around,
            tracing=tracing_from(settings),
        )
        async with assembly.running() as found:
            yield found


@asynccontextmanager
async def linked(running: Running, desk: Desk, name: str) -> AsyncGenerator[Link]:
    """Hold a session of what runs, for a client called `name`.

    Raises: ProxyError: it cannot be had; nothing stays.
    """
    opening = Opening(opening_params(desk.handlers, name, VERSION))
    link = Link(running.front.manager, LOCAL, opening, desk)
    await link.open()
    try:
        yield link
    finally:
        await link.close()


@asynccontextmanager
async def connected(
    settings: Settings, plan: Plan, handlers: Handlers, name: str
) -> AsyncGenerator[Connection]:
    """Hold a session of what a plan names, for a client called `name`.

    Raises: ConfigError, ProxyError: it cannot be had; nothing stays.
    """
    desk = Desk(handlers)
    links: list[Link] = []

    async def awake() -> None:
        for link in links:
            await link.ready()

    tap = Tap(desk, awake)
    proxy = running(settings, plan, around=lambda launcher: TapLauncher(launcher, tap))
    async with desk, proxy as found, linked(found, desk, name) as link:
        links.append(link)
        try:
            yield Connection(found, link, tap)
        finally:
            links.clear()
