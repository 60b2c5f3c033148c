"""Fixtures for all tests: real time on asyncio with uvloop, and what this machine lacks.

`tests/core` and `tests/wire` run on virtual time instead (their own conftest).
"""

import gc
import os
from collections.abc import Iterator
from typing import Final

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

LONGEST: Final = (
    "tests/test_pages.py",
    "tests/clients/test_endings.py",
    "tests/clients/test_conformance.py",
    "tests/clients/test_bindings.py",
    "tests/parity/test_forwarding.py",
    "tests/test_chaos.py",
    "tests/backends/test_rungs.py",
    "tests/clients/test_playwright.py",
    "tests/test_soak.py",
    "tests/clients/test_inspector.py",
    "tests/clients/test_matrix.py",
    "tests/faults/test_http_bounds.py",
    "tests/faults/test_pipes.py",
    "tests/test_cli.py",
    "tests/faults/test_clients.py",
)
"""Files that take the best part of a minute and more, the longest first: `scripts/test` hands files
out whole and in this order, so that none of these is what everybody waits for at the end."""


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave out what is there before the first test, the SDK's types above all, where garbage is
    looked for: tests do that a thousand times, and it would take a third of their time."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_place)
    missing = set(filter(None, os.environ.get("TEST_MISSING", "").split(",")))
    for item in items:
        for reason in _lacking(item, missing):
            item.add_marker(pytest.mark.skip(reason=f"missing: {reason}"))


def _place(item: pytest.Item) -> int:
    file = item.nodeid.partition("::")[0]
    return LONGEST.index(file) if file in LONGEST else len(LONGEST)


def _lacking(item: pytest.Item, missing: set[str]) -> Iterator[str]:
    for mark, needs in MARKS.items():
        if item.get_closest_marker(mark) is not None:
            yield from (need for need in needs if need in missing)
