"""A backend of the handshake era for clients of either.

Stands between a session and its backend, as the one's backend and the other's upstream. What a
handshake client sends goes through; what a modern client sends is translated, both ways: its first
request becomes `initialize`, the backend's questions become rounds (`eras.calls`), log messages
reach those who asked for them. Neighbours: `eras.launcher` puts it around a backend.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
from msgspec import Raw

from .. import wire
from ..core.between import Instead
from ..core.caller import UNHEARD, Unheard
from ..core.exchange import Ask, Exchange, Outcome
from ..core.ports import Backend, Identity, Upstream
from ..core.timers import Timers
from ..errors import BackendGone, Exit, InvalidMessage, InvalidRequestState, NoLongerWaiting
from ..wire import Bytes, Envelope
from ..wire.envelope import LOG_LEVELS, read_meta, read_request, severity, text
from ..wire.welcome import discover_result, initialize_params
from . import results
from .calls import Call, Note
from .questions import answers_of, lacking, undeclared
from .rounds import Round, Rounds, digest_of, digest_of_answers
from .turns import Turn, Turns

logger: Final = logging.getLogger(__name__)

NO_LONGER: Final = "The request is no longer waiting for these answers; call again."


class ToHandshake:
    """A `Backend` and an `Upstream`. `backend` is set once there is one."""

    backend: Backend

    def __init__(
        self, identity: Identity, life: str, upstream: Upstream, timers: Timers, rounds: Rounds
    ) -> None:
        """`life` tells this backend from all others that a session has had, or ever will."""
        self.timers = timers
        self.turns: Turns = Turns(timers)
        self._identity = identity
        self._life = life
        self.upstream = upstream
        self._rounds = rounds
        # Known once the backend has answered `initialize`.
        self._server: bytes | None = None
        self._logs = False
        # Moves with what the clients send.
        self._said_initialized = False
        self._level: str | None = None
        """Of log messages: what the backend was last told."""
        self._asked_level: str | None = None
        """The lowest that a modern client has asked for."""
        self._clients_level: str | None = None
        """What a handshake client last set."""
        self._last_call = 0
        self._calls: dict[Exchange, Call] = {}
        """By those of the client's exchanges that wait for one."""

    # -- towards the backend -----------------------------------------------------------------------

    def request(self, exchange: Exchange) -> None:
        if exchange.method == "initialize":
            self._open(exchange, exchange.params)
        elif exchange.method == "server/discover":
            self._open(exchange, initialize_params(_opener(exchange.params)))
        elif exchange.envelope is None:
            self._pass_on(exchange)
        elif exchange.envelope.state is not None:
            self._retry(exchange, exchange.envelope, exchange.envelope.state)
        else:
            self._begin(exchange, exchange.envelope)

    def _send_for(
        self, outer: Exchange, params: Bytes | None, method: str, then: Callable[[Outcome], None]
    ) -> None:
        sink = Instead(outer, then)
        self.backend.request(
            Exchange(method, params, client_id=b"0", sink=sink, context=outer.context)
        )

    def _open(self, exchange: Exchange, params: Bytes | None) -> None:
        """Begin the backend's session, for a client of either era."""

        def opened(outcome: Outcome) -> None:
            if outcome.result is not None:
                fields = wire.members(outcome.result)
                self._server = _bytes(fields.get("serverInfo"))
                self._logs = "logging" in wire.members(fields.get("capabilities"))
                if exchange.method == "server/discover":
                    outcome = Outcome(result=_discovered(outcome.result))
                    self._say_initialized()
            exchange.settle(outcome)

        self._send_for(exchange, params, "initialize", opened)

    def _pass_on(self, exchange: Exchange) -> None:
        """Pass on what a handshake client asks."""
        if exchange.method == "logging/setLevel":
            self._set_level(exchange)
        else:
            self.backend.request(exchange)

    def _begin(self, exchange: Exchange, envelope: Envelope) -> None:
        self._hear(envelope)
        self._last_call += 1
        call = Call(self, self._last_call, exchange, envelope)
        self._calls[exchange] = call
        self.begin(call)

    def notify(self, method: str, params: Bytes | None) -> None:
        if method == "notifications/initialized":
            self._say_initialized(params)
        else:
            self.backend.notify(method, params)

    def _say_initialized(self, params: Bytes | None = None) -> None:
        """Tell the backend once, whoever of its clients comes first."""
        if not self._said_initialized:
            self._said_initialized = True
            self.backend.notify("notifications/initialized", params)

    def cancel(self, exchange: Exchange, params: Bytes | None) -> None:
        call = self._calls.pop(exchange, None)
        if call is not None:
            call.leave(exchange, params)
        else:
            self.backend.cancel(exchange, params)

    def in_flight(self) -> tuple[Exchange, ...]:
        return self.backend.in_flight()

    # -- log levels --------------------------------------------------------------------------------

    def _hear(self, envelope: Envelope) -> None:
        """Have the backend write what the least demanding of its clients has asked for. That is not
        taken back: what nobody asked for goes no further than here."""
        level = envelope.log_level
        if level is None or not self._logs or _lower(level, self._asked_level) != level:
            return
        self._asked_level = level
        if _lower(level, self._level) == level != self._level:
            self._level = level
            params = msgspec.json.encode({"level": level})
            self.backend.request(Exchange("logging/setLevel", params, client_id=b"", sink=UNHEARD))

    def _set_level(self, exchange: Exchange) -> None:
        """Pass a handshake client's level on, or the lower one that others have asked for."""
        level = text(wire.member(exchange.params, "level"))
        if level not in LOG_LEVELS:
            self.backend.request(exchange)  # which refuses it
            return
        self._clients_level = level
        self._level = _lower(level, self._asked_level)
        if self._level == level:
            self.backend.request(exchange)
        else:
            params = msgspec.json.encode({"level": self._level})
            self._send_for(exchange, params, "logging/setLevel", exchange.settle)

    # -- coming back with answers ------------------------------------------------------------------

    def _retry(self, exchange: Exchange, envelope: Envelope, state: str) -> None:
        try:
            turn = self._turn_of(exchange, state)
            answers = answers_of(envelope.responses, () if turn is None else turn.keys)
            _check_answers(turn, answers)
        except (InvalidRequestState, InvalidMessage) as error:
            exchange.settle(Outcome(failure=error.with_traceback(None)))
            return
        if turn is None:
            exchange.settle(Outcome(failure=NoLongerWaiting(NO_LONGER)))
        elif turn.outcome is not None:
            exchange.settle(turn.outcome)
        else:
            self._go_on(turn, exchange, envelope, answers)

    def _turn_of(self, exchange: Exchange, state: str) -> Turn | None:
        """Return the round that a retry is for; None: it is over.

        Raises: InvalidRequestState: it is no retry of anything.
        """
        found = self._rounds.read(state)
        if found is None or found.identity != self._identity or found.method != exchange.method:
            raise InvalidRequestState("not sealed here, altered, expired, or another session's")
        if found.digest != digest_of(exchange.params):
            raise InvalidRequestState("of a request with other parameters")
        if found.backend != self._life:
            return None
        return self.turns.find(found.call, found.number)

    def _go_on(
        self, turn: Turn, exchange: Exchange, envelope: Envelope, answers: Mapping[str, Raw]
    ) -> None:
        call = turn.call
        self._hear(envelope)
        self._calls[exchange] = call
        if call.waits_for(turn):
            call.take_up(turn, exchange, envelope, answers)
        else:
            call.join(exchange)
        if exchange.outcome is not None:
            self._calls.pop(exchange, None)

    # -- from the backend --------------------------------------------------------------------------

    def ask(self, ask: Ask, exchange: Exchange | None) -> None:
        if self._place(ask, exchange):
            return
        call = _call_of(exchange)
        if call is not None and call.may_ask:
            ask.decline(undeclared(ask.method, lacking(ask, call.envelope)))
        else:
            self.upstream.ask(ask, None)  # to clients that listen; with none there, as DESIGN 9

    def _place(self, ask: Ask, exchange: Exchange | None = None) -> bool:
        """Put a question to the request that it belongs to, or else to the newest whose client can
        be asked it, best at once (DESIGN 8)."""
        running = reversed(self.backend.in_flight())
        likely = running if exchange is None else (exchange, *running)
        best = max(likely, key=lambda found: _suits(found, ask), default=None)  # the first such
        if best is None or not _suits(best, ask):
            return False
        call = _call_of(best)
        if call is None:
            self.upstream.ask(ask, best)
        else:
            call.ask(ask)
        return True

    def withdraw(self, ask: Ask, params: Bytes | None) -> None:
        if isinstance(ask.sink, Call):
            ask.sink.withdraw(ask)
        else:
            self.upstream.withdraw(ask, params)

    def notification(
        self, method: str, params: Bytes | None, encoded: bytes, exchange: Exchange | None
    ) -> None:
        call = _call_of(exchange)
        if wire.method_of(method).unrelated:
            self.upstream.notification(method, params, encoded, None)
        elif call is not None:
            self._tell(Note(method, params, encoded), call)
        elif method != "notifications/message" or self._is_for_handshake(params):
            of = None if exchange is None or isinstance(exchange.sink, Unheard) else exchange
            self.upstream.notification(method, params, encoded, of)

    def _tell(self, note: Note, call: Call) -> None:
        """Pass a notification on to a call; a log message to one that asked for such, if not to the
        likeliest."""
        found = call
        if note.method == "notifications/message":
            running = (other for other in reversed(self._calls.values()) if other is not call)
            hearing = (c for c in (call, *running) if c.envelope.hears(note.level))
            found = next(hearing, None)
        if found is not None:
            found.notify(note)

    def _is_for_handshake(self, params: Bytes | None) -> bool:
        """Return whether handshake clients want this log message, and not modern ones alone."""
        level = text(wire.member(params, "level")) or ""
        return self._clients_level is None or severity(level) >= severity(self._clients_level)

    def hold(self, exchange: Exchange) -> None:
        self.upstream.hold(exchange)

    # -- the end -----------------------------------------------------------------------------------

    def ended(self, how: Exit) -> None:
        self._leave(BackendGone(f"The backend ended: {how}.", how))
        self.upstream.ended(how)

    def close(self) -> None:
        """Keep nothing, and wait for nothing: the backend is being stopped."""
        self._leave(BackendGone("The backend was stopped."))

    def _leave(self, failure: BackendGone) -> None:
        for call in self.turns.parked():
            if call.stay is not None:
                call.stay.settle(Outcome(failure=failure))
        for call in tuple(self._calls.values()):  # their user was to be sent somewhere first
            call.finish(Outcome(failure=failure))
        self.turns.close()

    # -- what a call needs (`Desk`) ----------------------------------------------------------------

    def begin(self, call: Call) -> None:
        self.backend.request(call.inner)
        call.inner.params = None  # they may be large, and the answer may be a long time coming

    def give_up(self, call: Call, params: bytes) -> None:
        self.backend.cancel(call.inner, params)

    def deliver(self, note: Note, exchange: Exchange) -> None:
        self.upstream.notification(note.method, note.params, note.encoded, exchange)

    def place(self, ask: Ask) -> bool:
        return self._place(ask)

    def left(self, exchange: Exchange) -> None:
        self._calls.pop(exchange, None)

    def questioned(self, turn: Turn, requests: Mapping[str, Raw]) -> Outcome:
        call = turn.call
        found = Round(
            *self._identity,
            self._life,
            call.number,
            turn.number,
            call.method,
            call.digest,
            self._rounds.expiry(),
        )
        state = self._rounds.seal(found)
        return Outcome(result=results.input_required(requests, state, self._server))

    def dressed(self, call: Call, outcome: Outcome) -> Outcome:
        if outcome.result is not None:
            found = results.modern_result(outcome.result, call.method, self._server)
            return Outcome(result=found)
        if outcome.error is not None:
            visits = call.envelope.declares("elicitation", "url")
            return Outcome(error=results.modern_error(outcome.error, call.method, visits=visits))
        return outcome


