"""One request of a modern client that a handshake backend works on.

The client's request and the backend's are two exchanges. The backend's goes on while the client is
away to fetch what the backend asked for: then the call is *parked*, and the client's next request
takes it up (2026-07-28 basic/patterns/mrtr). A call that no request waits for and that is not
parked is over. Neighbours: `eras.to_handshake` makes calls and finds the one that a retry is for;
what a call needs of it is the port `Desk`.
"""

import logging
from collections import deque
from collections.abc import Mapping
from contextvars import Context
from typing import Final, NamedTuple, Protocol

from msgspec import Raw

from .. import wire
from ..core.caller import UNHEARD
from ..core.deadlines import CALL_LIMIT
from ..core.exchange import Ask, Exchange, Outbound, Outcome
from ..core.timers import Timer, Timers
from ..errors import AnswerNotTaken, BackendBusy, RequestCancelled, ResultTooLarge
from ..wire import Bytes, Envelope
from ..wire.envelope import progress_token, text, without_envelope
from . import results
from .questions import elicitation_of, input_request, lacking, unanswered, undeclared
from .rounds import CANONICAL, digest_of, digest_of_answers
from .turns import Turn, Turns

logger: Final = logging.getLogger(__name__)

ASKING: Final = frozenset({"tools/call", "prompts/get", "resources/read"})
"""Requests that may be answered with a question (2026-07-28 basic/patterns/mrtr)."""

GATHER: Final = 0.05
"""Seconds for which a question waits for others that may travel with it."""

PARKED: Final = 300.0
"""Seconds that a parked call waits for its client."""

MAX_ROUNDS: Final = 9
"""Rounds of one call: clients give up at ten."""

MAX_KEPT: Final = 256
MAX_KEPT_BYTES: Final = 1024 * 1024
"""Notifications that a parked call keeps for its client, and their bytes; the oldest go first."""

_TOO_LARGE: Final = Outcome(
    failure=ResultTooLarge("The result was too large to be kept until its client came back.")
)
_OVER: Final = Outcome(failure=RequestCancelled("Nobody waits for it any more."))
_GONE: Final = b'{"reason":"its client has gone"}'
_FORGOTTEN: Final = b'{"reason":"nobody came back with the answers"}'


class Note(NamedTuple):
    """A notification of the backend."""

    method: str
    params: Bytes | None
    encoded: bytes

    @property
    def level(self) -> str:
        """Of a log message."""
        return text(wire.member(self.params, "level")) or ""

    def under(self, token: bytes) -> "Note":
        """Return progress as it is told under this token."""
        if bytes(wire.member(self.params, "progressToken") or b"") == token:
            return self
        params = wire.rebuilt({**wire.members(self.params), "progressToken": token})
        return Note(self.method, params, wire.encode_notification(self.method, params))


class Desk(Protocol):
    """What a call needs of the bridge that it belongs to."""

    timers: Timers
    turns: Turns

    def begin(self, call: "Call") -> None:
        """Have the backend work on `call.inner`."""
        ...

    def give_up(self, call: "Call", params: bytes) -> None:
        """Have the backend stop working on it; `params`: of the cancellation."""
        ...

    def hold(self, exchange: Exchange) -> None:
        """Keep the session from being idle until `exchange` is settled."""
        ...

    def deliver(self, note: Note, exchange: Exchange) -> None:
        """Pass a notification on to the client."""
        ...

    def place(self, ask: Ask) -> bool:
        """Put a question to another of the requests in flight; False: there is none for it."""
        ...

    def left(self, exchange: Exchange) -> None:
        """A request of the client waits no more."""
        ...

    def questioned(self, turn: Turn, requests: Mapping[str, Raw]) -> Outcome:
        """Return these questions as an answer to the client."""
        ...

    def dressed(self, call: "Call", outcome: Outcome) -> Outcome:
        """Return the backend's answer as a modern client expects it."""
        ...


