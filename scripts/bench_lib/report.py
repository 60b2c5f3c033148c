"""The tables, in Markdown: ratios to the limit first, absolute figures after them.

Neighbours: `results` below, `cli` prints what this makes.
"""

from collections.abc import Callable
from typing import Final

from . import results as r
from .measures import BIG, NOTES, Plan
from .results import Results, Spread
from .targets import IDLE, MODERN, PROXY, STARLETTE, STDIO, UPSTREAM, WARM, Targets

NONE: Final = "-"  # an empty cell
MODERN_LIMIT: Final = 1.3
"""What a modern call may cost, as a multiple of a handshake one."""
Cell = Callable[[str], str]

PARTS: Final = {
    "idle_memory": "memory of idle sessions",
    "warm_up": "warming up",
    "latency": "p50",
    "throughput": "calls at 8 sessions",
    "big_request": "8 MiB request",
    "big_answer": "8 MiB answer",
    "big_each_way": "8 MiB each way",
    "notes": f"{NOTES} notes",
    "first_call": "first call, DELETE",
    "idle_end": "end of an idle session",
    "identity": "counter calls",
}


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(found: Spread | None, scale: float = 1.0, digits: int = 2) -> str:
    """The median, and in brackets between what the rounds lie."""
    if found is None:
        return NONE
    low, high = found.low * scale, found.high * scale
    text = f"{found.median * scale:,.{digits}f}"
    return text if found.rounds == 1 else f"{text} ({low:,.{digits}f}..{high:,.{digits}f})"


