"""What is done to the proxy itself: F23 to F25, F42. No other harm is done meanwhile."""

import signal

import anyio

from .arena import Arena
from .callers import AnyCaller, expect
from .kinds import alone


@alone
async def pauses(arena: Arena, victim: AnyCaller) -> None:
    """F42: longer than the idle limit; nobody is idle for it (which `Caller` checks)."""
    nonce = await victim.serves()
    arena.harm()
    arena.proxy.signal(signal.SIGSTOP)
    try:
        await anyio.sleep(arena.setting.idle + 1)
    finally:
        arena.proxy.signal(signal.SIGCONT)
    await victim.same(nonce)
    arena.quiet_since = anyio.current_time()


@alone
async def is_restarted(arena: Arena, victim: AnyCaller) -> None:
    """F23, F25: what is in flight ends, then all backends."""
    await victim.serves()
    status = await arena.end(signal.SIGTERM, within=_all_gone(arena))
    await _begins_again(arena, victim)
    expect(status == 0, f"the proxy has ended with {status}")


@alone
async def is_restarted_in_a_hurry(arena: Arena, victim: AnyCaller) -> None:
    """F23: a second SIGTERM means now."""
    await victim.serves()
    within = arena.setting.bound(2)
    status = await arena.end(signal.SIGTERM, signal.SIGTERM, within=within)
    await _begins_again(arena, victim)
    expect(status == 0, f"the proxy has ended with {status}")


@alone
async def is_killed_and_restarted(arena: Arena, victim: AnyCaller) -> None:
    """F24: its backends go with it."""
    await victim.serves()
    await arena.end(signal.SIGKILL, within=arena.setting.bound(1))
    await _begins_again(arena, victim)


def _all_gone(arena: Arena) -> float:
    return arena.setting.bound(arena.setting.drain_timeout + arena.setting.ladder)


async def _begins_again(arena: Arena, victim: AnyCaller) -> None:
    await arena.begin()
    await victim.serves()
