"""`core.catalogue`: what becomes of a change that a backend tells of."""

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Literal

import anyio
import pytest

from sessionproxy.core.catalogue import MAX_CALLERS, PAUSE, Catalogue, Offer
from sessionproxy.core.circuit import FAILURES, FIRST_REST, Circuit
from sessionproxy.core.context import caller_authorization
from sessionproxy.core.exchange import Exchange, Outcome
from sessionproxy.core.memory import Opening
from sessionproxy.core.ports import Identity, Upstream
from sessionproxy.errors import (
    BackendGone,
    BackendStartFailed,
    Exit,
    InitializeRefused,
    RouteResting,
)
from sessionproxy.wire import Bytes, Envelope

from .fakes import Steady

TOOLS = "notifications/tools/list_changed"
PROMPTS = "notifications/prompts/list_changed"

TTL = 3600.0
START = 1.0
"""Seconds that a backend takes to start."""


GONE = Outcome(failure=BackendGone("The backend ended.", Exit(code=7)))

Trouble = Literal["does not start", "dies", "refuses", "dies over its lists", "never answers"]


class Listed:
    """A backend with one tool; its name tells the backends apart."""

    def __init__(self, number: int, trouble: Trouble | None = None) -> None:
        self._tool = b'{"name":"tool%d","inputSchema":{}}' % number
        self._trouble = trouble

    def request(self, exchange: Exchange) -> None:
        lists = exchange.method == "tools/list"
        if self._trouble == "never answers":
            return
        if self._trouble == "dies" or (lists and self._trouble == "dies over its lists"):
            exchange.settle(GONE)
        elif self._trouble == "refuses":
            exchange.settle(Outcome(error=b'{"code":-32602,"message":"too old"}'))
        elif lists:
            exchange.settle(Outcome(result=b'{"tools":[%b]}' % self._tool))
        else:
            exchange.settle(Outcome(result=b'{"capabilities":{"tools":{}}}'))

    def notify(self, method: str, params: Bytes | None) -> None:
        raise AssertionError(method)

    def cancel(self, exchange: Exchange, params: Bytes | None) -> None:
        raise AssertionError(exchange.method)

    def in_flight(self) -> tuple[Exchange, ...]:
        return ()


class Backends:
    """A launcher of them. `mended`: what was refused is not refused again. `alike`: all have the
    same tool."""

    def __init__(
        self, trouble: Trouble | None = None, *, mended: bool = False, alike: bool = False
    ) -> None:
        self.alike = alike
        self.started = 0
        self.running = 0
        self.trouble: Trouble | None = trouble
        self.mended = mended

    async def refused(self, identity: Identity, opening: Opening) -> bool:
        if self.mended:
            self.trouble = None
        return self.mended

    @asynccontextmanager
    async def launch(
        self, identity: Identity, label: str, upstream: Upstream, opening: Opening
    ) -> AsyncGenerator[Listed]:
        self.started += 1
        number = 1 if self.alike else self.started
        await anyio.sleep(START)  # virtual
        if self.trouble == "does not start":
            raise BackendStartFailed("no such command")
        self.running += 1
        try:
            yield Listed(number, self.trouble)
        finally:
            self.running -= 1


class Told:
    """Somebody who listens."""

    def __init__(self) -> None:
        self.methods: list[str] = []

    def __call__(self, method: str) -> None:
        self.methods.append(method)


