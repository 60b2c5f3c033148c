"""The history of a run, in a file of JSON lines, so that an interrupted run can be gone on with.

`what` says what a line is: `run` (it begins, with its seed), `sent` and `over` (an entry of
`tests.rig.history`), `foreign` (a status that a foreign owner got), `fault` (one was done), `wrong`
(something that no history shows), `time` (so many seconds have passed). Neighbours: `callers`
write to the history; `cli` has it kept, and judged.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec

from tests.rig.history import Entry, History, violations

EVERY: Final = 1.0
"""Seconds after which what has happened is written down: so much is lost at most."""

Json = dict[str, Any]


class Record:
    """What has happened so far, in this run and in those that it goes on with."""

    def __init__(self, path: Path) -> None:
        """`path`: of the file; the ledger of the backends is beside it."""
        self.path = path
        self.ledger = path.with_name(f"{path.name}.ledger")
        self.history = History()
        self.seed: int | None = None
        self.runs = 0
        self.seconds = 0.0
        self.faults: Counter[str] = Counter()
        """How often each kind was done."""
        self.wrong: list[str] = []
        """What was not as it must be."""
        self._entries: dict[int, Entry] = {}
        if path.exists():
            for line in path.read_bytes().splitlines():
                self._take(line)
        self._file = path.open("ab")
        self._kept = len(self.history.entries)
        self._kept_foreign = len(self.history.foreign)
        self._open: list[Entry] = []

    # -- reading -----------------------------------------------------------------------------------

    def _take(self, line: bytes) -> None:
        try:
            found: Json = json.loads(line)
        except ValueError:
            return  # it was cut off in the middle
        match found.pop("what"):
            case "run":
                self.runs, self.seed = self.runs + 1, found["seed"]
            case "sent" | "over" as what:
                self._take_entry(msgspec.convert(found, Entry), is_over=what == "over")
            case "foreign":
                self.history.foreign.append(found["status"])
            case "fault":
                self.faults[found["kind"]] += 1
            case "wrong":
                self.wrong.append(found["text"])
            case "time":
                self.seconds += found["seconds"]
            case what:
                raise ValueError(f"{self.path}: what is {what}?")

    def _take_entry(self, entry: Entry, *, is_over: bool) -> None:
        if entry.sent in self._entries:
            index = self.history.entries.index(self._entries.pop(entry.sent))
            self.history.entries[index] = entry
        else:
            self.history.entries.append(entry)
        if not is_over:
            entry.left = True  # the run ended before it: what became of it, nobody knows
            self._entries[entry.sent] = entry
        self.history.places = max(self.history.places, entry.sent, entry.finished or 0)

    # -- writing -----------------------------------------------------------------------------------

    def begin(self, seed: int) -> None:
        self.seed = seed
        self.runs += 1
        self._write("run", seed=seed)

    def done(self, kind: str) -> None:
        self.faults[kind] += 1
        self._write("fault", kind=kind)

    def is_wrong(self, text: str) -> None:
        print(f"WRONG: {text}", flush=True)
        self.wrong.append(text)
        self._write("wrong", text=text)

    def keep(self) -> None:
        """Write down what has happened since the last time."""
        still: list[Entry] = []
        for entry in self._open:
            if entry.outcome is None and not entry.left:
                still.append(entry)
            else:
                self._write("over", **_fields(entry))
        for entry in self.history.entries[self._kept :]:
            is_over = entry.outcome is not None or entry.left
            self._write("over" if is_over else "sent", **_fields(entry))
            if not is_over:
                still.append(entry)
        for status in self.history.foreign[self._kept_foreign :]:
            self._write("foreign", status=status)
        self._open = still
        self._kept, self._kept_foreign = len(self.history.entries), len(self.history.foreign)
        self._file.flush()

    async def keep_on(self) -> None:
        """Write down what happens, for ever."""
        while True:
            before = anyio.current_time()
            await anyio.sleep(EVERY)
            self._passed(anyio.current_time() - before)
            self.keep()

    def _passed(self, seconds: float) -> None:
        self.seconds += seconds
        self._write("time", seconds=round(seconds, 3))

    def _write(self, what: str, **fields: object) -> None:
        self._file.write(msgspec.json.encode({"what": what, **fields}) + b"\n")

    def close(self) -> None:
        self.keep()
        self._file.close()

    # -- judging -----------------------------------------------------------------------------------

    def violations(self) -> list[str]:
        """Return what is wrong with all of it."""
        self.history.take_ledger(self.ledger)
        return [*self.wrong, *violations(self.history)]


def _fields(entry: Entry) -> Json:
    return msgspec.to_builtins(entry)
