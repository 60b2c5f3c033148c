"""Fixtures for tests of the frontend."""

import pytest

from tests.rig import embedded


@pytest.fixture(params=["short way", "ordinary way"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test on our own server and on one that knows nothing but ASGI."""
    monkeypatch.setattr(embedded, "SHORT_WAY", request.param == "short way")
