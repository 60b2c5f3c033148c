"""Which of several servers has what a request is about.

Their names may say so, else their lists do, and what nobody lists is of one that may have more than
it lists. Neighbours: `backends.composite` asks, and sends; `backends.names` translates.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final

from ..core.exchange import Exchange
from ..errors import BackendError, ProxyError
from ..wire import Bytes
from .names import RESOURCES, TEMPLATES, Reference, could_be
from .names import Kind as Component
from .parts import Part

logger: Final = logging.getLogger(__name__)

Listing = Callable[[Exchange, Part, Component, Bytes | None], Awaitable[object]]
"""Lists what a server has, so that the part knows. Raises: ProxyError: it cannot say."""


class Finding:
    """Of one session."""

    def __init__(self, parts: Sequence[Part], listing: Listing) -> None:
        """`parts`: in the order in which they are asked for what two may have."""
        self._parts = parts
        self._stands = [part for part in parts if part.member.stand is not None]
        self._listing = listing

    def candidates(self, reference: Reference, by: Part | None = None) -> list[tuple[Part, str]]:
        """Return whose it may be, and what it is called there. `by`: the one that has another name
        for it, and knows of its own proxy alone."""
        found: list[tuple[Part, str]] = []
        for part in self._parts:
            original = part.names.original(reference.kind, reference.name)
            if original is None or part is by or self.is_hidden(part, reference, by):
                continue
            unsure = part.names.must_list(reference.kind, original)
            if unsure or part.names.shows(reference.kind, original):
                found.append((part, original))
        return found

    def is_hidden(self, part: Part, reference: Reference, by: Part | None = None) -> bool:
        """Return whether what a server may have is not there for whoever asks: a client, or one
        that has another name for it, from which its own proxy hides nothing."""
        if by is not None and not by.covers(part):
            return True
        return any(
            stand.covers(part) and stand.hides(reference)
            for stand in self._stands
            if by is None or not stand.covers(by)
        )

    def likely(
        self, method: str, reference: Reference, params: Bytes | None, by: Part | None = None
    ) -> Part | None:
        """Return which server a request is for, as far as that is known; of those that may have
        what it is about, and were never listed, the first one that has lost its state."""
        candidates = self.candidates(reference, by)
        for part, original in candidates:
            instead = part.instead(method, params, original)
            if instead is not None:
                return self.likely(method, *instead, by=part)
            if part.has(reference.kind, original) or len(candidates) == 1:
                return part
            if part.bereaved and not part.knows(reference.kind):
                return part
        return None

    async def who_has(
        self,
        exchange: Exchange,
        reference: Reference,
        params: Bytes | None,
        by: Part | None = None,
    ) -> tuple[Part, str] | None:
        """Find out by their lists which server has it; the one of the longest prefix if none. Of a
        URI that is in no list those who have a template for it come first. Return it, and what it
        is called there; None: it is nobody's.

        What nobody has is asked of one that could not be listed, if there is one.

        Raises: ProxyError: one that comes before who has it cannot say whether it has it too.
        """
        failed: dict[Part, ProxyError] = {}
        for part, original in self.candidates(reference, by):
            if not part.knows(reference.kind) or part.names.must_list(reference.kind, original):
                await self._learn(exchange, part, reference.kind, params, failed)
        found = self.candidates(reference, by)
        having = [(p, original) for p, original in found if p.has(reference.kind, original)]
        untagged = [(p, o) for p, o in found if p.names.shows_unlisted(reference.kind, o)]
        untagged.sort(key=lambda each: -len(each[0].names.prefix))
        if not having and reference.kind is RESOURCES:
            having = await self._with_template(exchange, untagged, params, failed)
        doubtful = _doubtful([part for part, _ in found], [part for part, _ in having], failed)
        if doubtful is not None and (having or doubtful not in dict(untagged)):
            raise _not_run(failed[doubtful])
        likely = having or sorted(untagged, key=lambda each: each[0] is not doubtful)
        return likely[0] if likely else None

    async def _with_template(
        self,
        exchange: Exchange,
        found: Sequence[tuple[Part, str]],
        params: Bytes | None,
        failed: dict[Part, ProxyError],
    ) -> list[tuple[Part, str]]:
        """Return those who have a template that a URI may be made by."""
        for part, _ in found:
            if not part.knows(TEMPLATES):
                await self._learn(exchange, part, TEMPLATES, params, failed)
        return [
            (part, uri)
            for part, uri in found
            if any(could_be(uri, template) for template in part.known(TEMPLATES))
        ]

    async def _learn(
        self,
        exchange: Exchange,
        part: Part,
        kind: Component,
        params: Bytes | None,
        failed: dict[Part, ProxyError],
    ) -> None:
        """List a server's components, if it can."""
        try:
            await self._listing(exchange, part, kind, params)
        except ProxyError as error:
            logger.info("%s could not be listed: %s", part.name, error)
            failed.setdefault(part, error)


def _doubtful(
    found: Sequence[Part], having: Sequence[Part], failed: Collection[Part]
) -> Part | None:
    """Return the one that could not be listed and comes before all who have something, so that it
    may well be the one that is meant; None: there is none such. `found`: who may have it, the one
    that comes first in front. `having`: who has."""
    first = next((part for part in found if part in having or part in failed), None)
    return None if first in having else first


def _not_run(failure: ProxyError) -> ProxyError:
    """Return the failure of a list as that of the request it was asked for."""
    failure = failure.fresh()
    if isinstance(failure, BackendError):
        failure.executed = False
    return failure
