"""A proxy's core with both eras in it, on virtual time: real sessions, bridges and relays.

The servers are in this process; what they are sent is kept, and what they say is up to the test.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, Literal

import anyio
import msgspec

from sessionproxy.core.binding import SessionIds
from sessionproxy.core.exchange import Exchange, Outbound
from sessionproxy.core.manager import Limits, SessionManager
from sessionproxy.core.memory import Opening
from sessionproxy.core.pauses import Pauses
from sessionproxy.core.ports import Identity, Upstream
from sessionproxy.core.reaper import Ages
from sessionproxy.core.relay import Relay
from sessionproxy.core.session import Session
from sessionproxy.core.timers import Timers
from sessionproxy.eras.launcher import EraLauncher
from sessionproxy.eras.rounds import Rounds
from sessionproxy.errors import BackendBusy, Exit, RequestCancelled
from sessionproxy.wire import Envelope, Kind
from sessionproxy.wire.envelope import read_meta, read_request, text
from sessionproxy.wire.welcome import discover_params
from tests.core.fakes import KEY, FakeClient, FakeSink

Json = dict[str, object]

VERSION: Final = "2026-07-28"
ALL: Final[Json] = {
    "elicitation": {"form": {}, "url": {}},
    "sampling": {"tools": {}, "context": {}},
    "roots": {},
}
"""All that a client can be asked."""

FORM: Final[Json] = {"mode": "form", "message": "?", "requestedSchema": {"type": "object"}}
ACCEPTED: Final[Json] = {"action": "accept", "content": {"answer": 42}}

Kinds = Literal["handshake", "modern", "dual", "refuses", "silent", "mute", "exits"]
"""How a server takes its first message. `dual` speaks the era that it is first spoken to in;
`silent` answers nothing before `initialize` but a ping, `mute` not even that; `exits` ends where it
does not understand; `refuses` refuses whatever it is asked."""


class Asked:
    """A request that a server was sent."""

    def __init__(self, server: "Server", message: Json) -> None:
        self._server = server
        self.id = message["id"]
        self.method = str(message["method"])
        self.params = _object(message.get("params"))
        self.cancelled = False

    @property
    def meta(self) -> Json:
        return _object(self.params.get("_meta"))

    def answer(self, result: Mapping[str, object] | None = None) -> None:
        self._server.say({"id": self.id, "result": {"content": []} if result is None else result})

    def refuse(self, code: int, message: str = "no", data: object = None) -> None:
        error: Json = {"code": code, "message": message}
        if data is not None:
            error["data"] = data
        self._server.say({"id": self.id, "error": error})

    def progress(self, progress: float) -> None:
        """Tell of it, under the token that the request came with."""
        params = {"progressToken": self.meta["progressToken"], "progress": progress}
        self._server.note("notifications/progress", **params)


class Question:
    """A request of a server, and what it was answered."""

    def __init__(self) -> None:
        self.result: Json | None = None
        self.error: Json | None = None
        self.times_answered = 0

    @property
    def is_open(self) -> bool:
        return not self.times_answered


class Server:
    """A backend. Its requests are in the order in which they came; its openings are left out."""

    def __init__(self, kind: Kinds, upstream: Upstream, *, announces: bool) -> None:
        self.kind: Kinds = kind
        self.relay = Relay(self, upstream)
        self.upstream = upstream
        self.busy = False
        self.era: str | None = None
        self.opening: Json = {}
        self.openings: list[str] = []
        self.requests: list[Asked] = []
        self.notes: list[Json] = []
        self.levels: list[object] = []
        self.stopped = False
        self._announces = announces
        self._questions: dict[object, Question] = {}
        self._last_id = 0

    # -- as a transport ----------------------------------------------------------------------------

    def send(self, message: bytes, kind: Kind, exchange: Exchange | None = None) -> None:
        if self.busy:
            raise BackendBusy("It does not read.")
        found: Json = msgspec.json.decode(message)
        if "method" not in found:
            self._answered(found)
        elif "id" in found:
            self._asked(Asked(self, found))
        else:
            self._noted(found)

    def cancel(self, exchange: Exchange) -> bool:
        return False

    def kill(self) -> None:
        self.exit(Exit(signal="SIGKILL"))

    def _answered(self, message: Json) -> None:
        question = self._questions[message["id"]]
        question.times_answered += 1
        if "result" in message:
            question.result = _object(message["result"])
        else:
            question.error = _object(message["error"])

    def _noted(self, message: Json) -> None:
        params = _object(message.get("params"))
        self.notes.append({"method": message["method"], "params": params})
        if message["method"] == "notifications/cancelled":
            for request in self.requests:
                request.cancelled = request.cancelled or request.id == params["requestId"]

    def _asked(self, asked: Asked) -> None:
        if self.era is None or asked.method in ("initialize", "server/discover"):
            self.openings.append(asked.method)
            self._open(asked)
        elif asked.method == "logging/setLevel":
            self.levels.append(asked.params["level"])
            asked.answer({})
        else:
            self.requests.append(asked)

    def _open(self, asked: Asked) -> None:
        if asked.method == "initialize" and self.kind in (
            "handshake",
            "dual",
            "silent",
            "mute",
            "exits",
        ):
            self._welcome(asked)
        elif asked.method == "server/discover" and self.kind in ("modern", "dual"):
            self.era, self.opening = self.era or "modern", asked.params
            asked.answer(
                {
                    "resultType": "complete",
                    "supportedVersions": [VERSION],
                    "capabilities": self._capabilities(),
                    "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "s", "version": "1"}},
                }
            )
        elif self.kind == "exits":
            self.exit(Exit(code=1))
        elif self.kind == "silent" and asked.method == "ping":
            asked.answer({})
        elif self.kind not in ("silent", "mute"):
            asked.refuse(-32601, "Method not found")

    def _welcome(self, asked: Asked) -> None:
        if self.era == "modern":
            asked.refuse(-32600, "of the other era")
            return
        self.era, self.opening = "handshake", asked.params
        asked.answer(
            {
                "protocolVersion": "2025-11-25",
                "capabilities": self._capabilities(),
                "serverInfo": {"name": "s", "version": "1"},
                "instructions": "be kind",
            }
        )

    def _capabilities(self) -> Json:
        lists: Json = {"listChanged": True} if self._announces else {}
        return {"tools": lists, "logging": {}, "resources": {"subscribe": True, **lists}}

    # -- what a test does with it ------------------------------------------------------------------

    def say(self, message: Mapping[str, object]) -> None:
        self.relay.receive(msgspec.json.encode({"jsonrpc": "2.0", **message}))

    def note(self, method: str, **params: object) -> None:
        self.say({"method": method, "params": params})

    def log(self, level: str, data: str = "") -> None:
        self.note("notifications/message", level=level, data=data)

    def ask(
        self, method: str = "elicitation/create", params: Mapping[str, object] = FORM
    ) -> Question:
        self._last_id += 1
        question = self._questions[self._last_id] = Question()
        self.say({"id": self._last_id, "method": method, "params": params})
        return question

    def take_back(self, question: Question) -> None:
        """Cancel a request of its own."""
        number = next(n for n, found in self._questions.items() if found is question)
        self.note("notifications/cancelled", requestId=number)

    def exit(self, how: Exit | None = None) -> None:
        self.relay.ended(how or Exit(code=7))

    @property
    def last(self) -> Asked:
        return self.requests[-1]


class Servers:
    """A `Launcher` of them."""

    def __init__(self, kind: Kinds = "handshake", *, announces: bool = False) -> None:
        self.kind: Kinds = kind
        self.announces = announces
        self.started: list[Server] = []
        self.labels: list[str] = []

    @property
    def running(self) -> list[Server]:
        return [server for server in self.started if not server.stopped]

    async def refused(self, identity: Identity, opening: Opening) -> bool:
        return False

    @asynccontextmanager
    async def launch(
        self, identity: Identity, label: str, upstream: Upstream, opening: Opening
    ) -> AsyncGenerator[Relay]:
        server = Server(self.kind, upstream, announces=self.announces)
        self.started.append(server)
        self.labels.append(label)
        try:
            yield server.relay
        finally:
            server.stopped = True


class Request:
    """A request of a client, and what it got. `said` are the messages before the answer."""

    def __init__(self, session: Session, exchange: Exchange, sink: FakeSink) -> None:
        self._session = session
        self.exchange = exchange
        self.sink = sink

    @property
    def waits(self) -> bool:
        return self.exchange.outcome is None

    @property
    def result(self) -> Json:
        """Raises: AssertionError: it got none."""
        outcome = self.exchange.outcome
        assert outcome is not None, "it waits"
        assert outcome.result is not None, repr(outcome)
        return msgspec.json.decode(outcome.result)

    @property
    def error(self) -> Json:
        outcome = self.exchange.outcome
        assert outcome is not None, "it waits"
        assert outcome.error is not None, repr(outcome)
        return msgspec.json.decode(outcome.error)

    @property
    def failure(self) -> str:
        """The reason for which it failed; empty where it did not."""
        outcome = self.exchange.outcome
        return "" if outcome is None or outcome.failure is None else outcome.failure.reason

    @property
    def is_asked(self) -> bool:
        """Whether its answer is a question."""
        outcome = self.exchange.outcome
        if outcome is None or outcome.result is None:
            return False
        return self.result["resultType"] == "input_required"

    @property
    def questions(self) -> dict[str, Json]:
        """What its client is asked, by key."""
        assert self.is_asked, repr(self.exchange.outcome)
        return msgspec.convert(self.result["inputRequests"], dict[str, Json])

    @property
    def state(self) -> str:
        return str(self.result["requestState"])

    @property
    def said(self) -> list[Json]:
        return [msgspec.json.decode(message.data) for message in self.sink.messages]

    @property
    def asks(self) -> list[Outbound]:
        """Requests of the backend that went out on its stream."""
        return [message for message in self.sink.messages if message.ask is not None]

    def hang_up(self) -> None:
        """As a client of the modern era does: that is a cancellation."""
        self._session.cancel(self.exchange)


class Modern:
    """A client of the modern era."""

    def __init__(
        self,
        session: Session,
        *,
        capabilities: Mapping[str, object] = ALL,
        log_level: str | None = None,
    ) -> None:
        self.session = session
        self.capabilities = capabilities
        self.log_level = log_level

    def call(
        self,
        name: str = "act",
        arguments: object = None,
        *,
        method: str = "tools/call",
        token: object = None,
        **more: object,
    ) -> Request:
        """Send a request; `more` are further parameters."""
        named = "uri" if method == "resources/read" else "name"
        params: Json = {
            named: name,
            "arguments": arguments or {},
            "_meta": self._meta(token),
            **more,
        }
        return self.send(method, msgspec.json.encode(params))

    def retry(
        self,
        request: Request,
        answers: Mapping[str, object] | None = None,
        *,
        name: str = "act",
        **more: object,
    ) -> Request:
        """Come back to what `request` was asked; by default with yes to everything."""
        if answers is None:
            answers = dict.fromkeys(request.questions, ACCEPTED)
        given = {"inputResponses": answers, "requestState": request.state}
        return self.call(name, **{**given, **more})  # pyright: ignore[reportArgumentType]

    def send(self, method: str, params: bytes) -> Request:
        sink = FakeSink()
        exchange = Exchange(method, params, client_id=b"1", sink=sink, envelope=envelope_of(params))
        self.session.request(exchange)
        return Request(self.session, exchange, sink)

    def _meta(self, token: object) -> Json:
        meta: Json = {
            "io.modelcontextprotocol/protocolVersion": VERSION,
            "io.modelcontextprotocol/clientCapabilities": self.capabilities,
            "io.modelcontextprotocol/clientInfo": {"name": "c", "version": "1"},
        }
        if self.log_level is not None:
            meta["io.modelcontextprotocol/logLevel"] = self.log_level
        if token is not None:
            meta["progressToken"] = token
        return meta


class Handshake:
    """A client of the handshake era, on a session that it opened."""

    def __init__(self, session: Session, origin: object = None) -> None:
        self.session = session
        self.origin = origin

    def call(
        self,
        name: str = "act",
        arguments: object = None,
        *,
        method: str = "tools/call",
        token: object = None,
        client_id: bytes = b"1",
        sink: FakeSink | None = None,
    ) -> Request:
        params: Json = {"name": name, "arguments": arguments or {}}
        if token is not None:
            params["_meta"] = {"progressToken": token}
        return self.send(method, params, client_id=client_id, sink=sink)

    def send(
        self,
        method: str,
        params: Mapping[str, object],
        *,
        client_id: bytes = b"1",
        sink: FakeSink | None = None,
    ) -> Request:
        sink = FakeSink() if sink is None else sink
        encoded = msgspec.json.encode(params)
        exchange = Exchange(method, encoded, client_id=client_id, sink=sink, origin=self.origin)
        self.session.request(exchange)
        return Request(self.session, exchange, sink)

    def cancel(self, client_id: int = 1) -> None:
        params = msgspec.json.encode({"requestId": client_id})
        self.session.notify("notifications/cancelled", params, self.origin)


def envelope_of(params: bytes) -> Envelope:
    """Return what a request says of itself; the headers are the frontend's matter."""
    found = read_request(params)
    meta = read_meta(found.meta)
    return Envelope(
        VERSION,
        bytes(meta.capabilities or b"{}"),
        None if meta.client is None else bytes(meta.client),
        text(meta.log_level),
        found.name,
        text(found.state),
        None if found.responses is None else bytes(found.responses),
        found.meta,
    )


