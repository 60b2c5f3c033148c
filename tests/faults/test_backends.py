"""FAULTS F01 to F09 and F17 to F19: backends that do not start, die, hang, or do not want to end.

Each under watch: a bystander's session calls all the while, and I1 to I8 hold. Neighbours:
`test_pipes` has what backends do on their pipes; `tests.frontend.test_failures` shows what is told
in more variants, `tests.backends.test_stdio` the rungs of the stop ladder.
"""

import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

import anyio
import pytest

from sessionproxy.backends import stdio
from sessionproxy.core import circuit
from sessionproxy.core.state import StopReason
from tests.rig.embedded import SCRIPTED, gone, lives, scripted, until
from tests.rig.http import Json, calling
from tests.rig.invariants import watched

from .told import asleep, call, fault_of, is_told_and_goes_on, text_of

START_TIMEOUT: Final = 0.5
CALL_TIMEOUT: Final = 1.0
STOP_GRACE: Final = 0.2
"""Seconds of limits that are turned down, so that they run out soon."""

NEVER: Final[Json] = {"wait": "never"}


# -- starting --------------------------------------------------------------------------------------


class Install:
    """A program that starts the scripted backend, and a directory to start it in."""

    def __init__(self, place: Path) -> None:
        self.program = place / "server"
        self.cwd = place / "here"
        self.cwd.mkdir()
        self.mend()

    def mend(self) -> None:
        self.program.write_text(f"#!/bin/sh\nexec {shlex.join(SCRIPTED)}\n")
        self.program.chmod(0o755)
        self.cwd.mkdir(exist_ok=True)


BREAKS: Final[dict[str, tuple[Callable[[Install], object], str]]] = {
    "command not found": (lambda at: at.program.unlink(), "No such file"),
    "not executable": (lambda at: at.program.chmod(0o644), "Permission denied"),
    "no interpreter": (lambda at: at.program.write_text("#!/nowhere/sh\n"), "No such file"),
    "no program": (lambda at: at.program.write_bytes(b"\x7fELF"), "Exec format error"),
    "no directory": (lambda at: at.cwd.rmdir(), "No such file"),
}


@pytest.mark.parametrize("fault", BREAKS)
async def test_a_command_that_cannot_be_started_is_an_error_with_the_reason(
    fault: str, tmp_path: Path
) -> None:
    """FAULTS F01: no session id, the place is free again; once mended, the same client gets in."""
    installed = Install(tmp_path)
    breaks, says = BREAKS[fault]
    command = (str(installed.program),)
    async with watched(command, cwd=str(installed.cwd), max_sessions=2) as watch:
        async with watch.client("alice", opens=False) as alice:
            breaks(installed)
            for _ in range(2):
                with anyio.fail_after(5 * 0.2):
                    response = await alice.initialize()
                assert (response.status_code, alice.id) == (200, "")
                assert fault_of(alice.opened)["kind"] == "backend_start_failed"
                assert fault_of(alice.opened)["outcome"] == "not_executed"
                assert says in text_of(alice.opened)
                assert str(tmp_path) in text_of(alice.opened)
            await until(lambda: watch.proxy.manager.admission.running == 1)
            assert len(watch.proxy.manager.registry) == 1
            assert len(watch.proxy.session_dirs()) == 1
            installed.mend()
            await alice.initialize()
            assert (await alice.do())["count"] == 1


