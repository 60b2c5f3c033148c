"""Many channels at once, each with one call in flight, in one thread.

Neighbours: `channels` below, `measures` above.
"""

import re
import selectors
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from .channels import CallFailed, Channel, is_answer
from .sessions import answer_of, call

SILENCE: Final = 10  # seconds without any answer after which calls in flight count as lost
MAX_FAILURES: Final = 20  # calls that may fail before a slice is given up
COUNTED: Final = re.compile(rb'([a-z0-9]+-[a-z0-9]+):(\d+)"')


class Job(Protocol):
    """What each channel asks, and what it makes of the answer."""

    def next(self, index: int) -> bytes | None:
        """The next message of channel `index`; None when it has no more."""
        ...

    def check(self, index: int, messages: list[bytes]) -> None:
        """Raises: CallFailed, when the answer is no answer to this channel's last message."""
        ...


class EchoJob:
    """Small `tools/call`s until the time is over."""

    def __init__(self, channels: int, seconds: float) -> None:
        self._ends = time.perf_counter() + seconds
        self._sent = [0] * channels
        self._nonces = [b""] * channels

    def next(self, index: int) -> bytes | None:
        if time.perf_counter() >= self._ends:
            return None
        self._sent[index] += 1
        nonce = b"channel-%02d-call-%08d" % (index, self._sent[index])
        self._nonces[index] = nonce
        return call("echo", b'{"text":"%s"}' % nonce)

    def check(self, index: int, messages: list[bytes]) -> None:
        if not messages or self._nonces[index] not in messages[-1]:
            answer_of(messages)
            raise CallFailed(f"another call's answer: {messages[-1][:120]!r}")


class PlainJob(EchoJob):
    """The same for a target that is no MCP server: any answer will do."""

    def check(self, index: int, messages: list[bytes]) -> None:
        answer_of(messages)


@dataclass
class Counted:
    """What became of the counter calls of all sessions."""

    calls: int = 0
    wrong: int = 0  # an answer with another call's nonce
    foreign: int = 0  # the right nonce, but the count of a state that others use too
    lost: int = 0  # no answer, or an error
    doubled: int = 0  # more than one answer to one request

    @property
    def bad(self) -> int:
        return self.wrong + self.foreign + self.lost + self.doubled


@dataclass
class CounterJob:
    """So many `counter` calls per session, each with a nonce, each counted by the backend."""

    calls: int
    salt: str
    counted: Counted = field(default_factory=Counted)
    sent: dict[int, int] = field(default_factory=dict[int, int])
    counts: dict[int, int] = field(default_factory=dict[int, int])

    def nonce(self, index: int) -> bytes:
        return f"{self.salt}-{index}x{self.sent[index]}".encode()

    def next(self, index: int) -> bytes | None:
        sent = self.sent.get(index, 0)
        if sent >= self.calls:
            return None
        self.sent[index] = sent + 1
        self.counted.calls += 1
        return call("counter", b'{"nonce":"%s"}' % self.nonce(index))

    def check(self, index: int, messages: list[bytes]) -> None:
        answers = [message for message in messages if is_answer(message)]
        self.counted.doubled += max(0, len(answers) - 1)
        found = COUNTED.search(answers[-1]) if answers else None
        if found is None:
            self.counted.lost += 1
            return
        before = self.counts.get(index)
        self.counts[index] = int(found[2])
        if found[1] != self.nonce(index):
            self.counted.wrong += 1
        elif before is not None and self.counts[index] != before + 1:
            self.counted.foreign += 1


@dataclass
class Load:
    """What a slice of load came to."""

    calls: int = 0
    seconds: float = 0.0
    failed: int = 0  # refused, or unanswered when the slice was given up
    reason: str = ""  # of the first failure

    def fail(self, reason: str, calls: int = 1) -> None:
        self.failed += calls
        self.reason = self.reason or reason


def run_load(channels: Sequence[Channel], job: Job) -> Load:
    """Every channel has run out of messages, or the slice was given up."""
    load = Load()
    started = time.perf_counter()
    with selectors.DefaultSelector() as selector:
        for index, channel in enumerate(channels):
            if _send_next(channel, index, job, load):
                selector.register(channel.fileno(), selectors.EVENT_READ, index)
        while selector.get_map() and load.failed < MAX_FAILURES:
            ready = selector.select(SILENCE)
            if not ready:
                load.fail(f"no answer within {SILENCE} s", len(selector.get_map()))
                break
            for key, _ in ready:
                index: int = key.data
                if not _step(channels[index], index, job, load):
                    selector.unregister(key.fileobj)
    load.seconds = time.perf_counter() - started
    return load


def _step(channel: Channel, index: int, job: Job, load: Load) -> bool:
    """Read once and, when that completes an answer, send on; false when the channel is done."""
    try:
        if not channel.receive():
            return True
    except CallFailed as error:
        load.fail(str(error))
        return False
    try:
        job.check(index, channel.messages)
        load.calls += 1
    except CallFailed as error:
        load.fail(str(error))
    return _send_next(channel, index, job, load)


def _send_next(channel: Channel, index: int, job: Job, load: Load) -> bool:
    message = job.next(index)
    if message is None:
        return False
    try:
        channel.send(message)
    except CallFailed as error:
        load.fail(str(error))
        return False
    return True
