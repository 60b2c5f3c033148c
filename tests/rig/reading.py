"""What a client reads from a stream on which everything comes, one after the other.

Neighbours: `tests.rig.piped` and `tests.rig.sse` have such streams.
"""

from abc import ABC, abstractmethod

from tests.rig.http import Json


class Reading(ABC):
    """Reads messages."""

    def __init__(self) -> None:
        self.passed_over: list[Json] = []
        """What came before the answers that were waited for."""

    @abstractmethod
    async def receive(self) -> Json:
        """Return the next message."""

    async def until(self, method: str) -> Json:
        """Return the next message with this method, passing over others."""
        while (message := await self.receive()).get("method") != method:
            self.passed_over.append(message)
        return message

    async def answer(self, number: object) -> Json:
        """Return the response to a request, passing over others."""
        while (message := await self.receive()).get("id") != number or "method" in message:
            self.passed_over.append(message)
        return message
