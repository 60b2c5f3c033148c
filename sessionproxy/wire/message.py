"""One JSON-RPC message: its envelope decoded, everything inside left as bytes.

msgspec checks the whole text as it skips over it (syntax, escapes, surrogate pairs, NaN, depth),
all but the UTF-8 of what it leaves raw; `decode` checks that too, so that what is passed on is
always well-formed. Neighbours: `core.relay` and `frontend.endpoint` decode and encode with it.
"""

import enum
import re
from collections.abc import Sequence
from typing import Final, Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from ..errors import InvalidMessage, MalformedMessage
from .methods import ENCODED_METHODS

MAX_ID: Final = 1024
"""Bytes of an encoded id that are accepted: real ones have 1 to 40."""

MAX_BATCH: Final = 100
"""Messages in one batch that are accepted; no client was seen to send more than ten."""

Bytes = bytes | Raw
"""Encoded JSON. A `Raw` is a view into the message that it came in."""


class Kind(enum.Enum):
    REQUEST = "request"
    NOTIFICATION = "notification"
    RESPONSE = "response"


class Message(msgspec.Struct, gc=False):
    """An envelope. Members that were absent are `UNSET`; unknown ones are ignored."""

    jsonrpc: Literal["2.0"]
    id: Raw | UnsetType = UNSET
    method: str | UnsetType = UNSET
    params: Raw | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET

    @property
    def kind(self) -> Kind:
        """What it is. Raises: InvalidMessage: none of the three."""
        if self.method is not UNSET:
            if self.result is not UNSET or self.error is not UNSET:
                raise InvalidMessage("a message with a method has no result and no error")
            return Kind.NOTIFICATION if self.id is UNSET else Kind.REQUEST
        if self.id is UNSET or (self.result is UNSET) == (self.error is UNSET):
            raise InvalidMessage("neither a request, a notification nor a response")
        return Kind.RESPONSE

    def request_id(self) -> bytes:
        """Return the id as it was written: a JSON string or integer.

        Raises: InvalidMessage: null, a fraction, a structure, or longer than `MAX_ID` bytes
            (2025-11-25 basic#requests: an id is a string or an integer and is not null).
        """
        raw = bytes(self.id) if self.id is not UNSET else b""
        if len(raw) <= MAX_ID and (raw[:1] == b'"' or raw.removeprefix(b"-").isdigit()):
            return raw
        raise InvalidMessage("an id is a string or an integer")

    def outcome(self) -> tuple[Raw | None, bytes | None]:
        """Return result and error of a response: one of the two is None."""
        if self.result is not UNSET:
            return self.result, None
        return None, bytes(self.error) if self.error is not UNSET else b"{}"

    def object_params(self) -> Raw | None:
        """Return `params`, None where there are none.

        Raises: InvalidMessage: it is not an object.
        """
        if self.params is UNSET:
            return None
        first = memoryview(self.params)[0]
        if first == ord("{"):
            return self.params
        if first == ord("n"):  # `null`: some clients write it for "none"
            return None
        raise InvalidMessage("params is an object")


_MESSAGE: Final = msgspec.json.Decoder(Message)
_BATCH: Final = msgspec.json.Decoder(
    msgspec.defstruct(
        "_Batch",
        [(f"item_{n}", Raw | UnsetType, UNSET) for n in range(MAX_BATCH + 1)],
        array_like=True,
        gc=False,
    )
)
"""Keeps the first items, one more than are accepted, and skips over the rest. A list would be built
whole before anybody looked at its length: of 16 MiB of `[1,1,...` a gigabyte."""