class World:
    """A manager, its sessions and the servers behind them."""

    def __init__(self, manager: SessionManager, servers: Servers, launcher: EraLauncher) -> None:
        self.manager = manager
        self.servers = servers
        self.launcher = launcher
        self.client = FakeClient()
        self.wall = 1_000_000.0
        """The wall clock, seconds."""

    @property
    def server(self) -> Server:
        """The one that runs."""
        (server,) = self.servers.running
        return server

    async def modern(
        self,
        owner: str = "alice",
        key: str = "c:",
        *,
        capabilities: Mapping[str, object] = ALL,
        log_level: str | None = None,
        client: FakeClient | None = None,
    ) -> Modern:
        """Return a client of a conversation, which is opened where there is none."""
        session = self.manager.conversation(owner, key)
        if session is None:
            declared = msgspec.json.encode(capabilities)
            envelope = Envelope(VERSION, declared, b'{"name":"c","version":"1"}')
            opening = Opening(discover_params(envelope), "server/discover")
            session = self.manager.converse(owner, key, opening, client or self.client)
        await self.manager.ready(session)
        return Modern(session, capabilities=capabilities, log_level=log_level)

    async def handshake(
        self,
        owner: str = "alice",
        *,
        capabilities: Mapping[str, object] = ALL,
        initialized: bool = True,
    ) -> Handshake:
        opening = Opening(
            msgspec.json.encode(
                {
                    "protocolVersion": "2025-11-25",
                    "capabilities": capabilities,
                    "clientInfo": {"name": "h", "version": "1"},
                }
            )
        )
        session = self.manager.create(owner, opening, self.client, FakeSink())
        await self.manager.opened(session)
        if initialized:
            session.notify("notifications/initialized", None)
        return Handshake(session)


