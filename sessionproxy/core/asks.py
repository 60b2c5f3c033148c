"""What a backend has asked the client and not been answered yet, under ids of the session's own.

Neighbours: `core.session`.
"""

from .. import wire
from ..wire import Bytes
from .exchange import Ask, ClientPort, Outbound, Outcome, ReplySink


class Asks:
    """Requests of the backends of one session. An id is never given out twice in its life."""

    __slots__ = ("_last_id", "_waiting")

    def __init__(self) -> None:
        self._last_id = 0
        self._waiting: dict[int, Ask] = {}

    def send(self, ask: Ask, sink: ReplySink | ClientPort) -> None:
        """Send a request to the client on `sink`."""
        self._last_id += 1
        ask.client_id = self._last_id
        ask.sink = sink
        self._waiting[ask.client_id] = ask
        data = wire.encode_request(b"%d" % ask.client_id, ask.method, ask.params)
        sink.message(Outbound(data, ask=ask))

    def answer(self, client_id: bytes, outcome: Outcome) -> bool:
        """Hand an answer to the request it answers; False where there is none such."""
        ask = self._waiting.pop(int(client_id), None) if client_id.isdigit() else None
        if ask is None:
            return False
        ask.answer(outcome)
        return True

    def withdraw(self, ask: Ask, params: Bytes | None) -> None:
        """Tell the client that a request needs no answer any more; `params`: of the backend's own
        cancellation, None where it is gone."""
        ask.withdraw()
        if self._waiting.pop(ask.client_id, None) is None or ask.sink is None:
            return
        fields: dict[str, Bytes] = {**wire.members(params), "requestId": b"%d" % ask.client_id}
        if params is None:
            fields["reason"] = b'"the backend is gone"'
        note = wire.encode_notification("notifications/cancelled", wire.rebuilt(fields))
        ask.sink.message(Outbound(note))

    def withdraw_all(self) -> None:
        for ask in tuple(self._waiting.values()):
            self.withdraw(ask, None)
