"""Spans of requests, for OpenTelemetry: one for what a client asked, one for each thing that a
backend is asked for it.

Only the API is used: where no tracer provider is set up, spans are of no effect. A backend gets the
client's `_meta` as it is: its spans are the client's children, beside ours. Neighbours: `app` makes
it where tracing is on; `assembly` puts `TracedLauncher` around the launcher of sessions; the hooks
that `core.relay` calls see what goes to backends.
"""

import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Final, NamedTuple

import msgspec
from opentelemetry import context as ambient
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode

from .. import wire
from ..core.between import Around
from ..core.exchange import Exchange, Forwarded, Hook, Outcome
from ..core.memory import Opening
from ..core.ports import Backend, Composed, Identity, Launcher, Losing, Upstream
from ..core.session import Session
from ..http.request import Scope
from ..wire import Bytes
from . import attributes as names
from .attributes import Attributes, said_by

logger: Final = logging.getLogger(__name__)

TRANSPORTS: Final = {"stdio": "pipe", "http": "tcp"}
"""`network.transport`, by the kind of backend."""


class _Arrival(NamedTuple):
    """When and with what an HTTP request came in."""

    at: int
    """Nanoseconds since 1970, as spans have it."""
    carrier: dict[str, str]


class _Belonging(NamedTuple):
    """The session that a request belongs to."""

    label: str
    version: str | None


_ARRIVAL: Final[ContextVar[_Arrival | None]] = ContextVar("arrival", default=None)
_BELONGING: Final[ContextVar[_Belonging | None]] = ContextVar("belonging", default=None)


class Tracing:
    """Makes the spans of one proxy."""

    def __init__(self, version: str) -> None:
        self._tracer = trace.get_tracer("sessionproxy", version)

    def arrived(self, scope: Scope) -> Scope:
        """Note that an HTTP request has come in; return the scope to serve it with."""
        headers = dict(scope["headers"])
        found = ((name, headers.get(name.encode())) for name in names.CARRIED)
        carrier = {name: value.decode("latin-1") for name, value in found if value is not None}
        _ARRIVAL.set(_Arrival(_now(), carrier))
        # With a context of its own, what follows must not take the short way, which has none.
        return {**scope, "extensions": {}} if carrier else scope

    def launcher(self, launcher: Launcher, *, serves: bool = True) -> Launcher:
        """Return one whose backends have spans for what their sessions' clients ask; where it does
        not serve clients (`serves`), spans know the session all the same."""
        return TracedLauncher(launcher, self, serves=serves)

    # -- what a client asks ------------------------------------------------------------------------

    def serve(self, exchange: Exchange, session: Session) -> None:
        """Begin the span of a client's request. Run in its context."""
        said = said_by(exchange.method, exchange.params)
        arrival = _ARRIVAL.get()
        parent, links = _parent(said.carrier, {} if arrival is None else arrival.carrier)
        told = {
            **_about(exchange),
            names.REQUEST_ID: names.request_id(exchange.client_id),
            names.SERVER: session.identity.server,
            **said.target.attributes,
        }
        span = self._tracer.start_span(
            _name(exchange.method, told),
            context=parent,
            kind=SpanKind.SERVER,
            attributes=told,
            links=links,
            start_time=None if arrival is None else arrival.at,
        )
        exchange.watchers = (*exchange.watchers, _Ending(span))
        ambient.attach(trace.set_span_in_context(span, parent))

    # -- what a backend is asked -------------------------------------------------------------------

    def hook(self, *, server: str, provider: str) -> Hook:
        """Return a hook for the requests to a backend. `provider`: `stdio`, `http` or `memory`."""
        fixed = {names.SERVER: server, names.PROVIDER: provider}
        if provider in TRANSPORTS:
            fixed[names.TRANSPORT] = TRANSPORTS[provider]

        def ask(message: Forwarded) -> None:
            exchange = message.exchange
            if message.to_backend and message.kind == "request" and exchange is not None:
                self._ask(exchange, message.body, fixed)

        return ask

    def _ask(self, exchange: Exchange, params: Bytes | None, fixed: Attributes) -> None:
        target = said_by(exchange.method, params).target
        told = {
            **_about(exchange),
            names.REQUEST_ID: str(exchange.backend_id),
            **fixed,
            **target.attributes,
            **target.at_backend,
        }
        span = self._tracer.start_span(
            _name(exchange.method, told), kind=SpanKind.CLIENT, attributes=told
        )
        exchange.watchers = (*exchange.watchers, _Ending(span))


class _Ending:
    """Ends a span when its request is settled, by whomever. A `Holder`."""

    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        self._span = span

    def returned(self, exchange: Exchange) -> None:
        try:
            if self._span.is_recording():
                _judge(self._span, exchange.outcome or Outcome(), tool=exchange.treatment.tool)
            self._span.end()
        except Exception:  # what exports spans is not ours: it must not stop an answer
            logger.exception("a span could not be ended")


