"""Several servers behind one session, each under a name of its own.

To the session they are one backend. Each server is a *part*: a session of its own in that server's
manager, opened when something is first asked of it, so that its start, its end, what is lost with
it and what is replayed when it wakes are the same as with one server alone, and none of the others'
business. Neighbours: `backends.names` translates, `backends.parts` has the parts, `finding` says
which of them is meant, `backends.lists` puts their lists together; `assembly` makes the whole.
"""

import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, NamedTuple, Self, TypeAlias, TypeVar

import anyio

from .. import wire
from ..core.background import Background, Work
from ..core.between import Instead, client_of, instead_of, is_nobodys
from ..core.exchange import Ask, Exchange, Outcome
from ..core.memory import Opening
from ..core.ports import Backend, Identity, Losing, Upstream
from ..core.reach import Scope, keep_in
from ..core.waiting import WaitingRoom
from ..errors import BackendGone, ProxyError, RequestCancelled
from ..wire import Bytes, Remembers
from ..wire.envelope import LOG_LEVELS, text
from .finding import Finding
from .introduction import Introduction
from .lists import Lists, none_of
from .names import KINDS, Reference, reference_of
from .names import Kind as Component
from .parts import Member, Part
from .renamed import UPDATED, unknown
from .subscribed import Subscribed

logger: Final = logging.getLogger(__name__)

K = TypeVar("K")
V = TypeVar("V")

Rest: TypeAlias = Callable[[], Awaitable[None]]
"""What is left to be done for a request, and has to wait for something."""

MAX_REMEMBERED: Final = 1024
"""Tasks, and questions, of which is remembered whose they are; the oldest goes first."""

TASKS: Final = Component("tasks/list", "tasks", "taskId")

_DONE: Final = Outcome(result=b"{}")
_NO_LEVEL: Final = Outcome(error=b'{"code":-32602,"message":"level is a log level"}')
_NO_TASK: Final = Outcome(error=b'{"code":-32602,"message":"no such task"}')
_NO_CURSOR: Final = Outcome(error=b'{"code":-32602,"message":"no such cursor"}')
_NOBODYS: Final = Outcome(
    error=b'{"code":-32601,"message":"the request does not say which of the servers it is for"}'
)


class Way(NamedTuple):
    """How a request about one component has got to where it is."""

    asked: str
    """What the client calls it."""
    by: Part | None = None
    """Whose name for it was used last, if one has another for what others have."""
    ran: Collection[Part] = ()
    """Those that were there when it came; empty: nothing had to be waited for yet."""


class CompositeLauncher(anyio.AsyncContextManagerMixin):
    """A `Launcher`. Entered before the first launch, left after the last backend."""

    def __init__(
        self, members: Sequence[Member], introduction: Introduction, *, annotates: bool = False
    ) -> None:
        """`members`: in the order in which they are listed, and asked for what two may have.
        `annotates`: what relies on lost state is run all the same."""
        self.members: tuple[Member, ...] = tuple(members)
        self.introduction = introduction
        self.annotates = annotates
        self.background: Background = Background()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with self.background:
            yield self

    @asynccontextmanager
    async def launch(
        self, identity: Identity, label: str, upstream: Upstream, opening: Opening
    ) -> AsyncGenerator[Backend]:
        composite = Composite(self, identity, label, upstream, opening)
        async with composite.scope:
            try:
                yield composite
            finally:
                await composite.close()

    async def refused(self, identity: Identity, opening: Opening) -> bool:
        return False