@asynccontextmanager
async def catalogue(
    backends: Backends, circuit: Circuit | None = None
) -> AsyncGenerator[Catalogue]:
    ourselves = Envelope("2026-07-28", b"{}")
    found = Catalogue(
        "r", backends, ourselves, ttl=TTL, timeout=10, pauses=Steady(), circuit=circuit
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(found.run)
        yield found
        tasks.cancel_scope.cancel()


def is_of(offer: Offer, number: int) -> bool:
    return b'"tool%d"' % number in offer.lists["tools/list"]


async def test_listeners_are_told_of_a_change_before_the_newer_offer_is_there() -> None:
    """2026-07-28 basic/patterns/subscriptions. Fetching takes as long as a backend takes to start,
    and who asks meanwhile waits for it."""
    backends, told = Backends(), Told()
    async with catalogue(backends) as route:
        await route.offer()
        route.listen(told)
        route.changed(TOOLS)
        assert told.methods == [TOOLS]
        assert backends.started == 1
        assert is_of(await route.offer(), 2)


async def test_a_change_while_an_offer_is_fetched_is_told_and_makes_that_offer_old() -> None:
    """DESIGN 9: a list_changed of any backend of the route makes it fetch anew."""
    backends, told = Backends(), Told()
    async with catalogue(backends) as route:
        route.listen(told)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(route.offer)
            await anyio.sleep(START / 2)  # virtual
            route.changed(TOOLS)
            assert told.methods == [TOOLS]
        assert is_of(await route.offer(), 2)


async def test_a_backend_that_tells_of_a_change_again_and_again_is_heard_once_for_each_offer() -> (
    None
):
    """DESIGN 10: a backend that floods costs its own session at most."""
    backends, told = Backends(), Told()
    async with catalogue(backends) as route:
        await route.offer()
        route.listen(told)
        for _ in range(1000):
            route.changed(TOOLS)
            route.changed(PROMPTS)
        assert told.methods == [TOOLS, PROMPTS]
        await route.offer()
        route.changed(TOOLS)
        assert told.methods == [TOOLS, PROMPTS, TOOLS]


async def test_somebody_new_who_listens_is_told_of_the_next_change() -> None:
    """They know nothing of those before."""
    backends, told = Backends(), Told()
    async with catalogue(backends) as route:
        await route.offer()
        route.listen(told)
        route.changed(TOOLS)
        route.listen(told)
        route.changed(TOOLS)
        assert told.methods == [TOOLS, TOOLS]


async def test_changes_start_no_backend_while_nobody_listens() -> None:
    """Handshake sessions ask their own backend (DESIGN 6): nobody may ever want the offer."""
    backends, told = Backends(), Told()
    async with catalogue(backends) as route:
        await route.offer()
        route.changed(TOOLS)
        await anyio.sleep(3600)  # virtual
        assert backends.started == 1
        route.listen(told)
        route.unlisten(told)
        route.changed(TOOLS)
        await anyio.sleep(3600)  # virtual
        assert backends.started == 1
        assert told.methods == []


async def test_changes_without_end_start_a_backend_every_few_seconds_at_most() -> None:
    """Some servers change their lists with every call. Our choice of `PAUSE`."""
    backends = Backends()
    async with catalogue(backends) as route:
        route.listen(Told())
        for _ in range(600):
            route.changed(TOOLS)
            await anyio.sleep(0.1)  # virtual, a minute in all
        assert 60 / (PAUSE + START) - 1 <= backends.started <= 60 / (PAUSE + START) + 1


async def test_changes_that_bring_nothing_new_are_looked_at_ever_more_seldom() -> None:
    """Playwright tells of one in each session; a backend is started to look at it. Our choice."""
    backends = Backends(alike=True)
    async with catalogue(backends) as route:
        await route.offer()
        for pause in (0.0, 2 * PAUSE, 4 * PAUSE, 8 * PAUSE):
            started = backends.started
            route.changed(TOOLS)
            assert route.fresh_for == pytest.approx(pause)
            if pause:
                await anyio.sleep(pause - 1)  # virtual
                await route.offer()
                assert backends.started == started
                await anyio.sleep(1.5)  # virtual
            await route.offer()
            assert backends.started == started + 1
        backends.alike = False
        await anyio.sleep(TTL)  # virtual
        assert is_of(await route.offer(), backends.started)
        started = backends.started
        route.changed(TOOLS)
        assert is_of(await route.offer(), started + 1)


async def test_who_was_given_the_old_offer_after_a_change_is_told_if_it_made_a_difference() -> None:
    """Else a client would never hear of it: the change itself was told before."""
    backends, told = Backends(alike=True), Told()
    async with catalogue(backends) as route:
        await route.offer()
        route.changed(TOOLS)
        await route.offer()
        route.listen(told)
        route.changed(TOOLS)
        route.changed(PROMPTS)
        assert (told.methods, backends.started) == ([TOOLS, PROMPTS], 2)
        backends.alike = False
        assert is_of(await route.offer(), 1)
        await anyio.sleep(3 * PAUSE)  # virtual
        assert told.methods == [TOOLS, PROMPTS, TOOLS]
        assert is_of(await route.offer(), 3)


async def test_callers_whose_credentials_go_along_have_an_offer_each() -> None:
    """DESIGN 6: and on nobody's behalf none is fetched. Those of the last callers are kept."""
    backends = Backends()
    async with catalogue(backends) as found:
        for caller in (b"a", b"b", b"", b"a"):
            with calling_as(caller):
                await found.offer()
                assert found.known is not None
        assert backends.started == 3
        assert found.known is None
        found.listen(Told())
        found.changed(TOOLS)
        await anyio.sleep(2 * PAUSE)
        assert backends.started == 3
        with calling_as(b"a"):
            assert found.fresh_for == 0
            await found.offer()
        for number in range(MAX_CALLERS):
            with calling_as(b"%d" % number):
                assert found.known is None
        with calling_as(b"a"):
            assert found.known is None


@contextmanager
def calling_as(credential: bytes) -> Generator[None]:
    token = caller_authorization.set(credential)
    try:
        yield
    finally:
        caller_authorization.reset(token)


async def test_other_notifications_change_nothing() -> None:
    """Only lists are in the catalogue."""
    backends, told = Backends(), Told()
    async with catalogue(backends) as route:
        await route.offer()
        route.listen(told)
        route.changed("notifications/resources/updated")
        await route.offer()
        assert (told.methods, backends.started) == ([], 1)


# -- backends that fail ----------------------------------------------------------------------------


async def failing(route: Catalogue, times: int = FAILURES) -> BackendStartFailed:
    """Ask so often, in vain; return the last failure."""
    for _ in range(times - 1):
        with pytest.raises(BackendStartFailed):
            await route.offer()
    with pytest.raises(BackendStartFailed) as failed:
        await route.offer()
    return failed.value


@pytest.mark.parametrize("trouble", ["does not start", "dies", "never answers"])
async def test_a_backend_that_does_not_start_makes_its_route_rest(trouble: Trouble) -> None:
    """DESIGN 7: whoever it is started for; nothing is started while it rests."""
    backends, circuit = Backends(trouble), Circuit()
    async with catalogue(backends, circuit) as route:
        failure = await failing(route)
        assert (backends.started, backends.running) == (FAILURES, 0)
        assert circuit.rests(anyio.current_time())
        with pytest.raises(RouteResting):
            await route.offer()
        assert backends.started == FAILURES
        assert failure.exit == (Exit(code=7) if trouble == "dies" else None)
        backends.trouble = None
        await anyio.sleep(FIRST_REST)  # virtual
        assert is_of(await route.offer(), FAILURES + 1)
        await failing_once_more(backends, route, circuit)


async def failing_once_more(backends: Backends, route: Catalogue, circuit: Circuit) -> None:
    """After a success, one failure is not enough for another rest."""
    backends.trouble = "dies"
    route.changed(TOOLS)
    await failing(route, 1)
    assert not circuit.rests(anyio.current_time())


async def test_all_who_wait_for_a_fetch_share_its_failure() -> None:
    """FAULTS F05: each would wait for a start of its own, one after the other. Who comes later has
    another one started."""
    backends, failed = Backends("never answers"), list[float]()
    async with catalogue(backends) as route:
        begun = anyio.current_time()

        async def ask() -> None:
            with pytest.raises(BackendStartFailed):
                await route.offer()
            failed.append(anyio.current_time() - begun)

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(ask)
        assert len(set(failed)) == 1
        assert backends.started == 1
        await failing(route, 1)
        assert backends.started == 2
        backends.trouble = None
        assert is_of(await route.offer(), 3)


async def test_a_route_that_rests_is_not_asked_what_it_offers() -> None:
    """DESIGN 7: sessions that did not start make it rest for this too; what is known is told."""
    backends, circuit = Backends(), Circuit()
    async with catalogue(backends, circuit) as route:
        await route.offer()
        for _ in range(FAILURES):
            circuit.failed(anyio.current_time())
        assert is_of(await route.offer(), 1)
        route.changed(TOOLS)
        with pytest.raises(RouteResting):
            await route.offer()
        assert backends.started == 1


async def test_a_backend_that_fails_over_its_lists_rests_for_those_who_ask_for_them_alone() -> None:
    """Our choice: sessions of clients that never ask may do well with it (DESIGN 10)."""
    backends, circuit = Backends("dies over its lists"), Circuit()
    async with catalogue(backends, circuit) as route:
        await failing(route)
        with pytest.raises(RouteResting):
            await route.offer()
        assert backends.started == FAILURES
        circuit.check(anyio.current_time())


async def test_a_backend_that_refuses_makes_nobody_wait() -> None:
    """DESIGN 7: it starts, and may like another client better."""
    backends, circuit = Backends("refuses"), Circuit()
    async with catalogue(backends, circuit) as route:
        for _ in range(2 * FAILURES):
            with pytest.raises(InitializeRefused, match="too old"):
                await route.offer()
        circuit.check(anyio.current_time())


async def test_a_backend_that_refuses_is_asked_again_where_that_may_help() -> None:
    """DESIGN 9: one that said nothing when its era was asked may speak the other one."""
    backends = Backends("refuses", mended=True)
    async with catalogue(backends) as route:
        assert is_of(await route.offer(), 2)
        assert (backends.started, backends.running) == (2, 0)
