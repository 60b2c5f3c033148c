"""Fixtures for all tests: real time on asyncio with uvloop, and what this machine lacks.

`tests/core` and `tests/wire` run on virtual time instead (their own conftest).
"""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.rig import embedded

# How fast a machine thinks examples up is no property of ours.
settings.register_profile("ours", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ours")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(params=["short way", "ordinary way"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test on our own server and on one that knows nothing but ASGI."""
    monkeypatch.setattr(embedded, "SHORT_WAY", request.param == "short way")


MARKS = {
    "browser": ("chromium", "node"),
    "faketime": ("faketime",),
    "mounts": ("mounts",),
    "netns": ("netns",),
    "node": ("node",),
    "sdk1": ("sdk1",),
}
"""What a mark needs. `scripts/test` says in TEST_MISSING what could not be installed."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = set(filter(None, os.environ.get("TEST_MISSING", "").split(",")))
    for item in items:
        for reason in _lacking(item, missing):
            item.add_marker(pytest.mark.skip(reason=f"missing: {reason}"))


def _lacking(item: pytest.Item, missing: set[str]) -> Iterator[str]:
    for mark, needs in MARKS.items():
        if item.get_closest_marker(mark) is not None:
            yield from (need for need in needs if need in missing)
