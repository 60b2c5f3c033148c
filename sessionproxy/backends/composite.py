"""Several servers behind one session, each under a name of its own.

To the session they are one backend. Each server is a *part*: a session of its own in that server's
manager, opened when something is first asked of it, so that its start, its end, what is lost with
it and what is replayed when it wakes are the same as with one server alone, and none of the others'
business. Neighbours: `backends.names` translates, `backends.parts` has the parts; `route` puts the
servers together.
"""

import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, Self, TypeVar, TypeVarTuple

import anyio
import msgspec
from msgspec import Raw

from .. import wire
from ..core.background import Background, Work
from ..core.between import instead_of
from ..core.caller import Nobody
from ..core.catalogue import UNAVAILABLE_KEY
from ..core.exchange import Ask, Exchange, Outcome
from ..core.memory import Opening
from ..core.ports import Backend, Identity, Losing, Upstream
from ..errors import BackendGone, ProxyError
from ..wire import Bytes
from ..wire.envelope import LOG_LEVELS, text
from .introduction import Introduction
from .names import KINDS, Reference, reference_of
from .names import Kind as Component
from .parts import Member, Part, Whole
from .renamed import UPDATED, unknown

logger: Final = logging.getLogger(__name__)

Args = TypeVarTuple("Args")
K = TypeVar("K")

MAX_PAGES: Final = 1000
"""Pages of one server's list that are fetched."""

MAX_REMEMBERED: Final = 1024
"""Tasks, and questions, of which is remembered whose they are; the oldest goes first."""

_DONE: Final = Outcome(result=b"{}")
_NO_LEVEL: Final = Outcome(error=b'{"code":-32602,"message":"level is a log level"}')
_NO_TASK: Final = Outcome(error=b'{"code":-32602,"message":"no such task"}')
_NOBODYS: Final = Outcome(
    error=b'{"code":-32601,"message":"the request does not say which of the servers it is for"}'
)


class CompositeLauncher(anyio.AsyncContextManagerMixin):
    """A `Launcher`. Entered before the first launch, left after the last backend."""

    def __init__(self, members: Sequence[Member], introduction: Introduction) -> None:
        """`members`: in the order in which they are listed, and asked for what two may have."""
        self.members: tuple[Member, ...] = tuple(members)
        self._introduction = introduction
        self._background = Background()
        self._wholes: dict[tuple[str, str], Whole] = {}
        for member in self.members:
            member.whole_of = self._whole_of

    def _whole_of(self, identity: Identity) -> Whole | None:
        """Return what a part's session is a part of."""
        return self._wholes.get((identity.owner, identity.key))

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with self._background:
            yield self

    @asynccontextmanager
    async def launch(
        self, identity: Identity, label: str, upstream: Upstream, opening: Opening
    ) -> AsyncGenerator[Backend]:
        composite = Composite(
            identity, label, upstream, opening, self.members, self._introduction, self._background
        )
        key = identity.owner, identity.key
        self._wholes[key] = composite
        try:
            yield composite
        finally:
            await composite.close()
            if self._wholes.get(key) is composite:
                del self._wholes[key]

    async def refused(self, identity: Identity, opening: Opening) -> bool:
        return False


