"""What the clients of a proxy saw, in order, and which of the invariants of FAULTS it breaks.

Pure: it knows no event loop, no pytest and no clock but its own counting, so that histories
recorded elsewhere can be judged too. A request carries a *token* of its own, and the scripted
backend writes a *ledger*: a line for every request it executes. Neighbours:
`tests.rig.invariants` records one around a test; `tests.rig.scripted` writes the ledger.
"""

import enum
import json
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

Json = dict[str, Any]

TOKEN: Final = "tests/token"
"""Member of `_meta` that tells one request from all others."""

FAULT: Final = "sessionproxy/fault"
LOSS: Final = "sessionproxy/loss"

STATEFUL: Final = frozenset({"tools/call", "resources/read", "prompts/get"})
"""Requests that rely on the backend's state: not answered by a fresh one before the telling."""

REPLAYED: Final = frozenset({"logging/setLevel", "resources/subscribe"})
"""Requests that the proxy repeats at a fresh backend by itself."""

HIDDEN: Final = frozenset({401, 403, 404})
"""What a foreign owner may see."""


class Outcome(enum.Enum):
    """How a request ended, as its client saw it."""

    RESULT = "result"
    TOOL_ERROR = "tool_error"
    ERROR = "error"  # a JSON-RPC error under the request's own id
    REFUSED = "refused"  # an HTTP status other than 200: it was not accepted
    CLOSED = "closed"  # the connection it waited on was closed


class Entry(msgspec.Struct, kw_only=True):
    """One request. `sent` and `finished` are places in the history, not times."""

    session: str
    """One client's at one backend. Of several servers behind it, those after the first are told
    apart behind an `@`: what is told of all counts for each."""
    kind: str
    """Its method."""
    token: str | None = None
    sent: int
    finished: int | None = None
    outcome: Outcome | None = None
    more: int = 0
    """Outcomes after the first, of which there must be none."""
    left: bool = False
    """The client hung up before it had an outcome: what became of it is unknown."""
    status: int | None = None
    nonce: str | None = None
    count: int | None = None
    """Of the backend that answered: who it is, and how many requests it had executed by then."""
    fault: Json | None = None
    loss: bool = False
    """The result carries a note that state was lost."""

    @property
    def accepted(self) -> bool:
        return self.outcome is not Outcome.REFUSED

    @property
    def tells(self) -> bool:
        """Whether its client was told of a loss, or may have been and did not wait for it."""
        told = self.fault is not None and self.fault.get("kind") == "state_lost"
        return told or self.loss or self.left or self.outcome is Outcome.CLOSED

    @property
    def not_executed(self) -> bool:
        """Whether its client was told that it certainly did not run."""
        told = self.fault is not None and self.fault.get("outcome") == "not_executed"
        return told or self.outcome is Outcome.REFUSED

    def __str__(self) -> str:
        token = "" if self.token is None else f" {self.token}"
        return f"{self.session} {self.kind}{token} (sent {self.sent}, finished {self.finished})"


class Execution(msgspec.Struct, frozen=True):
    """One line of the ledger: a backend begins to execute a request."""

    nonce: str
    count: int
    method: str
    token: str | None = None


class History(msgspec.Struct):
    """A recorder. It is not for several threads."""

    entries: list[Entry] = []
    executions: list[Execution] = []
    foreign: list[int] = []
    """HTTP statuses that a foreign owner got."""
    places: int = 0

    def place(self) -> int:
        self.places += 1
        return self.places

    def sent(self, session: str, kind: str, token: str | None = None) -> Entry:
        """Note that a request is being sent. Also for those that a test writes by hand."""
        entry = Entry(session=session, kind=kind, token=token, sent=self.place())
        self.entries.append(entry)
        return entry

    def finished(self, entry: Entry, outcome: Outcome, *, status: int | None = None) -> None:
        if entry.outcome is not None:
            entry.more += 1
            return
        entry.outcome, entry.status, entry.finished = outcome, status, self.place()

    def answered(self, entry: Entry, message: Json) -> None:
        """Note the response to a request, with what it tells of the backend."""
        if "error" in message:
            entry.fault = entry.fault or _fault_in(message["error"])
            self.finished(entry, Outcome.ERROR)
            return
        result: Json = message["result"]
        meta: Json = result.get("_meta") or {}
        entry.fault = entry.fault or meta.get(FAULT)
        entry.loss = entry.loss or LOSS in meta
        if entry.outcome is None:
            facts: Json = result.get("structuredContent") or result
            entry.nonce = facts.get("nonce") or meta.get("x-nonce")
            entry.count = facts.get("count")
        self.finished(entry, Outcome.TOOL_ERROR if result.get("isError") else Outcome.RESULT)

    def take_ledger(self, path: Path) -> None:
        """Read what the backends say they executed, anew."""
        lines = path.read_text().splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines]
        self.executions = [msgspec.convert(line, Execution) for line in found if "count" in line]


def _fault_in(error: Json) -> Json | None:
    try:
        return error["data"][FAULT]
    except (KeyError, TypeError):
        return None


def violations(history: History) -> list[str]:
    """Return what breaks an invariant, each line beginning with its name."""
    return list(_violations(history))


def _violations(history: History) -> Iterator[str]:
    sessions: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in history.entries:
        sessions[entry.session].append(entry)
    owners = _owners(history)
    yield from _shared_nonces(owners)
    yield from _mixed_up_answers(history)
    yield from _executed_twice(history)
    yield from _executed_too_often(history, owners)
    for entry in history.entries:
        yield from _outcomes(entry)
    tellings: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in history.entries:
        if entry.tells and "server" not in (entry.fault or {}):
            tellings[entry.session.partition("@")[0]].append(entry)
    for name, entries in sessions.items():
        yield from _unsaid_losses(entries, [*entries, *tellings[name.partition("@")[0]]])
        yield from _counters(entries)
    for status in history.foreign:
        if status not in HIDDEN:
            yield f"I7: a foreign owner saw {status}"


