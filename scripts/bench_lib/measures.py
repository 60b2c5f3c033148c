"""The slices: each measures one target for a short while and hands back named values.

Neighbours: `rounds` calls them in rotating order; `load`, `sessions` and `processes` do the work.
"""

import secrets
import statistics
import time
from dataclasses import dataclass, field
from typing import Final

from . import results as r
from .channels import CallFailed, Channel, HttpChannel, ModernChannel, StdioChannel
from .load import CounterJob, EchoJob, PlainJob, run_load
from .probes import (
    GONE_TIMEOUT,
    drained,
    end_all,
    gone_after_delete,
    listen,
    open_idle,
    progress_of,
    seconds_until_gone,
    wrappers_of,
)
from .processes import Cpu, backend_command
from .sessions import (
    answer_of,
    call,
    end_http,
    exchange,
    open_http,
    open_modern,
    open_stdio,
    text_of,
)
from .targets import IDLE_LIMIT, MODERN, STARLETTE, STDIO, WARM, Targets

SESSIONS: Final = 8  # of the concurrent slices
BIG: Final = 8 << 20  # bytes of the big payload
NOTES: Final = 1000
SETTLE: Final = 0.5  # seconds for a target to come to rest before its memory is read
REFILL: Final = 1.0  # seconds for a pool to have warm spares again
WARM_UP_SESSIONS: Final = 20  # opened before the memory of idle sessions is counted


@dataclass(frozen=True)
class Plan:
    """How much is measured; times in seconds."""

    rounds: int
    warm_up_time: float
    latency_time: float
    load_time: float
    counter_calls: int  # of each session, per round
    idle_sessions: int
    soft_limit: float  # no new round is begun after it
    hard_limit: float  # what runs then is cut off


QUICK: Final = Plan(3, 1.5, 0.4, 0.7, 60, 50, 75, 170)
FULL: Final = Plan(7, 5.0, 1.5, 2.0, 250, 200, 1200, 2400)


