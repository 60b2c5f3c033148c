"""What code of others does around every request of a client: before it is forwarded, and after.

A hook is given the request and what comes next, as in ASGI; it may change the request, answer it
itself, change the answer, or let it be. Neighbours: `backends.hooked` runs hooks; users write them.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple, Self, cast

import msgspec

from ..wire import Bytes
from .between import owner_behind
from .exchange import Exchange
from .ports import Identity, Upstream


class Request:
    """A client's request on its way to a backend. It is not changed but replaced."""

    __slots__ = ("_params", "method", "owner", "raw", "server", "session")

    def __init__(
        self,
        method: str,
        raw: bytes | None,
        *,
        server: str,
        owner: str | None,
        session: str,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        self.method: str = method
        self.raw: bytes | None = raw
        """Its `params`, encoded; None where it has none."""
        self.server: str = server
        """Of the endpoint that it came to; it names one of several servers only where that one is
        alone."""
        self.owner: str | None = owner
        """Whose it is, as logs have it: issuer and name (`static ann`, of a token file), `local` or
        `anonymous`. None: the proxy's own, which asks what there is before a client needs to know;
        where users are known by their tokens, it asks for each of them."""
        self.session: str = session
        """Names the session as the log does. Not its id, which is a secret."""
        self._params = params

    def __repr__(self) -> str:
        return f"<Request {self.method} of session {self.session}>"

    @property
    def user(self) -> str | None:
        """The name of the user whose it is; None: users are not known, or it is the proxy's own."""
        return (self.owner or "").partition(" ")[2] or None

    @property
    def params(self) -> Mapping[str, Any]:
        """Its `params`, decoded once; empty where it has none."""
        if self._params is None:
            self._params = _decoded(self.raw or b"{}")
        return self._params

    @property
    def name(self) -> str | None:
        """Of the tool or prompt, or the URI of the resource, that it is about."""
        found = self.params.get("uri" if self.method.startswith("resources/") else "name")
        return found if isinstance(found, str) else None

    def with_params(self, params: Mapping[str, Any]) -> "Request":
        """Return the same request with other parameters."""
        return Request(
            self.method,
            msgspec.json.encode(params),
            server=self.server,
            owner=self.owner,
            session=self.session,
            params=params,
        )


class Sender(NamedTuple):
    """What requests of one session say of whose they are, as `Request` has it."""

    server: str
    owner: str | None
    session: str

    @classmethod
    def of(cls, identity: Identity, label: str, upstream: Upstream) -> Self:
        """`upstream`: of the session's backend."""
        return cls(identity.server, owner_behind(upstream, identity.owner), label)

    def request(self, exchange: Exchange) -> Request:
        """Return a client's request as the user's code is to see it."""
        raw = None if exchange.params is None else bytes(exchange.params)
        return Request(
            exchange.method, raw, server=self.server, owner=self.owner, session=self.session
        )


class Result:
    """The answer to a request, as it was written."""

    __slots__ = ("_value", "raw")

    def __init__(self, raw: bytes) -> None:
        """`raw`: an encoded object."""
        self.raw: bytes = raw
        self._value: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Self:
        """Return an answer with this for its result."""
        return cls(msgspec.json.encode(value))

    @property
    def value(self) -> Mapping[str, Any]:
        """The result, decoded once."""
        if self._value is None:
            self._value = _decoded(self.raw)
        return self._value


class RequestFailed(Exception):
    """A request was answered with a JSON-RPC error. A hook may raise it, too."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(message)
        self.code: int = code
        """Of the JSON-RPC error."""
        self.message: str = message
        """Of the JSON-RPC error: one sentence for whoever asked."""
        self.data: object = data
        """Whatever else the error says; None: nothing."""
        error: dict[str, object] = {"code": code, "message": message}
        self.raw: bytes = msgspec.json.encode(error if data is None else {**error, "data": data})
        """The error, encoded; where it came from a backend, as that wrote it."""

    @classmethod
    def read(cls, raw: Bytes) -> Self:
        """Return the failure that an encoded error is."""
        fields = _decoded(bytes(raw))
        code, message = fields.get("code"), fields.get("message")
        failed = cls(
            code if isinstance(code, int) else -32603,
            message if isinstance(message, str) else "",
            fields.get("data"),
        )
        failed.raw = bytes(raw)
        return failed


current_request: ContextVar[Request | None] = ContextVar("current_request", default=None)
"""The request that the present code works for, in a tool of this process, or in the factory of a
provider, which says by it who has which backend. None: for none, or elsewhere."""

CallNext = Callable[[Request], Awaitable[Result]]
"""Forwards a request and returns its result. Raises: RequestFailed: it was answered with an error;
ProxyError: it was not answered."""

RequestHook = Callable[[Request, CallNext], Awaitable[Result]]
"""A hook: is run around every request, in the context of the client's own. A coroutine function."""


def _decoded(raw: bytes) -> Mapping[str, Any]:
    """Return an encoded object; an empty one, where it is something else."""
    try:
        found = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return {}
    return cast("Mapping[str, Any]", found) if isinstance(found, dict) else {}
