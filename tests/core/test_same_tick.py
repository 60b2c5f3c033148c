"""FAULTS F45: the reaper finds a session idle in the very moment in which something else happens.

Everything is due at one time on the virtual clock; Hypothesis draws how many turns of the event
loop each comes late, and in which order trio takes tasks that are ready at once. Neighbours:
`tests.core.test_machine` has all that happens at different times.
"""

from collections import Counter
from typing import NamedTuple

import anyio
from hypothesis import given, settings
from hypothesis import strategies as st

from sessionproxy.core.exchange import Outcome
from sessionproxy.core.manager import Limits
from sessionproxy.core.reaper import Ages
from sessionproxy.core.state import EndReason
from sessionproxy.errors import BackendGone, BackendStartFailed, Exit, SessionNotFound

from .world import Call, Plan, World

IDLE = 3.0
"""Seconds; a multiple of the reaper's period, so that it looks in that very moment."""

TURNS = 6
"""Of the event loop, in which the reaper's look is over and what follows from it has begun."""


NOT_STARTED = BackendStartFailed, BackendGone


class Rival(NamedTuple):
    """What happens when the session has been idle for so long."""

    late: int
    """Turns of the event loop."""
    what: str


def rivals_of(*others: str) -> st.SearchStrategy[list[Rival]]:
    """One request at least, and others or other things."""
    late = st.integers(0, TURNS)
    request = st.builds(Rival, late, st.just("request"))
    rest = st.lists(st.builds(Rival, late, st.sampled_from(("request", *others))), max_size=3)
    return st.tuples(request, rest).map(lambda drawn: [drawn[0], *drawn[1]])


stops = st.sampled_from((0.0, 1.0))
"""Seconds that the backend takes to stop."""


class Race:
    """One session, and what happens to it in the tick of its idle limit."""

    def __init__(self, rivals: list[Rival], stop_takes: float) -> None:
        limits = Limits(ages=Ages(idle=IDLE, linger=None))
        self.world = World(limits, keeps_ids=True)
        self.session, _ = self.world.open("alice", Plan(stop_takes=stop_takes))
        self.first = self.world.backends.all[0]
        self.calls = [Call() for rival in rivals if rival.what == "request"]
        self.crashed = self.deleted = False
        calls = iter(self.calls)
        for rival in rivals:
            call = next(calls) if rival.what == "request" else None
            self.world.start(self._come, rival, call)
        try:
            self.world.tick(IDLE + 2)
            for call in self.calls:
                self.world.reply(call, Outcome(result=b"{}"))
        finally:
            self.world.close()

    async def _come(self, rival: Rival, call: Call | None) -> None:
        await anyio.sleep_until(self.session.opened_at + IDLE)
        for _ in range(rival.late):
            await anyio.lowlevel.checkpoint()
        if call is not None:
            await self.world.clients.call("alice", self.session.identity.key, call)
        elif rival.what == "delete":
            self.deleted = True
            self.world.manager.end(self.session, EndReason.CLIENT_DELETE)
        elif (backend := self.world.backends.of(self.session)) and not backend.exited:
            self.crashed = True
            backend.exit(Exit(code=7))

    def became(self, call: Call) -> str:
        """Return what became of a request: one thing, and that once."""
        ways = (call.backend is not None, bool(call.told), call.failure is not None)
        assert sum(ways) == 1, call
        assert not call.behind, "it was executed, and a loss had not been told"
        assert call.sink.times_settled == (call.backend is not None)
        if call.told:
            return "told"
        if call.failure is not None:
            deleted = self.deleted and isinstance(call.failure, SessionNotFound)
            assert deleted or (self.crashed and isinstance(call.failure, NOT_STARTED))
            return "gone"
        if call.word != "result":
            due = {"backend_gone": self.crashed, "session_ended": self.deleted}
            assert due[call.word]
            return "cut off"
        return "served" if call.backend is self.first else "served afresh"


def test_a_request_in_the_tick_of_the_idle_limit_is_served_or_told_never_both_or_neither() -> None:
    """FAULTS F45; the first of several may be told, and the others are served afresh."""
    seen: Counter[str] = Counter()

    @settings(max_examples=200, deadline=None, print_blob=True)
    @given(rivals=rivals_of(), stop_takes=stops, order=st.random_module())
    def race(rivals: list[Rival], stop_takes: float, order: object) -> None:
        race = Race(rivals, stop_takes)
        became = Counter(race.became(call) for call in race.calls)
        seen.update(became)
        assert became["told"] == (race.first.left_at == IDLE)
        assert became["served"] + became["told"] + became["served afresh"] == len(race.calls)
        assert bool(became["served"]) is not bool(became["told"])

    race()
    assert {"served", "told", "served afresh"} <= {*seen}


def test_a_crash_or_a_delete_in_the_same_tick_changes_nothing_of_that() -> None:
    """FAULTS F06, F44, F45: every request ends once, in a way that is due."""
    seen: Counter[str] = Counter()

    @settings(max_examples=200, deadline=None, print_blob=True)
    @given(rivals=rivals_of("crash", "delete"), stop_takes=stops, order=st.random_module())
    def race(rivals: list[Rival], stop_takes: float, order: object) -> None:
        race = Race(rivals, stop_takes)
        seen.update(race.became(call) for call in race.calls)
        assert race.world.backends.most.of_one_session == 1
        assert not race.world.backends.alive

    race()
    assert {"served", "told", "gone", "cut off"} <= {*seen}
