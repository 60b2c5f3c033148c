"""What each method needs from a proxy. The only place that knows methods by name.

A method that is not in the table is passed on like any other: an unknown request is answered by
whoever it is for. Neighbours: `core` reads the flags, `wire.message` the encoded names.
"""

import enum
from collections.abc import Mapping
from typing import Final

import msgspec


class Remembers(enum.Enum):
    """What a session keeps of a successful request, to replay it when it wakes."""

    LOG_LEVEL = "log_level"
    SUBSCRIBE = "subscribe"
    UNSUBSCRIBE = "unsubscribe"


class Method(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How a method is treated. Every field is False or None for an unknown one."""

    tool: bool = False
    """Failures become a tool result with `isError`, which a model can act on."""
    uses_state: bool = False
    """Not executed before the client was told that the session's state was lost."""
    capability: str | None = None
    """What a client must have declared to be asked this."""
    unrelated: bool = False
    """A notification that belongs to no request: it prefers the standalone stream."""
    lists: bool = False
    """A notification that a list has changed."""
    droppable: bool = False
    """A notification that may be dropped, oldest first, when its reader does not keep up."""
    uncancellable: bool = False
    """A request that must not be cancelled (2025-11-25 basic/utilities/cancellation)."""
    remembers: Remembers | None = None


_UNKNOWN: Final = Method()

METHODS: Final[Mapping[str, Method]] = {
    # client -> server
    "initialize": Method(uncancellable=True),
    "ping": Method(),
    "tools/list": Method(),
    "tools/call": Method(tool=True, uses_state=True),
    "resources/list": Method(),
    "resources/templates/list": Method(),
    "resources/read": Method(uses_state=True),
    "resources/subscribe": Method(remembers=Remembers.SUBSCRIBE),
    "resources/unsubscribe": Method(remembers=Remembers.UNSUBSCRIBE),
    "prompts/list": Method(),
    "prompts/get": Method(uses_state=True),
    "completion/complete": Method(),
    "logging/setLevel": Method(remembers=Remembers.LOG_LEVEL),
    "tasks/list": Method(),
    "tasks/get": Method(),
    "tasks/result": Method(),
    "tasks/cancel": Method(),
    # server -> client
    "sampling/createMessage": Method(capability="sampling"),
    "elicitation/create": Method(capability="elicitation"),
    "roots/list": Method(capability="roots"),
    # both
    "notifications/initialized": Method(),
    "notifications/cancelled": Method(),
    "notifications/progress": Method(droppable=True),
    "notifications/message": Method(droppable=True),
    "notifications/roots/list_changed": Method(),
    "notifications/tools/list_changed": Method(unrelated=True, lists=True),
    "notifications/prompts/list_changed": Method(unrelated=True, lists=True),
    "notifications/resources/list_changed": Method(unrelated=True, lists=True),
    "notifications/resources/updated": Method(unrelated=True),
    "notifications/elicitation/complete": Method(unrelated=True),
    "notifications/tasks/status": Method(unrelated=True),
}

ENCODED_METHODS: Final[Mapping[str, bytes]] = {name: msgspec.json.encode(name) for name in METHODS}


def method_of(name: str) -> Method:
    """Return how `name` is treated; an unknown method needs nothing special."""
    return METHODS.get(name, _UNKNOWN)