class Composite:
    """A `Backend` with parts, and the `Whole` that they belong to."""

    def __init__(
        self,
        launcher: CompositeLauncher,
        identity: Identity,
        label: str,
        upstream: Upstream,
        opening: Opening,
    ) -> None:
        self.upstream = upstream
        self.opening = opening
        self.scope: Scope = Scope()
        """What its parts keep for the session."""
        self._launcher = launcher
        self._parts = {
            member.name: Part(
                member,
                self,
                identity.owner,
                identity.key,
                label,
                everybodys=is_nobodys(upstream),
            )
            for member in launcher.members
        }
        self._finding = Finding(self.parts, self._listed)
        self._lists = Lists(self.parts, self._send, hides=self._finding.is_hidden)
        self._is_over = False
        # Changes with what the client sends.
        self._inner: dict[Exchange, list[tuple[Part, Exchange]]] = {}
        """By those of the session that are in flight: what was sent for each so far."""
        self._works: dict[Exchange, Work] = {}
        """Of those in flight that something is waited for."""
        self._waiting = WaitingRoom()
        """Where they are."""
        self._tasks: OrderedDict[str, Part] = OrderedDict()
        """Of the era that has them, by id."""
        self._tokens: OrderedDict[bytes, tuple[Part, bytes]] = OrderedDict()
        """Of the progress that a client may tell of what it was asked: whose, and what that calls
        it. Two servers may well use the same."""
        self._last_token = 0
        self._subscribed = Subscribed()

    @property
    def parts(self) -> Sequence[Part]:
        return tuple(self._parts.values())

    # -- towards the servers -----------------------------------------------------------------------

    def request(self, exchange: Exchange) -> None:
        keep_in(exchange.context, self.scope)
        method, params = exchange.method, exchange.params
        if self._is_over:  # whoever stands before it may not have heard
            exchange.settle(Outcome(failure=BackendGone("The backend was stopped.")))
        elif method in ("initialize", "server/discover"):
            self._open(exchange)
        elif method == "ping":
            exchange.settle(_DONE)
        elif method in KINDS or method == TASKS.method:
            self._list(exchange, KINDS.get(method, TASKS), params)
        elif (reference := reference_of(method, params)) is not None:
            self._begin(exchange, self._request_named(exchange, reference, params))
        elif method == "logging/setLevel":
            self._set_level(exchange, params)
        elif method.startswith("tasks/"):
            self._request_task(exchange, params)
        elif len(self._parts) == 1:
            self._begin(exchange, self._request_of(self.parts[0], exchange, params))
        else:
            exchange.settle(_NOBODYS)

    def _begin(self, exchange: Exchange, rest: Rest | None) -> None:
        """Do what is left to be done for a request, if anything is, in a task of its own; it is in
        flight from now on."""
        if rest is None or not self._waiting.enter(exchange):
            return
        self._inner[exchange] = []
        work = self._works[exchange] = Work()
        context = exchange.context.copy()
        self._launcher.background.start(self._work, exchange, work, rest, context=context)

    async def _work(self, exchange: Exchange, work: Work, rest: Rest) -> None:
        try:
            await work.run(rest)
        except ProxyError as error:
            self._settle(exchange, Outcome(failure=error.with_traceback(None)))
        except Exception:  # a fault of ours with one request must not end all sessions
            logger.exception("%r failed", exchange)
            self._settle(exchange, Outcome(failure=BackendGone("The request could not be served.")))
        finally:
            self._works.pop(exchange, None)
            self._waiting.leave(exchange)

    def _settle(self, exchange: Exchange, outcome: Outcome) -> None:
        self._inner.pop(exchange, None)
        self._subscribed.answered(exchange, outcome)
        exchange.settle(outcome)

    # -- one server --------------------------------------------------------------------------------

    def _request_named(
        self,
        exchange: Exchange,
        reference: Reference,
        params: Bytes | None,
        way: Way | None = None,
    ) -> Rest | None:
        """Send a request about one component to the server that has it; return what is left to be
        done for it, if that has to be found out, or is not there. `way`: how it has got here; None:
        as it came from the client."""
        way = way or Way(reference.name)
        found = self._finding.candidates(reference, way.by)
        if not found:
            self._settle(exchange, unknown(exchange, reference))
            return None
        if len(found) > 1 or found[0][0].names.must_list(reference.kind, found[0][1]):
            ran = way.ran or {part for part in self.parts if part.is_ready}
            return partial(self._request_listed, exchange, reference, params, way._replace(ran=ran))
        return self._request_original(exchange, *found[0], params, way)

    async def _request_listed(
        self, exchange: Exchange, reference: Reference, params: Bytes | None, way: Way
    ) -> None:
        found = await self._finding.who_has(exchange, reference, params, way.by)
        if found is None:
            self._settle(exchange, unknown(exchange, reference))
        elif exchange.outcome is None:
            rest = self._request_original(exchange, *found, params, way)
            if rest is not None:
                await rest()

    async def _listed(
        self, exchange: Exchange, part: Part, kind: Component, params: Bytes | None
    ) -> None:
        await self._lists.of(exchange, part, kind, params)

    def _request_original(
        self,
        exchange: Exchange,
        part: Part,
        original: str,
        params: Bytes | None,
        way: Way,
    ) -> Rest | None:
        instead = part.instead(exchange.method, params, original)
        if instead is not None:
            return self._request_named(exchange, *instead, way=way._replace(by=part))
        params = part.names.request(exchange.method, params, original)
        remembers = exchange.treatment.remembers
        if remembers is Remembers.SUBSCRIBE:
            self._subscribed.add(exchange, way.asked, part, original)
        elif remembers is Remembers.UNSUBSCRIBE:
            if self._subscribed.drop(way.asked, part, original):
                self._settle(exchange, _DONE)
                return None
        if remembers is None or part.is_ready or client_of(exchange).holder is not None:
            return self._request_of(part, exchange, params, ran=part in way.ran)
        # The session's own: a server that nobody needs yet is told when it starts.
        part.memory.note(remembers, params)
        self._settle(exchange, _DONE)
        return None

    def _request_task(self, exchange: Exchange, params: Bytes | None) -> None:
        part = self._tasks.get(text(wire.member(params, "taskId")) or "")
        if part is None:
            exchange.settle(_NO_TASK)
        else:
            self._begin(exchange, self._request_of(part, exchange, params))

    def _request_of(
        self, part: Part, exchange: Exchange, params: Bytes | None, *, ran: bool = False
    ) -> Rest | None:
        """Send a request to a server, at once where it is there; return what is left, if not.
        `ran`: it was when the request came, of which more had to be found out since."""
        if part.is_ready and (not part.bereaved or not self._relies(exchange)):
            self._pass_on(part, exchange, params)
            return None
        return partial(self._request_once_ready, exchange, part, params, ran)

    async def _request_once_ready(
        self, exchange: Exchange, part: Part, params: Bytes | None, ran: bool
    ) -> None:
        await part.ready(exchange)
        if exchange.outcome is not None:
            return
        if self._relies(exchange) and part.loss is not None:
            raise part.lost_meanwhile() if ran else part.lost_before()
        self._pass_on(part, exchange, params)

    def _relies(self, exchange: Exchange) -> bool:
        """Return whether a request must not be run on a server that has lost its state. Most of
        those that come after the loss have been told instead, and do not get here."""
        return exchange.treatment.uses_state and not self._launcher.annotates

    def _pass_on(self, part: Part, exchange: Exchange, params: Bytes | None) -> None:
        def answered(outcome: Outcome) -> None:
            self._note_task(part, exchange.method, outcome)
            self._settle(exchange, part.in_front(exchange.method, outcome))

        self._send(part, exchange, exchange.method, params, answered)

    def _send(
        self,
        part: Part,
        exchange: Exchange,
        method: str,
        params: Bytes | None,
        then: Callable[[Outcome], None],
    ) -> Exchange:
        """Send something for a request of the client's."""
        inner = instead_of(exchange, method, params, then)
        inner.origin = None  # which of its clients wants what is known to the whole session
        if exchange in self._works and exchange not in self._inner:
            # It was cancelled in this very tick, which its task has yet to hear.
            inner.settle(Outcome(failure=RequestCancelled("The request was cancelled.")))
            return inner
        self._inner.setdefault(exchange, []).append((part, inner))
        part.request(inner)
        return inner

    def _note_task(self, part: Part, method: str, outcome: Outcome) -> None:
        """Remember whose a task is (2025-11-25 basic/utilities/tasks)."""
        result = outcome.result
        if result is None or method != "tools/call" or b'"task"' not in bytes(result):
            return
        task = text(wire.member(wire.member(result, "task"), "taskId"))
        if task is not None:
            _remember(self._tasks, task, part)

    # -- all servers -------------------------------------------------------------------------------

    def _list(self, exchange: Exchange, kind: Component, params: Bytes | None) -> None:
        if wire.member(params, "cursor") is not None:  # all there is comes at once
            exchange.settle(_NO_CURSOR)
        else:
            self._begin(exchange, partial(self._list_all, exchange, kind, params))

    async def _list_all(self, exchange: Exchange, kind: Component, params: Bytes | None) -> None:
        result = await self._lists.together(exchange, kind, params)
        if kind is TASKS:
            for part in self.parts:
                for task in part.known(kind):
                    _remember(self._tasks, task, part)
        self._settle(exchange, Outcome(result=result))

    def _set_level(self, exchange: Exchange, params: Bytes | None) -> None:
        """Set the log level of those that run; the others are told when they start."""
        if text(wire.member(params, "level")) not in LOG_LEVELS:
            exchange.settle(_NO_LEVEL)
            return
        for part in self.parts:
            part.memory.note(Remembers.LOG_LEVEL, params)
        self._begin(exchange, partial(self._spread_level, exchange, params))

    async def _spread_level(self, exchange: Exchange, params: Bytes | None) -> None:
        async def tell(part: Part) -> None:
            with part.patience():
                await self._lists.asked(part, exchange, exchange.method, params)

        async with anyio.create_task_group() as tasks:
            for part in self.parts:
                if part.is_ready and part.logs:
                    tasks.start_soon(tell, part)
        self._settle(exchange, _DONE)

    # -- introducing itself ------------------------------------------------------------------------

    def _open(self, exchange: Exchange) -> None:
        """Answer for all servers. Whoever asks on nobody's behalf wants to know for certain."""
        if is_nobodys(self.upstream):
            self._begin(exchange, partial(self._open_all, exchange))
        else:
            exchange.settle(Outcome(result=self._introduced(exchange)))

    async def _open_all(self, exchange: Exchange) -> None:
        failed: dict[Part, ProxyError] = {}

        async def start(part: Part) -> None:
            try:
                await part.ready(exchange)
            except ProxyError as error:
                failed[part] = error

        async with anyio.create_task_group() as tasks:
            for part in self.parts:
                tasks.start_soon(start, part)
        if failed and len(failed) == len(self._parts):
            raise none_of([failed[part] for part in self.parts])
        self._settle(exchange, Outcome(result=self._introduced(exchange)))

    def _introduced(self, exchange: Exchange) -> bytes:
        introduction = self._launcher.introduction
        if exchange.method == "initialize":
            requested = text(wire.member(exchange.params, "protocolVersion"))
            return introduction.initialized(self.parts, requested)
        return introduction.discovered(self.parts)

    # -- what needs no answer ----------------------------------------------------------------------

    def notify(self, method: str, params: Bytes | None) -> None:
        if method == "notifications/progress":
            self._notify_progress(params)
        elif method != "notifications/initialized":  # each part is told when it has started
            for part in self.parts:
                part.notify(method, params)

    def _notify_progress(self, params: Bytes | None) -> None:
        part, token = self._tokens.get(bytes(wire.member(params, "progressToken") or b""), (0, b""))
        if params is not None and isinstance(part, Part):
            part.notify("notifications/progress", wire.with_member(params, "progressToken", token))

    def cancel(self, exchange: Exchange, params: Bytes | None) -> None:
        sent = self._inner.pop(exchange, ())
        self._subscribed.answered(exchange, Outcome())
        if exchange in self._works:
            self._works[exchange].cancel()
        for part, inner in sent:
            part.cancel(inner, params)

    def in_flight(self) -> tuple[Exchange, ...]:
        return tuple(self._inner)

    # -- what was lost -----------------------------------------------------------------------------

    @property
    def bereaved(self) -> bool:
        return any(part.bereaved for part in self._parts.values())

    def bereft(self, exchange: Exchange) -> Losing | None:
        reference = reference_of(exchange.method, exchange.params)
        if reference is None:
            return None
        part = self._finding.likely(exchange.method, reference, exchange.params)
        return part if part is not None and part.bereaved else None

    # -- from the servers --------------------------------------------------------------------------

    def whose(self, exchange: Exchange | None) -> Exchange | None:
        """Return the client's request that a message of a server's belongs to, by the one of ours
        that it came for; None: to none."""
        while exchange is not None and exchange not in self._inner:
            exchange = exchange.sink.outer if isinstance(exchange.sink, Instead) else None
        return exchange

    def ask(self, part: Part, ask: Ask, exchange: Exchange | None) -> None:
        """Take a question of a server's: of one of the client's requests, or of none."""
        ask.params = self._with_token(part, part.names.question(ask.method, ask.params))
        self.upstream.ask(ask, self.whose(exchange))

    def _with_token(self, part: Part, params: Bytes | None) -> Bytes | None:
        """Return the parameters of a question with a progress token that no other server uses."""
        found = wire.member(wire.member(params, "_meta"), "progressToken")
        if params is None or found is None:
            return params
        token = own = bytes(found)
        if self._tokens.get(token, (part,))[0] is not part:
            self._last_token += 1
            token = b'"sessionproxy/%d"' % self._last_token
            changed = wire.with_progress_token(params, token)
            params = params if changed is None else changed[0]
        _remember(self._tokens, token, (part, own))
        return params

    def tell(
        self,
        part: Part,
        method: str,
        params: Bytes | None,
        encoded: bytes,
        exchange: Exchange | None,
    ) -> None:
        """Take a notification of a server's."""
        if method != UPDATED:
            self.upstream.notification(method, params, encoded, self.whose(exchange))
            return
        for named in self._subscribed.updated(part, params):
            encoded = wire.encode_notification(method, named)
            self.upstream.notification(method, named, encoded, self.whose(exchange))

    # -- the end -----------------------------------------------------------------------------------

    async def close(self) -> None:
        """End every part. Shielded; bounded by what stopping is bounded by."""
        self._is_over = True
        for work in tuple(self._works.values()):
            work.cancel()
        for exchange in self.in_flight():
            self._settle(exchange, Outcome(failure=BackendGone("The backend was stopped.")))
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as tasks:
                for part in self.parts:
                    tasks.start_soon(part.close)


def _remember(kept: OrderedDict[K, V], key: K, value: V) -> None:
    kept[key] = value
    if len(kept) > MAX_REMEMBERED:
        kept.popitem(last=False)
