"""`backends.remote.refusal`: what an HTTP status means for a request."""

import msgspec
import pytest

from sessionproxy.backends.remote.refusal import Refusal
from sessionproxy.core.exchange import Exchange, Outcome
from sessionproxy.errors import BackendError
from tests.core.fakes import FakeSink


def outcome(status: int, method: str = "tools/call", error: bytes | None = None) -> Outcome:
    exchange = Exchange(method, None, client_id=b"1", sink=FakeSink())
    return Refusal(status, error).outcome(exchange)


def code(found: Outcome) -> int:
    return msgspec.json.decode(found.error or b"{}", type=dict[str, object])["code"]  # type: ignore[return-value]


@pytest.mark.parametrize("status", [400, 404, 405, 406, 415, 500, 501])
def test_a_server_that_does_not_know_discovery_says_so_by_any_status_that_lasts(
    status: int,
) -> None:
    """2026-07-28 basic/transports/streamable-http#backward-compatibility: an answer, so that a
    verdict can be passed on it."""
    assert code(outcome(status, "server/discover")) == -32601


@pytest.mark.parametrize("status", [307, 401, 403, 407, 408, 421, 425, 429, 502, 503, 504])
def test_what_will_pass_says_nothing_about_what_a_server_can_do(status: int) -> None:
    """DESIGN 9: the verdict is remembered, so none is passed on this."""
    assert isinstance(outcome(status, "server/discover").failure, BackendError)


@pytest.mark.parametrize(
    ("status", "executed"), [(302, False), (400, False), (401, False), (429, False), (500, None)]
)
def test_what_was_refused_was_not_executed_and_of_what_failed_nobody_knows(
    status: int, executed: bool | None
) -> None:
    """FAULTS, tool-error: `outcome`."""
    failure = outcome(status).failure
    assert isinstance(failure, BackendError)
    assert failure.executed is executed
    assert f"HTTP {status}" in str(failure)


def test_an_error_of_json_rpc_counts_more_than_the_status_that_it_came_with() -> None:
    """DESIGN 5.4."""
    error = b'{"code":-1,"message":"x"}'
    for status in (400, 404, 503):
        assert outcome(status, error=error) == Outcome(error=error)


@pytest.mark.parametrize(
    ("refusal", "gone"),
    [
        (Refusal(404, None), True),
        (Refusal(400, None, text="Bad Request: No valid session ID provided"), True),
        (Refusal(400, b"{}", -32602, "Invalid params"), False),
        (Refusal(503, None, text="session"), False),
    ],
)
def test_a_session_is_unknown_by_404_and_by_what_servers_say_instead(
    refusal: Refusal, gone: bool
) -> None:
    """2025-11-25 basic/transports#session-management, and the TypeScript SDK's example."""
    assert refusal.names_no_session is gone
