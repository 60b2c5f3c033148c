"""FAULTS F10 to F16: what backends do on their pipes, by flooding, stammering, or not reading.

Each under watch: a bystander's session calls all the while, and I1 to I8 hold. Neighbours:
`test_backends` has how backends start and end; `tests.wire` and `tests.core.test_relay` show what
is a message and what is not, case by case.
"""

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import pytest

from sessionproxy.backends import stdio
from sessionproxy.backends.containment.ladder import available
from sessionproxy.backends.stderr import LINES_PER_SECOND
from sessionproxy.core.garbage import MAX_LINES
from sessionproxy.core.state import StopReason
from tests.rig.embedded import SCRIPTED, scripted, until
from tests.rig.http import Json, calling
from tests.rig.invariants import watched, watched_process
from tests.rig.recorded import Recorded

from .told import asleep, call, fault_of, is_told_and_goes_on, session_of, text_of

RUNGS: Final = [rung for rung, against in available().items() if not against]
"""Of containment, on this machine."""

MB: Final = 1_000_000
PIPE: Final = 64 * 1024
"""Bytes that a pipe holds."""

NOTE: Final = '{"jsonrpc":"2.0","method":"x/note"}\n'


# -- garbage ---------------------------------------------------------------------------------------


async def test_lines_that_are_no_messages_are_dropped_and_logged_once_a_second(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """FAULTS F10: a banner, or a thousand prints, do no harm."""
    caplog.set_level(logging.WARNING, logger="sessionproxy.core.relay")
    async with watched() as watch, watch.client("alice") as alice:
        began = anyio.current_time()
        found = await alice.do({"raw": "INFO: listening\n" * MAX_LINES}, echo="mine")
        took = anyio.current_time() - began
        assert found["echo"] == "mine"
        assert watch.proxy.app.tally["garbage_line"] == MAX_LINES
        assert (await alice.do())["pid"] == found["pid"]
    dropped = [record for record in caplog.records if "dropped a line" in record.getMessage()]
    assert 1 <= len(dropped) <= 1 + took


@pytest.mark.parametrize("rung", RUNGS)
async def test_a_backend_that_writes_hardly_anything_but_garbage_is_killed(rung: str) -> None:
    """FAULTS F10: more than 1,000 lines in 10 s; then as F06, and the reason is told."""
    async with watched(containment=rung) as watch, watch.client("alice") as alice:
        answer = await call(alice, {"spawn": []}, {"babble": "DEBUG: still here\n"})
        fault = fault_of(answer)
        assert (fault["kind"], fault["outcome"]) == ("backend_gone", "unknown")
        assert "wrote more than 1,000 lines that are no messages in 10 s" in text_of(answer)
        assert watch.proxy.app.tally["garbage_line"] == MAX_LINES + 1  # the rest was not looked at
        assert await asleep(watch.proxy, alice, seconds=10) is StopReason.BACKEND_EXIT
        await is_told_and_goes_on(alice)


async def test_a_backend_that_writes_garbage_instead_of_a_welcome_does_not_start() -> None:
    """FAULTS F10, F05: the reason is told at once; nobody waits for the limit."""
    command = scripted(start=[{"babble": "DEBUG: starting\n"}])
    async with watched(command) as watch, watch.client("alice", opens=False) as alice:
        await alice.initialize()
        assert alice.id == ""
        assert fault_of(alice.opened)["kind"] == "backend_start_failed"
        assert "lines that are no messages" in text_of(alice.opened)
        await until(lambda: watch.proxy.manager.admission.running == 1)


async def test_the_more_lines_a_backend_writes_the_less_is_read_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FAULTS F10, I8: others wait while one's lines are handed on; a long answer is no flood."""
    taken: list[int] = []
    feed = stdio.LineSplitter.feed

    def spy(splitter: stdio.LineSplitter, chunk: bytes) -> object:
        taken.append(len(chunk))
        return feed(splitter, chunk)

    async with watched(bystander=False) as watch, watch.client("alice") as alice:
        monkeypatch.setattr(stdio.LineSplitter, "feed", spy)
        lines = 64 * stdio.LEAST_READ
        await alice.do({"raw": "\n" * lines})
        few = taken.index(stdio.LEAST_READ)
        assert sum(taken[:few]) < lines
        taken.clear()
        await alice.do({"fill": 2 * MB})
        assert max(taken) > 4 * stdio.LEAST_READ


async def test_a_spare_that_talks_without_being_asked_is_read_when_it_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FAULTS F10: until then nobody is there to say that it is too much."""
    taken: list[int] = []
    feed = stdio.LineSplitter.feed

    def spy(splitter: stdio.LineSplitter, chunk: bytes) -> object:
        taken.append(len(chunk))
        return feed(splitter, chunk)

    monkeypatch.setattr(stdio.LineSplitter, "feed", spy)
    some, times = NOTE * 1000, 100
    size = len(some) * times
    command = scripted(start=[{"repeat": {"times": times, "steps": [{"raw": some}]}}])
    async with watched(command, bystander=False, warm=1) as watch:
        with pytest.raises(TimeoutError):
            await until(lambda: sum(taken) > size // 2, seconds=1)
        assert sum(taken) > 0
        async with watch.client("alice") as alice:
            assert (await alice.do())["count"] == 1
        assert sum(taken) > size


@pytest.mark.parametrize("line", ["\n", NOTE], ids=["empty lines", "notifications"])
async def test_a_backend_that_floods_its_stdout_holds_nobody_up(line: str) -> None:
    """FAULTS F10, I8: lines that are allowed are passed on for as long as they come."""
    async with watched(stop_grace=0.2) as watch, watch.client("alice") as alice:
        async with alice.doing({"log": "begins"}, {"babble": line}) as incoming:
            await incoming.message()
        async with watch.client("bob") as bob:
            for _ in range(20):
                await bob.do()
        await alice.delete()


# -- what is no message ----------------------------------------------------------------------------

DEEP: Final = "[" * 100_000 + "]" * 100_000

LINES: Final = {
    "not UTF-8": '{"jsonrpc":"2.0","method":"x","params":{"a":"\xff"}}',
    "NUL": '{"jsonrpc":"2.0","method":"x","params":{"a":"\x00"}}',
    "lone surrogate": '{"jsonrpc":"2.0","method":"x","params":{"a":"\\ud800"}}',
    "NaN": '{"jsonrpc":"2.0","method":"x","params":{"a":NaN}}',
    "nested": '{"jsonrpc":"2.0","method":"x","params":' + DEEP + "}",
    "nested batch": DEEP,
    "id null": '{"jsonrpc":"2.0","id":null,"method":"roots/list"}',
    "id float": '{"jsonrpc":"2.0","id":1.5,"method":"roots/list"}',
    "id huge": '{"jsonrpc":"2.0","id":%s,"method":"roots/list"}' % ("9" * 2000),
    "empty batch": "[]",
    "batch of numbers": "[1,2]",
    "endless batch": "[" + "1," * (2 * MB) + "1]",
}  # fmt: skip
"""Without their line ends, in latin-1."""


@pytest.mark.parametrize("name", LINES)
async def test_what_a_backend_writes_that_is_no_message_is_dropped_and_the_pipe_survives(
    name: str,
) -> None:
    """FAULTS F11: nothing of it is forwarded."""
    async with watched() as watch, watch.client("alice") as alice, alice.listen() as stream:
        async with alice.doing({"raw": LINES[name] + "\n"}, {"log": "after"}) as incoming:
            note, answer = await incoming.rest()
        assert note["params"]["data"] == "after"
        assert answer["result"]["structuredContent"]["count"] == 1
        await alice.do({"then": [{"log": "next"}]})
        assert (await stream.message())["params"]["data"] == "next"
        assert watch.proxy.app.tally["garbage_line"] > 0


async def test_a_batch_of_a_backend_is_passed_on_as_single_messages() -> None:
    """FAULTS F11: the era forbids batches; what is in one is not lost."""
    batch = f"[{NOTE.strip()},{NOTE.strip()}]\n"
    async with watched() as watch, watch.client("alice") as alice:
        async with alice.doing({"raw": batch}) as incoming:
            messages = await incoming.rest()
    assert [message.get("method") for message in messages] == ["x/note", "x/note", None]


MALFORMED: Final = ("not UTF-8", "NUL", "lone surrogate", "NaN", "nested", "nested batch")
"""Those that are no JSON, or none that can be read; the others are no messages."""


async def test_what_a_client_posts_that_is_no_message_is_refused_and_harms_nobody() -> None:
    """FAULTS F11: -32700 or -32600; its backend sees nothing of it."""
    async with watched() as watch, watch.client("alice") as alice:
        for name, line in LINES.items():
            with anyio.fail_after(5):
                response = await alice.post(line.encode("latin-1"))
            answer = response.json()
            code = -32700 if name in MALFORMED else -32600
            assert (response.status_code, answer["id"], name) == (400, None, name)
            assert (answer["error"]["code"], name) == (code, name)
        seen = (await alice.do({"tells": "seen"}))["seen"]
        methods = [message["method"] for message in seen]
        assert methods == ["initialize", "notifications/initialized", "tools/call"]


# -- half lines, and the end -----------------------------------------------------------------------


@pytest.mark.parametrize("end", [{"exit": 1}, {"close": "stdout"}], ids=str)
async def test_half_a_line_and_then_the_end_is_a_death(
    end: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS F12: as F06."""
    monkeypatch.setattr(stdio, "MUTE_GRACE", 0.05)
    async with watched(stop_grace=0.2) as watch, watch.client("alice") as alice:
        half = {"raw": '{"jsonrpc":"2.0","id":2,"result":{"half'}
        answer = await call(alice, half, end, {"wait": "never"})
        assert fault_of(answer)["kind"] == "backend_gone"
        assert ("exitCode" in fault_of(answer)) == ("exit" in end)
        assert await asleep(watch.proxy, alice, seconds=10) is StopReason.BACKEND_EXIT
        await is_told_and_goes_on(alice)


async def test_half_a_line_and_then_silence_changes_nothing() -> None:
    """FAULTS F12: what has come is kept until the rest is there."""
    async with watched() as watch, watch.client("alice") as alice:
        steps = ({"raw": NOTE[:10]}, {"sleep": 0.5}, {"raw": NOTE[10:]})
        async with alice.doing(*steps) as incoming:
            note, answer = await incoming.rest()
        assert note["method"] == "x/note"
        assert answer["result"]["structuredContent"]["count"] == 1


@contextmanager
def refilled(pipe: str, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Whenever something is read from it, something more is in this pipe at once."""
    feed = stdio.LineSplitter.feed
    end = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    reads = 0

    def spy(splitter: stdio.LineSplitter, chunk: bytes) -> object:
        nonlocal reads
        reads += 1
        assert reads < 100_000, "read on and on"
        with suppress(BlockingIOError):
            os.write(end, NOTE.encode())
        return feed(splitter, chunk)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(stdio.LineSplitter, "feed", spy)
            os.write(end, NOTE.encode())
            yield
    finally:
        os.close(end)


async def test_an_exit_is_told_although_a_child_goes_on_writing_to_the_pipe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FAULTS F06, F12: what is in the pipe at that moment is delivered, and no more is read."""
    async with watched() as watch, watch.client("alice") as alice:
        (child,) = (await alice.do({"spawn": ["holds"]}))["children"]
        with refilled(f"/proc/{child}/fd/1", monkeypatch):
            answer = await call(alice, {"exit": 3})
        assert fault_of(answer)["exitCode"] == 3
        assert await asleep(watch.proxy, alice, seconds=10) is StopReason.BACKEND_EXIT
        await is_told_and_goes_on(alice)


# -- long lines ------------------------------------------------------------------------------------


@dataclass
class Growth:
    """How much more memory a process had, at the most, than when the measuring began."""

    size: int = 0
    """Bytes."""


@contextmanager
def measured(pid: int) -> Generator[Growth]:
    """Measure what happens within (proc(5), /proc/pid/clear_refs: 5 resets the peak)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    before, growth = _peak(pid), Growth()
    yield growth
    growth.size = _peak(pid) - before


def _peak(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


async def test_a_line_far_above_the_limit_is_discarded_as_it_comes() -> None:
    """FAULTS F13: 50 MB with `max_line` 16 MiB; its call fails alone, and memory holds."""
    async with watched_process(SCRIPTED, "--max-line", str(16 * 1024 * 1024)) as watch:
        async with watch.client("alice") as alice:
            pid = (await alice.do())["pid"]
            async with alice.doing({"log": ""}, {"wait": "go"}, number=2) as other:
                await other.message()
                with measured(watch.proxy.process.pid) as grown:
                    answer = await call(alice, {"fill": 50 * MB}, number=3)
                assert fault_of(answer) == {"kind": "result_too_large", "outcome": "unknown"}
                await alice.do({"release": "go"})
                assert "isError" not in (await other.answer())["result"]
            assert (await alice.do())["pid"] == pid
    assert grown.size <= 20 * MB


async def test_a_long_line_within_the_limit_is_delivered_as_json() -> None:
    """FAULTS F14: 16 MB."""
    async with watched() as watch, watch.client("alice") as alice:
        with anyio.fail_after(5 * 0.5):
            async with alice.doing({"fill": 16 * MB}) as incoming:
                answer = await incoming.answer()
        assert not incoming.is_stream
        assert len(answer["result"]["structuredContent"]["fill"]) == 16 * MB


# -- stderr ----------------------------------------------------------------------------------------


async def test_a_flood_on_stderr_is_drained_and_logged_at_a_bounded_rate(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """FAULTS F15: it is slowed at most, never stopped; its last lines are kept."""
    caplog.set_level(logging.INFO, logger="sessionproxy.backend")
    async with watched() as watch, watch.client("alice") as alice:
        began = anyio.current_time()
        found = await alice.do({"noise": 50 * MB}, echo="out")
        seconds = anyio.current_time() - began
        assert found["echo"] == "out"
        assert len(caplog.records) <= (LINES_PER_SECOND + 1) * (seconds + 2)
        answer = await call(alice, {"noise": 5 * MB}, {"stderr": ["the last"]}, {"exit": 1})
        assert fault_of(answer)["stderr"][-1] == "the last"
        await asleep(watch.proxy, alice, seconds=10)
        await is_told_and_goes_on(alice)


# -- stdin -----------------------------------------------------------------------------------------


MIB: Final = 1024 * 1024


async def post_many(client: Recorded, answers: list[Json], *, size: int, count: int) -> None:
    """Post so many calls of so many bytes at once, and note their answers as they come."""

    async def post(number: int) -> None:
        params = calling(echo="x" * size)
        answers.append(await client.request("tools/call", params, number=number))

    async with anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(post, number)


@pytest.mark.parametrize(
    ("size", "most"),
    [(4 * MIB, stdio.MAX_UNSENT // (4 * MIB)), (16 * 1024, stdio.MAX_UNSENT_MESSAGES)],
    ids=["32 MiB", "64 requests"],
)
async def test_what_waits_for_a_backend_that_does_not_read_is_bounded(size: int, most: int) -> None:
    """FAULTS F16: a call that finds no room was not executed, and is told so; the others wait."""
    count = most + 20
    async with watched(scripted(reads=2), stop_grace=0.2) as watch:
        async with watch.client("alice") as alice, anyio.create_task_group() as tasks:
            answers: list[Json] = []
            tasks.start_soon(partial(post_many, alice, answers, size=size, count=count))
            session = session_of(watch.proxy, alice)
            await until(lambda: session.leases + len(answers) == count)
            assert most <= session.leases <= most + PIPE // size + 1
            for answer in answers:
                expected = {"kind": "backend_busy", "outcome": "not_executed"}
                assert fault_of(answer) == expected
            await alice.delete()


async def test_calls_that_find_no_room_leave_nothing_in_memory() -> None:
    """FAULTS F16: whatever is posted at a backend that does not read, the cap is all it costs."""
    async with watched_process(scripted(reads=2), "--stop-grace", "0.2") as watch:
        async with watch.client("alice") as alice, anyio.create_task_group() as tasks:
            waiting: list[Json] = []
            tasks.start_soon(partial(post_many, alice, waiting, size=4 * MIB, count=9))
            await until(lambda: len(waiting) == 1)
            with measured(watch.proxy.process.pid) as grown:
                for number in range(30):
                    params = calling(echo="x" * 4 * MIB)
                    answer = await alice.request("tools/call", params, number=number)
                    assert fault_of(answer)["kind"] == "backend_busy"
            assert grown.size <= stdio.MAX_UNSENT
            await alice.delete()
