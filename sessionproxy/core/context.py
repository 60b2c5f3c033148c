"""Which request a piece of code runs for, as a ContextVar.

A backend's messages are read by one long-lived loop, which has the ContextVars of whoever
started it. So every exchange keeps the context it arrived in, and hooks run inside it.
Neighbours: `core.exchange` sets it; hooks and log filters read it.
"""

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .exchange import Exchange

current_exchange: ContextVar["Exchange | None"] = ContextVar("current_exchange", default=None)
"""The exchange that the running hook's message belongs to; None where it belongs to none."""
