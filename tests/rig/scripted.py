"""A stdio backend that does what a test tells it to. The standard library alone, so it starts fast.

A request is answered after its *steps* were taken, which the test sends along:

    {"name": "do", "arguments": {"steps": [{"progress": 3}, {"ask": {"method": "roots/list"}}]}}

for `tools/call`, and in `_meta.steps` for any other method. Each step has one name, and STEPS below
says what it does. Every answer carries the backend's nonce and pid, how many requests it has
executed, and what the steps found out. How the process as a whole behaves is its argument, a JSON
object with these members, all optional:

    start       steps before anything is read
    initialize  steps before `initialize` is answered
    on          steps for each method named, notifications too
    eof         steps at the end of stdin; it exits with 0 where there are none
    ignores     names of signals
    reads       lines that are read at all
    lives       instead of all these: the scripts of the backends to come, in the order of their
                starts, the last one for all that follow; it needs a ledger

Every request runs in a thread of its own, so calls overlap.

The file named by TESTS_LEDGER, where there is such, gets a line when the backend starts and one for
every request that it begins to execute (`tests.rig.history`). The first TESTS_SPARED backends that
wrote to it do nothing of their script: a bystander beside those that misbehave.

Neighbours: `tests.rig.http` has the steps of a call as keyword arguments; nothing here is imported
by tests.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

Json = dict[str, Any]

CAPABILITIES: Json = {
    "tools": {"listChanged": True},
    "resources": {"subscribe": True, "listChanged": True},
    "prompts": {"listChanged": True},
    "logging": {},
    "completions": {},
    "tasks": {"list": {}, "cancel": {}, "requests": {"tools": {"call": {}}}},
    "experimental": {"x-tests": {"unknown": [1, None]}},
}


class Backend:
    """One process, one conversation."""

    def __init__(self, script: Json) -> None:
        self.script = self._script_of_this_life(script)
        self.nonce = secrets.token_hex(8)
        self.executed = 0
        self.note_in_ledger(start=True)
        self.seen: list[Json] = []
        """All messages received, in order."""
        self.released: defaultdict[str, threading.Event] = defaultdict(threading.Event)
        self.answers: dict[str, Json] = {}
        """To our own requests, by our id as JSON."""
        self.listening: list[object] = []
        """Ids of the subscriptions that were acknowledged."""
        self.cancelled: dict[str, Json] = {}
        """Cancellations received, by the id of the request as JSON."""
        self._arrived = threading.Condition()
        self._asked = 0
        self._writing = threading.Lock()

    # -- the ledger --------------------------------------------------------------------------------

    def _script_of_this_life(self, script: Json) -> Json:
        spared = int(os.environ.get("TESTS_SPARED", "0"))
        if not spared and "lives" not in script:
            return script
        before = self._started_before() - spared
        if before < 0:
            return {}
        lives: list[Json] = script.get("lives", [script])
        return lives[min(before, len(lives) - 1)]

    def _started_before(self) -> int:
        try:
            with open(os.environ["TESTS_LEDGER"]) as ledger:
                return ledger.read().count('"start"')
        except (KeyError, FileNotFoundError):
            return 0

    def note_in_ledger(self, **line: object) -> None:
        """Append a line, in one write: other backends append too."""
        path = os.environ.get("TESTS_LEDGER")
        if path is None:
            return
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(fd, json.dumps({"nonce": self.nonce, **line}).encode() + b"\n")
        os.close(fd)

    # -- the pipes ---------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        with self._writing:
            view = memoryview(data)
            while view:
                view = view[os.write(1, view) :]

    def send(self, **message: object) -> None:
        self.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    def serve(self) -> None:
        for name in self.script.get("ignores", ()):
            signal.signal(signal.Signals[name], signal.SIG_IGN)
        Call(self, {}).take(self.script.get("start", ()))
        limit = self.script.get("reads", float("inf"))
        while limit > 0 and (line := sys.stdin.buffer.readline()):
            limit -= 1
            for message in _messages(line):
                self._receive(message)
        if limit <= 0:
            threading.Event().wait()
        Call(self, {}).take(self.script.get("eof", ({"exit": 0},)))
        os._exit(0)

    def _receive(self, message: Json) -> None:
        self.seen.append(message)
        if "method" not in message:
            self._note(self.answers, message.get("id"), message)
            return
        if message["method"] == "notifications/cancelled":
            self._note(self.cancelled, message["params"].get("requestId"), message["params"])
        if "id" in message and message["method"] not in ("initialize", "ping"):
            self.executed += 1
            self.note_in_ledger(
                count=self.executed, method=message["method"], token=_token_of(message)
            )
        call = Call(self, message)
        threading.Thread(target=call.run, daemon=True).start()

    # -- what calls wait for -----------------------------------------------------------------------

    def _note(self, where: dict[str, Json], key: object, value: Json) -> None:
        with self._arrived:
            where[json.dumps(key)] = value
            self._arrived.notify_all()

    def await_in(self, where: dict[str, Json], key: object) -> Json:
        with self._arrived:
            self._arrived.wait_for(lambda: json.dumps(key) in where)
            return where[json.dumps(key)]

    def next_id(self) -> str:
        with self._writing:
            self._asked += 1
            return f"ask-{self._asked}"


def _messages(line: bytes) -> list[Json]:
    found: Json | list[Json] = json.loads(line)
    return found if isinstance(found, list) else [found]


def _token_of(message: Json) -> object:
    try:
        return message["params"]["_meta"]["tests/token"]
    except (KeyError, TypeError):
        return None


class Call:
    """One message of the client while it is being served; also the bare steps of the script."""

    def __init__(self, backend: Backend, message: Json) -> None:
        self.backend = backend
        self.message = message
        self.method: str = message.get("method", "")
        self.params: Json = message.get("params") or {}
        self.count = backend.executed
        self.told: Json = {}
        """What the steps found out."""
        self.answer: Json | None = None
        self.answers = 1
        """How often it is answered."""
        self.after: list[Json] = []

    def steps(self) -> list[Json]:
        steps = list(self.backend.script.get("on", {}).get(self.method, ()))
        if self.method == "initialize":
            steps += self.backend.script.get("initialize", ())
        given = self.params if self.method != "tools/call" else self.params.get("arguments", {})
        meta = given if self.method == "tools/call" else given.get("_meta") or {}
        return [*steps, *meta.get("steps", ())]

    def take(self, steps: Iterable[Json]) -> None:
        for step in steps:
            ((name, value),) = step.items()
            STEPS[name](self, value)

    def run(self) -> None:
        self.take(self.steps())
        if "id" in self.message and self.answer != {}:
            for _ in range(self.answers):
                answer = self.answer or {"result": self.result()}
                self.backend.send(id=self.message["id"], **answer)
        self.take(self.after)

    def result(self) -> Json:
        """What is answered where no step said otherwise."""
        if self.method == "initialize":
            return self._initialize_result()
        if self.method == "ping":
            return {}
        facts = {"nonce": self.backend.nonce, "pid": os.getpid(), "count": self.count, **self.told}
        if self.method != "tools/call":
            return {"method": self.method, "params": self.message.get("params"), **facts}
        facts["echo"] = self.params.get("arguments", {}).get("echo")
        text = {"type": "text", "text": f"{self.backend.nonce} {self.count}"}
        return {"content": [text], "structuredContent": facts}

    def _initialize_result(self) -> Json:
        return {
            "protocolVersion": self.params.get("protocolVersion"),
            "capabilities": CAPABILITIES,
            "serverInfo": {"name": "scripted", "version": "1", "title": "Söme", "x-unknown": [1.5]},
            "instructions": "Do as you are told.",
            "_meta": {"x-nonce": self.backend.nonce},
            "x-unknown": None,
        }

    @property
    def token(self) -> object:
        meta: Json = self.params.get("_meta") or {}
        return meta.get("progressToken")

    def notify(self, method: str, params: object = None) -> None:
        fields = {} if params is None else {"params": params}
        self.backend.send(method=method, **fields)

    # -- steps -------------------------------------------------------------------------------------

    def progress(self, of: "int | Json") -> None:
        """Report progress: a number of times, or once with the members of an object."""
        if isinstance(of, int):
            reports: list[Json] = [{"progress": n, "total": of} for n in range(1, of + 1)]
        else:
            reports = [of]
        for report in reports:
            self.notify("notifications/progress", {"progressToken": self.token, **report})

    def log(self, data: object) -> None:
        """Log it, as level `info`."""
        params = {"level": "info", "logger": "scripted", "data": data}
        self.notify("notifications/message", params)

    def note(self, message: Json) -> None:
        """Send a notification: `method` and `params`."""
        self.notify(message["method"], message.get("params"))

    def listen(self, _: object) -> None:
        """Acknowledge a `subscriptions/listen`, and leave it open."""
        self.backend.listening.append(self.message["id"])
        self._tell("notifications/subscriptions/acknowledged", self.message["id"], **self.params)
        self.answer = {}

    def tell(self, change: Json) -> None:
        """Send a notification, `method` and `params`, on every subscription that is open."""
        for number in self.backend.listening:
            if json.dumps(number) not in self.backend.cancelled:
                self._tell(change["method"], number, **change.get("params", {}))

    def _tell(self, method: str, number: object, **params: object) -> None:
        meta = {"io.modelcontextprotocol/subscriptionId": number}
        self.notify(method, {**params, "_meta": meta})

    def ask(self, questions: "Json | list[Json]") -> None:
        """Send one request, or a list of them at once, and wait for all answers.

        Each has `method` and `params`; `id`, where it should not be ours; `cancel`, the params of
        a cancellation that follows at once instead of waiting.
        """
        waiting: list[object] = []
        for question in questions if isinstance(questions, list) else [questions]:
            number = question.get("id", None) or self.backend.next_id()
            fields = {"params": question["params"]} if "params" in question else {}
            self.backend.send(id=number, method=question["method"], **fields)
            if "cancel" in question:
                params = {"requestId": number, **question["cancel"]}
                self.notify("notifications/cancelled", params)
            else:
                waiting.append(number)
        found = [self.backend.await_in(self.backend.answers, number) for number in waiting]
        self.told["answers"] = [*self.told.get("answers", ()), *found]

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def wait(self, name: str) -> None:
        """Wait until another call takes the step `release` with the same name."""
        self.backend.released[name].wait()

    def release(self, name: str) -> None:
        self.backend.released[name].set()

    def until_cancelled(self, _: object) -> None:
        """Wait for the cancellation of this call."""
        self.told["cancelled"] = self.backend.await_in(
            self.backend.cancelled, self.message.get("id")
        )

    def exit(self, status: int) -> None:
        os._exit(status)

    def kill(self, name: str) -> None:
        """Die of a signal."""
        os.kill(os.getpid(), signal.Signals[name])
        threading.Event().wait()

    def raw(self, text: str) -> None:
        """Write it to stdout as it is; latin-1, so that any byte can be had."""
        self.backend.write(text.encode("latin-1"))

    def babble(self, text: str) -> None:
        """Write it to stdout again and again, as `raw`, and do nothing else any more."""
        data = text.encode("latin-1") * max(1, 65536 // len(text))
        while True:
            self.backend.write(data)

    def fill(self, size: int) -> None:
        """Make the answer so many characters longer."""
        self.told["fill"] = "x" * size

    def replies(self, answer: Json) -> None:
        """Answer with exactly these members of a response: `result` or `error`; {}: not at all."""
        self.answer = answer

    def again(self, times: int) -> None:
        """Answer so many times more."""
        self.answers += times

    def repeat(self, how: Json) -> None:
        """Take `steps` so many `times`."""
        for _ in range(how["times"]):
            self.take(how["steps"])

    def then(self, steps: list[Json]) -> None:
        """Take more steps once the answer was written."""
        self.after = steps

    def stderr(self, lines: list[str]) -> None:
        os.write(2, "".join(f"{line}\n" for line in lines).encode())

    def noise(self, size: int) -> None:
        """Write so many bytes to stderr, in lines of 1,000."""
        for _ in range(size // 1000):
            os.write(2, b"x" * 999 + b"\n")

    def flood(self, size: int) -> None:
        """Write so many bytes of log messages, 1,000 each."""
        for n in range(size // 1000):
            self.log([n, "x" * 900])

    def close(self, name: str) -> None:
        os.close({"stdin": 0, "stdout": 1, "stderr": 2}[name])

    def spawn(self, how: list[str]) -> None:
        """Start a child that lives on, in the same process group.

        `session`: in a session of its own; `daemon`: so too, and as nobody's child; `holds`: it
        keeps our stdout and stderr open; `stubborn`: it ignores SIGTERM.
        """
        pipes = None if "holds" in how else subprocess.DEVNULL
        line = ["sleep", "600"]
        if "stubborn" in how:
            line = ["sh", "-c", "trap '' TERM; exec sleep 600"]
        if "daemon" in how:
            shell = ["sh", "-c", "setsid sleep 600 >/dev/null 2>&1 & echo $!"]
            pid = int(subprocess.check_output(shell, stdin=subprocess.DEVNULL))
        else:
            pid = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=pipes,
                stderr=pipes,
                start_new_session="session" in how,
            ).pid
        self.told["children"] = [*self.told.get("children", ()), pid]

    def stray(self, seconds: str) -> None:
        """Start a process that nothing links to us from its first moment: no ancestor, session or
        environment of ours. `seconds`, for which it sleeps, is how a test finds it."""
        pipes = subprocess.DEVNULL
        line = ["env", "-i", "setsid", "--fork", "sleep", seconds]
        subprocess.run(line, stdin=pipes, stdout=pipes, stderr=pipes, check=True)

    def tells(self, what: str) -> None:
        """Put into the answer what the backend has seen, or what it was started with."""
        about = {"argv": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ)}
        self.told["seen" if what == "seen" else "about"] = (
            list(self.backend.seen) if what == "seen" else about
        )


STEPS: dict[str, Callable[..., None]] = {
    step.__name__: step
    for step in (
        Call.progress, Call.log, Call.note, Call.ask, Call.sleep, Call.wait, Call.release,
        Call.until_cancelled, Call.exit, Call.kill, Call.raw, Call.babble, Call.fill, Call.replies,
        Call.again, Call.repeat, Call.then, Call.stderr, Call.noise, Call.flood, Call.close,
        Call.spawn, Call.stray, Call.tells, Call.listen, Call.tell,
    )
}  # fmt: skip


if __name__ == "__main__":
    Backend(json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}).serve()
