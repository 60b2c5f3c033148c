"""FAULTS, figures: `scripts/soak` in its short form. Thousands of sessions are for its own runs."""

import subprocess
import sys

import pytest

from tests.rig.proxy import ROOT


def soaked(*options: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/soak"), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(300)
def test_nothing_stays_of_sessions_that_came_and_went() -> None:
    """I4, I5: no process, descriptor or directory, and memory as after the warm-up."""
    told = soaked("--sessions", "700")
    assert "700 sessions in" in told
    assert "left: 0 processes, 0 directories, +0 descriptors" in told


@pytest.mark.timeout(300)
def test_sessions_that_stay_are_served_in_turns() -> None:
    """I1, I3: every call has its own session's answer."""
    told = soaked("--hold", "--sessions", "30", "--rate", "50", "--minutes", "0.2")
    assert "600 calls, 0 wrong" in told
