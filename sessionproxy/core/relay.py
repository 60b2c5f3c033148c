"""Moves messages between a session and one backend that speaks JSON-RPC, and keeps the ids.

Knows no HTTP and no process: lines go out through a `Transport`, and come in through `receive`.
Ids and progress tokens are the relay's own towards the backend, so clients may use any, also the
same one twice. It keeps the table of exchanges in flight, which tells what each message of the
backend belongs to. Synchronous: a line that arrives wakes its waiter directly.

Neighbours: `backends` compose it with their transport; `core.session` is its upstream.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Reversible, Sequence
from dataclasses import replace
from typing import Final, Protocol

import anyio

from .. import wire
from ..errors import (
    BackendBusy,
    BackendGone,
    Exit,
    InvalidMessage,
    MalformedMessage,
    ProxyError,
    ResultTooLarge,
)
from ..wire import Bytes, Kind, Message
from .exchange import Ask, Exchange, Forwarded, Hook, Outcome
from .garbage import MAX_LINES, WINDOW, Garbage
from .ports import Switchboard, Upstream
from .shown import Shown

logger: Final = logging.getLogger(__name__)

INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
"""JSON-RPC 2.0, section 5.1."""

MAX_IN_FLIGHT: Final = 1024
"""Requests that one backend has not answered; the next one is refused."""

MAX_ASKS: Final = 1000
"""Requests of one backend that wait for its client; the next one is refused."""

MAX_DIGITS: Final = 18
"""Digits of an id that could be one of ours."""

MAX_TASK_TOKENS: Final = 256
"""Progress tokens kept for tasks whose request is already answered; the oldest goes first."""

FAULTY: Final = Outcome(
    error=b'{"code":-32603,"message":"The proxy failed to pass the request on."}'
)
"""What a backend's request gets that we failed with, by a fault of our own."""


class Transport(Protocol):
    """Carries whole messages to a backend, in order."""

    def send(self, message: bytes, kind: Kind, exchange: Exchange | None = None) -> None:
        """Take one message without its line end. Does not block.

        `kind`: of replies, which the backend asked for, there may be more at once than of others.
        `exchange`: of a request, which the transport may also settle, through the relay.
        Raises: BackendBusy: the backend does not read, and the buffer is full.
        """
        ...

    def cancel(self, exchange: Exchange) -> bool:
        """Wait no more for the answer to a request; return whether this alone tells the backend."""
        ...

    def kill(self) -> None:
        """End the backend at once, and hand on nothing more of it but that it ended."""
        ...


