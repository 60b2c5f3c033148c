"""Fixtures of this room."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def state(tmp_path: Path) -> dict[str, Any]:
    """Settings that keep a test's backends to itself."""
    return {"state_dir": str(tmp_path / "state"), "containment": "guardian"}
