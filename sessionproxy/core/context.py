"""Which request a piece of code runs for, as a ContextVar.

A backend's messages are read by one long-lived loop, which has the ContextVars of whoever
started it. So every exchange keeps the context it arrived in, and hooks run inside it.
Neighbours: `core.exchange`, `core.manager` and the frontend set these; hooks, `backends` and `logs`
read them.
"""

from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .exchange import Exchange

current_exchange: ContextVar["Exchange | None"] = ContextVar("current_exchange", default=None)
"""The exchange that the running hook's message belongs to; None where it belongs to none."""


class SessionName(NamedTuple):
    """What a session is called in logs."""

    session: str
    """Its label, from which its id cannot be had back."""
    server: str
    """The name of its route."""


current_session: ContextVar[SessionName | None] = ContextVar("current_session", default=None)
"""The session whose backend is being started, served or stopped, where a task does that for it."""

inside: ContextVar[tuple[object, ...]] = ContextVar("inside", default=())
"""What the present task belongs to and ends with, if that was begun for whoever needs it first. A
task that waits for the end of one of these is cancelled by it, and must let itself be."""

caller_owner: ContextVar[str | None] = ContextVar("caller_owner", default=None)
"""The owner of the request being served, where what there is depends on who asks; else None."""

caller_authorization: ContextVar[bytes | None] = ContextVar("caller_authorization", default=None)
"""The Authorization header of the request being served, where the operator has it forwarded; empty
where that request has none. None: what is done is no caller's."""
