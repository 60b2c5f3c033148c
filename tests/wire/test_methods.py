from typing import get_args

import mcp_types
import msgspec
import pytest

from sessionproxy.wire import Method, Remembers, method_of
from sessionproxy.wire.methods import ENCODED_METHODS, METHODS

MODERN_ONLY = {
    "server/discover",
    "subscriptions/listen",
    "notifications/subscriptions/acknowledged",
}


def names_in(union: object) -> set[str]:
    """Return the method names of an SDK union of messages."""
    return {kind.model_fields["method"].default for kind in get_args(union)}


@pytest.mark.parametrize(
    "union",
    [
        mcp_types.ClientRequest,
        mcp_types.ServerRequest,
        mcp_types.ClientNotification,
        mcp_types.ServerNotification,
    ],
)
def test_every_handshake_method_of_the_sdk_is_in_the_table(union: object) -> None:
    """The table is spelled out by hand; the SDK's unions are the source."""
    names = names_in(union)
    assert names
    assert names - MODERN_ONLY <= set(METHODS)


def test_an_unknown_method_needs_nothing_special() -> None:
    """DESIGN 5.4: unknown methods pass unchanged."""
    assert method_of("x/y") == Method()
    assert method_of("") == Method()


def test_what_a_server_may_ask_names_the_capability_that_the_client_must_have_declared() -> None:
    """2025-11-25 client/sampling, client/elicitation, client/roots: capabilities."""
    needs = {name: method_of(name).capability for name in names_in(mcp_types.ServerRequest)}
    assert needs == {
        "ping": None,
        "sampling/createMessage": "sampling",
        "elicitation/create": "elicitation",
        "roots/list": "roots",
    }


def test_the_methods_that_use_state_are_those_that_a_loss_is_told_on() -> None:
    """DESIGN 7, hibernation: `tools/call`, `resources/read` and `prompts/get`."""
    using = {name for name, method in METHODS.items() if method.uses_state}
    assert using == {"tools/call", "resources/read", "prompts/get"}


def test_only_a_failed_tool_call_is_told_as_a_tool_result() -> None:
    """DESIGN 11: a model can act on it; other methods get -32603."""
    assert [name for name, method in METHODS.items() if method.tool] == ["tools/call"]


def test_only_initialize_must_not_be_cancelled() -> None:
    """2025-11-25 basic/utilities/cancellation#behavior-requirements."""
    assert [name for name, method in METHODS.items() if method.uncancellable] == ["initialize"]


def test_log_level_and_subscriptions_are_what_a_session_remembers() -> None:
    """DESIGN 7: replayed on waking."""
    assert {name: m.remembers for name, m in METHODS.items() if m.remembers} == {
        "logging/setLevel": Remembers.LOG_LEVEL,
        "resources/subscribe": Remembers.SUBSCRIBE,
        "resources/unsubscribe": Remembers.UNSUBSCRIBE,
    }


def test_only_progress_and_log_messages_may_be_dropped() -> None:
    """Our choice: a later one makes up for them; a lost list_changed would never be noticed."""
    assert {name for name, method in METHODS.items() if method.droppable} == {
        "notifications/progress",
        "notifications/message",
    }


def test_changes_of_lists_and_resources_belong_to_no_request() -> None:
    """2025-11-25 basic/transports: messages on a POST's stream should relate to its request."""
    assert method_of("notifications/resources/updated").unrelated
    assert method_of("notifications/tools/list_changed").unrelated
    assert not method_of("notifications/message").unrelated
    assert not method_of("notifications/progress").unrelated


def test_every_known_method_is_encoded_in_advance_as_json() -> None:
    """A lookup on the hot way; it must equal what encoding would give."""
    assert {name: msgspec.json.decode(text) for name, text in ENCODED_METHODS.items()} == {
        name: name for name in METHODS
    }
