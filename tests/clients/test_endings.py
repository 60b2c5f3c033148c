"""DESIGN 5.6 with real servers: however a session ends, nothing is left of it. F21, F24.

Playwright with a page open, and a server that does not heed the end of its stdin, on each rung of
containment. Neighbours: `tests.rig.endings` has the endings and their bounds, `scripts/endings`
tries each many times and within its real bound.
"""

import sys

import pytest

from sessionproxy.backends.containment import RUNGS, available
from tests.rig.endings import ended, endings_of, stage

pytestmark = [
    pytest.mark.browser,
    pytest.mark.node,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

HERE = [rung for rung in RUNGS if not available()[rung]]
"""The rungs of this machine."""


@pytest.mark.parametrize("server", ["playwright", "everything"])
@pytest.mark.parametrize("rung", HERE)
async def test_nothing_is_left_however_a_session_ends(rung: str, server: str) -> None:
    """DESIGN 5.6, F21, F24: no process, directory or control group, one ending after another."""
    async with stage(rung, server) as here:
        for ending in endings_of(rung):
            await ended(here, ending, within=5 * ending.bound)
