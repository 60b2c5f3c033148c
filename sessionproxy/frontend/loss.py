"""What a client is told when the state behind its session is gone.

Neighbours: the frontend decides when; `core.session` says what was lost.
"""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, Protocol

import msgspec

from .. import wire
from ..config import OnLoss
from ..core.exchange import Exchange, Outcome
from ..core.memory import Loss
from ..core.ports import Losing
from ..core.session import Session
from ..core.state import EndReason, StopReason
from ..errors import ProxyError, StateLost
from ..wire import Bytes
from .problems import LOSS_KEY

_WHY: Final[Mapping[StopReason | EndReason, str]] = {
    StopReason.IDLE: "idle",
    StopReason.BACKEND_EXIT: "the backend ended",
    StopReason.DISCONNECTED: "the client had disconnected",
    StopReason.SILENT: "the backend did not answer any more",
    StopReason.START_FAILED: "the backend did not start",
    StopReason.ABANDONED: "the start was given up",
    EndReason.MAX_AGE: "the session had reached its greatest age",
    EndReason.EXPIRED: "nobody had used it for long",
    EndReason.EVICTED: "too many others were asleep",
    EndReason.KILLED: "it was ended by the operator",
    EndReason.CLIENT_DELETE: "it was closed",
    EndReason.DISCONNECTED: "the client had disconnected",
    EndReason.START_FAILED: "the backend did not start",
    EndReason.ABANDONED: "the start was given up",
    EndReason.BACKEND_LOST: "the backend ended",
    EndReason.WHOLE_ENDED: "the session that it was a part of let go of it",
    EndReason.SHUTDOWN: "the proxy was shut down",
}


class Telling:
    """Losses on their way to the client in one reply: in errors, or in notes on results."""

    __slots__ = ("_annotates", "_of", "_told")

    def __init__(self, *, annotates: bool) -> None:
        """`annotates`: requests are run all the same, and their results have a note."""
        self._annotates = annotates
        self._of: dict[Exchange, tuple[Losing, Loss]] = {}
        self._told: list[Callable[[], None]] = []

    def instead(self, exchange: Exchange, losing: Losing, loss: Loss) -> Outcome | None:
        """Return what a request gets that relies on what was lost, and is not run; None: it is."""
        if self._annotates:
            self._of[exchange] = losing, loss
            return None
        failure = told(loss, _now(), begun=goes_on(exchange))
        failure.on_told = partial(_forget, losing, loss)
        return Outcome(failure=failure)

    def noted(self, exchange: Exchange, outcome: Outcome) -> Outcome:
        """Return an outcome with a note, if there is to be one and it has a place for it."""
        found = self._of.pop(exchange, None)
        if found is None or outcome.result is None:
            return outcome
        result = annotated(outcome.result, found[1], _now(), tool=exchange.treatment.tool)
        if result is None:  # then the next one is to say it
            return outcome
        self._told.append(partial(_forget, *found))
        return Outcome(result=result)

    def tells(self, failure: StateLost) -> None:
        """A failure that is one of the answers tells of a loss."""
        if failure.on_told is not None:
            self._told.append(failure.on_told)

    def written(self) -> None:
        """The client has the answers: what they tell of counts as told."""
        for on_told in self._told:
            on_told()


def telling_too(telling: Telling | None, failure: ProxyError) -> Telling | None:
    """Return what a reply tells of losses, a failure that it has among its answers included."""
    if isinstance(failure, StateLost):
        telling = Telling(annotates=False) if telling is None else telling
        telling.tells(failure)
    return telling


def _forget(losing: Losing, loss: Loss) -> None:
    if losing.loss is loss:  # else there is another one since
        losing.loss = None


class Teller(Protocol):
    """A reply."""

    telling: Telling | None

    def fail(self, exchange: Exchange, error: ProxyError) -> None:
        """Answer a request that never got to a backend."""
        ...


def begin_or_tell(reply: Teller, session: Session, exchange: Exchange, on_loss: OnLoss) -> None:
    """Pass a request on, or tell instead that the state it relies on was lost."""
    losing = session.bereft(exchange)
    if losing is not None and losing.loss is not None:
        if reply.telling is None:
            reply.telling = Telling(annotates=on_loss is OnLoss.ANNOTATE)
        instead = reply.telling.instead(exchange, losing, losing.loss)
        if instead is not None:
            exchange.settle(instead)
            return
    try:
        session.request(exchange)
    except ProxyError as error:
        reply.fail(exchange, error)


def _now() -> float:
    return asyncio.get_running_loop().time()


def told(loss: Loss, now: float, *, begun: bool = False) -> StateLost:
    """Return the error that tells of `loss` at `now`, in seconds. `begun`: the request is one more
    round of a call, and how far that got is unknown."""
    text = f"The previous session state was lost {ended(loss, now)}."
    failure = StateLost(f"{text} A fresh backend is ready; repeat your steps.")
    failure.server = loss.server
    if begun:
        failure.executed = None
    return failure


def goes_on(exchange: Exchange) -> bool:
    """Return whether a request is one more round of a call."""
    return exchange.envelope is not None and exchange.envelope.state is not None


def annotated(result: Bytes, loss: Loss, now: float, *, tool: bool) -> bytes | None:
    """Return `result` with a note about `loss` in `_meta`, and in the content of a tool result.

    Where one of the two has no place for it, in the other; None where neither has.
    """
    note: dict[str, object] = {
        "reason": loss.reason.value,
        "secondsAgo": round(now - loss.at, 1),
    }
    if loss.server:
        note["server"] = loss.server
    meta = bytes(wire.member(result, "_meta") or b"")
    meta = meta if meta.startswith(b"{") else b"{}"
    changed = wire.with_member(meta, LOSS_KEY, msgspec.json.encode(note))
    noted = None if changed is None else wire.with_member(result, "_meta", changed)
    if not tool:
        return noted
    content = with_text(bytes(wire.member(result, "content") or b""), str(told(loss, now)))
    if content is None:
        return noted
    return wire.with_member(result if noted is None else noted, "content", content) or noted


def ended(loss: Loss, now: float) -> str:
    """Say when a session ended, and why."""
    return f"{_duration(now - loss.at)} ago ({_why(loss)})"


def with_text(items: bytes, text: str) -> bytes | None:
    """Return an encoded list with `text` at its end; None where it is no list."""
    if not items.startswith(b"["):
        return None
    item = msgspec.json.encode({"type": "text", "text": text})
    comma = b"," if items[1:-1].strip() else b""
    return b"".join((items[:-1], comma, item, b"]"))


def _why(loss: Loss) -> str:
    why = _WHY[loss.reason]
    if loss.reason is StopReason.IDLE:
        return f"{why} for {_duration(loss.idle_for)}"
    return f"{why}: {loss.exit}" if loss.exit is not None else why


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
