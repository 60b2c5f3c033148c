"""What a route's backends offer, for clients that ask before they have a session.

A modern client's `server/discover` and lists belong to no conversation, so they are answered from
here: fetched from a backend of the catalogue's own, which is stopped again, and kept for a while
(2026-07-28 server/utilities/caching). Neighbours: the frontend asks; `core.session` tells it when
a backend says that a list has changed.
"""

import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import anyio
import msgspec
from msgspec import Raw

from .. import wire
from ..errors import BackendGone, BackendStartFailed, InitializeRefused, ProxyError
from ..wire import Bytes, Envelope
from ..wire.envelope import with_envelope
from ..wire.welcome import discover_params
from .aside import Aside
from .caller import Nobody, ask
from .circuit import Circuit
from .context import caller_authorization, caller_owner
from .exchange import Outcome
from .memory import Opening
from .pauses import Pauses
from .ports import Backend, Identity, Launcher
from .start import not_started

logger: Final = logging.getLogger(__name__)

LISTS: Final[Mapping[str, tuple[str, str, str]]] = {
    "tools/list": ("tools", "tools", "name"),
    "prompts/list": ("prompts", "prompts", "name"),
    "resources/list": ("resources", "resources", "uri"),
    "resources/templates/list": ("resources", "resourceTemplates", "uriTemplate"),
}
"""By method: the capability that it needs, the member with the items, what they are sorted by."""

CHANGES: Final[Mapping[str, str]] = {
    "notifications/tools/list_changed": "toolsListChanged",
    "notifications/prompts/list_changed": "promptsListChanged",
    "notifications/resources/list_changed": "resourcesListChanged",
}
"""Notifications that a list has changed, and what a client listens for them by."""

UNAVAILABLE_KEY: Final = "sessionproxy/unavailable"
"""In `_meta` of a list: of several servers those that are missing from it, and why."""

MAX_PAGES: Final = 1000
"""Pages of one list that are fetched."""

MAX_CALLERS: Final = 256
"""Callers whose offers are kept, where each may be offered something else; of more, the last."""

PAUSE: Final = 5.0
"""Seconds between two fetches that nobody has asked for: some servers change their lists with every
call, and each fetch starts a backend. And how long a change is left alone at least, where the last
one brought nothing new: some servers tell of changes that only the session has that made them."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a backend offers. Results are encoded, and complete."""

    discovered: bytes
    capabilities: Mapping[str, Raw]
    lists: Mapping[str, bytes]
    """By method; those that the backend does not have are missing."""
    schemas: Mapping[str, bytes]
    """By the name of a tool: its input schema, where that asks for headers (`x-mcp-header`)."""
    incomplete: bool = False
    """Of several servers, some could not be asked."""

    def announces(self, capability: str) -> bool:
        """Return whether the backend says when the list of a capability changes."""
        declared = wire.members(self.capabilities.get(capability))
        return bytes(declared.get("listChanged", b"")) == b"true"

    def differs(self, other: "Offer") -> list[str]:
        """Return the notifications of what is another list there."""
        changed = [name for name in LISTS if self.lists.get(name) != other.lists.get(name)]
        return list(dict.fromkeys(f"notifications/{LISTS[n][0]}/list_changed" for n in changed))


class _Item(msgspec.Struct):
    name: str = ""
    uri: str = ""
    template: str = msgspec.field(name="uriTemplate", default="")
    schema: Raw = msgspec.field(name="inputSchema", default=Raw(b""))


class _Kept:
    """What one caller, or everybody, was offered last."""

    __slots__ = ("changes", "failure", "fetched_at", "fetches", "fetching", "offer", "vain")

    def __init__(self) -> None:
        self.fetching = anyio.Lock()
        self.offer: Offer | None = None
        self.fetched_at = 0.0
        self.changes = 0
        """How many there had been when it was fetched."""
        self.vain = 0
        """Fetches in a row that a change had made necessary, and that brought nothing new."""
        self.fetches = 0
        self.failure: ProxyError | None = None
        """Of the last fetch."""


