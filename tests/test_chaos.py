"""FAULTS, method (b) and (c): `scripts/chaos` in its short form; an hour is for its own runs."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.rig.proxy import ROOT

KINDS = 25
"""FAULTS, figures: chaos."""


def chaos(*options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts/chaos"), *options],
        capture_output=True,
        text=True,
        check=False,
    )


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.mark.timeout(300)
def test_no_invariant_breaks_whatever_is_done_at_random(tmp_path: Path) -> None:
    """I1 to I7, in two runs, of which the second goes on where the first one ended."""
    history = tmp_path / "history"
    options = ("--sessions", "12", "--seed", "20261121", "--resume", str(history))
    first = chaos("--minutes", "0.25", *options)
    assert first.returncode == 0, first.stdout + first.stderr
    second = chaos("--minutes", "0.8", *options)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "going on after" in second.stdout
    faults = Counter(line["kind"] for line in lines_of(history) if line["what"] == "fault")
    assert len(faults) >= KINDS, faults
    assert f"{faults.total()} faults of {len(faults)} kinds" in second.stdout
    assert sum(line["what"] == "run" for line in lines_of(history)) == 2


@pytest.mark.timeout(120)
def test_a_broken_invariant_is_told_and_the_exit_status_says_so(tmp_path: Path) -> None:
    """Of a history in which an answer came from the backend of another session."""
    history = tmp_path / "history"
    with history.open("w") as file:
        for place, session in ((1, "one"), (3, "two")):
            entry = {"session": session, "kind": "tools/call", "sent": place, "finished": place + 1}
            answer = {"outcome": "result", "nonce": "the same", "count": place}
            file.write(json.dumps({"what": "over", **entry, **answer}) + "\n")
    told = chaos("--minutes", "0", "--sessions", "2", "--resume", str(history))
    assert told.returncode == 1, told.stdout + told.stderr
    assert "VIOLATION: I1: backend the same served several sessions: one, two" in told.stdout
