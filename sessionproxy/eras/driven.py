"""One request of a handshake client that a modern backend works on.

The backend asks in its results, and wants the same request again with the answers (2026-07-28
basic/patterns/mrtr). Its client is asked on its stream meanwhile, and gets one answer. Neighbours:
`eras.to_modern` drives such requests; what they need of it is the port `Wheel`.
"""

import secrets
from collections.abc import Mapping
from math import inf, nextafter
from typing import Final, Protocol

import msgspec
from msgspec import Raw

from .. import wire
from ..core.between import Instead
from ..core.exchange import Ask, Exchange, Outcome
from ..core.ports import Backend
from ..core.timers import Timer, Timers
from ..errors import BackendAsksOn, BackendGone, Exit, InvalidMessage
from ..wire import Bytes, Envelope
from ..wire.envelope import text, with_envelope
from .questions import unanswered

MAX_ROUNDS: Final = 10
"""Rounds of one request, as clients of the modern era have it."""

PAUSES: Final = (0.05, 0.1, 0.2, 0.25)
"""Seconds before a request is repeated that the backend only put off; the last one from then on."""

_OVER: Final = b'{"reason":"the request is over"}'


class Wheel(Protocol):
    """What a driven request needs of the bridge that it belongs to."""

    timers: Timers

    @property
    def backend(self) -> Backend: ...

    def envelope_of(self, exchange: Exchange) -> Envelope:
        """Return what a modern client in the place of this one's would say of itself."""
        ...

    def put(self, ask: Ask, outer: Exchange) -> None:
        """Ask the client on its stream."""
        ...

    def take_back(self, ask: Ask, params: Bytes | None) -> None:
        """Have the client answer it no more; `params`: of the cancellation, None where the backend
        is gone."""
        ...

    def finished(self, outer: Exchange, outcome: Outcome) -> None:
        """Answer the client."""
        ...


class _Result(msgspec.Struct):
    kind: Raw | msgspec.UnsetType = msgspec.field(name="resultType", default=msgspec.UNSET)
    requests: Raw | msgspec.UnsetType = msgspec.field(name="inputRequests", default=msgspec.UNSET)
    state: Raw | msgspec.UnsetType = msgspec.field(name="requestState", default=msgspec.UNSET)


class _Question(msgspec.Struct):
    method: str
    params: Raw = Raw(b"{}")

    @property
    def handshake_params(self) -> Bytes:
        """Parameters as 2025-11-25 requires them: an elicitation with a URL has an id."""
        if not bytes(self.params).startswith(b"{"):
            return b"{}"
        url = text(wire.member(self.params, "mode")) == "url"
        if self.method != "elicitation/create" or not url:
            return self.params
        named = msgspec.json.encode(secrets.token_urlsafe(16))
        return wire.with_member(self.params, "elicitationId", named) or self.params


class Own(Instead):
    """Of a request that the bridge sends itself: others stand between, too."""