class Catalogue:
    """The offer of one route; of each caller, where its credential goes along to the backend, or
    code of the user's may see who asks."""

    def __init__(
        self,
        route: str,
        launcher: Launcher,
        envelope: Envelope,
        *,
        ttl: float,
        timeout: float,
        pauses: Pauses,
        public: bool = False,
        by_owner: bool = False,
        aside: Aside | None = None,
        circuit: Circuit | None = None,
    ) -> None:
        """`envelope`: of a client of the proxy's own. `ttl`: seconds for which an offer is good;
        `timeout`: seconds for a backend's start, and for fetching its lists, `pauses` not counted.
        `public`: it is the same for everybody. `by_owner`: it may be another one for each
        `caller_owner`. `aside` stops the backends that were asked; None:
        they are waited for. `circuit`: the route's."""
        self._launcher = launcher
        self._aside = aside
        self._circuit = circuit or Circuit()
        self._pauses = pauses
        self._lists = Circuit()
        """Of backends that start, and then fail over their lists: sessions may do well with them,
        and must not wait for this."""
        self._identity = Identity(route, "catalogue", "catalogue")
        self._envelope = envelope
        self._ttl = ttl
        self._timeout = timeout
        self._scope = b'"public"' if public else b'"private"'
        self._by_owner = by_owner
        self._everybodys = _Kept()
        self._by_caller: OrderedDict[tuple[bytes | None, str | None], _Kept] = OrderedDict()
        """By credential and owner: what a backend offers may depend on them."""
        self._changes = 0
        self._changed = anyio.Event()
        self._told: set[str] = set()
        """Methods of the changes since a fetch began last: whoever asks gets to know of them."""
        self._listeners: list[Callable[[str], None]] = []
        """Told the method of each change; while there are any, a newer offer is fetched at once."""

    async def offer(self) -> Offer:
        """Return what there is; fetched anew where that is too old, by one for all who wait.

        Raises: BackendStartFailed, InitializeRefused, RouteResting, Shortage: it cannot be had.
        """
        kept = self._kept
        fetches = kept.fetches
        async with kept.fetching:
            if kept.fetches != fetches and kept.failure is not None:
                raise kept.failure.fresh()  # one failure for all who wait: it may take long
            offer = kept.offer
            if offer is None or not self._good_for(kept):
                offer = await self._fetch_for(kept)
            return offer

    async def _fetch_for(self, kept: _Kept) -> Offer:
        changes, kept.failure = self._changes, None
        before, has_changed = kept.offer, kept.changes != changes
        self._told.clear()
        try:
            kept.offer = offer = await self._fetch()
        except ProxyError as error:
            kept.failure = error.fresh()
            raise
        finally:
            kept.fetches += 1
        kept.fetched_at, kept.changes = anyio.current_time(), changes
        if before is None or before.differs(offer):
            kept.vain = 0
        elif has_changed:
            kept.vain += 1
        return offer

    @property
    def _kept(self) -> _Kept:
        """What is kept for the present caller."""
        caller = caller_authorization.get(), self._owner
        if caller == (None, None):
            return self._everybodys
        kept = self._by_caller.pop(caller, None) or _Kept()
        self._by_caller[caller] = kept
        if len(self._by_caller) > MAX_CALLERS:
            self._by_caller.popitem(last=False)
        return kept

    @property
    def _owner(self) -> str | None:
        """For whom it is asked, if that matters."""
        return caller_owner.get() if self._by_owner else None

    @property
    def fresh_for(self) -> float:
        """Seconds for which the present offer is good."""
        return self._good_for(self._kept)

    def _good_for(self, kept: _Kept) -> float:
        if kept.offer is None:
            return 0.0
        limit = min(self._ttl, PAUSE) if kept.offer.incomplete else self._ttl
        if kept.changes != self._changes:
            # Where changes bring nothing new, one more is looked at the later.
            limit = min(limit, PAUSE * 2.0 ** min(kept.vain, 30)) if kept.vain else 0.0
        return max(0.0, kept.fetched_at + limit - anyio.current_time())

    @property
    def known(self) -> Offer | None:
        """The last offer, however old: its lists may have changed, its capabilities hardly."""
        return self._kept.offer

    def changed(self, method: str) -> None:
        """A backend of the route says that a list has changed.

        Listeners are told at once: who asks now waits for an offer fetched after the change. Of a
        backend that says so again and again they hear once for each offer.
        """
        if method not in CHANGES:
            return
        self._changes += 1
        self._changed.set()
        if method not in self._told:
            self._told.add(method)
            self._tell([method])

    def _tell(self, methods: Sequence[str]) -> None:
        for method in methods:
            for listener in tuple(self._listeners):
                listener(method)

    def listen(self, listener: Callable[[str], None]) -> None:
        """Have `listener` told the method of each change; once more where it is already, and there
        is somebody new behind it."""
        self._told.clear()
        if listener not in self._listeners:
            self._listeners.append(listener)

    def unlisten(self, listener: Callable[[str], None]) -> None:
        self._listeners.remove(listener)

    async def run(self) -> None:
        """Fetch anew after changes, while anybody listens: they are about to ask."""
        while True:
            await self._changed.wait()
            self._changed = anyio.Event()
            if not self._listeners or self._by_caller:  # what is nobody's is no caller's
                continue
            before, pause = self._everybodys.offer, self._good_for(self._everybodys)
            await anyio.sleep(pause)
            try:
                offer = await self.offer()
            except ProxyError as error:
                logger.warning("the catalogue could not be fetched: %s", error)
            else:
                if pause and before is not None:  # who asked meanwhile was given the old one
                    self._tell(offer.differs(before))
            await anyio.sleep(PAUSE)

    # -- fetching ----------------------------------------------------------------------------------

    async def _fetch(self) -> Offer:
        with self._lists.trying():
            async with self._started() as (backend, discovered):
                with self._pauses.move_on_after(self._timeout):
                    offer = await self._fetch_from(backend, discovered)
                    self._lists.succeeded()
                    return offer
                raise BackendStartFailed(f"The backend did not list all in {self._timeout:g} s.")

    @asynccontextmanager
    async def _started(self) -> AsyncGenerator[tuple[Backend, Bytes]]:
        """Start a backend and have it introduce itself; a failure is one of the route's."""
        opening = Opening(discover_params(self._envelope), "server/discover")
        async with AsyncExitStack() as held:
            with self._circuit.trying():
                try:
                    found = await self._start(held, opening)
                except InitializeRefused:
                    if not await self._launcher.refused(self._identity, opening):
                        raise
                    await held.aclose()
                    found = await self._start(held, opening)
            self._circuit.succeeded()
            yield found

    async def _start(self, held: AsyncExitStack, opening: Opening) -> tuple[Backend, Bytes]:
        nobody = Nobody(owner=self._owner)
        launching = self._launcher.launch(self._identity, "catalogue", nobody, opening)
        backend = await held.enter_async_context(
            launching if self._aside is None else self._aside.lend(launching)
        )
        with self._pauses.move_on_after(self._timeout):
            return backend, _welcome(await ask(backend, opening.method, opening.params))
        raise BackendStartFailed(f"The backend did not say what it offers in {self._timeout:g} s.")

    async def _fetch_from(self, backend: Backend, discovered: Bytes) -> Offer:
        capabilities = wire.members(wire.members(discovered).get("capabilities"))
        lists: dict[str, bytes] = {}
        schemas: dict[str, bytes] = {}
        incomplete = False
        for method, (capability, member, key) in LISTS.items():
            if capability in capabilities:
                items, missing = await self._items(backend, method, member)
                incomplete = incomplete or missing is not None
                if items is not None:
                    found = sorted(((_read(item), item) for item in items), key=_by(key))
                    lists[method] = _list_result(member, [item for _, item in found], missing)
                    schemas |= {i.name: bytes(i.schema) for i, _ in found if _asks_for_headers(i)}
        return Offer(bytes(discovered), capabilities, lists, schemas, incomplete)

    async def _items(
        self, backend: Backend, method: str, member: str
    ) -> tuple[list[Raw] | None, Raw | None]:
        """Return all items of a list, None where the backend does not have that list; and which
        servers are missing from it."""
        items: list[Raw] = []
        missing: Raw | None = None
        cursor: Bytes | None = None
        for _ in range(MAX_PAGES):
            params = wire.rebuilt({} if cursor is None else {"cursor": cursor})
            params = with_envelope(params, self._envelope)
            outcome = await ask(backend, method, params, self._envelope)
            if outcome.error is not None:
                return items or None, missing
            fields = wire.members(_result(method, outcome))
            try:
                items += msgspec.json.decode(fields.get(member, b"[]"), type=list[Raw])
            except msgspec.DecodeError:
                return items or None, missing
            missing = wire.member(fields.get("_meta"), UNAVAILABLE_KEY) or missing
            cursor = fields.get("nextCursor")
            if cursor is None or bytes(cursor) == b"null":
                break
        return items, missing

    # -- answering ---------------------------------------------------------------------------------

    def answer(self, offer: Offer, method: str) -> bytes | None:
        """Return the result of a list method, or of `server/discover`; None: there is no such."""
        result = offer.discovered if method == "server/discover" else offer.lists.get(method)
        if result is None:
            return None
        fields: dict[str, Bytes] = {**wire.members(result)}
        fields["ttlMs"] = b"%d" % int(self.fresh_for * 1000)
        fields["cacheScope"] = self._scope
        if method == "server/discover":
            fields["supportedVersions"] = msgspec.json.encode(wire.SERVED_VERSIONS)
        else:
            meta = wire.members(wire.members(offer.discovered).get("_meta"))
            meta |= wire.members(fields.get("_meta"))
            if meta:
                fields["_meta"] = wire.rebuilt(meta)
        return wire.rebuilt(fields)