class TracedLauncher(Around):
    """A `Launcher` for the sessions of one route."""

    def __init__(self, launcher: Launcher, tracing: Tracing, *, serves: bool) -> None:
        super().__init__(launcher)
        self._tracing = tracing
        self._serves = serves

    @asynccontextmanager
    async def launch(
        self, identity: Identity, label: str, upstream: Upstream, opening: Opening
    ) -> AsyncGenerator[Backend]:
        async with self.launcher.launch(identity, label, upstream, opening) as backend:
            if isinstance(upstream, Session):
                yield _TracedBackend(backend, upstream, self._tracing, serves=self._serves)
            else:
                yield backend


class _TracedBackend:
    """A `Backend`."""

    def __init__(
        self, backend: Backend, session: Session, tracing: Tracing, *, serves: bool
    ) -> None:
        self._serves = serves
        self._backend = backend
        self._parts = backend if isinstance(backend, Composed) else None
        self._session = session
        self._tracing = tracing

    def request(self, exchange: Exchange) -> None:
        try:
            exchange.context.run(self._begin, exchange)
        except Exception:  # neither is what makes them
            logger.exception("a span could not be begun")
        self._backend.request(exchange)

    def _begin(self, exchange: Exchange) -> None:
        """Have spans know the session; begin one for what its client asks."""
        if _BELONGING.get() is not None:
            return  # on behalf of a request of another session, which has one
        session = self._session
        _BELONGING.set(_Belonging(session.label, session.version))
        opens = exchange.method == "initialize" and session.version is None and not session.shared
        if self._serves and (opens or exchange.holder is session):
            self._tracing.serve(exchange, session)

    def notify(self, method: str, params: Bytes | None) -> None:
        self._backend.notify(method, params)

    def cancel(self, exchange: Exchange, params: Bytes | None) -> None:
        self._backend.cancel(exchange, params)

    def in_flight(self) -> tuple[Exchange, ...]:
        return self._backend.in_flight()

    @property
    def bereaved(self) -> bool:
        return self._parts is not None and self._parts.bereaved

    def bereft(self, exchange: Exchange) -> Losing | None:
        return None if self._parts is None else self._parts.bereft(exchange)


# -- what spans say --------------------------------------------------------------------------------


def _about(exchange: Exchange) -> Attributes:
    """Return what all spans of a request say of it. Run in its context."""
    told = {names.METHOD: exchange.method[: names.LONGEST]}
    belonging = _BELONGING.get()
    version = None if exchange.envelope is None else exchange.envelope.version
    if belonging is not None:
        told[names.SESSION] = belonging.label
        version = version or belonging.version
    if version:
        told[names.VERSION] = version[: names.LONGEST]
    return told


def _name(method: str, told: Attributes) -> str:
    """Return what a span is called: a URI is not part of it, there are too many."""
    target = told.get(names.TOOL) or told.get(names.PROMPT)
    method = method[: names.LONGEST]
    return method if target is None else f"{method} {target}"


def _parent(meta: dict[str, str], headers: dict[str, str]) -> tuple[Context, Sequence[Link]]:
    """Return what a client's request continues: what its `_meta` says, with a link to what the HTTP
    request belongs to; else the latter."""
    carrying = ambient.get_current()
    if not _span_of(carrying).is_valid:  # no application around us has begun one
        carrying = propagate.extract(headers, carrying)
    said = propagate.extract(meta, carrying)
    if _span_of(said) == _span_of(carrying):
        return carrying, ()
    return said, [Link(_span_of(carrying))] if _span_of(carrying).is_valid else ()


def _span_of(context: Context) -> SpanContext:
    return trace.get_current_span(context).get_span_context()


class _ToolResult(msgspec.Struct):
    is_error: object = msgspec.field(default=False, name="isError")


def _judge(span: Span, outcome: Outcome, *, tool: bool) -> None:
    """Say how it ended, where it did not end well."""
    if outcome.failure is not None:
        span.set_attribute(names.ERROR, outcome.failure.reason)
        span.set_status(StatusCode.ERROR, str(outcome.failure))
    elif outcome.error is not None:
        code = str(wire.code_of(outcome.error))
        span.set_attributes({names.ERROR: code, names.STATUS: code})
        span.set_status(StatusCode.ERROR, wire.text_member(outcome.error, "message"))
    elif tool and outcome.result is not None and _is_error(outcome.result):
        span.set_attribute(names.ERROR, names.TOOL_ERROR)
        span.set_status(StatusCode.ERROR)


def _is_error(result: Bytes) -> bool:
    if b'"isError"' not in bytes(result):  # it may be large
        return False
    try:
        return msgspec.json.decode(result, type=_ToolResult).is_error is True
    except (msgspec.DecodeError, RecursionError):
        return False


def _now() -> int:
    return time.time_ns()  # spans are on the calendar's clock