def decode(data: bytes) -> Message:
    """Return the envelope of one message.

    Raises:
        MalformedMessage: not JSON, not UTF-8, or nested too deep to read.
        InvalidMessage: JSON, but no JSON-RPC 2.0 message.
    """
    try:
        message = _MESSAGE.decode(data)
        if not data.isascii():  # after the syntax: garbage is most often seen by its first byte
            data.decode()
        return message
    except msgspec.ValidationError as error:
        raise InvalidMessage(f"not a JSON-RPC 2.0 message: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedMessage(f"not JSON in UTF-8: {error}") from None
    except RecursionError:
        raise MalformedMessage("nested too deep") from None


# -- encoding -----------------------------------------------------------------------------------
# `encode_request` and `encode_notification` are for pipes: members that came with
# line breaks (from a pretty-printed body) are put on one line first.

_LINE_SEPARATORS: Final = (b"\xe2\x80\xa8", b"\xe2\x80\xa9")


def on_one_line(raw: Bytes) -> Bytes:
    """Return the same JSON without line breaks of any kind.

    In valid JSON a newline or carriage return can only stand between tokens. U+2028 and U+2029
    can only stand in strings, where Node's `readline` takes them for line ends, so they are
    escaped.
    """
    data = bytes(raw)
    if b"\n" in data or b"\r" in data:
        data = data.replace(b"\n", b" ").replace(b"\r", b" ")
    elif data.isascii():
        return raw
    if _LINE_SEPARATORS[0] in data or _LINE_SEPARATORS[1] in data:
        data = data.replace(_LINE_SEPARATORS[0], b"\\u2028")
        data = data.replace(_LINE_SEPARATORS[1], b"\\u2029")
    return data


def _method(method: str) -> bytes:
    return ENCODED_METHODS.get(method) or bytes(on_one_line(msgspec.json.encode(method)))


def encode_request(request_id: bytes, method: str, params: Bytes | None) -> bytes:
    head = (b'{"jsonrpc":"2.0","id":', request_id, b',"method":', _method(method))
    if params is None:
        return b"".join((*head, b"}"))
    return b"".join((*head, b',"params":', on_one_line(params), b"}"))


def encode_notification(method: str, params: Bytes | None) -> bytes:
    if params is None:
        return b"".join((b'{"jsonrpc":"2.0","method":', _method(method), b"}"))
    return b"".join(
        (b'{"jsonrpc":"2.0","method":', _method(method), b',"params":', on_one_line(params), b"}")
    )


def encode_result(request_id: bytes, result: Bytes) -> bytes:
    return b"".join((b'{"jsonrpc":"2.0","id":', request_id, b',"result":', result, b"}"))


def encode_answer(request_id: bytes, *, result: Bytes | None, error: Bytes | None) -> bytes:
    """Return the response that carries `result`, or else `error`."""
    if result is not None:
        return encode_result(request_id, result)
    body = error if error is not None else b"{}"
    return b"".join((b'{"jsonrpc":"2.0","id":', request_id, b',"error":', body, b"}"))


def encode_error(
    code: int, message: str, data: object = None, *, request_id: bytes = b"null"
) -> bytes:
    """Return an error response of the proxy's own (JSON-RPC 2.0, section 5.1)."""
    body: dict[str, object] = {"code": code, "message": message}
    if data is not None:
        body["data"] = data
    return encode_answer(request_id, result=None, error=msgspec.json.encode(body))


def encode_batch(answers: Sequence[bytes]) -> bytes:
    """Return the answers of one batch as an array (JSON-RPC 2.0, section 6)."""
    return b"[" + b",".join(answers) + b"]"


def split_batch(data: bytes) -> list[bytes]:
    """Return the encoded messages of a batch.

    Raises:
        MalformedMessage: not a JSON array.
        InvalidMessage: empty, more than `MAX_BATCH` messages, or a batch within a batch.
    """
    try:
        found: tuple[object, ...] = msgspec.structs.astuple(_BATCH.decode(data))
        items = [bytes(item) for item in found if isinstance(item, Raw)]
    except (msgspec.DecodeError, RecursionError) as error:
        raise MalformedMessage(f"not a JSON array: {error}") from None
    if not 0 < len(items) <= MAX_BATCH or any(item[:1] == b"[" for item in items):
        raise InvalidMessage(f"a batch has 1 to {MAX_BATCH} messages")
    return items


class _Code(msgspec.Struct, gc=False):
    code: int


_CODE: Final = msgspec.json.Decoder(_Code)


def code_of(error: Bytes) -> int | None:
    """Return the code of an encoded JSON-RPC error.

    None where it has none, or is nested too deep to read from here, though it was not for `decode`.
    """
    try:
        return _CODE.decode(error).code
    except (msgspec.DecodeError, RecursionError):
        return None


_FIRST_ID: Final = re.compile(rb'"id"\s*:\s*(\d{1,18})\s*[,}]')
_LAST_ID: Final = re.compile(rb'"id"\s*:\s*(\d{1,18})\s*(?:,\s*"jsonrpc"\s*:\s*"2.0"\s*)?}\s*\Z')
_BODY: Final = re.compile(rb'"(result|error|params|method)"\s*:')


def sniff_response_id(head: bytes, tail: bytes) -> int | None:
    """Return the integer id of a response too long to decode, from its two ends.

    Looked for only outside of its body, whose content is anybody's: before it, else at the very
    end. None where it is not there, or where the message has a method or params.
    """
    body = _BODY.search(head)
    if body is None or body[1] in (b"params", b"method"):
        return None
    found = _FIRST_ID.search(head, 0, body.end()) or _LAST_ID.search(tail)
    return int(found[1]) if found else None


_REQUEST_BODY: Final = re.compile(rb'"params"\s*:')
_NEXT: Final = re.compile(rb'"id"\s*:\s*(\d{1,18}|"[^"\\]{1,100}")\s*[,}]')
_LAST: Final = re.compile(
    rb'"id"\s*:\s*(\d{1,18}|"[^"\\]{1,100}")\s*(?:,\s*"jsonrpc"\s*:\s*"2.0"\s*)?}\s*\Z'
)


def sniff_request_id(head: bytes, tail: bytes) -> bytes | None:
    """Return the id, as it was written, of a request too long to decode.

    Looked for as in a response: before its parameters, else at the very end.
    """
    body = _REQUEST_BODY.search(head)
    if body is None or b'"method"' not in head + tail:
        return None
    found = _NEXT.search(head, 0, body.end()) or _LAST.search(tail)
    return found[1] if found else None
