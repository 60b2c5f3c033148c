"""What a backend has asked the client and not been answered yet, under ids of the session's own.

Neighbours: `core.session`.
"""

from contextlib import suppress

from .. import wire
from ..errors import BackendBusy, SessionEnded
from ..wire import Bytes
from .exchange import Ask, ClientPort, Outbound, Outcome, ReplySink


class Asks:
    """Requests of the backends of one session. An id is never given out twice in its life."""

    __slots__ = ("_client", "_last_id", "absent_since", "waiting")

    def __init__(self, client: ClientPort) -> None:
        self._client = client
        self._last_id = 0
        self.waiting: dict[int, Ask] = {}
        """By id. Looked at with every request, so without a call."""
        self.absent_since: float | None = None
        """When the client was first found to be away while it was asked something, on the event
        loop's clock in seconds. Whoever hears of the client sets it to None."""

    def send(self, ask: Ask, sink: ReplySink | None) -> None:
        """Send a request to the client on `sink`; None: on its standalone stream."""
        self._last_id += 1
        ask.client_id = self._last_id
        ask.sink = sink
        ask.on_over = self._over
        self.waiting[ask.client_id] = ask
        data = wire.encode_request(b"%d" % ask.client_id, ask.method, ask.params)
        (sink or self._client).message(Outbound(data, ask=ask))

    def _over(self, ask: Ask) -> None:
        del self.waiting[ask.client_id]

    def answer(self, client_id: bytes, outcome: Outcome) -> bool:
        """Hand an answer to the request it answers; False where there is none such.

        Raises: BackendBusy: the backend cannot take it now.
        """
        ask = self.waiting.get(int(client_id)) if client_id.isdigit() else None
        if ask is None:
            return False
        ask.answer(outcome)
        return True

    def moved(self, sink: ReplySink | None = None, to: ReplySink | None = None) -> None:
        """Nothing more goes out on `sink`, or on any; what follows goes out on `to`, or on the
        standalone stream."""
        for ask in self.waiting.values():
            if sink is None or ask.sink is sink:
                ask.sink = to

    def withdraw(self, ask: Ask, params: Bytes | None) -> None:
        """Tell the client that a request needs no answer any more; `params`: of the backend's own
        cancellation, None where it is gone."""
        waited = ask.client_id in self.waiting
        ask.withdraw()
        if not waited:
            return
        fields: dict[str, Bytes] = {**wire.members(params), "requestId": b"%d" % ask.client_id}
        if params is None:
            fields["reason"] = b'"the backend is gone"'
        note = wire.encode_notification("notifications/cancelled", wire.rebuilt(fields))
        (ask.sink or self._client).message(Outbound(note))

    def withdraw_all(self) -> None:
        for ask in tuple(self.waiting.values()):
            self.withdraw(ask, None)

    def nobody_reads(self) -> bool:
        """Return whether something was asked, and the client has no stream open for any of it."""
        if not self.waiting or self._client.listening:
            return False
        return not any(ask.sink and ask.sink.attached for ask in self.waiting.values())

    def give_up(self) -> None:
        """Answer all that was asked with an error: the client has gone for good.

        What the backend cannot take now waits for the next time.
        """
        failure = SessionEnded("The client is gone; the request was not answered.")
        with suppress(BackendBusy):
            for ask in tuple(self.waiting.values()):
                ask.answer(Outcome(failure=failure))