async def test_a_command_that_fails_again_and_again_rests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS F01: five times in 60 s open the circuit: 503 with Retry-After, nothing is started;
    then it is tried again. Those who have a backend keep it."""
    monkeypatch.setattr(circuit, "FIRST_REST", 0.5)
    installed = Install(tmp_path)
    async with watched((str(installed.program),)) as watch:
        async with watch.client("alice", opens=False) as alice:
            installed.program.unlink()
            for _ in range(circuit.FAILURES):
                assert (await alice.initialize()).status_code == 200
            installed.mend()  # which nobody knows yet
            response = await alice.initialize()
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) >= 1
            assert alice.id == ""
            assert len(watch.proxy.session_dirs()) == 1  # the bystander's
            await until(lambda: not watch.proxy.manager.circuit.rests(anyio.current_time()))
            await alice.initialize()
            assert (await alice.do())["count"] == 1


@pytest.mark.parametrize("exposed", [True, False])
async def test_a_backend_that_ends_before_it_says_anything_names_its_exit_status(
    exposed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """FAULTS F02: and its last lines on stderr: always to the log, to the client where exposed."""
    caplog.set_level("INFO", logger="sessionproxy.backend")
    command = scripted(start=[{"stderr": ["first", "no such module: x"]}, {"exit": 3}])
    async with watched(command, expose_stderr=exposed) as watch:
        async with watch.client("alice", opens=False) as alice:
            with anyio.fail_after(5 * 0.5):
                await alice.initialize()
            assert alice.id == ""
            fault = fault_of(alice.opened)
            assert (fault["kind"], fault["exitCode"]) == ("backend_start_failed", 3)
            assert "exit status 3" in text_of(alice.opened)
            assert fault.get("stderr") == (["first", "no such module: x"] if exposed else None)
            await until(lambda: watch.proxy.manager.admission.running == 1)
    assert "no such module: x" in caplog.text


@pytest.mark.parametrize(
    ("death", "named"),
    [({"exit": 7}, {"exitCode": 7}), ({"kill": "SIGSEGV"}, {"signal": "SIGSEGV"})],
    ids=["exit 7", "SIGSEGV"],
)
async def test_a_backend_that_dies_before_it_answers_initialize_leaves_no_session(
    death: Json, named: Json
) -> None:
    """FAULTS F03: one -32603, no id."""
    async with watched(scripted(initialize=[death])) as watch:
        async with watch.client("alice", opens=False) as alice:
            with anyio.fail_after(5 * 0.5):
                response = await alice.initialize()
            assert (response.status_code, alice.id) == (200, "")
            expected = {"kind": "backend_start_failed", "outcome": "not_executed", **named}
            assert fault_of(alice.opened) == expected
            await until(lambda: len(watch.proxy.manager.registry) == 1)


async def test_a_backend_that_dies_right_after_its_welcome_leaves_a_session_that_sleeps() -> None:
    """FAULTS F04: before `initialized`; the next call wakes it."""
    command = scripted(lives=[{"initialize": [{"then": [{"exit": 1}]}]}, {}])
    async with watched(command) as watch, watch.client("alice", opens=False) as alice:
        await alice.initialize()
        assert "result" in alice.opened
        assert await asleep(watch.proxy, alice, seconds=5) is StopReason.BACKEND_EXIT
        await alice.notify("notifications/initialized")
        await is_told_and_goes_on(alice)


SILENT: Final[dict[str, Json]] = {
    "no answer": {"initialize": [{"replies": {}}]},
    "reads nothing": {"reads": 0},
    "stopped": {"start": [{"kill": "SIGSTOP"}]},
    "ignores all": {"initialize": [{"replies": {}}], "ignores": ["SIGTERM"], "eof": [NEVER]},
}


@pytest.mark.parametrize("how", SILENT)
async def test_a_backend_that_never_answers_initialize_is_stopped_at_the_limit(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS F05: by the ladder, whatever it heeds."""
    monkeypatch.setattr(stdio, "TERM_GRACE", STOP_GRACE)
    command = scripted(**SILENT[how])
    async with watched(
        command, start_timeout=START_TIMEOUT, stop_grace=STOP_GRACE, max_sessions=2
    ) as watch:
        async with watch.client("alice", opens=False) as alice:
            with anyio.fail_after(5 * (START_TIMEOUT + 2 * STOP_GRACE)):
                await alice.initialize()
            assert alice.id == ""
            assert f"{START_TIMEOUT:g} s" in text_of(alice.opened)
            assert fault_of(alice.opened)["outcome"] == "not_executed"
            await until(lambda: watch.proxy.manager.admission.running == 1)
            assert len(watch.proxy.manager.registry) == 1


# -- dying -----------------------------------------------------------------------------------------

DEATHS: Final[dict[str, tuple[Json | None, Json, str]]] = {
    "exit 7": ({"exit": 7}, {"exitCode": 7}, "exit status 7"),
    "SIGSEGV": ({"kill": "SIGSEGV"}, {"signal": "SIGSEGV"}, "killed by SIGSEGV"),
    "out of memory": (None, {"signal": "SIGKILL"}, "killed by SIGKILL"),
}
"""A step, None where the kernel does it; what is named in the fault, and in the text."""


@pytest.mark.parametrize("death", DEATHS)
async def test_a_backend_that_dies_fails_all_its_calls_and_its_session_goes_on(
    death: str,
) -> None:
    """FAULTS F06: each call gets the exit code or signal, and that its outcome is unknown."""
    how, named, says = DEATHS[death]
    async with watched() as watch, watch.client("alice") as alice:
        pid = (await alice.do())["pid"]
        waiting = {"name": "do", "_meta": {"steps": [{"log": ""}, NEVER]}}
        waiting["arguments"] = waiting["_meta"]
        async with (
            alice.open("tools/call", waiting, number=8) as one,
            alice.open("resources/read", waiting, number=9) as two,
        ):
            await one.message()
            await two.message()
            answers: list[Json] = []
            with anyio.fail_after(5 * 0.25):
                if how is None:
                    os.kill(pid, signal.SIGKILL)
                else:
                    answers.append(await call(alice, how, number=7))
                answers += [await one.answer(), await two.answer()]
        assert [answer["id"] for answer in answers[-2:]] == [8, 9]
        for answer in answers:
            assert fault_of(answer) == {"kind": "backend_gone", "outcome": "unknown", **named}
            assert says in text_of(answer)
        assert await asleep(watch.proxy, alice, seconds=10) is StopReason.BACKEND_EXIT
        await is_told_and_goes_on(alice)


