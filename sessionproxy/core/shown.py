"""Runs the hooks of those who only look on.

Neighbours: `core.relay` shows them what it passes on, `backends.observed` what others do.
"""

import logging
from collections.abc import Sequence
from contextvars import Context, copy_context
from typing import Final

from .exchange import SETTLED, Forwarded, Hook

logger: Final = logging.getLogger(__name__)


class Shown:
    """What is shown of one backend's messages."""

    __slots__ = ("_context", "_hooks", "_label")

    def __init__(self, hooks: Sequence[Hook], label: str) -> None:
        """`label`: of the session, for logs."""
        self._hooks = tuple(hooks)
        self._label = label
        self._context = Context()

    def show(self, message: Forwarded) -> None:
        """Run the hooks in the context of the exchange that the message belongs to.

        A client's notification is passed on within its own request. One that is settled has no
        context any more; then it is this backend's, which no other session has.
        """
        if message.exchange is not None and message.exchange.context is not SETTLED:
            run = message.exchange.context.run
        elif message.to_backend and message.kind == "notification":
            run = copy_context().run
        else:
            run = self._context.run
        for hook in self._hooks:
            try:
                run(hook, message)
            except Exception:  # a hook is not ours: it must not stop a message
                text, session = "%s: a hook failed on %s", {"session": self._label}
                logger.exception(text, self._label, message.method, extra=session)
