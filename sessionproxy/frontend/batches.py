"""Several messages sent as one (2025-03-26 basic; no other revision has it).

Neighbours: `frontend.handshake` takes them from a POST, `frontend.handshake_channel` from a line.
"""

from typing import NamedTuple, Self

from ..errors import InvalidMessage
from ..wire import BATCHING_VERSIONS, Kind, Message, decode, split_batch


class Batch(NamedTuple):
    """What is in one."""

    requests: list[Message]
    others: list[tuple[Message, Kind]]
    """Responses, then notifications: the order in which all of it may be sent again."""

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Raises: MalformedMessage, InvalidMessage."""
        messages = [decode(item) for item in split_batch(data)]
        kinds = [(message, message.kind) for message in messages]
        responses = [found for found in kinds if found[1] is Kind.RESPONSE]
        notifications = [found for found in kinds if found[1] is Kind.NOTIFICATION]
        requests = [message for message, kind in kinds if kind is Kind.REQUEST]
        return cls(requests, responses + notifications)

    def check(self, version: str | None) -> None:
        """Raises: InvalidMessage: the revision that is spoken has none such."""
        if version not in BATCHING_VERSIONS:
            raise InvalidMessage("the revision that is spoken here has single messages, no batches")
        if any(message.method == "initialize" for message in self.requests):
            raise InvalidMessage("initialize must not be part of a batch")
