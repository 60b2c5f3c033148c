"""Asks sessions that have outstayed a limit to stop or to end.

One pass decides for all (`due`, pure); one loop applies it. The reaper only asks: closing is the
sessions' own work. Neighbours: `core.manager` runs it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from .attachments import Attachment, Attachments
from .pauses import Pauses
from .session import Session
from .state import EndReason, SessionState, StopReason

PERIOD: Final = 0.5
"""Seconds between two passes: an idle backend is asked to stop at most so much too late."""

SLEEPERS_EVERY: Final = 20
"""Passes after which the sleepers are looked at too: there may be thousands, and no hurry."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ages:
    """Limits in seconds; None: no such limit."""

    idle: float | None = 300.0
    """Without a request for so long, a backend stops and its session sleeps; and what it asked a
    client that is away for so long is answered with an error, else its call would never end."""
    linger: float | None = 60.0
    """So long after its client closed its stream and sent nothing more, likewise."""
    max_age: float | None = None
    """So long after its opening, a session ends, whatever it does."""
    session_ttl: float = 86400.0
    """Asleep for so long, a session ends."""


def due(
    sessions: Iterable[Session], *, now: float, ages: Ages, pauses: Pauses
) -> Iterator[tuple[Session, StopReason | EndReason]]:
    """Yield each session to stop or to end at `now`, with the reason. Pauses do not age it."""

    def reached(seconds: float, limit: float | None) -> bool:
        return _reached(seconds, limit, now, pauses)

    for session in sessions:
        if reached(now - session.opened_at, ages.max_age):
            yield session, EndReason.MAX_AGE
        elif session.state is SessionState.ASLEEP:
            if reached(now - session.slept_at, ages.session_ttl):
                yield session, EndReason.EXPIRED
        elif session.state is SessionState.READY:
            if reached(session.idle_for(now), ages.idle):
                yield session, StopReason.IDLE
            elif reached(session.deserted_for(now), ages.linger):
                yield session, StopReason.DISCONNECTED


def unheard(
    sessions: Iterable[Session], *, now: float, ages: Ages, pauses: Pauses
) -> Iterator[Session]:
    """Yield those whose backend asked something of a client that has been away for too long."""
    for session in sessions:
        if _reached(session.unheard_for(now), ages.idle, now, pauses):
            yield session


def lost(
    sessions: Iterable[Session], *, now: float, ages: Ages, pauses: Pauses
) -> Iterator[tuple[Session, Attachment]]:
    """Yield the clients that share a session, and are not there any more (DESIGN 6)."""
    for session in sessions:
        for attachment in session.client if isinstance(session.client, Attachments) else ():
            deserted = attachment.deserted_for(now)
            if deserted > 0 and session.works_for(attachment.client):
                attachment.heard_at = now  # it waits for its answer
            elif _reached(deserted, ages.linger, now, pauses):
                yield session, attachment


def _reached(seconds: float, limit: float | None, now: float, pauses: Pauses) -> bool:
    return limit is not None and seconds >= limit and pauses.lasted(seconds, now) >= limit