def _call_of(exchange: Exchange | None) -> Call | None:
    if exchange is not None and isinstance(exchange.sink, Call):
        return exchange.sink
    return None


def _suits(exchange: Exchange, ask: Ask) -> int:
    """Return how well a question is placed with a request in flight: see `ReplySink.takes`."""
    call = _call_of(exchange)
    if call is not None and lacking(ask, call.envelope):
        return 0
    return exchange.sink.takes(ask.method)


def _check_answers(turn: Turn | None, answers: Mapping[str, Raw]) -> None:
    """Raises: InvalidRequestState: somebody has come back to this round with others."""
    taken = None if turn is None else turn.answers
    if taken is not None and taken != digest_of_answers(answers):
        raise InvalidRequestState("taken up already, with other answers")


def _opener(params: Bytes | None) -> Envelope:
    """Return what the parameters of a `server/discover` say of its client."""
    found = read_meta(read_request(params).meta)
    return Envelope("", bytes(found.capabilities or b"{}"), _bytes(found.client))


def _discovered(initialized: Bytes) -> bytes:
    return results.modern_result(discover_result(initialized), "server/discover", None)


def _lower(level: str, other: str | None) -> str:
    return level if other is None or severity(level) <= severity(other) else other


def _bytes(value: Bytes | None) -> bytes | None:
    return None if value is None else bytes(value)
