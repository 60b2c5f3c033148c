"""The rounds that a client may come back to, and what those got who came back.

Bounded in number, and in the bytes of the answers that are kept for retries sent again. Neighbours:
`eras.calls` makes rounds and says how they ended; `eras.to_handshake` looks them up.
"""

from typing import TYPE_CHECKING, Final

from ..core.exchange import Outcome
from ..core.timers import Timer, Timers

if TYPE_CHECKING:
    from .calls import Call

STORED: Final = 60.0
"""Seconds for which the answer to a retry is kept for the same retry sent again."""

MAX_STORED: Final = 16 * 1024 * 1024
"""Bytes of answers that one session keeps so; the oldest are forgotten first. And as many again of
those that came while their client was away."""

MAX_TURNS: Final = 512
"""Rounds of one session that a client may come back to. The oldest that was answered is forgotten
first; where none was, the oldest call is cancelled."""


class Turn:
    """One round of a call: what was asked, who came back with answers, and what they got."""

    __slots__ = ("answers", "call", "keys", "number", "outcome", "timer")

    def __init__(self, call: "Call", number: int, keys: frozenset[str]) -> None:
        """`number`: which round of the call, from 1. `keys`: of the questions."""
        self.call: Call = call
        self.number: int = number
        self.keys: frozenset[str] = keys
        self.answers: bytes | None = None
        """Digest of the answers that took it up; None: nobody has come back."""
        self.outcome: Outcome | None = None
        """What became of the retry."""
        self.timer: Timer | None = None

    @property
    def size(self) -> int:
        """Bytes of the answer that is kept."""
        outcome = self.outcome or Outcome()
        return len(outcome.result or outcome.error or b"")


class Turns:
    """All rounds of one backend that are of any use."""

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self._turns: dict[tuple[int, int], Turn] = {}
        self._stored: dict[Turn, None] = {}
        self._stored_size = 0
        self._early: dict[Call, int] = {}
        """Bytes of the answers that came while their client was away."""

    def __len__(self) -> int:
        return len(self._turns)

    def find(self, call: int, number: int) -> Turn | None:
        return self._turns.get((call, number))

    def parked(self) -> tuple["Call", ...]:
        """Return the calls that wait for their client."""
        return tuple(turn.call for turn in self._turns.values() if turn.call.waits_for(turn))

    def add(self, turn: Turn) -> None:
        """Let a client come back to a round."""
        while len(self._turns) >= MAX_TURNS:
            self._make_room()
        self._turns[turn.call.number, turn.number] = turn

    def _make_room(self) -> None:
        oldest = next(iter(self._stored or self._turns.values()))
        self.forget(oldest)
        if oldest.call.waits_for(oldest):
            oldest.call.expire()

    def store(self, turn: Turn, outcome: Outcome) -> None:
        """Keep what a retry got, for a while."""
        turn.outcome = outcome
        if turn in self._stored or self.find(turn.call.number, turn.number) is not turn:
            return
        turn.timer = self._timers.after(STORED, lambda: self.forget(turn))
        self._stored[turn] = None
        self._stored_size += turn.size
        while self._stored_size > MAX_STORED:
            self.forget(next(iter(self._stored)))

    def keeps_early(self, call: "Call", outcome: Outcome) -> bool:
        """Return whether there is room for an answer that came while its client is away; for one
        there is, whatever its size."""
        size = len(outcome.result or outcome.error or b"")
        if self._early and sum(self._early.values()) + size > MAX_STORED:
            return False
        self._early[call] = size
        return True

    def over(self, call: "Call") -> None:
        """A call has no answer any more that is kept for its client."""
        self._early.pop(call, None)

    def forget(self, turn: Turn) -> None:
        """Nobody can come back to this round any more. Idempotent."""
        self._turns.pop((turn.call.number, turn.number), None)
        if turn in self._stored:
            del self._stored[turn]
            self._stored_size -= turn.size
        if turn.timer is not None:
            turn.timer.cancel()

    def close(self) -> None:
        """Forget them all."""
        for turn in tuple(self._turns.values()):
            self.forget(turn)
