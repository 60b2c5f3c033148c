"""What a slice looks at besides its calls: streams, idle sessions, processes that end.

Neighbours: `measures` uses it.
"""

import contextlib
import json
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import psutil

from .channels import CallFailed, HttpChannel
from .processes import Server, tagged
from .sessions import answer_of, call, end_http, exchange, open_modern

LISTEN_TIMEOUT: Final = 0.3  # seconds a GET stream has to open, or to become quiet
GONE_TIMEOUT: Final = 3.0  # seconds after DELETE until a backend counts as kept
POLL: Final = 0.001  # seconds between two looks at a process


def listen(channel: HttpChannel) -> HttpChannel | None:
    """A GET stream of the channel's session, if the target grants one."""
    listener = HttpChannel(channel.port, channel.session_id)
    listener.send_bare("GET")
    drained(listener)
    if listener.status not in (0, 200):
        listener.close()
        return None
    return listener


def drained(listener: HttpChannel | None) -> list[bytes]:
    """What has arrived on the stream when nothing more comes."""
    if listener is None:
        return []
    with contextlib.suppress(CallFailed):
        while select.select([listener], [], [], LISTEN_TIMEOUT)[0]:
            if listener.receive():
                break
    return listener.messages


def progress_of(messages: list[bytes]) -> list[int]:
    """The `progress` of every progress note that bears our token."""
    seen: list[int] = []
    for message in messages:
        decoded: dict[str, Any] = json.loads(message)
        params: dict[str, Any] = decoded.get("params") or {}
        if params.get("progressToken") == "bench-notes":
            seen.append(int(params["progress"]))
    return seen


def gone_after_delete(channel: HttpChannel, backends: list[psutil.Process]) -> float:
    """Seconds from DELETE until the session's backends are gone. Raises: CallFailed."""
    began = time.perf_counter()
    try:
        channel.send_bare("DELETE")
        return seconds_until_gone(backends, began, GONE_TIMEOUT)
    finally:
        channel.close()


def seconds_until_gone(waiting: list[psutil.Process], began: float, limit: float) -> float:
    """Seconds from `began` until none of them runs. Raises: CallFailed, after `limit`."""
    while waiting := [process for process in waiting if runs(process)]:
        if time.perf_counter() - began > limit:
            raise CallFailed(f"the backend is still there after {limit:.0f} s")
        time.sleep(POLL)
    return time.perf_counter() - began


def runs(process: psutil.Process) -> bool:
    """False once it is dead; who must reap it is not always the proxy."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def open_idle(
    port: int, again: Callable[[], HttpChannel] | None, ids: list[str | None], number: int
) -> None:
    """So many sessions more, each past one call; `ids` has them even when one fails.

    `again` opens the next one, on the same connection; None: for modern clients.
    """
    for _ in range(number):
        channel = open_modern(port) if again is None else again()
        ids.append(channel.session_id)
        answer_of(exchange(channel, call("echo", b'{"text":"idle"}')))
        if again is None:
            channel.close()


def end_all(port: int, ids: list[str | None]) -> None:
    """The target was asked to end these sessions, as far as it can still be asked."""
    for session_id in ids:
        with contextlib.suppress(CallFailed, OSError):
            end_http(HttpChannel(port, session_id))


@dataclass(frozen=True)
class Wrappers:
    """Processes that stand between the proxy and its backends."""

    processes: int
    bytes: int  # resident


def wrappers_of(server: Server) -> Wrappers:
    inside = {process.pid for process in [*server.own(), *server.backends()]}
    found = [process for process in tagged(server.tag) if process.pid not in inside]
    resident = 0
    for process in found:
        with contextlib.suppress(psutil.Error):
            resident += process.memory_info().rss
    return Wrappers(len(found), resident)
