"""Observers that let a test see into a proxy that serves in its own event loop.

Neighbours: given to `tests.rig.embedded` or `tests.rig.invariants`.
"""

from dataclasses import dataclass, field

from sessionproxy.core.exchange import Exchange, Forwarded

from .embedded import until


@dataclass
class InFlight:
    """Keeps the exchanges of calls, so that a test can wait for a lost reader. The bystander's
    are not kept."""

    calls: list[Exchange] = field(default_factory=list[Exchange])

    def __call__(self, message: Forwarded) -> None:
        if not message.to_backend or message.kind != "request" or message.exchange is None:
            return
        if message.method == "tools/call" and b'"bystander-' not in bytes(message.body or b""):
            self.calls.append(message.exchange)

    async def lost(self) -> None:
        """Wait until the proxy has noticed that the last call's client hung up."""
        await until(lambda: not self.calls[-1].sink.attached)
