"""The command line of `scripts/chaos`: who calls, which harm comes when, and the verdict.

Exit 0 where all invariants hold, 1 where one does not, 130 on Ctrl-C (`--resume` goes on from
there).
"""

import argparse
import random
import secrets
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import quantiles
from types import FrameType
from typing import Final, cast

import anyio
import httpx2

from tests.rig import http as rig_http
from tests.rig.http import http

from . import of_backends, of_clients, of_moderns, of_proxies
from .arena import Arena, Setting
from .callers import PATIENCE, PAUSE, AnyCaller, Caller, Guest, Latency, Unexpected
from .kinds import ALONE, EITHER, HANDSHAKE, MODERN, Turns
from .moderns import ModernCaller
from .record import Record
from .tokens import Tokens

EVERY: Final = 10.0
"""Seconds between two lines of figures."""

AT_ONCE: Final = 6
AT_ONCE_STRICTLY: Final = 2
"""Harms that go on at once. The bounds of FAULTS are for one."""

CALM: Final = 10.0
"""Seconds before the first harm: how fast the proxy is when nothing is wrong."""

SLOWER: Final = 3.0
"""How many times slower those may be that nothing is done to (I8)."""

MODULES: Final = (of_backends, of_clients, of_moderns, of_proxies)
"""They fill the tables of `kinds`."""


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


class Options(argparse.Namespace):
    minutes: float
    sessions: int
    faults: int | None
    seed: int | None
    strict: bool
    resume: str
    containment: str
    servers: int


def parse() -> Options:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="of all runs together")
    parser.add_argument(
        "--sessions", type=int, default=100,
        help="callers with a session each, every other one of the modern era",
    )  # fmt: skip
    parser.add_argument("--faults", type=int, default=None, metavar="N", help="no more than N")
    parser.add_argument(
        "--seed", type=int, default=None, help="decides who, what and in which order"
    )
    parser.add_argument(
        "--strict", action="store_true",
        help="the bounds of FAULTS as they are, I5 and I8; else five times the bounds",
    )  # fmt: skip
    parser.add_argument(
        "--resume", default="", metavar="FILE",
        help="keep the history in FILE, or go on with the one that is there",
    )  # fmt: skip
    parser.add_argument("--containment", default="", metavar="RUNG")
    parser.add_argument(
        "--servers", type=int, default=1, metavar="N",
        help="behind each session; what is done to one of them must not be felt at the others",
    )  # fmt: skip
    return parser.parse_args(namespace=Options())


def main() -> int:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="sp-chaos-") as directory:
        record = Record(Path(options.resume or f"{directory}/history.jsonl"))
        if options.seed is None:
            options.seed = secrets.randbelow(2**32) if record.seed is None else record.seed
        kinds = len({**EITHER, **HANDSHAKE, **MODERN, **ALONE})
        print(f"seed {options.seed}, {kinds} kinds of faults", flush=True)
        if record.runs:
            print(f"going on after {record.seconds:.0f} s and {record.faults.total()} faults")
        record.begin(options.seed)
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            anyio.run(Chaos(options, record, Path(directory)).run)
        except KeyboardInterrupt:
            print(
                f"interrupted; --resume {record.path} goes on" if options.resume else "interrupted"
            )
            return 130
        finally:
            record.close()
        return verdict(record)


def verdict(record: Record) -> int:
    wrong = record.violations()
    entries, executed = len(record.history.entries), len(record.history.executions)
    for kind, count in sorted(record.faults.items()):
        print(f"{count:6} {kind}")
    print(
        f"{record.faults.total()} faults of {len(record.faults)} kinds in {record.seconds:.0f} s; "
        f"{entries} requests, {executed} executed"
    )
    for line in wrong[:50]:
        print(f"VIOLATION: {line}")
    print("all invariants hold" if not wrong else f"{len(wrong)} violations")
    return int(bool(wrong))


