"""What was measured: values per round, reasons for what is missing, and ratios over rounds.

Neighbours: `measures` fills it, `report` prints it.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

P50: Final = "p50_s"
CPU_ONE: Final = "cpu_per_call_1_session_s"
CPU_MANY: Final = "cpu_per_call_8_sessions_s"
RATE: Final = "calls_per_s_8_sessions"
BIG_REQUEST: Final = "big_request_s"
BIG_ANSWER: Final = "big_answer_s"
BIG_BOTH: Final = "big_each_way_s"
NOTES: Final = "notes_s"
NOTES_ARRIVED: Final = "notes_arrived"
NOTES_IN_ORDER: Final = "notes_in_order"
FIRST_CALL: Final = "first_call_s"
GONE: Final = "gone_after_delete_s"
GONE_IDLE: Final = "gone_after_idle_limit_s"
COUNTED: Final = "counter_calls"
WRONG: Final = "counter_wrong"
FOREIGN: Final = "counter_foreign_state"
LOST: Final = "counter_lost"
DOUBLED: Final = "counter_doubled"
BACKENDS: Final = "backends_for_9_sessions"
MEMORY: Final = "proxy_bytes_per_idle_session"
THREADS: Final = "proxy_threads_per_idle_session"
WRAPPERS: Final = "wrapper_processes_per_session"
WRAPPER_BYTES: Final = "wrapper_bytes_per_session"


@dataclass(frozen=True)
class Spread:
    """A median over rounds, and between what it lies."""

    median: float
    low: float
    high: float
    rounds: int


def spread(values: list[float]) -> Spread | None:
    if not values:
        return None
    return Spread(statistics.median(values), min(values), max(values), len(values))


@dataclass
class Results:
    """Values by metric, target and round."""

    rounds: int = 0
    values: dict[str, dict[str, dict[int, float]]] = field(
        default_factory=dict[str, dict[str, dict[int, float]]]
    )
    failures: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])

    def add(self, metric: str, target: str, value: float) -> None:
        self.values.setdefault(metric, {}).setdefault(target, {})[self.rounds] = value

    def fail(self, part: str, target: str, reason: str) -> None:
        """The first reason is kept."""
        self.failures.setdefault(part, {}).setdefault(target, reason)

    def of(self, metric: str, target: str) -> dict[int, float]:
        return self.values.get(metric, {}).get(target, {})

    def median(self, metric: str, target: str) -> Spread | None:
        return spread(list(self.of(metric, target).values()))

    def total(self, metric: str, target: str) -> int | None:
        found = self.of(metric, target)
        return int(sum(found.values())) if found else None

    def ratio(
        self, metric: str, target: str, limit: Callable[[int], float | None]
    ) -> Spread | None:
        """Of the value to the limit of the same round, over all rounds that have both."""
        pairs = [(value, limit(turn)) for turn, value in self.of(metric, target).items()]
        return spread([value / bound for value, bound in pairs if bound])