async def test_a_backend_that_leaves_while_idle_is_noticed_at_once_and_not_replaced() -> None:
    """FAULTS F07: no request is needed to notice it, and none starts another one unasked."""
    async with watched() as watch, watch.client("alice") as alice:
        pid = (await alice.do({"then": [{"exit": 0}]}))["pid"]
        reason = await asleep(watch.proxy, alice, seconds=5 * 0.1)
        assert reason is StopReason.BACKEND_EXIT
        assert not lives(pid)
        assert len(watch.proxy.session_dirs()) == 1  # the bystander's
        await is_told_and_goes_on(alice)


# -- hanging ---------------------------------------------------------------------------------------


async def test_a_call_that_hangs_is_cancelled_at_the_limit_and_the_third_in_a_row_is_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FAULTS F08: the backend gets `notifications/cancelled`, the client a tool error; an answer
    in between makes good."""
    monkeypatch.setattr(stdio, "TERM_GRACE", STOP_GRACE)
    serving = watched(call_timeout=CALL_TIMEOUT, stop_grace=STOP_GRACE)
    async with serving as watch, watch.client("alice") as alice:
        answers: list[Json] = []

        async def hang(number: int) -> None:
            answers.append(await call(alice, {"until_cancelled": 1}, NEVER, number=number))

        async def hang_together(count: int) -> None:
            with anyio.fail_after(5 * CALL_TIMEOUT):
                async with anyio.create_task_group() as tasks:
                    for number in range(count):
                        tasks.start_soon(hang, number)

        await hang_together(2)
        seen = (await alice.do({"tells": "seen"}))["seen"]
        cancelled = [m["params"]["requestId"] for m in seen if m["method"].endswith("cancelled")]
        assert cancelled == [m["id"] for m in seen if m["method"] == "tools/call"][:2]
        await hang_together(3)
        for answer in answers:
            assert fault_of(answer) == {"kind": "backend_silent", "outcome": "unknown"}
            assert f"{CALL_TIMEOUT:g} s" in text_of(answer)
        assert await asleep(watch.proxy, alice, seconds=10) is StopReason.SILENT
        await is_told_and_goes_on(alice)


async def test_a_backend_that_is_stopped_by_a_signal_is_one_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FAULTS F09: and what waits for its input is bounded."""
    monkeypatch.setattr(stdio, "TERM_GRACE", STOP_GRACE)
    serving = watched(call_timeout=CALL_TIMEOUT, stop_grace=STOP_GRACE)
    async with serving as watch, watch.client("alice") as alice:
        pid = (await alice.do())["pid"]
        os.kill(pid, signal.SIGSTOP)
        answers: list[Json] = []

        async def post(number: int) -> None:
            params = calling(echo="x" * 4_000_000)
            answers.append(await alice.request("tools/call", params, number=number))

        with anyio.fail_after(5 * CALL_TIMEOUT + 5):
            async with anyio.create_task_group() as tasks:
                for number in range(12):
                    tasks.start_soon(post, number)
        kinds = sorted(fault_of(answer)["kind"] for answer in answers)
        taken = kinds.count("backend_silent") + kinds.count("backend_gone")
        assert kinds.count("backend_busy") == len(kinds) - taken
        assert 3 <= taken <= stdio.MAX_UNSENT // 4_000_000 + 1
        await asleep(watch.proxy, alice, seconds=10)
        assert not lives(pid)
        await is_told_and_goes_on(alice)


# -- not ending ------------------------------------------------------------------------------------

STAYS: Final[Json] = {"eof": [NEVER]}


LONG: Final = 1000.0
"""Seconds of a grace that is not to run out."""


@pytest.mark.parametrize("children", [[], [{"spawn": []}, {"spawn": ["session"]}]], ids=len)
@pytest.mark.parametrize(
    ("stubborn", "term_grace"),
    [(STAYS, LONG), ({"ignores": ["SIGTERM"], **STAYS}, STOP_GRACE)],
    ids=["EOF", "EOF and SIGTERM"],
)
async def test_a_backend_that_ignores_its_end_is_brought_down_by_the_ladder(
    stubborn: Json, term_grace: float, children: list[Json], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS F17, F18: by SIGTERM after the first grace, by SIGKILL after the second; the whole
    tree, and its place is free only then."""
    monkeypatch.setattr(stdio, "TERM_GRACE", term_grace)
    async with watched(scripted(**stubborn), stop_grace=STOP_GRACE) as watch:
        async with watch.client("alice") as alice:
            found = await alice.do(*children)
            await alice.delete()
            assert watch.proxy.manager.admission.running == 2
            await gone(found["pid"], *found.get("children", ()), seconds=5 * (2 * STOP_GRACE + 1))
            await until(lambda: watch.proxy.manager.admission.running == 1)


@pytest.mark.parametrize("child", [[], ["stubborn"]], ids=["heeds SIGTERM", "ignores SIGTERM"])
async def test_a_child_of_a_backend_that_left_politely_is_ended_with_it(child: list[str]) -> None:
    """FAULTS F19: in its process group, after the leader's clean exit."""
    async with watched() as watch, watch.client("alice") as alice:
        found = await alice.do({"spawn": child})
        await alice.delete()
        await gone(found["pid"], *found["children"], seconds=5 * 1)
