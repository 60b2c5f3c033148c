"""The life of a session, as a table. Pure: no awaits, no clock, no I/O.

Everything that decides which state follows which is here and nowhere else. Neighbours:
`core.session` holds a state and moves it.
"""

import enum
from collections.abc import Mapping
from typing import Final

from ..errors import IllegalTransition


class SessionState(enum.Enum):
    STARTING = "starting"  # waits for a place, launches a backend, `initialize` not yet answered
    READY = "ready"  # leases are granted
    STOPPING = "stopping"  # its backend is being stopped; requests wait
    ASLEEP = "asleep"  # no backend; the next request starts one
    ENDING = "ending"  # over for clients; its backend is being stopped
    CLOSED = "closed"  # backend stopped and reaped; terminal


class StopReason(enum.StrEnum):
    """Why a backend was stopped while its session lives on."""

    IDLE = "idle"
    BACKEND_EXIT = "backend_exit"
    DISCONNECTED = "disconnected"
    SILENT = "silent"  # it left several calls in a row unanswered past the call limit
    START_FAILED = "start_failed"
    ABANDONED = "abandoned"  # nobody waits any more for the backend that was to be started


class EndReason(enum.StrEnum):
    """Why a session ended."""

    CLIENT_DELETE = "client_delete"
    DISCONNECTED = "disconnected"  # the only channel of its client closed: there is no way back
    MAX_AGE = "max_age"
    START_FAILED = "start_failed"
    ABANDONED = "abandoned"  # the client left before it was told its session's id
    BACKEND_LOST = "backend_lost"  # its backend stopped, and `on_loss` is `not-found`
    EXPIRED = "expired"  # asleep for longer than `session_ttl`
    EVICTED = "evicted"  # the oldest of more sleepers than `max_asleep`
    WHOLE_ENDED = "whole_ended"  # the session that it was a part of let go of its backend
    SHUTDOWN = "shutdown"
    KILLED = "killed"


_S = SessionState
NEXT_STATES: Final[Mapping[SessionState, frozenset[SessionState]]] = {
    _S.STARTING: frozenset({_S.READY, _S.STOPPING, _S.ENDING}),
    _S.READY: frozenset({_S.STOPPING, _S.ENDING}),
    _S.STOPPING: frozenset({_S.ASLEEP, _S.ENDING}),
    _S.ASLEEP: frozenset({_S.STARTING, _S.ENDING}),
    _S.ENDING: frozenset({_S.CLOSED}),
    _S.CLOSED: frozenset(),
}


def advance(current: SessionState, new: SessionState) -> SessionState:
    """Return `new` if the table allows it from `current`.

    Raises:
        IllegalTransition: the table has no such step.
    """
    if new not in NEXT_STATES[current]:
        raise IllegalTransition(f"session cannot go from {current.value} to {new.value}")
    return new
