"""What a backend of the handshake era asks, for a client of the modern one.

Its requests become input requests (2026-07-28 basic/patterns/mrtr). What the client did not declare
it is never asked: the backend is told so in a way that it can go on with, and where it cannot, that
what it hands on is the error that the client expects. Neighbours: `eras.calls` puts the questions,
`eras.to_handshake` and `eras.to_modern` answer those that nobody is asked.
"""

from collections.abc import Collection
from typing import Final

import msgspec
from msgspec import Raw

from .. import wire
from ..core.exchange import Ask, Outcome
from ..errors import InvalidMessage
from ..wire import Bytes, Envelope
from ..wire.envelope import text
from .results import MISSING_CAPABILITY

REJECTED: Final = -1
"""2025-11-25 client/sampling#error-handling: the user would not."""

NO_ROOTS: Final = Outcome(result=b'{"roots":[]}')


def input_request(ask: Ask, envelope: Envelope) -> Raw:
    """Return a request of the handshake era as an input request of the modern one."""
    params = b"{}" if ask.params is None else ask.params
    dropped = ["elicitationId"]  # 2025-11-25 alone
    if not envelope.declares("sampling", "context"):
        dropped.append("includeContext")  # which asks for no more than a client has
    for name in dropped:
        if wire.member(params, name) is not None:
            params = wire.without_member(params, name) or params
    return Raw(wire.rebuilt({"method": msgspec.json.encode(ask.method), "params": params}))


def elicitation_of(url: Bytes) -> bytes:
    """Return the parameters of an elicitation that an error names (2025-11-25
    client/elicitation#url-mode-with-elicitation-required-error)."""
    return wire.rebuilt({"mode": b'"url"', **wire.members(url)})


def answers_of(responses: Bytes | None, keys: Collection[str]) -> dict[str, Raw]:
    """Return the answers to the questions of these keys; what else the client sends means nothing
    (2026-07-28 basic/patterns/mrtr#error-handling).

    Raises: InvalidMessage: they are not a map of objects.
    """
    if responses is None:
        return {}
    if not bytes(responses).startswith(b"{"):
        raise InvalidMessage("inputResponses is an object")
    found = wire.members(responses)
    if not found:  # or it has too many members to take apart
        looked = {key: wire.member(responses, key) for key in keys}
        found = {key: value for key, value in looked.items() if value is not None}
    if any(not bytes(value).startswith(b"{") for value in found.values()):
        raise InvalidMessage("every member of inputResponses is an object")
    return {key: found[key] for key in keys if key in found}


def lacking(ask: Ask, envelope: Envelope) -> tuple[str, ...]:
    """Return what the client did not declare that it had to, to be asked this: the capability, or
    that and the part of it; empty where it may be asked (2026-07-28 client#capabilities)."""
    capability = wire.method_of(ask.method).capability
    if capability is None or not envelope.declares(capability):
        return (capability or ask.method,)
    if ask.method == "elicitation/create":
        url = text(wire.member(ask.params, "mode")) == "url"
        has_url = envelope.declares("elicitation", "url")
        has_form = envelope.declares("elicitation", "form") or not has_url
        if not (has_url if url else has_form):
            return ("elicitation", "url" if url else "form")
    elif ask.method == "sampling/createMessage" and not envelope.declares("sampling", "tools"):
        if any(wire.member(ask.params, name) is not None for name in ("tools", "toolChoice")):
            return ("sampling", "tools")
    return ()


def undeclared(method: str, lacks: tuple[str, ...]) -> Outcome:
    """Return what a backend is told that asks what its client did not declare.

    A backend that cannot go on without a model, and fails its request with the error that it got,
    so answers as it must: with the capability that is missing (2026-07-28 basic#_meta).
    """
    if method == "roots/list":
        return NO_ROOTS
    if method == "elicitation/create":
        return Outcome(result=b'{"action":"decline"}')
    required: object = {}
    for name in reversed(lacks):
        required = {name: required}
    error = {
        "code": MISSING_CAPABILITY,
        "message": f"The client does not support {'.'.join(lacks)}",
        "data": {"requiredCapabilities": required},
    }
    return Outcome(error=msgspec.json.encode(error))


def unanswered(method: str) -> Outcome:
    """Return what a backend is told whose question the client took and did not answer."""
    if method == "roots/list":
        return NO_ROOTS
    if method == "elicitation/create":
        return Outcome(result=b'{"action":"cancel"}')
    error = {"code": REJECTED, "message": "The user gave no answer"}
    return Outcome(error=msgspec.json.encode(error))
