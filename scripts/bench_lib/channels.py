"""How the benchmark talks: one JSON-RPC message out, its answer in, over HTTP or over pipes.

Hand-written and blocking, since the client shares the machine with what it measures: the same
code serves every HTTP target, and nothing is parsed that the measurement does not need.
Neighbours: `sessions` speaks MCP over a channel, `load` drives many of them at once.
"""

import os
import re
import socket
import struct
import subprocess
import time
from typing import Final, Protocol

READ_SIZE: Final = 65536
BIG_READ_SIZE: Final = 1 << 20
CONTENT_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)")
CONTENT_TYPE_SSE: Final = b"\r\ncontent-type: text/event-stream"
MARKUP: Final = re.compile(r"<[^>]*>|&nbsp;")
CALL_TIMEOUT: Final = 20  # seconds a call may take before it counts as lost


class CallFailed(Exception):
    """The target refused, hung up, or never answered; the text says which."""


class Channel(Protocol):
    """A connection that carries one request at a time."""

    messages: list[bytes]
    """What the last answer consisted of: notifications in order, then the answer."""
    answered_at: float
    """When the answer itself was read, in seconds of `perf_counter`."""

    def fileno(self) -> int: ...

    def send(self, message: bytes) -> None:
        """The message is on its way. Raises: CallFailed."""
        ...

    def receive(self) -> bool:
        """Read once; true when the answer is complete. Raises: CallFailed."""
        ...


def is_answer(message: bytes) -> bool:
    """Whether this is a result or an error, not a notification or a request."""
    return b'"method"' not in message and (b'"result"' in message or b'"error"' in message)


class StdioChannel:
    """A backend's own pipes: what a call costs where there is no proxy."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._stdin = self.process.stdin.fileno()
        self._stdout = self.process.stdout.fileno()
        self._parts: list[bytes] = []
        self.messages: list[bytes] = []
        self.answered_at = 0.0

    def fileno(self) -> int:
        return self._stdout

    def send(self, message: bytes) -> None:
        self.messages = []
        line = message + b"\n"
        written = os.write(self._stdin, line)
        if written < len(line):
            view = memoryview(line)[written:]
            while view:
                view = view[os.write(self._stdin, view) :]

    def receive(self) -> bool:
        chunk = os.read(self._stdout, READ_SIZE)
        if not chunk:
            raise CallFailed("the backend hung up")
        if chunk.count(b"\n") == 1 and chunk[-1] == 10 and not self._parts:
            self.messages.append(chunk)
        elif b"\n" not in chunk:
            self._parts.append(chunk)
            return False
        else:
            *whole, rest = b"".join([*self._parts, chunk]).split(b"\n")
            self._parts = [rest] if rest else []
            self.messages += whole
        self.answered_at = time.perf_counter()
        return is_answer(self.messages[-1])

    def close(self) -> None:
        """The backend is gone and reaped."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


VERSION: Final = b"2026-07-28"
ENVELOPE: Final = (
    b'"io.modelcontextprotocol/protocolVersion":"%b",'
    b'"io.modelcontextprotocol/clientInfo":{"name":"bench","version":"1"},'
    b'"io.modelcontextprotocol/clientCapabilities":{}'
) % VERSION
"""What `_meta` of every request of the modern era has."""