class _Errand:
    """What the backend refuses before its user has been to some places (2025-11-25
    client/elicitation#url-mode-with-elicitation-required-error)."""

    def __init__(self, refusal: Outcome) -> None:
        self.refusal = refusal
        self.done = True
        """Nobody has said that the user would not go."""

    def take(self, answer: Outcome) -> None:
        if text(wire.member(answer.result, "action")) != "accept":
            self.done = False


class _Stay:
    """The hold of a parked call on its session. A `ReplySink`."""

    attached = False

    def __init__(self, call: "Call") -> None:
        self._call = call

    def takes(self, method: str) -> int:
        return 0

    def message(self, message: Outbound) -> None:
        """Not used: nothing is sent for it, so nothing comes."""

    def settled(self, exchange: Exchange) -> None:
        self._call.turned_out(exchange)


class Call:
    """A `ReplySink` of the backend's exchange."""

    __slots__ = (
        "__weakref__",
        "_asks",
        "_desk",
        "_digest",
        "_errand",
        "_expiry",
        "_gathering",
        "_kept",
        "_kept_size",
        "_last_key",
        "_outcome",
        "_params",
        "_turn",
        "envelope",
        "inner",
        "method",
        "number",
        "outers",
        "rounds",
        "stay",
    )

    def __init__(self, desk: Desk, number: int, exchange: Exchange, envelope: Envelope) -> None:
        self._desk = desk
        self.number: int = number
        self.method: str = exchange.method
        self.envelope: Envelope = envelope
        params, may_ask = exchange.params, self.may_ask
        small = params is None or len(params) <= CANONICAL
        self._params = params if small and may_ask else None
        self._digest = "" if small or not may_ask else digest_of(params)
        exchange.client_token = progress_token(exchange.params, envelope.meta)
        self.outers: list[Exchange] = [exchange]
        """Requests of the client that wait for it, oldest first; none while it is parked."""
        self.inner: Exchange = self._begun_by(exchange)
        """What the backend works on."""
        # Moves with each round.
        self.rounds: int = 0
        self.stay: Exchange | None = None
        """Its hold on the session while it is parked."""
        self._turn: Turn | None = None
        """The last round that the client was given."""
        self._expiry: Timer | None = None
        self._gathering: Timer | None = None
        self._errand: _Errand | None = None
        self._last_key = 0
        self._asks: dict[str, Ask] = {}
        """What waits for the client's answer, by key."""
        self._kept: deque[Note] | None = None
        self._kept_size = 0
        self._outcome: Outcome | None = None
        """The answer, where it came while the client was away."""

    def __repr__(self) -> str:
        state = "parked" if self.stay is not None else "waited for" if self.outers else "over"
        return f"<Call {self.number} {self.method} {state} rounds={self.rounds}>"

    def _begun_by(self, outer: Exchange) -> Exchange:
        envelope = self.envelope
        retries = envelope.state is not None or envelope.responses is not None
        return Exchange(
            outer.method,
            without_envelope(outer.params, None if retries else envelope.meta),
            client_id=b"",
            sink=self,
            context=outer.context,
        )

    @property
    def may_ask(self) -> bool:
        return self.method in ASKING

    @property
    def digest(self) -> str:
        """Of its parameters: a retry has to be about the same."""
        if not self._digest:
            self._digest, self._params = digest_of(self._params), None
        return self._digest

    def waits_for(self, turn: Turn) -> bool:
        """Return whether it is parked, and this is the round that its client is to come back to."""
        return self.stay is not None and self._turn is turn

    # -- what the relay sees of it -----------------------------------------------------------------

    @property
    def attached(self) -> bool:
        return any(exchange.sink.attached for exchange in self.outers)

    def takes(self, method: str) -> int:
        """Return how well a request of the backend would be placed here: see `ReplySink`."""
        capability = wire.method_of(method).capability
        if not self.may_ask or capability is None or not self.envelope.declares(capability):
            return 0
        return 2 if self.outers else 1

    def message(self, message: Outbound) -> None:
        """Not used: what comes before the answer comes through the bridge."""

    def settled(self, exchange: Exchange) -> None:
        """The backend has answered, or has failed."""
        outcome = exchange.outcome or Outcome()
        urls = self._urls_of(outcome)
        if urls:
            self._send_to(urls, outcome)
            return
        self._outcome = self._desk.dressed(self, outcome)
        if self.outers:
            self.finish(self._outcome)
        elif not self._desk.turns.keeps_early(self, self._outcome):
            self._outcome = _TOO_LARGE

    # -- what the client is told meanwhile ---------------------------------------------------------

    def notify(self, note: Note) -> None:
        """Pass a notification on, or keep it for the client that is away."""
        if self.outers:
            self._deliver(note)
        elif self.stay is not None:
            if self._kept is None:
                self._kept = deque()
            self._kept.append(note)
            self._kept_size += len(note.encoded)
            while len(self._kept) > MAX_KEPT or self._kept_size > MAX_KEPT_BYTES:
                self._kept_size -= len(self._kept.popleft().encoded)

    def _deliver(self, note: Note) -> None:
        """Pass a notification on to the request that came last: under its token, if it has one,
        and of log messages those that it asked for."""
        exchange = self.outers[-1]
        if note.method == "notifications/message" and not self.envelope.hears(note.level):
            return
        if note.method == "notifications/progress":
            if exchange.client_token is None:
                return
            note = note.under(exchange.client_token)
        self._desk.deliver(note, exchange)

    # -- questions ---------------------------------------------------------------------------------

    def ask(self, ask: Ask) -> None:
        """Take a question of the backend; it goes to the client with the next round."""
        self._last_key += 1
        ask.sink = self
        self._asks[f"{ask.method.partition('/')[0]}-{self._last_key}"] = ask
        self._gather()

    def withdraw(self, ask: Ask) -> None:
        """The backend wants no answer to a question any more."""
        ask.withdraw()
        self._asks = {key: kept for key, kept in self._asks.items() if kept is not ask}

    def _gather(self) -> None:
        if self._gathering is None and self._asks and self.outers:
            self._gathering = self._desk.timers.after(GATHER, self._put_questions)

    def _put_questions(self) -> None:
        self._gathering = None
        for key, ask in tuple(self._asks.items()):
            if lacks := lacking(ask, self.envelope):  # of a retry that declares less than before
                del self._asks[key]
                ask.decline(undeclared(ask.method, lacks))
        if self.rounds >= MAX_ROUNDS:
            self._leave_unanswered()
        if self._asks:
            self._park()
        elif self._errand is not None:
            self._go_on()

    def _park(self) -> None:
        """Answer those who wait with questions; what the backend works on goes on."""
        self.rounds += 1
        requests = {key: input_request(ask, self.envelope) for key, ask in self._asks.items()}
        turn = Turn(self, self.rounds, frozenset(requests))
        self._desk.turns.add(turn)
        before, self._turn = self._turn, turn
        # Not a moment without a hold on the session: it comes before the others go.
        self.stay = Exchange(
            self.method, None, client_id=b"", sink=_Stay(self), context=Context(), origin=self
        )
        self._desk.hold(self.stay)
        self._expiry = self._desk.timers.after(PARKED, self.expire)
        self._settle(before, self._desk.questioned(turn, requests))

    def _urls_of(self, outcome: Outcome) -> list[Raw]:
        """Return where the user has to go before the backend is asked again."""
        if outcome.error is None or not self.may_ask:
            return []
        if not self.envelope.declares("elicitation", "url"):
            return []
        return results.urls_of(outcome.error)

    def _send_to(self, urls: list[Raw], refusal: Outcome) -> None:
        """Ask the user to go there; nothing of this has run at the backend."""
        self._errand = errand = _Errand(refusal)
        for url in urls:
            self.ask(Ask("elicitation/create", elicitation_of(url), errand.take))

    # -- coming back with answers ------------------------------------------------------------------

    def take_up(
        self, turn: Turn, exchange: Exchange, envelope: Envelope, answers: Mapping[str, Raw]
    ) -> None:
        """Let `exchange` wait for the call, which is parked, with the answers that it brings."""
        turn.answers = digest_of_answers(answers)
        if not self._hand_over(answers):
            text = "The backend does not read its input; send the same answers again."
            exchange.settle(Outcome(failure=AnswerNotTaken(text, retry_after=1)))
            return
        self.envelope = envelope
        self.join(exchange)
        self._unpark()
        kept, self._kept, self._kept_size = self._kept, None, 0
        for note in kept or ():
            self._deliver(note)
        self._go_on()

    def join(self, exchange: Exchange) -> None:
        """Let a retry wait, also one that was sent twice. Progress goes on under its token."""
        exchange.client_token = progress_token(exchange.params)
        self.outers.append(exchange)

    def _hand_over(self, answers: Mapping[str, Raw]) -> bool:
        """Give the backend its answers; False where it cannot take them all now. What else it asked
        is asked again."""
        answered = {key: self._asks.pop(key) for key in answers if key in self._asks}
        for key in tuple(answered):
            try:
                answered[key].answer(Outcome(result=answers[key]))
            except BackendBusy:
                self._asks = {**answered, **self._asks}
                return False
            del answered[key]
        return True

    def _go_on(self) -> None:
        """Wait for the backend, unless there is something else to do first."""
        if self._outcome is not None:
            self.finish(self._outcome)
        elif self._asks:
            self._gather()
        elif self._errand is not None:
            errand, self._errand = self._errand, None
            if errand.done:
                self.inner = self._begun_by(self.outers[-1])
                self._desk.begin(self)
            else:
                self.finish(self._desk.dressed(self, errand.refusal))

    # -- the end -----------------------------------------------------------------------------------

    def finish(self, outcome: Outcome) -> None:
        """Answer those who wait. What was asked meanwhile may be another request's question."""
        self._stop_gathering()
        if self._asks:
            asks, self._asks = self._asks, {}
            for ask in asks.values():
                if not self._desk.place(ask):
                    ask.decline(unanswered(ask.method))
        self._settle(self._turn, outcome)
        self._let_go()

    def _let_go(self) -> None:
        """It is over. Without this, its answer would stay in memory until the cyclic collector
        comes by."""
        self.inner.sink = UNHEARD
        self._turn = None
        self._desk.turns.over(self)

    def _settle(self, turn: Turn | None, outcome: Outcome) -> None:
        """Answer those who wait, and keep the answer for who sends the same again."""
        outers, self.outers = self.outers, []
        if turn is not None:
            self._desk.turns.store(turn, outcome)
        for exchange in outers:
            self._desk.left(exchange)
            exchange.settle(outcome)

    def leave(self, exchange: Exchange, params: Bytes | None) -> None:
        """A client that waited waits no more: with the last one the call is cancelled. `params`: of
        its cancellation."""
        if exchange not in self.outers:
            return
        self.outers.remove(exchange)
        if not self.outers:
            self._cancel(CALL_LIMIT if params == CALL_LIMIT else _GONE)

    def expire(self) -> None:
        """The client has not come back."""
        self._unpark()
        self._cancel(_FORGOTTEN)

    def _cancel(self, params: bytes) -> None:
        """Tell the backend that nobody waits for it any more; `params` say why."""
        self._stop_gathering()
        self._leave_unanswered()
        if self.inner.outcome is None:
            self._desk.give_up(self, params)
            self.inner.settle(_OVER)
        if self._turn is not None:
            self._desk.turns.forget(self._turn)
        self._let_go()

    def turned_out(self, stay: Exchange) -> None:
        """The session's backend is being stopped, and with it what a parked call waits for."""
        if stay is not self.stay:
            return  # that was us
        self._unpark()
        asks, self._asks = self._asks, {}
        for ask in asks.values():
            ask.withdraw()
        if self._turn is not None:
            self._desk.turns.forget(self._turn)
        self._let_go()

    def _unpark(self) -> None:
        expiry, self._expiry = self._expiry, None
        if expiry is not None:
            expiry.cancel()
        stay, self.stay = self.stay, None
        if stay is not None:
            stay.settle(_OVER)

    def _leave_unanswered(self) -> None:
        asks, self._asks = self._asks, {}
        for ask in asks.values():
            ask.decline(unanswered(ask.method))

    def _stop_gathering(self) -> None:
        timer, self._gathering = self._gathering, None
        if timer is not None:
            timer.cancel()
