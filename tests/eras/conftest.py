"""These tests run on virtual time: an hour takes milliseconds."""

import pytest
import trio.testing


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """The clock jumps to the next deadline whenever every task waits."""
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}