class Driven:
    """A request on its way through all the rounds that the backend wants."""

    def __init__(self, wheel: Wheel, outer: Exchange) -> None:
        self._wheel = wheel
        self._outer = outer
        self._params: Bytes = b"{}" if outer.params is None else outer.params
        self._inner: Exchange | None = None
        """What the backend works on; None while the client is asked, or nobody does anything."""
        # Moves with each round.
        self._rounds = 0
        self._put_off = 0
        """Rounds in a row in which the client was asked nothing."""
        self._progress = -inf
        self._state: Bytes | None = None
        self._asks: dict[str, Ask] = {}
        self._answers: dict[str, Bytes] = {}
        self._timer: Timer | None = None

    def send(self) -> None:
        """Have the backend work on it, with what there is to be brought along."""
        envelope = self._wheel.envelope_of(self._outer)
        try:
            params = with_envelope(self._brought(), envelope)
        except InvalidMessage as error:
            self._wheel.finished(self._outer, Outcome(failure=error.with_traceback(None)))
            return
        self._inner = inner = Exchange(
            self._outer.method,
            params,
            client_id=b"",
            sink=Own(self._outer, self._answered),
            context=self._outer.context,
            envelope=envelope,
        )
        # Rounds begin anew, and to the client it is one request, whose progress must increase.
        inner.progress = nextafter(self._progress, inf)
        self._wheel.backend.request(inner)
        inner.params = None  # they may be large, and are kept once

    def _brought(self) -> Bytes:
        """Return the parameters with the answers and the state of the last round.

        Raises: InvalidMessage: there is no writing into them.
        """
        params: Bytes | None = self._params
        if self._answers:
            params = wire.with_member(params, "inputResponses", wire.rebuilt(self._answers))
        if self._state is not None and params is not None:
            params = wire.with_member(params, "requestState", bytes(self._state))
        if params is None:
            raise InvalidMessage("params is no object, or nested too deep")
        return params

    def _answered(self, outcome: Outcome) -> None:
        if self._inner is not None:
            self._progress = self._inner.progress
        self._inner = None
        found = _input_required(outcome.result)
        if found is None or self._outer.outcome is not None:
            self._wheel.finished(self._outer, outcome)
            return
        self._rounds += 1
        self._answers = {}
        self._state = None if isinstance(found.state, msgspec.UnsetType) else found.state
        questions = _questions(found)
        if self._rounds > MAX_ROUNDS:
            self._fail("The backend asked for more and more and gave no answer.")
        elif questions:
            self._put_off = 0
            self._put(questions)
        elif self._state is not None:
            pause = PAUSES[min(self._put_off, len(PAUSES) - 1)]
            self._put_off += 1
            self._timer = self._wheel.timers.after(pause, self.send)
        else:  # it would begin anew, and never know that it did
            self._fail("The backend asked for input, and did not say for what.")

    def _fail(self, text: str) -> None:
        self._wheel.finished(self._outer, Outcome(failure=BackendAsksOn(text)))

    # -- the client's part -------------------------------------------------------------------------

    def _put(self, questions: Mapping[str, _Question]) -> None:
        """Ask the client everything at once. It may have answered before this returns."""
        asks = {key: self._ask_of(key, question) for key, question in questions.items()}
        self._asks = dict(asks)
        for key, ask in asks.items():
            if self._asks.get(key) is ask:
                self._wheel.put(ask, self._outer)

    def _ask_of(self, key: str, question: _Question) -> Ask:
        def answered(outcome: Outcome) -> None:
            del self._asks[key]
            self._take(key, question.method, outcome)

        return Ask(question.method, question.handshake_params, answered)

    def _take(self, key: str, method: str, outcome: Outcome) -> None:
        """Take an answer; with the last one the backend goes on."""
        if self._outer.outcome is not None:
            return
        given = outcome if outcome.result is not None else unanswered(method)
        if given.result is None:  # what a model would have said cannot be made up
            self._give_up(_OVER)
            self._wheel.finished(self._outer, given if outcome.error is None else outcome)
            return
        self._answers[key] = given.result
        if not self._asks:
            self.send()

    def _give_up(self, params: Bytes | None) -> None:
        asks, self._asks = self._asks, {}
        for ask in asks.values():
            self._wheel.take_back(ask, params)

    # -- the end -----------------------------------------------------------------------------------

    def cancel(self, params: Bytes | None) -> None:
        """The client wants no answer any more."""
        self.drop()
        self._give_up(_OVER)
        if self._inner is not None:
            self._wheel.backend.cancel(self._inner, params)

    def drop(self) -> None:
        """Do nothing more of itself."""
        if self._timer is not None:
            self._timer.cancel()

    def lost(self, how: Exit) -> None:
        """The backend is gone. Its questions go while the stream they went out on is open."""
        self.drop()
        self._give_up(None)
        gone = BackendGone(f"The backend ended: {how}.", how)
        self._wheel.finished(self._outer, Outcome(failure=gone))


def _input_required(result: Bytes | None) -> _Result | None:
    """Return a result that asks for input; None for any other."""
    if result is None or b"input_required" not in bytes(result):
        return None
    try:
        found = msgspec.json.decode(result, type=_Result)
    except (msgspec.DecodeError, RecursionError):
        return None
    kind = None if isinstance(found.kind, msgspec.UnsetType) else text(found.kind)
    return found if kind == "input_required" else None


def _questions(found: _Result) -> dict[str, _Question]:
    if isinstance(found.requests, msgspec.UnsetType):
        return {}
    try:
        return msgspec.json.decode(found.requests, type=dict[str, _Question])
    except (msgspec.DecodeError, RecursionError):
        return {}
