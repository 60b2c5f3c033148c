"""What several servers have, in one list.

Each is asked for all its pages at the same time as the others, and for so long at most as it may
take to start: one that cannot be had is named in the result instead. Neighbours:
`backends.composite` sends the requests; `backends.parts` remembers what was found.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import anyio
import msgspec
from msgspec import Raw

from .. import wire
from ..core.catalogue import UNAVAILABLE_KEY
from ..core.exchange import Exchange, Outcome
from ..errors import ProxyError
from ..wire import Bytes
from ..wire.envelope import text
from .names import Kind, Reference, page_of
from .parts import Part

logger: Final = logging.getLogger(__name__)

MAX_PAGES: Final = 1000
"""Pages of one server's list that are fetched."""


class Send(Protocol):
    def __call__(
        self,
        part: Part,
        exchange: Exchange,
        method: str,
        params: Bytes | None,
        then: Callable[[Outcome], None],
    ) -> Exchange:
        """Send something to a server for a request of the client's."""
        ...


class Lists:
    """Of the servers of one session."""

    def __init__(
        self, parts: Sequence[Part], send: Send, *, hides: Callable[[Part, Reference], bool]
    ) -> None:
        """`hides`: tells what of a server is to be in no list, by the name that it would have in
        front."""
        self._parts = parts
        self._send = send
        self._hides = hides

    async def together(self, exchange: Exchange, kind: Kind, params: Bytes | None) -> bytes:
        """Return the result of a request for a list.

        Raises: ProxyError: it can be had of none.
        """
        found: dict[Part, list[Raw]] = {}
        failed: dict[Part, ProxyError] = {}

        async def fetch(part: Part) -> None:
            try:
                found[part] = await self.of(exchange, part, kind, params)
            except ProxyError as error:
                failed[part] = error

        async with anyio.create_task_group() as tasks:
            for part in self._parts:
                tasks.start_soon(fetch, part)
        if failed and not found:
            raise none_of([failed[part] for part in self._parts])
        for part, error in failed.items():
            logger.warning("%s is missing from %s: %s", part.name, kind.method, error)
        items = self._shown(kind, found)
        fields: dict[str, Bytes] = {kind.member: msgspec.json.encode(items)}
        if failed:
            reasons = {part.name: str(error) for part, error in failed.items()}
            fields["_meta"] = msgspec.json.encode({UNAVAILABLE_KEY: reasons})
        return wire.rebuilt(fields)

    def _shown(self, kind: Kind, found: Mapping[Part, Sequence[Raw]]) -> list[Raw]:
        """Return the items; of two with one name the first, which is also the one that is used."""
        shown: dict[str, Raw] = {}
        for part in self._parts:
            for item in found.get(part, ()):
                name = text(wire.member(item, kind.key)) or ""
                if name not in shown and not self._hides(part, Reference(kind, name)):
                    shown[name] = item
        return list(shown.values())

    async def of(
        self, exchange: Exchange, part: Part, kind: Kind, params: Bytes | None
    ) -> list[Raw]:
        """Return a server's list as it is in front; empty where it has no such.

        Raises: ProxyError: it cannot be had, or could not a moment ago.
        """
        part.check_listed()
        await part.ready(exchange)
        if not part.offers(kind):
            return []
        with part.patience():
            return await self._pages(exchange, part, kind, params)
        raise part.gave_no(kind)

    async def _pages(
        self, exchange: Exchange, part: Part, kind: Kind, params: Bytes | None
    ) -> list[Raw]:
        items: list[Raw] = []
        cursor: Bytes | None = None
        for _ in range(MAX_PAGES):
            outcome = await self.asked(part, exchange, kind.method, page_of(params, cursor))
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

    async def asked(
        self, part: Part, exchange: Exchange, method: str, params: Bytes | None
    ) -> Outcome:
        """Ask a server something for a request of the client's, and wait for the answer."""
        came = anyio.Event()
        found: list[Outcome] = []

        def answered(outcome: Outcome) -> None:
            found.append(part.in_front("", outcome))
            came.set()

        inner = self._send(part, exchange, method, params, answered)
        try:
            await came.wait()
        finally:
            part.cancel(inner, None)  # which has no effect on one that was answered
        return found[0]


def none_of(failures: Sequence[ProxyError]) -> ProxyError:
    """Return what is told where no server can be had: why of each."""
    failure = failures[0].fresh()
    failure.server, failure.args = "", (" ".join(str(each) for each in failures),)
    return failure