@dataclass
class Measures:
    """The slices, and the sessions they keep open from round to round."""

    targets: Targets
    plan: Plan
    kept: dict[str, list[Channel]] = field(default_factory=dict[str, list[Channel]])

    def latency(self, target: str) -> dict[str, float]:
        """One session, one call after the other."""
        channel = self._channels(target)[-1]
        times: list[float] = []
        before = self._cpu(target)
        ends = time.perf_counter() + self.plan.latency_time
        while (began := time.perf_counter()) < ends or len(times) < 50:
            nonce = b"sequential-%013d" % len(times)
            message = call("echo", b'{"text":"%s"}' % nonce)
            began = time.perf_counter()
            channel.send(message)
            while not channel.receive():
                pass
            times.append(channel.answered_at - began)
            if nonce not in answer_of(channel.messages) and target != STARLETTE:
                raise CallFailed("another call's answer")
        found = {r.P50: statistics.median(times)}
        if before is not None:
            found[r.CPU_ONE] = self._cpu_since(target, before) / len(times)
        return found

    def throughput(self, target: str) -> dict[str, float]:
        """Eight sessions, each with one call in flight."""
        channels = self._channels(target)[:SESSIONS]
        job = PlainJob if target == STARLETTE else EchoJob
        before = self._cpu(target)
        load = run_load(channels, job(SESSIONS, self.plan.load_time))
        if load.failed:
            raise CallFailed(f"{load.failed} calls failed: {load.reason}")
        found = {r.RATE: load.calls / load.seconds}
        if before is not None:
            found[r.CPU_MANY] = self._cpu_since(target, before) / load.calls
        return found

    def big_request(self, target: str) -> dict[str, float]:
        message = call("size", b'{"text":"%s"}' % (b"0123456789abcdef" * (BIG // 16)))
        seconds, messages = self._big(target, message)
        if text_of(messages) != str(BIG):
            raise CallFailed("the request arrived changed")
        return {r.BIG_REQUEST: seconds}

    def big_answer(self, target: str) -> dict[str, float]:
        seconds, messages = self._big(target, call("blob", b'{"size":%d}' % BIG))
        if text_of(messages) != "x" * BIG:
            raise CallFailed("the answer arrived changed")
        return {r.BIG_ANSWER: seconds}

    def big_each_way(self, target: str) -> dict[str, float]:
        text = b"0123456789abcdef" * (BIG // 16)
        seconds, messages = self._big(target, call("echo", b'{"text":"%s"}' % text))
        if text not in messages[-1]:
            raise CallFailed("the text arrived changed")
        return {r.BIG_BOTH: seconds}

    def notes(self, target: str) -> dict[str, float]:
        """One call with many progress notes, on a session with a GET stream beside it."""
        if target == STDIO:
            channel = open_stdio(backend_command(secrets.token_hex(8)))
            listener = None
        else:
            channel = self._open_http(target)
            listener = None if isinstance(channel, ModernChannel) else listen(channel)
        try:
            answer_of(exchange(channel, call("echo", b'{"text":"first"}')))
            began = time.perf_counter()
            message = call("notes", b'{"n":%d}' % NOTES, b'{"progressToken":"bench-notes"}')
            messages = exchange(channel, message)
            seen = progress_of(messages)
            seconds = time.perf_counter() - began  # a client has to read them, too
            answer_of(messages)
            seen += progress_of(drained(listener))
        finally:
            if listener is not None:
                listener.close()
            end_http(channel) if isinstance(channel, HttpChannel) else channel.close()
        in_order = seen == list(range(1, NOTES + 1))
        return {r.NOTES: seconds, r.NOTES_ARRIVED: len(seen), r.NOTES_IN_ORDER: in_order}

    def first_call(self, target: str) -> dict[str, float]:
        """A new session: until its first answer; and its end: until its backend is gone."""
        message = call("echo", b'{"text":"first"}')
        if target == STDIO:
            began = time.perf_counter()
            channel = open_stdio(backend_command(secrets.token_hex(8)))
            answer_of(exchange(channel, message))
            found = {r.FIRST_CALL: time.perf_counter() - began}
            began = time.perf_counter()
            channel.close()
            return found | {r.GONE: time.perf_counter() - began}
        if target == WARM:
            time.sleep(REFILL)
        server = self.targets.servers[target]
        before = {process.pid for process in server.backends()}
        channel = open_modern(server.port) if target == MODERN else HttpChannel(server.port)
        began = time.perf_counter()
        if target != MODERN:
            open_http(server.port, channel)
        answer_of(channel.request(message))
        found = {r.FIRST_CALL: channel.answered_at - began}
        if target in (WARM, MODERN):
            end_http(channel)
            return found
        started = [process for process in server.backends() if process.pid not in before]
        if not started:
            end_http(channel)
            return found
        return found | {r.GONE: gone_after_delete(channel, started)}

    def idle_end(self, target: str) -> dict[str, float]:
        """How long after the idle limit a session's backend is gone."""
        server = self.targets.servers[target]
        channel = open_http(server.port)
        exchange(channel, call("echo", b'{"text":"last"}'))
        began = time.perf_counter()
        channel.close()
        gone = seconds_until_gone(server.backends(), began, IDLE_LIMIT + GONE_TIMEOUT)
        return {r.GONE_IDLE: gone - IDLE_LIMIT}

    def identity(self, target: str) -> dict[str, float]:
        """Eight sessions that all send `id: 1`: whose answers, whose state, how many."""
        channels = self._channels(target)[:SESSIONS]
        job = CounterJob(self.plan.counter_calls, secrets.token_hex(4))
        load = run_load(channels, job)
        counted = job.counted
        if load.failed:
            self.forget(target)
        found: dict[str, float] = {
            r.COUNTED: counted.calls,
            r.WRONG: counted.wrong,
            r.FOREIGN: counted.foreign,
            r.LOST: counted.lost + load.failed,
            r.DOUBLED: counted.doubled,
        }
        if target not in (STDIO, MODERN):  # whose conversations of other slices have not ended
            found[r.BACKENDS] = len(self.targets.servers[target].backends())
        return found

    def idle_memory(self, target: str) -> dict[str, float]:
        """What each idle session adds to the proxy, after others have warmed it up."""
        server, port = self.targets.servers[target], self._port(target)
        opener = HttpChannel(port)
        ids: list[str | None] = []
        again = None if target == MODERN else lambda: open_http(port, opener)
        try:
            open_idle(port, again, ids, WARM_UP_SESSIONS)
            time.sleep(SETTLE)
            before = (server.rss(), server.threads())
            open_idle(port, again, ids, self.plan.idle_sessions)
            time.sleep(SETTLE)
            after = (server.rss(), server.threads())
            wrappers = wrappers_of(server)
        finally:
            opener.close()
            end_all(server.port, ids)
        new = self.plan.idle_sessions
        return {
            r.MEMORY: (after[0] - before[0]) / new,
            r.THREADS: (after[1] - before[1]) / new,
            r.WRAPPERS: wrappers.processes / len(ids),
            r.WRAPPER_BYTES: wrappers.bytes / len(ids),
        }

    def forget(self, target: str) -> None:
        """Its sessions are over; the next slice opens new ones."""
        ids: list[str | None] = []
        for channel in self.kept.pop(target, []):
            if isinstance(channel, HttpChannel):
                ids.append(channel.session_id)
            if isinstance(channel, HttpChannel | StdioChannel):
                channel.close()
        if target in self.targets.servers:
            end_all(self._port(target), [session_id for session_id in ids if session_id])

    def warm_up(self, target: str) -> dict[str, float]:
        """The target's code is compiled and its allocators have grown; nothing is measured."""
        channels = self._channels(target)[:SESSIONS]
        job = PlainJob if target == STARLETTE else EchoJob
        run_load(channels, job(SESSIONS, self.plan.warm_up_time))
        return {}

    def _channels(self, target: str) -> list[Channel]:
        """Its sessions, one more than `SESSIONS`, connected anew and past their first call."""
        kept = self.kept.setdefault(target, [])
        for channel in kept:
            if isinstance(channel, HttpChannel):
                channel.reconnect()
        while len(kept) < SESSIONS + 1:
            kept.append(self._open(target))
        for channel in kept:
            channel.send(call("echo", b'{"text":"warm-up"}'))
            while not channel.receive():
                pass
            answer_of(channel.messages)
        return kept

    def _open(self, target: str) -> Channel:
        if target == STDIO:
            return open_stdio(backend_command(secrets.token_hex(8)))
        if target == STARLETTE:
            return HttpChannel(self._port(target))
        return self._open_http(target)

    def _open_http(self, target: str) -> HttpChannel:
        port = self._port(target)
        return open_modern(port) if target == MODERN else open_http(port)

    def _port(self, target: str) -> int:
        return self.targets.servers[target].port

    def _cpu(self, target: str) -> Cpu | None:
        """Of the proxy so far; None for the bare backend."""
        server = self.targets.servers.get(target)
        return None if server is None else server.cpu()

    def _cpu_since(self, target: str, before: Cpu) -> float:
        return self.targets.servers[target].cpu().since(before)

    def _big(self, target: str, message: bytes) -> tuple[float, list[bytes]]:
        channel = self._channels(target)[-1]
        began = time.perf_counter()
        channel.send(message)
        while not channel.receive():
            pass
        if isinstance(channel, HttpChannel):
            channel.check_status()
        answer_of(channel.messages)
        return channel.answered_at - began, channel.messages