# -- I1: isolation -----------------------------------------------------------------------------


def _owners(history: History) -> Mapping[str, set[str]]:
    """Return the sessions that each nonce has served, by its answers and by the ledger."""
    owners: defaultdict[str, set[str]] = defaultdict(set)
    by_token = {entry.token: entry for entry in history.entries if entry.token is not None}
    for entry in history.entries:
        if entry.nonce is not None:
            owners[entry.nonce].add(entry.session)
    for execution in history.executions:
        entry = by_token.get(execution.token or "")
        if entry is not None:
            owners[execution.nonce].add(entry.session)
    return owners


def _shared_nonces(owners: Mapping[str, set[str]]) -> Iterator[str]:
    for nonce, sessions in owners.items():
        if len(sessions) > 1:
            yield f"I1: backend {nonce} served several sessions: {', '.join(sorted(sessions))}"


def _mixed_up_answers(history: History) -> Iterator[str]:
    """An answer comes from the execution of its own request."""
    ran = {execution.token: execution for execution in history.executions}
    for entry in history.entries:
        execution = ran.get(entry.token) if entry.token is not None else None
        if execution is None or entry.count is None:
            continue
        if (execution.nonce, execution.count) != (entry.nonce, entry.count):
            yield f"I1: {entry} has the answer of another request"


# -- I2: at most one execution -----------------------------------------------------------------


def _executed_twice(history: History) -> Iterator[str]:
    ran = Counter(e.token for e in history.executions if e.token is not None)
    for token, times in ran.items():
        if times > 1:
            yield f"I2: the request {token} was executed {times} times"
    for entry in history.entries:
        if entry.token is not None and entry.not_executed and ran[entry.token]:
            yield f"I2: {entry} was executed, its client was told that it was not"
        if history.executions and entry.token is not None and entry.count and not ran[entry.token]:
            yield f"I2: {entry} was answered, and no backend has executed it"


def _executed_too_often(history: History, owners: Mapping[str, set[str]]) -> Iterator[str]:
    counts: Counter[str] = Counter()
    for entry in history.entries:
        if entry.nonce is not None:
            counts[entry.nonce] = max(counts[entry.nonce], entry.count or 0)
    for execution in history.executions:
        counts[execution.nonce] = max(counts[execution.nonce], execution.count)
    accepted: Counter[str] = Counter()
    replayed: Counter[str] = Counter()
    for entry in history.entries:
        if entry.accepted and entry.kind != "initialize":
            accepted[entry.session] += 1
            replayed[entry.session] += entry.kind in REPLAYED
    for nonce, count in counts.items():
        requests = sum(accepted[session] for session in owners.get(nonce, ()))
        again = sum(replayed[session] for session in owners.get(nonce, ()))
        if requests and count > requests + again:
            yield f"I2: backend {nonce} executed {count} requests, {requests} were accepted"


# -- I3: one outcome ---------------------------------------------------------------------------


def _outcomes(entry: Entry) -> Iterator[str]:
    if entry.more:
        yield f"I3: {entry} has {entry.more + 1} outcomes"
    if entry.outcome is None and not entry.left:
        yield f"I3: {entry} has no outcome"


# -- I6: no silent loss ------------------------------------------------------------------------


def _unsaid_losses(entries: Sequence[Entry], tellings: Sequence[Entry]) -> Iterator[str]:
    """The nonce of a session changes only after its client could know, and never back."""
    nonce: str | None = None
    asked = 0  # when the last request that the present backend answered was sent
    replaced: dict[str, int] = {}
    for entry in sorted(entries, key=lambda entry: entry.finished or 0):
        finished = entry.finished or 0
        if entry.nonce is None:
            continue
        if entry.nonce == nonce:
            asked = max(asked, entry.sent)
        elif entry.nonce in replaced:
            if entry.sent > replaced[entry.nonce]:
                yield f"I1: {entry} was answered by backend {entry.nonce}, which was replaced"
        elif nonce is None or entry.kind in STATEFUL:  # what needs no state is answered untold
            if nonce is not None:
                replaced[nonce] = finished
                if not any(_told(other, asked, finished) for other in tellings):
                    yield f"I6: {entry} was answered by a fresh backend, and nobody had been told"
            nonce, asked = entry.nonce, entry.sent


def _told(entry: Entry, since: int, until: int) -> bool:
    """Return whether this may be what told the client of a loss between these two places."""
    return entry.tells and entry.sent <= until and (entry.left or (entry.finished or 0) > since)


def _counters(entries: Sequence[Entry]) -> Iterator[str]:
    """A backend's counter only rises."""
    answers = [e for e in entries if e.nonce is not None and e.count is not None]
    seen: dict[tuple[str | None, int | None], Entry] = {}
    finished: defaultdict[str | None, list[int]] = defaultdict(list)
    highest: defaultdict[str | None, list[int]] = defaultdict(list)
    """Of each backend, where its answers came, and the highest count up to there."""
    for entry in sorted(answers, key=lambda entry: entry.finished or 0):
        nonce, count = entry.nonce, entry.count or 0
        other = seen.setdefault((nonce, entry.count), entry)
        if other is not entry:
            yield f"I6: {entry} and {other} have the same count, {entry.count}"
        before = bisect_left(finished[nonce], entry.sent)
        if before and highest[nonce][before - 1] > count:
            yield f"I6: {entry} has a lower count than an earlier answer, {entry.count}"
        finished[nonce].append(entry.finished or 0)
        highest[nonce].append(max([count, *highest[nonce][-1:]]))