def _list_result(member: str, items: list[Raw], missing: Raw | None) -> bytes:
    fields: dict[str, Bytes] = {"resultType": b'"complete"', member: msgspec.json.encode(items)}
    if missing is not None:
        fields["_meta"] = wire.rebuilt({UNAVAILABLE_KEY: missing})
    return wire.rebuilt(fields)


def _welcome(outcome: Outcome) -> Bytes:
    """Raises: InitializeRefused, or why there is none."""
    if outcome.failure is None and outcome.result is None:
        error = bytes(outcome.error or b"{}")
        text = error.decode(errors="replace")[:500]
        raise InitializeRefused(f"The backend refused to say what it offers: {text}", error)
    return _result("server/discover", outcome)


def _result(method: str, outcome: Outcome) -> Bytes:
    """Raises: BackendStartFailed: the backend ended, or refused it. Else why there is none."""
    failure = outcome.failure
    if isinstance(failure, BackendGone | BackendStartFailed):
        raise not_started(failure, "The backend did not say what it offers")
    if failure is not None:
        raise failure
    if outcome.result is None:
        text = bytes(outcome.error or b"").decode(errors="replace")[:500]
        raise BackendStartFailed(f"The backend refused {method}: {text}")
    return outcome.result


def _read(item: Raw) -> _Item:
    try:
        return msgspec.json.decode(item, type=_Item)
    except msgspec.DecodeError:
        return _Item()


def _by(key: str) -> Callable[[tuple[_Item, Raw]], str]:
    attribute = "template" if key == "uriTemplate" else key
    return lambda found: str(getattr(found[0], attribute))


def _asks_for_headers(item: _Item) -> bool:
    return b"x-mcp-header" in bytes(item.schema)
