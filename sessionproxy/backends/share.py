"""What each session has of a backend that serves several, and what they have in common.

To a session a `Share` is its backend; to the backend's relay a `SharedBackend` is its upstream. Ids
and progress tokens are told apart by the relay, which knows all that is in flight. What the backend
sends on its own account goes only to the session that it certainly belongs to; what could be
another one's is refused or dropped (`backends.attribution`). Neighbours: `backends.shared` makes
these; `backends.interests` puts together what sessions set up, `backends.questions` has what they
are asked.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec
from msgspec import Raw

from .. import wire
from ..core.caller import NO_ROOTS
from ..core.deadlines import CALL_LIMIT
from ..core.exchange import Ask, Exchange, Outcome
from ..core.ports import Backend, Upstream
from ..core.reach import Scope, keep_in
from ..errors import (
    BackendBusy,
    BackendError,
    BackendGone,
    Exit,
    InvalidMessage,
    ProxyError,
    ResultTooLarge,
)
from ..wire import Bytes
from ..wire.envelope import SUBSCRIPTION_KEY, text
from .attribution import LISTEN, LOG, Attribution, Party
from .interests import Levels, Subscriptions
from .questions import Questions, refusal, undeclared

logger: Final = logging.getLogger(__name__)

MAX_OF_ONE: Final = 256
"""Requests of one session that the backend has not answered: a quarter of what it takes of all."""

MAX_LISTENS: Final = 512
"""Subscriptions of the modern era that are open at once, so that calls always have room."""

SILENT_CALLS: Final = 3
"""Calls in a row that run into the call limit, with no answer to anybody in between, after which
the backend is given up."""

UPDATED: Final = "notifications/resources/updated"
ELICITED: Final = "notifications/elicitation/complete"

NOT_PASSED_ON: Final = frozenset(
    {
        "notifications/initialized",  # the proxy has said so
        "notifications/cancelled",  # `Share.cancel` does
        "notifications/roots/list_changed",  # of one client's, and the backend could not ask whose
        "notifications/tasks/status",
    }
)
"""Notifications of a client that its share keeps to itself."""

NO_TASKS: Final = msgspec.json.encode(
    {
        "code": -32601,
        "message": "Tasks are not served where sessions share a backend; use --mode session",
    }
)


class SharedBackend:
    """One backend, while it runs. The `Upstream` of its relay, and a `Switchboard`."""

    def __init__(
        self,
        *,
        modern: bool,
        tally: Counter[str],
        over: Callable[[Exit], None],
        useless: Callable[[Exit], None],
    ) -> None:
        """`modern`: the era that it is spoken to in. `tally` counts what is dropped. `over` is told
        how it ended; `useless`, in the middle of something, that it should be ended."""
        self.modern = modern
        self.attribution: Attribution = Attribution(modern=modern)
        self._tally = tally
        self._over = over
        self._useless = useless
        # Known once it has started.
        self.backend: Backend | None = None
        self._welcome: bytes = b""
        self._welcomes: dict[str, bytes] = {}
        # Changes with every session.
        self._shares: dict[Share, None] = {}
        self.subscriptions: Subscriptions[Share] = Subscriptions(self.send)
        self.levels: Levels[Share] = Levels(self.send)
        # Changes with every message.
        self.listens: dict[int, Share] = {}
        """By the id of the request that listens."""
        self.questions: Questions[Share] = Questions()
        self._silent_calls = 0

    def __len__(self) -> int:
        """Return how many sessions have a share in it."""
        return len(self._shares)

    def started(self, backend: Backend, welcome: Bytes) -> None:
        """It has introduced itself."""
        self.backend = backend
        self._welcome = bytes(welcome)

    def admit(self, user: str, upstream: Upstream) -> "Share":
        """Return the share of a session of `user`."""
        share = Share(self, user, upstream)
        self.join(share)
        return share

    def join(self, share: "Share") -> None:
        """Have one more."""
        self._shares[share] = None

    def leave(self, share: "Share") -> None:
        """Undo what the session of a share has set up, and answer what it was asked."""
        self._shares.pop(share, None)
        self.subscriptions.forget(share)
        self.levels.forget(share)
        self.questions.forget(share)

    # -- towards the backend -----------------------------------------------------------------------

    def send(self, exchange: Exchange) -> None:
        """Send a request; one that comes too late fails."""
        if self.backend is None:
            exchange.settle(Outcome(failure=BackendGone("The backend is gone.")))
        else:
            self.backend.request(exchange)

    def welcome(self, requested: str | None) -> bytes:
        """Return the answer to `initialize` of a client that asks for the revision `requested`.

        The revision is the backend's or an older one; tasks are left out, since the backend would
        let every client have those of all.
        """
        versions = wire.HANDSHAKE_VERSIONS
        spoken = wire.text_member(self._welcome, "protocolVersion") or ""
        version = spoken
        if requested in versions and spoken in versions:
            version = min(requested, spoken)  # they are dates
        if version not in self._welcomes:
            fields: dict[str, Bytes] = {**wire.members(self._welcome)}
            if version != spoken:
                fields["protocolVersion"] = msgspec.json.encode(version)
            capabilities = wire.members(fields.get("capabilities"))
            if capabilities.pop("tasks", None) is not None:
                fields["capabilities"] = wire.rebuilt(capabilities)
            self._welcomes[version] = wire.rebuilt(fields)
        return self._welcomes[version]

    @property
    def discovered(self) -> bytes:
        """The answer to `server/discover`."""
        return self._welcome

    def answered(self) -> None:
        """It has answered a request, whose ever."""
        self._silent_calls = 0

    def left_unanswered(self) -> None:
        """A call ran into the call limit."""
        self._silent_calls += 1
        if self._silent_calls == SILENT_CALLS:
            self._useless(Exit(detail="it did not answer any more"))

    def passes_on(self, share: "Share", method: str) -> bool:
        """Return whether one of the notifications that are kept back goes on all the same."""
        return False

    # -- whose a message is ------------------------------------------------------------------------

    def candidates(self, method: str, in_flight: Iterable[Exchange]) -> Sequence[Exchange]:
        shares = ((exchange, _share_of(exchange)) for exchange in in_flight)
        found = ((e, share.party(e)) for e, share in shares if share is not None)
        return self.attribution.candidates(method, found)

    def late(self, backend_id: int) -> None:
        self.attribution.late(backend_id)

    # -- from the backend --------------------------------------------------------------------------

    def ask(self, ask: Ask, exchange: Exchange | None) -> None:
        share = None if exchange is None else _share_of(exchange)
        if share is None:
            self._count("ask_without_session")
            ask.decline(self._no_answer(ask.method))
        elif not share.may_be_asked(ask):
            ask.decline(undeclared(ask.method))
        else:
            self.questions.put(ask, share, exchange)

    def _no_answer(self, method: str) -> Outcome:
        """Return what it is told that asks nobody knows whom."""
        in_flight = () if self.backend is None else self.backend.in_flight()
        if len({_share_of(exchange) for exchange in in_flight} - {None}) > 1:
            why = "several requests are in flight"
        elif self.attribution.unsure:
            why = "one that was cancelled may have led to it"
        elif method == "roots/list":  # as many servers do first of all
            return NO_ROOTS
        else:
            why = "no request is in flight"
        return refusal(f"{method} cannot be attributed: {why}; use --mode session")

    def withdraw(self, ask: Ask, params: Bytes | None) -> None:
        self.questions.withdraw(ask, params)

    def notification(
        self, method: str, params: Bytes | None, encoded: bytes, exchange: Exchange | None
    ) -> None:
        for share, belongs_to in self._readers(method, params, exchange):
            share.upstream.notification(method, params, encoded, belongs_to)

    def _readers(
        self, method: str, params: Bytes | None, exchange: Exchange | None
    ) -> Iterable[tuple["Share", Exchange | None]]:
        """Return who is to hear it, each with the exchange that it belongs to, if to any."""
        listening = self._listening(params)
        if listening is not None:
            return [(listening, None)]
        if wire.method_of(method).lists:
            return [(share, None) for share in self._shares]
        if method == UPDATED:
            uri = text(wire.members(params).get("uri")) or ""
            return [(share, None) for share in self.subscriptions.those_who_hear(uri)]
        if method == ELICITED:
            asked = self.questions.completed(params)
            return [] if asked is None else [(asked, None)]
        share = None if exchange is None else _share_of(exchange)
        if share is None or method == "notifications/tasks/status":
            self._count("note_without_session")
            return []
        if method == LOG and not self.modern:
            level = text(wire.members(params).get("level")) or ""
            return [(share, exchange)] if self.levels.hears(share, level) else []
        return [(share, exchange)]

    def _listening(self, params: Bytes | None) -> "Share | None":
        """Return whose subscription of the modern era a notification is part of."""
        if not self.listens:
            return None
        named = wire.members(wire.members(params).get("_meta")).get(SUBSCRIPTION_KEY)
        found = b"" if named is None else bytes(named)
        return self.listens.get(int(found)) if found.isdigit() and len(found) <= 18 else None

    def hold(self, exchange: Exchange) -> None:
        """Not used: a relay has no requests of its own."""

    def ended(self, how: Exit) -> None:
        """Tell all sessions, each of which has been answered what it had in flight."""
        self.backend = None
        for share in tuple(self._shares):
            share.upstream.ended(how)
        self._over(how)

    def end(self, how: Exit) -> None:
        """Give up a backend that still runs."""
        backend, self.backend = self.backend, None
        logger.warning("the shared backend is given up: %s", how)
        for exchange in () if backend is None else backend.in_flight():
            exchange.settle(Outcome(failure=BackendGone(f"The backend was given up: {how}.", how)))
        self.ended(how)

    def _count(self, name: str) -> None:
        self._tally[name] += 1


class Share:
    """One session's part in a shared backend. A `Backend`, and the `Holder` of its exchanges."""

    def __init__(
        self, shared: SharedBackend, user: str, upstream: Upstream, *, most: int = MAX_OF_ONE
    ) -> None:
        """`most`: requests that may be in flight."""
        self.user = user
        self.upstream = upstream
        self.scope: Scope | None = None
        """What is kept for its session, and not for all that share; None: nothing is."""
        self._shared = shared
        self._most = most
        self._capabilities: dict[str, Raw] = {}
        self._in_flight: dict[Exchange, bool] = {}
        """Whether the backend was asked: some requests are answered on its behalf."""
        self._closed = False
        self.mark: object = object()
        """Tells sessions apart, also those that are over."""

    @property
    def of(self) -> SharedBackend:
        """The backend."""
        return self._shared

    def party(self, exchange: Exchange) -> Party:
        """Return who one of its exchanges is for."""
        return self

    # -- towards the backend -----------------------------------------------------------------------

    def request(self, exchange: Exchange) -> None:
        if self._closed:
            exchange.settle(Outcome(failure=BackendGone("The session has given its backend back.")))
            return
        exchange.share = self
        if self.scope is not None:
            keep_in(exchange.context, self.scope)
        self._in_flight[exchange] = False
        method, shared = exchange.method, self._shared
        if method == "initialize":
            self._initialize(exchange)
        elif method == "server/discover":
            exchange.settle(Outcome(result=shared.discovered))
        elif shared.modern:
            self._pass_on(exchange)
        elif method in ("resources/subscribe", "resources/unsubscribe"):
            shared.subscriptions.request(self, exchange)
        elif method == "logging/setLevel":
            shared.levels.request(self, exchange)
        elif method.startswith("tasks/"):
            exchange.settle(Outcome(error=NO_TASKS))
        else:
            self._pass_on(exchange)

    def _initialize(self, exchange: Exchange) -> None:
        self.introduce(exchange.params)
        requested = text(wire.member(exchange.params, "protocolVersion"))
        exchange.settle(Outcome(result=self._shared.welcome(requested)))

    def introduce(self, params: Bytes | None) -> None:
        """Take note of what the client declared when it opened its session."""
        self._capabilities = wire.members(wire.member(params, "capabilities"))

    def _pass_on(self, exchange: Exchange) -> None:
        shared, listens = self._shared, exchange.method == LISTEN
        if len(self._in_flight) > self._most or (listens and len(shared.listens) >= MAX_LISTENS):
            text = "The session has too many requests for the backend to answer already."
            exchange.settle(Outcome(failure=BackendBusy(text)))
            return
        if not shared.modern:
            exchange.params = _without_task(exchange.params)
        self._in_flight[exchange] = True
        shared.attribution.sent(exchange.method, self.party(exchange))
        shared.send(exchange)
        if listens and exchange.outcome is None:
            shared.listens[exchange.backend_id] = self

    def returned(self, exchange: Exchange) -> None:
        """Take note that an exchange is settled; if not by the backend, it need not answer it."""
        failure = None if exchange.outcome is None else exchange.outcome.failure
        if failure is not None:
            self._leave_off(exchange, None, certainly_over=_says_it_is_over(failure))
        elif self._in_flight.pop(exchange, False):
            self._shared.listens.pop(exchange.backend_id, None)
            self._shared.answered()

    def notify(self, method: str, params: Bytes | None) -> None:
        shared = self._shared
        if self._closed or shared.backend is None:
            return
        if method in NOT_PASSED_ON and not shared.passes_on(self, method):
            return
        if method == "notifications/progress":
            token = wire.members(params).get("progressToken")
            if token is None or not shared.questions.asked_under(self, token):
                return
        shared.backend.notify(method, params)

    def cancel(self, exchange: Exchange, params: Bytes | None) -> None:
        """Cancel one of its own."""
        self._leave_off(exchange, params, certainly_over=False)

    def _leave_off(self, exchange: Exchange, params: Bytes | None, *, certainly_over: bool) -> None:
        shared = self._shared
        if not self._in_flight.pop(exchange, False):
            return
        shared.listens.pop(exchange.backend_id, None)
        if not certainly_over:
            shared.attribution.cancelled(exchange, self.party(exchange))
        if shared.backend is not None:
            shared.backend.cancel(exchange, params)
        if params == CALL_LIMIT:
            shared.left_unanswered()

    def in_flight(self) -> tuple[Exchange, ...]:
        return tuple(self._in_flight)

    # -- what the backend may know of it -----------------------------------------------------------

    def may_be_asked(self, ask: Ask) -> bool:
        """Return whether the client declared what it is to be asked."""
        capability = wire.method_of(ask.method).capability
        if capability is None:
            return True
        declared = self._capabilities.get(capability)
        if declared is None:
            return False
        url = text(wire.members(ask.params).get("mode")) == "url"
        return not (capability == "elicitation" and url) or "url" in wire.members(declared)

    def close(self) -> None:
        """Give it back: what the session has in flight is cancelled, and nothing of others."""
        self._closed = True
        for exchange in self.in_flight():
            exchange.settle(Outcome(failure=BackendGone("The session has given its backend back.")))
        self._shared.leave(self)


def _share_of(exchange: Exchange) -> Share | None:
    return exchange.share if isinstance(exchange.share, Share) else None


def _says_it_is_over(failure: ProxyError) -> bool:
    """Return whether the backend certainly does not work on a request that failed so."""
    refused = isinstance(failure, BackendError) and failure.executed is False
    return refused or isinstance(failure, ResultTooLarge | InvalidMessage)


def _without_task(params: Bytes | None) -> Bytes | None:
    """Return `params` of a request that is to be worked on at once, not as a task (2025-11-25
    basic/utilities/tasks: what a receiver without the capability makes of it)."""
    if params is None or b'"task"' not in bytes(params) or wire.member(params, "task") is None:
        return params
    fields = wire.members(params)
    fields.pop("task", None)
    return wire.rebuilt(fields) if fields else params