class HttpChannel:
    """A keep-alive HTTP/1.1 connection to `/mcp` that reads JSON and SSE answers."""

    def __init__(self, port: int, session_id: str | None = None) -> None:
        self.port = port
        self.messages: list[bytes] = []
        self.answered_at = 0.0
        self.status = 0
        self.set_session(session_id)
        self._sock = self._connect()
        self._reset()

    def set_session(self, session_id: str | None) -> None:
        """Requests from now on carry this session."""
        self.session_id = session_id
        self._lines = f"Host: 127.0.0.1:{self.port}\r\n"
        if session_id is not None:
            self._lines += f"Mcp-Session-Id: {session_id}\r\nMcp-Protocol-Version: 2025-06-18\r\n"
        self._post = (
            f"POST /mcp HTTP/1.1\r\n{self._lines}Content-Type: application/json\r\n"
            "Accept: application/json, text/event-stream\r\nContent-Length: %d\r\n\r\n"
        ).encode()

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, message: bytes) -> None:
        self._send(self._post % len(message), message)

    def send_bare(self, method: str) -> None:
        """A GET or DELETE of the session."""
        head = f"{method} /mcp HTTP/1.1\r\n{self._lines}Accept: text/event-stream\r\n\r\n"
        self._send(head.encode(), b"")

    def receive(self) -> bool:
        try:
            data = self._sock.recv(BIG_READ_SIZE if self._big else READ_SIZE)
        except TimeoutError as error:
            raise CallFailed(f"no answer within {CALL_TIMEOUT} s") from error
        except OSError as error:
            reason = error.strerror or str(error)
            if isinstance(error, BlockingIOError):
                reason = f"no answer within {CALL_TIMEOUT} s"
            raise CallFailed(reason) from error
        if not data:
            raise CallFailed(f"hung up before the answer was complete (HTTP {self.status})")
        if self.status == 0:
            rest = self._read_head(data)
            if rest is None:
                return False
            data = rest
        return self._read_body(data)

    def request(self, message: bytes) -> list[bytes]:
        """The messages of a 200 answer. Raises: CallFailed, also for every other status."""
        self.send(message)
        while not self.receive():
            pass
        self.check_status()
        return self.messages

    def check_status(self) -> None:
        """Raises: CallFailed, if the last answer was not 200 or 202."""
        if self.status not in (200, 202):
            text = MARKUP.sub(" ", b" ".join(self.messages)[:2000].decode(errors="replace"))
            raise CallFailed(f"HTTP {self.status} {' '.join(text.split())[:120]}".strip())

    def header(self, name: str) -> str | None:
        """Of the last answer; `name` in lower case."""
        for field in self._head.decode("latin-1").split("\r\n"):
            key, _, value = field.partition(":")
            if key.lower() == name:
                return value.strip()
        return None

    def reconnect(self) -> None:
        """A new connection in place of the old one."""
        self._sock.close()
        self._sock = self._connect()
        self._reset()

    def close(self) -> None:
        self._sock.close()

    def _connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), CALL_TIMEOUT)
        sock.settimeout(None)  # the kernel's timeouts below cost no poll() at every read
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        limit = struct.pack("ll", CALL_TIMEOUT, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        return sock

    def _reset(self) -> None:
        self.messages = []
        self.status = 0
        self._head = b""
        self._length = -1  # bytes of the body still to come; -1: chunked
        self._big = False
        self._sse = False
        self._parts: list[bytes] = []
        self._chunk_left = 0
        self._chunk_head = b""
        self._in_trailer = False
        self._event = bytearray()
        self._scanned = 0

    def _send(self, head: bytes, body: bytes) -> None:
        self._reset()
        try:
            if len(body) < READ_SIZE:
                self._sock.sendall(head + body)
            else:
                self._sock.sendall(head)
                self._sock.sendall(body)
        except OSError as error:
            self._explain_refusal(error)

    def _explain_refusal(self, error: OSError) -> None:
        """A target that refuses a body may answer and hang up before it read all of it."""
        try:
            while not self.receive():
                pass
        except CallFailed:
            raise CallFailed(f"hung up while the request was sent ({error.strerror})") from error
        self.check_status()
        raise CallFailed("answered before the request was sent") from error

    def _read_head(self, data: bytes) -> bytes | None:
        """What follows the head, or None when the head is not complete."""
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            return None
        rest = self._head[end + 4 :]
        self._head = self._head[: end + 2]
        self.status = int(self._head[9:12])
        fields = self._head.lower()
        self._sse = CONTENT_TYPE_SSE in fields
        if b"\r\ntransfer-encoding:" not in fields:
            found = CONTENT_LENGTH.search(fields)
            self._length = int(found[1]) if found else 0
            self._big = self._length > READ_SIZE
        return rest

    def _read_body(self, data: bytes) -> bool:
        if self._length >= 0:
            self._length -= len(data)
            self._take(data)
            if self._length > 0:
                return False
        elif not self._dechunk(data):
            return False
        if not self._sse:
            body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self.messages = [body] if body else []
            self.answered_at = time.perf_counter()
        return True

    def _dechunk(self, data: bytes) -> bool:
        """Take the chunks' contents; true at the end of the body."""
        position = 0
        while position < len(data):
            if self._chunk_left > 2:
                content = data[position : position + self._chunk_left - 2]
                self._take(content)
                position += len(content)
                self._chunk_left -= len(content)
            elif self._chunk_left > 0:  # the CRLF after the content
                skipped = min(self._chunk_left, len(data) - position)
                position += skipped
                self._chunk_left -= skipped
            else:
                end = data.find(b"\n", position)
                if end < 0:
                    self._chunk_head += data[position:]
                    return False
                head = self._chunk_head + data[position:end]
                self._chunk_head = b""
                position = end + 1
                if self._in_trailer:
                    if not head.strip():
                        return True
                    continue
                size = int(head.split(b";")[0], 16)
                if size == 0:
                    self._in_trailer = True
                    continue
                self._big = self._big or size > READ_SIZE
                self._chunk_left = size + 2
        return False

    def _take(self, data: bytes) -> None:
        if not self._sse:
            self._parts.append(data)
            return
        self._event += data.replace(b"\r", b"")  # JSON has no bare CR, so this is exact
        while (end := self._event.find(b"\n\n", self._scanned)) >= 0:
            self._read_event(bytes(self._event[:end]))
            del self._event[: end + 2]
            self._scanned = 0
        self._scanned = max(0, len(self._event) - 1)

    def _read_event(self, event: bytes) -> None:
        data = b"\n".join(
            line[5:].lstrip(b" ") for line in event.split(b"\n") if line.startswith(b"data:")
        )
        if data:
            self.messages.append(data)
            if is_answer(data):
                self.answered_at = time.perf_counter()


class ModernChannel(HttpChannel):
    """The same for 2026-07-28: no session of the protocol's, but a conversation in the path."""

    def __init__(self, port: int, key: str) -> None:
        self._key = key
        self._heads: dict[bytes, bytes] = {}
        super().__init__(port)

    def send(self, message: bytes) -> None:
        """Send a `tools/call` as `sessions.call` makes it, with the envelope in its `_meta`."""
        tool = message.partition(b'"name":"')[2].partition(b'"')[0]
        head = self._heads.get(tool)
        if head is None:
            head = self._heads[tool] = self._head_for(tool)
        at = message.index(b'"params":{') + len(b'"params":{')
        end = message.rfind(b',"_meta":{', -200)
        if end < 0:
            body = b"".join((message[:at], b'"_meta":{', ENVELOPE, b"},", message[at:]))
        else:
            end += len(b',"_meta":{')
            body = b"".join((message[:end], ENVELOPE, b",", message[end:]))
        self._send(head % len(body), body)

    def _head_for(self, tool: bytes) -> bytes:
        return (
            b"POST /mcp/s/%b HTTP/1.1\r\n%bContent-Type: application/json\r\n"
            b"Accept: application/json, text/event-stream\r\nMcp-Protocol-Version: %b\r\n"
            b"Mcp-Method: tools/call\r\nMcp-Name: %b\r\nContent-Length: %%d\r\n\r\n"
        ) % (self._key.encode(), self._lines.encode(), VERSION, tool)