class Report:
    """One run's tables."""

    def __init__(self, targets: Targets, results: Results, plan: Plan) -> None:
        self._targets = targets
        self._results = results
        self._plan = plan
        others = (STARLETTE, WARM, IDLE)
        running = [n for n in targets.servers if n not in others]
        self._proxies = [n for n in running if not n.startswith(UPSTREAM)]

    def ratios(self) -> str:
        """Against the limit: bare stdio and bare Starlette, round by round."""
        results = self._results
        rows: list[tuple[str, str, Cell]] = [
            (
                "p50 / (bare stdio + bare Starlette)",
                "<= 1.2, aim 1.0",
                lambda n: cell(results.ratio(r.P50, n, self._limit_p50)),
            ),
            (
                "proxy CPU per call / Starlette's, 1 session",
                "<= 1.25, aim 1.0",
                lambda n: cell(results.ratio(r.CPU_ONE, n, self._same(r.CPU_ONE, STARLETTE))),
            ),
            (
                "the same, 8 sessions",
                "",
                lambda n: cell(results.ratio(r.CPU_MANY, n, self._same(r.CPU_MANY, STARLETTE))),
            ),
            (
                "proxy CPU per call / a handshake client's, 1 session",
                f"<= {MODERN_LIMIT:g}",
                lambda n: self._beside_handshake(r.CPU_ONE, n),
            ),
            ("the same, 8 sessions", "", lambda n: self._beside_handshake(r.CPU_MANY, n)),
            (
                "calls/s at 8 sessions / limit",
                ">= 0.8, aim 1.0",
                lambda n: cell(results.ratio(r.RATE, n, self._limit_rate)),
            ),
            (
                "the same / bare Starlette",
                "",
                lambda n: cell(results.ratio(r.RATE, n, self._same(r.RATE, STARLETTE))),
            ),
            ("memory per idle session in the proxy, KiB", "<= 10", self._memory),
            ("threads per idle session", "0", self._threads),
            *self._bigs(),
            (f"{NOTES:,} notes: time / direct", "<= 2", self._against(r.NOTES, "notes")),
            (f"{NOTES:,} notes: arrived", "all, in order", self._arrived),
            ("first call, ms", "", self._first),
            ("first call on a warm spare, ms", "<= 15", self._warm),
            ("backend gone after DELETE, ms", "<= 100", self._gone),
            ("backend gone after the idle limit, ms", "<= 1,000", self._gone_idle),
            ("wrong, lost or doubled messages", "0", self._bad),
            ("backends for 9 sessions", "9", self._backends),
        ]
        head = ["what", "reach", *self._proxies]
        return table(head, [[what, reach, *map(of, self._proxies)] for what, reach, of in rows])

    def absolutes(self) -> str:
        """The same run's figures as measured."""
        rows: list[tuple[str, str, float, int]] = [
            ("p50, µs", r.P50, 1e6, 0),
            ("CPU per call, 8 sessions, µs", r.CPU_MANY, 1e6, 0),
            ("CPU per call, 1 session, µs", r.CPU_ONE, 1e6, 0),
            ("calls/s, 8 sessions", r.RATE, 1, 0),
            ("8 MiB request, ms", r.BIG_REQUEST, 1e3, 0),
            ("8 MiB answer, ms", r.BIG_ANSWER, 1e3, 0),
            ("8 MiB each way, ms", r.BIG_BOTH, 1e3, 0),
            (f"{NOTES:,} notes, ms", r.NOTES, 1e3, 1),
            ("first call, ms", r.FIRST_CALL, 1e3, 1),
            ("gone after DELETE (stdio: EOF), ms", r.GONE, 1e3, 1),
        ]
        names = [STDIO, STARLETTE, *self._proxies]
        median = self._results.median
        return table(
            ["what", *names],
            [
                [what, *(cell(median(metric, name), scale, digits) for name in names)]
                for what, metric, scale, digits in rows
            ],
        )

    def faults(self) -> str:
        """What is missing from the tables, and why."""
        lines = [f"- {name}: {reason}" for name, reason in self._targets.missing.items()]
        for part, by_target in self._results.failures.items():
            lines += [f"- {name}, {PARTS[part]}: {why}" for name, why in by_target.items()]
        for name in self._proxies:
            counts = self._counts(name)
            if counts is not None and any(counts[1:]):
                calls, wrong, foreign, lost, doubled = counts
                lines.append(
                    f"- {name}, {calls:,} counter calls: {wrong:,} answers to other calls, "
                    f"{foreign:,} from a state that others share, {lost:,} lost, "
                    f"{doubled:,} doubled"
                )
            wrappers = self._results.median(r.WRAPPERS, name)
            size = self._results.median(r.WRAPPER_BYTES, name)
            if wrappers and size and wrappers.median:
                lines.append(
                    f"- {name}: {wrappers.median:.1f} processes per session stand between proxy "
                    f"and backend, {size.median / 1024:,.0f} KiB resident (not counted above)"
                )
        return "\n".join(lines).replace(f"{self._targets.root}/", "") or "- nothing"

    def _limit_p50(self, turn: int) -> float | None:
        stdio = self._results.of(r.P50, STDIO).get(turn)
        starlette = self._results.of(r.P50, STARLETTE).get(turn)
        return stdio + starlette if stdio and starlette else None

    def _limit_rate(self, turn: int) -> float | None:
        """Calls per second of one who does both, one after the other."""
        stdio = self._results.of(r.RATE, STDIO).get(turn)
        starlette = self._results.of(r.RATE, STARLETTE).get(turn)
        return 1 / (1 / stdio + 1 / starlette) if stdio and starlette else None

    def _same(self, metric: str, target: str) -> Callable[[int], float | None]:
        return lambda turn: self._results.of(metric, target).get(turn)

    def _failed(self, part: str, name: str) -> str:
        return "failed" if name in self._results.failures.get(part, {}) else NONE

    def _against(self, metric: str, part: str) -> Cell:
        def of(name: str) -> str:
            found = self._results.ratio(metric, name, self._same(metric, STDIO))
            return cell(found) if found else self._failed(part, name)

        return of

    def _bigs(self) -> list[tuple[str, str, Cell]]:
        size = f"{BIG >> 20} MiB"
        return [
            (f"{size} request: time / direct", "<= 2", self._against(r.BIG_REQUEST, "big_request")),
            (f"{size} answer: time / direct", "<= 2", self._against(r.BIG_ANSWER, "big_answer")),
            (f"{size} each way: time / direct", "<= 2", self._against(r.BIG_BOTH, "big_each_way")),
        ]

    def _beside_handshake(self, metric: str, name: str) -> str:
        if name != MODERN:
            return NONE
        return cell(self._results.ratio(metric, name, self._same(metric, PROXY)))

    def _memory(self, name: str) -> str:
        return cell(self._results.median(r.MEMORY, name), 1 / 1024, 1)

    def _threads(self, name: str) -> str:
        return cell(self._results.median(r.THREADS, name))

    def _arrived(self, name: str) -> str:
        arrived = self._results.median(r.NOTES_ARRIVED, name)
        in_order = self._results.median(r.NOTES_IN_ORDER, name)
        if arrived is None or in_order is None:
            return self._failed("notes", name)
        if in_order.low:
            return "all, in order"
        order = "" if arrived.low < NOTES else ", not in order"
        return f"{arrived.low:,.0f}{order}"

    def _warm(self, name: str) -> str:
        if name != PROXY:
            return NONE
        return cell(self._results.median(r.FIRST_CALL, WARM), 1e3, 1)

    def _gone(self, name: str) -> str:
        found = self._results.median(r.GONE, name)
        if found is not None:
            return cell(found, 1e3, 1)
        if name == MODERN:
            return "has no DELETE"
        if self._results.median(r.FIRST_CALL, name) is not None:
            return "no backend of its own"
        return self._failed("first_call", name)

    def _first(self, name: str) -> str:
        found = self._results.median(r.FIRST_CALL, name)
        if found is None:
            return self._failed("first_call", name)
        shared = self._results.median(r.GONE, name) is None and name != MODERN
        return cell(found, 1e3, 1) + (", shared backend already running" if shared else "")

    def _gone_idle(self, name: str) -> str:
        if name != PROXY:
            return NONE
        return cell(self._results.median(r.GONE_IDLE, IDLE), 1e3, 1)

    def _counts(self, name: str) -> list[int] | None:
        metrics = (r.COUNTED, r.WRONG, r.FOREIGN, r.LOST, r.DOUBLED)
        totals = [self._results.total(metric, name) for metric in metrics]
        return None if None in totals else [total or 0 for total in totals]

    def _bad(self, name: str) -> str:
        counts = self._counts(name)
        if counts is None:
            return self._failed("identity", name)
        return f"{sum(counts[1:]):,} of {counts[0]:,}"

    def _backends(self, name: str) -> str:
        return cell(self._results.median(r.BACKENDS, name), digits=0)
