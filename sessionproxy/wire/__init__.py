"""JSON-RPC on bytes. Pure: no I/O, no clock, no session.

What travels through the proxy is decoded only as far as its envelope; `params`, `result` and
`error` stay the bytes they came as.
"""

from msgspec import UNSET

from .envelope import Envelope
from .lines import LineSplitter, Oversize
from .message import (
    Bytes,
    Kind,
    Message,
    code_of,
    decode,
    encode_answer,
    encode_batch,
    encode_error,
    encode_notification,
    encode_request,
    encode_result,
    on_one_line,
    sniff_request_id,
    sniff_response_id,
    split_batch,
)
from .methods import Method, Remembers, method_of
from .params import (
    cancelled_request_id,
    carries_progress_token,
    id_value,
    member,
    members,
    progress_of,
    rebuilt,
    text_member,
    with_member,
    with_progress_token,
    without_member,
)
from .versions import (
    BATCHING_VERSIONS,
    HANDSHAKE_VERSIONS,
    MODERN_VERSIONS,
    PRIMED_VERSIONS,
    SERVED_VERSIONS,
)

__all__ = [
    "BATCHING_VERSIONS",
    "HANDSHAKE_VERSIONS",
    "MODERN_VERSIONS",
    "PRIMED_VERSIONS",
    "SERVED_VERSIONS",
    "UNSET",
    "Bytes",
    "Envelope",
    "Kind",
    "LineSplitter",
    "Message",
    "Method",
    "Oversize",
    "Remembers",
    "cancelled_request_id",
    "carries_progress_token",
    "code_of",
    "decode",
    "encode_answer",
    "encode_batch",
    "encode_error",
    "encode_notification",
    "encode_request",
    "encode_result",
    "id_value",
    "member",
    "members",
    "method_of",
    "on_one_line",
    "progress_of",
    "rebuilt",
    "sniff_request_id",
    "sniff_response_id",
    "split_batch",
    "text_member",
    "with_member",
    "with_progress_token",
    "without_member",
]