class Chaos:
    """One run."""

    def __init__(self, options: Options, record: Record, directory: Path) -> None:
        self._options = options
        self._record = record
        self._random = random.Random(f"{options.seed}/{record.runs}")
        setting = Setting(
            sessions=options.sessions,
            strict=options.strict,
            containment=options.containment,
            servers=tuple(f"s{n}" for n in range(options.servers)) if options.servers > 1 else (),
        )
        run = record.runs
        self._handshake = [f"c{run}-{n}" for n in range((options.sessions + 1) // 2)]
        self._modern = [f"m{run}-{n}" for n in range(options.sessions // 2)]
        tokens = Tokens(directory / "tokens", (*self._handshake, *self._modern))
        self._arena = Arena(setting, directory / "s", record, tokens)
        self._arena.of_backends = frozenset(
            kind
            for kind, harm in EITHER.items()
            if harm.__module__ == of_backends.__name__ and "session" not in kind
        )
        self._callers: list[AnyCaller] = []
        self._guests: list[Guest] = []
        self._turns = Turns()
        self._slots = anyio.Semaphore(AT_ONCE_STRICTLY if options.strict else AT_ONCE)
        self._usual: list[float] = []
        """Latencies before the first harm, in seconds."""

    async def run(self) -> None:
        setattr(rig_http, "PATIENCE", PATIENCE)  # noqa: B010 - everybody at once is slow
        await self._arena.begin()
        try:
            async with http() as pool:
                await self._call_and_harm(pool)
            await self._end()
        finally:
            with anyio.CancelScope(shield=True):
                await self._arena.close()

    async def _call_and_harm(self, pool: httpx2.AsyncClient) -> None:
        count = self._options.sessions
        for kind, names in ((Caller, self._handshake), (ModernCaller, self._modern)):
            for name in names:
                rng = random.Random(self._random.random())
                self._callers.append(kind(name, self._arena, pool, rng))
        hosts = [caller for caller in self._callers if isinstance(caller, Caller)]
        for server in self._arena.setting.servers:
            self._guests += [Guest(host, server, pool) for host in hosts if host.server != server]
        async with anyio.create_task_group() as tasks:
            for service in (self._record.keep_on, self._arena.watch, self._report):
                tasks.start_soon(service)
            await self._open_all()
            async with anyio.create_task_group() as calling:
                for caller in self._callers:
                    calling.start_soon(caller.go_on, max(0.2, PAUSE * count / 100))
                    if isinstance(caller, ModernCaller):
                        calling.start_soon(caller.listens_on)
                for guest in self._guests:
                    calling.start_soon(guest.go_on, max(0.2, PAUSE * count / 100))
                await anyio.sleep(min(CALM + count * 0.1, self._options.minutes * 60 / 4))
                self._usual = [latency.seconds for latency in self._latencies()]
                for caller in self._callers:
                    caller.latencies.clear()
                await self._harm()
                # What is between two rounds would be waited for.
                for caller in (*self._callers, *self._guests):
                    await caller.turn.acquire()
                calling.cancel_scope.cancel()
            tasks.cancel_scope.cancel()

    async def _open_all(self) -> None:
        async with anyio.create_task_group() as tasks:
            for caller in self._callers:
                tasks.start_soon(caller.serves)

    # -- harm --------------------------------------------------------------------------------------

    async def _harm(self) -> None:
        """Do one harm after the other, several at once, until the time or the number is over."""
        async with anyio.create_task_group() as tasks:
            for kind in self._deal():
                if self._is_over():
                    return
                await self._slots.acquire()
                if kind in ALONE:
                    self._slots.release()
                    await self._turns.by_itself(lambda kind=kind: self._do(kind))
                else:
                    await self._turns.begin()
                    tasks.start_soon(self._do_beside, kind)

    def _deal(self) -> Iterator[str]:
        """Yield kinds for ever, each once before any comes again; first those that a run which is
        gone on with has not done."""
        while True:
            deck = [*EITHER, *HANDSHAKE, *MODERN, *ALONE]
            self._random.shuffle(deck)
            yield from sorted(deck, key=lambda kind: self._record.faults[kind])

    def _is_over(self) -> bool:
        most = self._options.faults
        return self._record.seconds >= self._options.minutes * 60 or (
            most is not None and self._record.faults.total() >= most
        )

    async def _do_beside(self, kind: str) -> None:
        try:
            await self._do(kind)
        finally:
            self._slots.release()
            await self._turns.end()

    async def _do(self, kind: str) -> None:
        victim = self._victim(kind)
        async with victim.turn:
            self._arena.going += Counter([kind])
            victim.harm = kind
            try:
                await self._harm_through(victim, kind)
            except Exception as error:  # noqa: BLE001 - told in the verdict
                self._record.is_wrong(f"{kind} through {victim.name}: {told_of(error)}")
            finally:
                self._arena.going -= Counter([kind])
                victim.harm = ""
        self._record.done(kind)

    def _victim(self, kind: str) -> AnyCaller:
        era = Caller if kind in HANDSHAKE else ModernCaller if kind in MODERN else None
        able = [caller for caller in self._callers if era is None or isinstance(caller, era)]
        free = [caller for caller in able if not caller.turn.locked()]
        return self._random.choice(free or able)

    async def _harm_through(self, victim: AnyCaller, kind: str) -> None:
        if kind in HANDSHAKE and isinstance(victim, Caller):
            await HANDSHAKE[kind](self._arena, victim)
        elif kind in MODERN and isinstance(victim, ModernCaller):
            await MODERN[kind](self._arena, victim)
        else:
            await (EITHER.get(kind) or ALONE[kind])(self._arena, victim)

    # -- figures -----------------------------------------------------------------------------------

    async def _report(self) -> None:
        while True:
            await anyio.sleep(EVERY)
            if self._arena.up.is_set():
                calls = sum(caller.calls for caller in self._callers)
                told = sum(caller.told for caller in self._callers)
                usual, now = p99(self._usual), p99([one.seconds for one in self._latencies()])
                print(
                    f"{self._record.seconds:5.0f} s, {self._record.faults.total():4} faults of "
                    f"{len(self._record.faults):2} kinds, {calls:6} calls, {told:4} losses told, "
                    f"p99 {now * 1e3:4.0f} ms (before {usual * 1e3:.0f}), {self._arena.figures()}",
                    flush=True,
                )

    def _latencies(self) -> list[Latency]:
        return [latency for caller in self._callers for latency in caller.latencies]

    # -- the end -----------------------------------------------------------------------------------

    async def _end(self) -> None:
        """End all sessions, and look at what stays."""
        setting = self._arena.setting
        async with http() as pool, anyio.create_task_group() as tasks:
            for caller in self._callers:
                caller.moves(pool)
                tasks.start_soon(caller.ends)
        await self._arena.gone(within=setting.bound(setting.all_gone), after="the last call")
        await self._arena.check_resources()
        usual, during = p99(self._usual), p99([one.seconds for one in self._latencies()])
        heard = sum(one.heard for one in self._callers if isinstance(one, ModernCaller))
        print(f"{heard} messages heard by those who listen")
        print(f"p99 of those that nothing was done to: {usual * 1e3:.1f} ms before, "
              f"{during * 1e3:.1f} ms while harm was done")  # fmt: skip
        for kind, slow in self._slowest():
            print(f"{slow * 1e3:6.1f} ms while there was {kind}")
        if setting.strict and during >= SLOWER * usual:
            self._record.is_wrong(f"I8: p99 rose from {usual:.4f} s to {during:.4f} s")

    def _slowest(self) -> list[tuple[str, float]]:
        """Return the five kinds beside which calls of others were the slowest, with their p99."""
        latencies = self._latencies()
        found = {
            kind: p99([one.seconds for one in latencies if kind in one.beside])
            for kind in (*EITHER, *HANDSHAKE, *MODERN)
        }
        return sorted(found.items(), key=lambda each: -each[1])[:5]


def p99(values: list[float]) -> float:
    return quantiles(values, n=100)[98] if len(values) > 1 else 0.0


def told_of(error: Exception) -> str:
    """Return what was raised, without the groups around it."""
    if isinstance(error, ExceptionGroup):
        group = cast("ExceptionGroup[Exception]", error)
        return "; ".join(told_of(each) for each in group.exceptions)
    return str(error) if isinstance(error, Unexpected) else repr(error)
