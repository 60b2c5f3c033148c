"""The cost of a call, as a ratio: a change that makes every call dearer fails here."""

import subprocess

import pytest

from .rig.proxy import ROOT


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_call_costs_the_proxy_at_most_one_and_a_quarter_bare_starlette_answers() -> None:
    """DESIGN 13: CPU per call, not wall time, in one interleaved run."""
    done = subprocess.run(
        [ROOT / "scripts" / "bench", "--check-cpu", "1.25"],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
