"""What a client is told when the state behind its session is gone.

Neighbours: `frontend.endpoint` decides when; `core.session` says what was lost.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Final

import msgspec
from msgspec import Raw

from .. import wire
from ..core.memory import Loss
from ..core.state import StopReason
from ..errors import StateLost
from ..wire import Bytes
from .problems import LOSS_KEY

_WHY: Final[Mapping[StopReason, str]] = {
    StopReason.IDLE: "idle",
    StopReason.BACKEND_EXIT: "the backend ended",
    StopReason.DISCONNECTED: "the client had disconnected",
    StopReason.SILENT: "the backend did not answer any more",
    StopReason.START_FAILED: "the backend did not start",
    StopReason.ABANDONED: "the start was given up",
}


def told(loss: Loss, now: float) -> StateLost:
    """Return the error that tells of `loss` at `now`, in seconds."""
    ago = _duration(now - loss.at)
    text = f"The previous session state was lost {ago} ago ({_why(loss)})."
    return StateLost(f"{text} A fresh backend is ready; repeat your steps.")


def annotated(result: Bytes, loss: Loss, now: float, *, tool: bool) -> bytes:
    """Return `result` with a note about `loss` in `_meta`, and in the content of a tool result."""
    fields = wire.members(result)
    if not fields:
        return bytes(result)
    note = {"reason": loss.reason.value, "secondsAgo": round(now - loss.at, 1)}
    meta = {**wire.members(fields.get("_meta")), LOSS_KEY: Raw(msgspec.json.encode(note))}
    fields["_meta"] = Raw(wire.rebuilt(meta))
    if tool and "content" in fields:
        with suppress(msgspec.DecodeError):  # no list: what the backend sent is what is shown
            items: list[object] = [*msgspec.json.decode(fields["content"], type=list[Raw])]
            items.append({"type": "text", "text": str(told(loss, now))})
            fields["content"] = Raw(msgspec.json.encode(items))
    return wire.rebuilt(fields)


def _why(loss: Loss) -> str:
    why = _WHY[loss.reason]
    if loss.reason is StopReason.IDLE:
        return f"{why} for {_duration(loss.idle_for)}"
    return f"{why}: {loss.exit}" if loss.exit is not None else why


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