@asynccontextmanager
async def world(
    kind: Kinds = "handshake",
    *,
    announces: bool = False,
    idle: float | None = None,
    call_timeout: float | None = None,
    shared_sessions: bool = False,
) -> AsyncGenerator[World]:
    """Run a proxy's core over servers of this kind."""
    pauses = Pauses()
    timers = Timers(pauses)
    servers = Servers(kind, announces=announces)
    rounds = Rounds(KEY, lambda: found.wall)
    launcher = EraLauncher(
        servers, timers, rounds, shared_sessions=shared_sessions, probe_timeout=10
    )
    limits = Limits(ages=Ages(idle=idle, linger=None, max_age=None), call_timeout=call_timeout)
    manager = SessionManager("r", launcher, limits, SessionIds(KEY), pauses=pauses, timers=timers)
    found = World(manager, servers, launcher)
    async with anyio.create_task_group() as clocks, manager:
        clocks.start_soon(pauses.run)
        clocks.start_soon(timers.run)
        yield found
        clocks.cancel_scope.cancel()
    assert not len(timers), "a timer was left behind"
    assert not servers.running


async def moments(seconds: float = 0.2) -> None:
    """Let time pass: enough for questions to gather."""
    await anyio.sleep(seconds)


def methods(messages: Sequence[Json]) -> list[object]:
    return [message["method"] for message in messages]


def _object(value: object) -> Json:
    return msgspec.convert(value or {}, Json)


CANCELLED: Final = RequestCancelled.reason