class Composite:
    """A `Backend` with parts, and the `Whole` that they belong to."""

    def __init__(
        self,
        identity: Identity,
        label: str,
        upstream: Upstream,
        opening: Opening,
        members: Sequence[Member],
        introduction: Introduction,
        background: Background,
    ) -> None:
        self.upstream = upstream
        self.opening = opening
        self._introduction = introduction
        self._background = background
        self._parts = {m.name: Part(m, self, identity.owner, identity.key, label) for m in members}
        # Changes with what the client sends.
        self._inner: dict[Exchange, list[tuple[Part, Exchange]]] = {}
        """By those of the session that are in flight: what was sent for each so far."""
        self._works: dict[Exchange, Work] = {}
        """Of those in flight that something is waited for."""
        self._tasks: OrderedDict[str, Part] = OrderedDict()
        """Of the era that has them, by id."""
        self._tokens: OrderedDict[bytes, Part] = OrderedDict()
        """Of the progress that a client may tell of what it was asked."""

    @property
    def parts(self) -> Sequence[Part]:
        return tuple(self._parts.values())

    def part(self, name: str) -> Part:
        return self._parts[name]

    # -- towards the servers -----------------------------------------------------------------------

    def request(self, exchange: Exchange) -> None:
        method, params = exchange.method, exchange.params
        if method in ("initialize", "server/discover"):
            self._open(exchange)
        elif method == "ping":
            exchange.settle(_DONE)
        elif method in KINDS:
            self._begin(exchange, self._list, KINDS[method], params)
        elif (reference := reference_of(method, params)) is not None:
            self._request_named(exchange, reference, params)
        elif method == "logging/setLevel":
            self._set_level(exchange, params)
        elif method == "tasks/list":
            self._begin(exchange, self._list, Component(method, "tasks", "taskId"), params)
        elif method.startswith("tasks/"):
            self._request_task(exchange, params)
        elif len(self._parts) == 1:
            self.send(self.parts[0], exchange, params)
        else:
            exchange.settle(_NOBODYS)

    def _begin(
        self,
        exchange: Exchange,
        function: Callable[[Exchange, *Args], Awaitable[None]],
        *args: *Args,
    ) -> None:
        """Work on a request in a task of its own; it is in flight from now on."""
        self._inner[exchange] = []
        work = self._works[exchange] = Work()
        self._background.start(self._work, exchange, work, partial(function, exchange, *args))

    async def _work(
        self, exchange: Exchange, work: Work, function: Callable[[], Awaitable[None]]
    ) -> None:
        try:
            await work.run(function)
        except ProxyError as error:
            self._settle(exchange, Outcome(failure=error.with_traceback(None)))
        except Exception:  # a fault of ours with one request must not end all sessions
            logger.exception("%r failed", exchange)
            self._settle(exchange, Outcome(failure=BackendGone("The request could not be served.")))
        finally:
            self._works.pop(exchange, None)

    def _settle(self, exchange: Exchange, outcome: Outcome) -> None:
        self._inner.pop(exchange, None)
        exchange.settle(outcome)

    # -- one server --------------------------------------------------------------------------------

    def _request_named(
        self,
        exchange: Exchange,
        reference: Reference,
        params: Bytes | None,
        without: Part | None = None,
    ) -> None:
        """`without`: it is for another one."""
        found = self._candidates(reference, without)
        if not found:
            exchange.settle(unknown(reference))
        elif len(found) > 1 or found[0][0].names.must_list(reference.kind, found[0][1]):
            self._begin(exchange, self._request_listed, reference, params, without)
        else:
            self._request_of(exchange, *found[0], params)

    def _candidates(
        self, reference: Reference, without: Part | None = None
    ) -> list[tuple[Part, str]]:
        """Return whose it may be, and what it is called there."""
        found: list[tuple[Part, str]] = []
        for part in self.parts:
            original = part.names.original(reference.kind, reference.name)
            if original is None or part is without:
                continue
            unsure = part.names.must_list(reference.kind, original)
            if unsure or part.names.shows(reference.kind, original):
                found.append((part, original))
        return found

    async def _request_listed(
        self,
        exchange: Exchange,
        reference: Reference,
        params: Bytes | None,
        without: Part | None,
    ) -> None:
        """Find out by their lists which server has it; the one of the longest prefix if none."""
        for part, _ in self._candidates(reference, without):
            if not part.knows(reference.kind):
                await self._learn(exchange, part, reference.kind, params)
        found = self._candidates(reference, without)
        having = [(p, original) for p, original in found if p.has(reference.kind, original)]
        untagged = [(p, o) for p, o in found if not p.names.must_list(reference.kind, o)]
        likely = having or sorted(untagged, key=lambda each: -len(each[0].names.prefix))
        if not likely:
            self._settle(exchange, unknown(reference))
        else:
            self._request_of(exchange, *likely[0], params)

    async def _learn(
        self, exchange: Exchange, part: Part, kind: Component, params: Bytes | None
    ) -> None:
        """List a server's components; if it cannot, it has none for now."""
        try:
            await self._items_of(exchange, part, kind, params)
        except ProxyError as error:
            logger.info("%s could not be listed: %s", part.name, error)

    def _request_of(
        self, exchange: Exchange, part: Part, original: str, params: Bytes | None
    ) -> None:
        instead = part.member.instead(exchange.method, params)
        other = None if instead is None else reference_of(exchange.method, instead)
        if other is None:
            self.send(part, exchange, part.names.request(exchange.method, params, original))
        else:
            self._request_named(exchange, other, instead, without=part)

    def _request_task(self, exchange: Exchange, params: Bytes | None) -> None:
        part = self._tasks.get(text(wire.member(params, "taskId")) or "")
        if part is None:
            exchange.settle(_NO_TASK)
        else:
            self.send(part, exchange, params)

    def send(self, part: Part, exchange: Exchange, params: Bytes | None) -> None:
        """Send a request to a server, at once where it is there."""
        if part.is_ready:
            self._pass_on(part, exchange, params)
        else:
            self._begin(exchange, self._send_once_ready, part, params)

    async def _send_once_ready(self, exchange: Exchange, part: Part, params: Bytes | None) -> None:
        await part.ready(exchange)
        if exchange.outcome is None:
            self._pass_on(part, exchange, params)

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
    ) -> None:
        """Send something for a request of the client's."""
        inner = instead_of(exchange, method, params, then)
        self._inner.setdefault(exchange, []).append((part, inner))
        try:
            part.request(inner)
        except ProxyError as error:
            inner.settle(Outcome(failure=error.with_traceback(None)))

    def _note_task(self, part: Part, method: str, outcome: Outcome) -> None:
        """Remember whose a task is (2025-11-25 basic/utilities/tasks)."""
        if (
            outcome.result is None
            or method != "tools/call"
            or b'"task"' not in bytes(outcome.result)
        ):
            return
        task = text(wire.member(wire.member(outcome.result, "task"), "taskId"))
        if task is not None:
            _remember(self._tasks, task, part)

    # -- all servers -------------------------------------------------------------------------------

    async def _list(self, exchange: Exchange, kind: Component, params: Bytes | None) -> None:
        """Put their lists together. One that cannot be had is named in the result; if none can,
        that is the answer."""
        found: dict[Part, list[Raw]] = {}
        failed: dict[Part, ProxyError] = {}

        async def fetch(part: Part) -> None:
            try:
                found[part] = await self._items_of(exchange, part, kind, params)
            except ProxyError as error:
                failed[part] = error

        async with anyio.create_task_group() as tasks:
            for part in self.parts:
                tasks.start_soon(fetch, part)
        if failed and not found:
            raise next(iter(failed.values()))
        for part, error in failed.items():
            logger.warning("%s is missing from %s: %s", part.name, kind.method, error)
        items = _without_doubles(kind, [i for part in self.parts for i in found.get(part, ())])
        fields: dict[str, Bytes] = {kind.member: msgspec.json.encode(items)}
        if failed:
            reasons = {part.name: str(error) for part, error in failed.items()}
            fields["_meta"] = msgspec.json.encode({UNAVAILABLE_KEY: reasons})
        self._settle(exchange, Outcome(result=wire.rebuilt(fields)))

    async def _items_of(
        self, exchange: Exchange, part: Part, kind: Component, params: Bytes | None
    ) -> list[Raw]:
        """Return a server's list as it is in front; empty where it has no such.

        Raises: ProxyError: it cannot be had.
        """
        await part.ready(exchange)
        items: list[Raw] = []
        cursor: Bytes | None = None
        for _ in range(MAX_PAGES):
            if not part.offers(kind):
                break
            page = _page(params, cursor)
            outcome = await self._asked(part, exchange, kind.method, page)
            if outcome.failure is not None:
                raise outcome.failure
            if outcome.error is not None:
                part.check_refusal(kind, outcome.error)
                break
            fields = wire.members(outcome.result)
            items += part.listed(kind, fields.get(kind.member), first=cursor is None)
            cursor = fields.get("nextCursor")
            if cursor is None or bytes(cursor) == b"null":
                break
        return items

    async def _asked(
        self, part: Part, exchange: Exchange, method: str, params: Bytes | None
    ) -> Outcome:
        """Ask a server something for a request of the client's."""
        came = anyio.Event()
        found: list[Outcome] = []

        def answered(outcome: Outcome) -> None:
            found.append(part.in_front("", outcome))
            came.set()

        self._send(part, exchange, method, params, answered)
        await came.wait()
        return found[0]

    def _set_level(self, exchange: Exchange, params: Bytes | None) -> None:
        """Set the log level of those that run; the others are told when they start."""
        if text(wire.member(params, "level")) not in LOG_LEVELS:
            exchange.settle(_NO_LEVEL)
            return
        for part in self.parts:
            part.level = params
        self._begin(exchange, self._spread_level, params)

    async def _spread_level(self, exchange: Exchange, params: Bytes | None) -> None:
        for part in self.parts:
            if part.is_ready and part.logs:
                await self._asked(part, exchange, exchange.method, params)
        self._settle(exchange, _DONE)

    # -- introducing itself ------------------------------------------------------------------------

    def _open(self, exchange: Exchange) -> None:
        """Answer for all servers. Whoever asks on nobody's behalf wants to know for certain."""
        if isinstance(self.upstream, Nobody):
            self._begin(exchange, self._open_all)
        else:
            exchange.settle(Outcome(result=self._introduced(exchange)))

    async def _open_all(self, exchange: Exchange) -> None:
        failed: list[ProxyError] = []

        async def start(part: Part) -> None:
            try:
                await part.ready(exchange)
            except ProxyError as error:
                failed.append(error)

        async with anyio.create_task_group() as tasks:
            for part in self.parts:
                tasks.start_soon(start, part)
        if failed and len(failed) == len(self._parts):
            raise failed[0]
        self._settle(exchange, Outcome(result=self._introduced(exchange)))

    def _introduced(self, exchange: Exchange) -> bytes:
        members = [part.member for part in self.parts]
        if exchange.method == "initialize":
            requested = text(wire.member(exchange.params, "protocolVersion"))
            return self._introduction.initialized(members, requested)
        return self._introduction.discovered(members)

    # -- what needs no answer ----------------------------------------------------------------------

    def notify(self, method: str, params: Bytes | None) -> None:
        if method == "notifications/initialized":
            return  # each part is told when it has started
        parts: Sequence[Part] = self.parts
        if method == "notifications/progress":
            token = bytes(wire.member(params, "progressToken") or b"")
            parts = [self._tokens[token]] if token in self._tokens else ()
        for part in parts:
            part.notify(method, params)

    def cancel(self, exchange: Exchange, params: Bytes | None) -> None:
        sent = self._inner.pop(exchange, ())
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
        kind = reference.kind
        having = (
            part
            for part, original in self._candidates(reference)
            if not part.knows(kind) or part.has(kind, original)
        )
        return next((part for part in having if part.bereaved), None)

    # -- from the servers --------------------------------------------------------------------------

    def ask(self, part: Part, ask: Ask, exchange: Exchange | None) -> None:
        """Take a question of a server's: of one of the client's requests, or of none."""
        ask.params = part.names.question(ask.method, ask.params)
        token = wire.member(wire.member(ask.params, "_meta"), "progressToken")
        if token is not None:
            _remember(self._tokens, bytes(token), part)
        self.upstream.ask(ask, exchange)

    def tell(
        self,
        part: Part,
        method: str,
        params: Bytes | None,
        encoded: bytes,
        exchange: Exchange | None,
    ) -> None:
        """Take a notification of a server's."""
        if method == UPDATED:
            params = part.names.updated(params)
            encoded = wire.encode_notification(method, params)
        self.upstream.notification(method, params, encoded, exchange)

    # -- the end -----------------------------------------------------------------------------------

    async def close(self) -> None:
        """End every part. Shielded; bounded by what stopping is bounded by."""
        for work in self._works.values():
            work.cancel()
        for exchange in self.in_flight():
            self._settle(exchange, Outcome(failure=BackendGone("The backend was stopped.")))
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as tasks:
                for part in self.parts:
                    tasks.start_soon(part.close)


def _page(params: Bytes | None, cursor: Bytes | None) -> bytes:
    """Return the parameters of a request for a page of one server's list."""
    fields: dict[str, Bytes] = {} if cursor is None else {"cursor": cursor}
    meta = wire.members(wire.member(params, "_meta"))
    meta.pop("progressToken", None)
    if meta:
        fields["_meta"] = wire.rebuilt(meta)
    return wire.rebuilt(fields)


def _without_doubles(kind: Component, items: Sequence[Raw]) -> list[Raw]:
    """Return the items; of two with one name the first, which is also the one that is used."""
    found: dict[str, Raw] = {}
    for item in items:
        found.setdefault(text(wire.member(item, kind.key)) or "", item)
    return list(found.values())


def _remember(kept: OrderedDict[K, Part], key: K, part: Part) -> None:
    kept[key] = part
    if len(kept) > MAX_REMEMBERED:
        kept.popitem(last=False)
