"""One server whose components are renamed, hidden or described anew by the operator's rules.

Neighbours: `backends.names` knows the names; `route` puts this around what launches the backend.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from .. import wire
from ..core.between import Around, Between
from ..core.exchange import Ask, Exchange, Outcome
from ..core.memory import Opening
from ..core.ports import Backend, Identity, Launcher, Upstream
from ..wire import Bytes
from .names import TOOLS, Names, Reference, page_of, reference_of

UPDATED: Final = "notifications/resources/updated"

MAX_PAGES: Final = 1000
"""Pages of a list that are fetched to learn what a component is tagged with."""

NOT_FOUND: Final = -32002
"""Of a resource, in the handshake era; the modern one has another code for it."""

INVALID_PARAMS: Final = -32602


class RenamingLauncher(Around):
    """A `Launcher` around another one."""

    def __init__(self, launcher: Launcher, names: Names) -> None:
        super().__init__(launcher)
        self._names = names

    @asynccontextmanager
    async def launch(
        self, identity: Identity, label: str, upstream: Upstream, opening: Opening
    ) -> AsyncGenerator[Backend]:
        renamed = Renamed(upstream, self._names)
        async with self.launcher.launch(identity, label, renamed, opening) as backend:
            yield renamed.before(backend)


class Renamed(Between):
    """A backend under other names."""

    def __init__(self, upstream: Upstream, names: Names) -> None:
        super().__init__(upstream)
        self._names = names

    def request(self, exchange: Exchange) -> None:
        reference = reference_of(exchange.method, exchange.params)
        if reference is None:
            self._pass_on(exchange, exchange.params)
            return
        original = self._names.original(reference.kind, reference.name)
        if original is not None and self._names.must_list(reference.kind, original):
            self._list_first(exchange, exchange.params, reference, original)
        else:
            self._send(exchange, exchange.params, reference, original)

    def _send(
        self, exchange: Exchange, params: Bytes | None, reference: Reference, original: str | None
    ) -> None:
        if original is None or not self._names.shows(reference.kind, original):
            exchange.settle(unknown(exchange, reference))
        else:
            self._pass_on(exchange, self._names.request(exchange.method, params, original))

    def _pass_on(self, exchange: Exchange, params: Bytes | None) -> None:
        def answered(outcome: Outcome) -> None:
            if outcome.result is not None:
                named = self._names.result(exchange.method, outcome.result)
                outcome = Outcome(result=named)
            exchange.settle(outcome)

        self.send_for(exchange, exchange.method, params, answered)

    def _list_first(
        self, exchange: Exchange, params: Bytes | None, reference: Reference, original: str
    ) -> None:
        """Learn what a component is tagged with, then go on with what is asked of it."""
        kind, pages = reference.kind, 0

        def list_page(cursor: Bytes | None) -> None:
            nonlocal pages
            pages += 1
            page = page_of(params, cursor)
            self.send_for(exchange, kind.method, page, listed)

        def listed(outcome: Outcome) -> None:
            if outcome.failure is not None:
                exchange.settle(outcome)
                return
            fields = wire.members(outcome.result)
            if kind.member in fields:
                self._names.listed(kind, fields[kind.member])
            cursor = fields.get("nextCursor")
            found = not self._names.must_list(kind, original)
            if found or cursor is None or bytes(cursor) == b"null" or pages >= MAX_PAGES:
                shows = self._names.shows_unlisted(kind, original)
                self._send(exchange, params, reference, original if shows else None)
            else:
                list_page(cursor)

        list_page(None)

    # -- from the backend --------------------------------------------------------------------------

    def ask(self, ask: Ask, exchange: Exchange | None) -> None:
        ask.params = self._names.question(ask.method, ask.params)
        super().ask(ask, exchange)

    def notification(
        self, method: str, params: Bytes | None, encoded: bytes, exchange: Exchange | None
    ) -> None:
        if method == UPDATED:
            params = self._names.updated(params)
            encoded = wire.encode_notification(method, params)
        super().notification(method, params, encoded, exchange)


def unknown(exchange: Exchange, reference: Reference) -> Outcome:
    """Return what a request gets about something that is not there, or not to be seen."""
    if reference.kind.by_uri:
        error = {
            "code": INVALID_PARAMS if exchange.envelope is not None else NOT_FOUND,
            "message": "Resource not found",
            "data": {"uri": reference.name},
        }
    else:
        what = "tool" if reference.kind is TOOLS else "prompt"
        error = {"code": INVALID_PARAMS, "message": f"Unknown {what}: {reference.name}"}
    return Outcome(error=msgspec.json.encode(error))