class Relay:
    """A `Backend` over a transport. Entered into service by the launcher that makes it."""

    def __init__(
        self,
        transport: Transport,
        upstream: Upstream,
        *,
        hooks: Sequence[Hook] = (),
        tally: Counter[str] | None = None,
        label: str = "",
    ) -> None:
        self._transport = transport
        self._upstream = upstream
        self._switchboard = upstream if isinstance(upstream, Switchboard) else None
        self._hooks = tuple(hooks)
        self._shown = Shown(self._hooks, label)
        self._tally = tally if tally is not None else Counter[str]()
        self._label = label
        # Changes with every message.
        self._last_id = 0
        self._in_flight: dict[int, Exchange] = {}
        self._asks: dict[bytes, Ask] = {}
        self._task_tokens: OrderedDict[int, bytes] = OrderedDict()
        self._rubbish: Garbage | None = None  # most backends never write any
        self._killed_for = ""

    # -- towards the backend ---------------------------------------------------------------------

    def request(self, exchange: Exchange) -> None:
        """Send it under an id of our own; a failure to do so settles it."""
        if len(self._in_flight) >= MAX_IN_FLIGHT:
            text = "The backend has too many requests to answer already."
            exchange.settle(Outcome(failure=BackendBusy(text)))
            return
        self._last_id += 1
        exchange.backend_id = backend_id = self._last_id
        params = exchange.params
        if params is not None and wire.carries_progress_token(params):
            try:
                params = self._take_token(exchange, params)
            except InvalidMessage as error:
                exchange.settle(Outcome(failure=error.with_traceback(None)))
                return
        if self._hooks:
            self._shown.show(Forwarded(True, "request", exchange.method, exchange.params, exchange))
        self._in_flight[backend_id] = exchange
        try:
            message = wire.encode_request(b"%d" % backend_id, exchange.method, params)
            self._transport.send(message, Kind.REQUEST, exchange)
        except BackendBusy as error:
            del self._in_flight[backend_id]
            # Its traceback holds the message, and the exchange that would hold it: a cycle.
            exchange.settle(Outcome(failure=error.with_traceback(None)))

    def _take_token(self, exchange: Exchange, params: Bytes) -> Bytes:
        """Return `params` with our own token (the id, which is unique) in place of the client's."""
        found = wire.with_progress_token(params, b"%d" % exchange.backend_id)
        if found is None:
            return params
        params, exchange.client_token, exchange.is_task = found
        return params

    def notify(self, method: str, params: Bytes | None) -> None:
        if self._hooks:
            self._shown.show(Forwarded(True, "notification", method, params, None))
        self._send(wire.encode_notification(method, params), Kind.NOTIFICATION)

    def cancel(self, exchange: Exchange, params: Bytes | None) -> None:
        """Tell the backend, under the id it knows. A late answer of it is then dropped."""
        if self._in_flight.pop(exchange.backend_id, None) is None:
            return
        if self._transport.cancel(exchange):
            return
        fields: dict[str, Bytes] = {**wire.members(params)}
        fields["requestId"] = b"%d" % exchange.backend_id
        self.notify("notifications/cancelled", wire.rebuilt(fields))

    def _answer_ask(self, key: bytes, ask: Ask, of: int, outcome: Outcome) -> None:
        """Raises: BackendBusy: there is no room for the answer now; that it failed for just this
        is told where there is room, else lost."""
        if isinstance(outcome.failure, BackendBusy):
            self._respond(wire.encode_error(INTERNAL_ERROR, str(outcome.failure), request_id=key))
        else:
            self._transport.send(_answer(key, outcome), Kind.RESPONSE)
        self._asks.pop(key, None)
        if self._hooks:
            exchange = self._in_flight.get(of)
            shown = Forwarded.answer(
                to_backend=True, method=ask.method, outcome=outcome, of=exchange
            )
            self._shown.show(shown)

    def _respond(self, message: bytes) -> None:
        self._send(message, Kind.RESPONSE)

    def _send(self, message: bytes, kind: Kind) -> None:
        """Send what nobody waits for an answer to; without room for it, it is lost and counted."""
        try:
            self._transport.send(message, kind)
        except BackendBusy:
            self._count("backend_busy")

    # -- from the backend ------------------------------------------------------------------------

    def receive(self, line: bytes, via: Exchange | None = None) -> None:
        """Take one line. `via`: the exchange on whose own stream it came, where there is such; it
        may be over."""
        try:
            message = wire.decode(line)
            kind = message.kind
            if kind is Kind.RESPONSE:
                self._answered(message, via)
            elif kind is Kind.REQUEST:
                self._asked(message, via)
            else:
                self._notified(message, line, via)
        except (MalformedMessage, InvalidMessage) as error:
            if line[:1] == b"[":
                self._receive_batch(line, via)
            else:
                self._garbage(line, error)

    def _receive_batch(self, line: bytes, via: Exchange | None) -> None:
        """Take the messages of a batch (2025-03-26 basic/transports#stdio) one by one."""
        try:
            messages = wire.split_batch(line)
        except (MalformedMessage, InvalidMessage) as error:
            self._garbage(line, error)
            return
        for message in messages:
            self.receive(message, via)

    def receive_oversize(self, line: wire.Oversize, limit: int) -> None:
        """Take what was kept of a line longer than `limit` bytes: its call fails alone."""
        self._count("line_too_long")
        backend_id = wire.sniff_response_id(line.head, line.tail)
        exchange = None if backend_id is None else self._in_flight.pop(backend_id, None)
        text = "%s: a line of more than %d bytes was discarded"
        logger.warning(text, self._label, limit, extra=self._named)
        if exchange is not None:
            failure = ResultTooLarge(f"The result was larger than {limit} bytes and was discarded.")
            exchange.settle(Outcome(failure=failure))

    def _answered(self, message: Message, via: Exchange | None) -> None:
        raw = bytes(message.id) if message.id is not wire.UNSET else b""
        ours = raw.isdigit() and len(raw) <= MAX_DIGITS
        exchange = self._in_flight.get(int(raw)) if ours else None
        if raw == b"null" and via is not None:  # it could not read which request it refuses
            exchange = self._in_flight.get(via.backend_id)
        if exchange is None:
            self._count("unmatched_response")
            if ours and self._switchboard is not None:
                self._switchboard.late(int(raw))
            return
        if exchange.is_task and exchange.client_token is not None:
            self._keep_task_token(exchange.backend_id, exchange.client_token)
        self.settle(exchange, Outcome(*message.outcome()))

    def settle(self, exchange: Exchange, outcome: Outcome) -> None:
        """End an exchange in flight: with the backend's answer, or what its transport found."""
        if self._in_flight.pop(exchange.backend_id, None) is None:
            return
        if self._hooks and outcome.failure is None:
            shown = Forwarded.answer(
                to_backend=False, method=exchange.method, outcome=outcome, of=exchange
            )
            self._shown.show(shown)
        exchange.settle(outcome)

    def _keep_task_token(self, token: int, client_token: bytes) -> None:
        self._task_tokens[token] = client_token
        if len(self._task_tokens) > MAX_TASK_TOKENS:
            self._task_tokens.popitem(last=False)

    def _asked(self, message: Message, via: Exchange | None) -> None:
        key = message.request_id()
        method = str(message.method)
        if method == "ping":
            # Answered here, at once: a backend that pings wants to know about its peer.
            self._respond(wire.encode_result(key, b"{}"))
            return
        try:
            params = message.object_params()
        except InvalidMessage as error:
            self._respond(wire.encode_error(INVALID_PARAMS, str(error), request_id=key))
            return
        exchange = self._whose(via, method, self._askable_exchange)
        # Not the exchange itself: it may be over long before its client has answered.
        of = 0 if exchange is None else exchange.backend_id
        ask = Ask(method, params, lambda outcome: self._answer_ask(key, ask, of, outcome))
        if key in self._asks or len(self._asks) >= MAX_ASKS:
            self._count("ask_refused")
            text = "too many requests wait for the client, or one with this id"
            self._respond(wire.encode_error(INTERNAL_ERROR, text, request_id=key))
            return
        self._asks[key] = ask
        if self._hooks:
            self._shown.show(Forwarded(False, "request", method, params, exchange))
        try:
            self._upstream.ask(ask, exchange)
        except Exception:  # a fault of ours: the backend must not wait for an answer for ever
            ask.decline(FAULTY)
            raise

    def _notified(self, message: Message, line: bytes, via: Exchange | None) -> None:
        method = str(message.method)
        params = message.object_params()
        if method == "notifications/progress":
            self._progressed(params)
            return
        if method == "notifications/cancelled":
            self._withdrawn(params)
            return
        exchange = self._whose(via, method, self._likely_exchange)
        if self._hooks:
            self._shown.show(Forwarded(False, "notification", method, params, exchange))
        self._upstream.notification(method, params, line, exchange)

    def _progressed(self, params: Bytes | None) -> None:
        """Pass progress on under the client's own token; an unknown token's is dropped."""
        found = wire.progress_of(params)
        if found is None:
            self._count("progress_without_token")
            return
        token, progress, fields = found
        exchange = self._in_flight.get(token)
        client_token = exchange.client_token if exchange else self._task_tokens.get(token)
        if client_token is None or (exchange is not None and progress < exchange.progress):
            self._count("progress_dropped")
            return
        if exchange is not None:
            exchange.progress = progress
        body = wire.rebuilt({**fields, "progressToken": client_token})
        method = "notifications/progress"
        if self._hooks:
            self._shown.show(Forwarded(False, "notification", method, body, exchange))
        self._upstream.notification(method, body, wire.encode_notification(method, body), exchange)

    def _withdrawn(self, params: Bytes | None) -> None:
        """Take back a request of the backend that it has cancelled."""
        named = wire.cancelled_request_id(params)
        ask = None if named is None else self._asks.pop(named, None)
        if ask is None:
            self._count("unmatched_cancellation")
            return
        self._upstream.withdraw(ask, params)

    def _whose(
        self, via: Exchange | None, method: str, likely: Callable[[str], Exchange | None]
    ) -> Exchange | None:
        """Return the exchange that a message belongs to. One that comes on a stream whose own is
        over belongs to that session all the same, and must not be taken for another's."""
        if via is not None and via.outcome is None:
            return via
        return None if via is not None and self._switchboard is not None else likely(method)

    def _candidates(self, method: str) -> Reversible[Exchange]:
        """Return those to one of which a message without a name belongs, oldest first."""
        in_flight = self._in_flight.values()
        if self._switchboard is None:
            return in_flight
        return self._switchboard.candidates(method, in_flight)

    def _likely_exchange(self, method: str) -> Exchange | None:
        """Return the only exchange in flight, else the newest that a client reads, else the newest.

        A message on a pipe names no request it belongs to (progress does, by its token).
        """
        newest: Exchange | None = None
        for exchange in reversed(self._candidates(method)):
            if exchange.sink.attached:
                return exchange
            newest = newest or exchange
        return newest

    def _askable_exchange(self, method: str) -> Exchange | None:
        """Return the newest exchange whose client can be asked `method`, best at once (DESIGN 8).

        Where none can be, the likeliest.
        """
        found: Exchange | None = None
        for exchange in reversed(self._candidates(method)):
            how_well = exchange.sink.takes(method)
            if how_well == 2:
                return exchange
            if how_well and found is None:
                found = exchange
        return found or self._likely_exchange(method)

    # -- the end ---------------------------------------------------------------------------------

    def in_flight(self) -> tuple[Exchange, ...]:
        return tuple(self._in_flight.values())

    def fail_all(self, failure: ProxyError) -> None:
        """Settle everything in flight with `failure`, and forget the backend's own requests."""
        exchanges, self._in_flight = self.in_flight(), {}
        asks, self._asks = tuple(self._asks.values()), {}
        for ask in asks:  # first, while the streams they went out on are open
            self._upstream.withdraw(ask, None)
        for exchange in exchanges:
            exchange.settle(Outcome(failure=failure))

    def ended(self, how: Exit) -> None:
        """The backend ended by itself: settle what it had in flight, then tell upstream."""
        if self._killed_for:
            how = replace(how, detail=self._killed_for)
        gone = BackendGone(f"The backend ended: {how}.", how)
        self._transport = _Ended(self, gone)
        self.fail_all(gone)
        self._upstream.ended(how)

    # -- what is seen and counted ----------------------------------------------------------------

    def _garbage(self, line: bytes, error: ProxyError) -> None:
        """Drop a line that is no message; end a backend that writes hardly anything else."""
        self._count("garbage_line")
        if self._rubbish is None:
            self._rubbish = Garbage()
        self._rubbish.add(anyio.current_time())
        if count := self._rubbish.to_log():
            text = (
                "%s: dropped a line that is no message (%s): %.80r; %d more since the last one told"
            )
            logger.warning(text, self._label, error, line[:80], count - 1, extra=self._named)
        if self._rubbish.too_many() and not self._killed_for:
            self._kill(f"wrote more than {MAX_LINES:,} lines that are no messages in {WINDOW:g} s")

    def _kill(self, why: str) -> None:
        text = "%s: the backend is killed: it %s"
        logger.warning(text, self._label, why, extra=self._named)
        self._killed_for = f"killed, since it {why}"
        self._transport.kill()

    @property
    def _named(self) -> dict[str, object]:
        return {"session": self._label}

    def _count(self, name: str) -> None:
        self._tally[name] += 1


class _Ended:
    """The `Transport` to a backend that has ended: what is asked from now on fails at once."""

    def __init__(self, relay: Relay, failure: BackendGone) -> None:
        self._relay = relay
        self._failure = failure.with_traceback(None)

    def send(self, message: bytes, kind: Kind, exchange: Exchange | None = None) -> None:
        if exchange is not None:
            self._relay.settle(exchange, Outcome(failure=self._failure))

    def cancel(self, exchange: Exchange) -> bool:
        return True

    def kill(self) -> None: ...


def _answer(key: bytes, outcome: Outcome) -> bytes:
    if outcome.failure is not None:
        return wire.encode_error(INTERNAL_ERROR, str(outcome.failure), request_id=key)
    answer = wire.encode_answer(key, result=outcome.result, error=outcome.error)
    return bytes(wire.on_one_line(answer))
