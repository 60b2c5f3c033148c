"""The frontend for clients that speak stdio alone: one process, one client.

The first request decides the era, as in the SDK's own servers: `initialize` opens the one session,
a request that carries an envelope belongs to a conversation. A client that has only asked what
there is may still initialise: where that took long, it has perhaps given up waiting for the answer
(2026-07-28 basic/transports/stdio#backward-compatibility). What is no message is answered with an
error, and ends nothing. Neighbours: `serve_stdio` runs it; `frontend.handshake_channel` and
`frontend.modern_channel` know the eras.
"""

import logging
from collections.abc import Callable
from typing import Final

import anyio
from anyio.abc import TaskGroup

from .. import wire
from ..errors import AnswerNotTaken, BodyTooLarge, ProxyError
from ..wire import Kind, Message, Oversize
from . import problems
from .channel import Channel
from .handshake_channel import HandshakeChannel, says_modern
from .modern_channel import ModernChannel
from .outbox import Outbox
from .pipes import Pipes, hung_up, lines_of, write_all

logger: Final = logging.getLogger(__name__)

FLUSHED: Final = 1.0
"""Seconds that the client has to read what is left for it, once it has ended the conversation."""

AGAIN: Final = 0.1
"""Seconds between two tries to take a message that there is no room for."""


class Stdio:
    """The one client of this process."""

    def __init__(
        self,
        pipes: Pipes,
        handshake: Callable[[Channel, TaskGroup], HandshakeChannel],
        modern: Callable[[Channel, TaskGroup], ModernChannel],
        *,
        max_line: int,
        max_unread: int,
    ) -> None:
        """`handshake` and `modern` make what takes messages of an era. `max_line`: bytes of a
        message; `max_unread`: of answers that may wait for a client that does not read."""
        self._pipes = pipes
        self._make = handshake, modern
        self._max_line = max_line
        self._outbox = Outbox(_line, answers=max_unread)
        self._left = False
        self._written = anyio.Event()
        self._handshake: HandshakeChannel
        self._modern: ModernChannel
        self._speaks: HandshakeChannel | ModernChannel

    async def run(self) -> bool:
        """Serve until the client has gone, or what it was served by is over.

        Returns whether it was the client who ended it.
        """
        channel = Channel(self._outbox)
        async with anyio.create_task_group() as tasks:
            handshake, modern = self._make
            self._handshake, self._modern = handshake(channel, tasks), modern(channel, tasks)
            self._speaks = self._handshake
            self._outbox.on_cut = tasks.cancel_scope.cancel

            async def write() -> None:
                await self._write()
                self._written.set()
                tasks.cancel_scope.cancel()

            tasks.start_soon(write)
            await self._read()
            logger.info("the client has gone")
            self._left = True
            self._handshake.leave()
            self._modern.leave()
            await self.finish()
            tasks.cancel_scope.cancel()
        return self._left

    async def finish(self) -> None:
        """Say nothing more, and let the client read what was said."""
        self._outbox.end()
        with anyio.move_on_after(FLUSHED):
            await self._written.wait()

    # -- reading -----------------------------------------------------------------------------------

    async def _read(self) -> None:
        async for line in lines_of(self._pipes.stdin, self._max_line):
            while not await self._taken(line):
                if hung_up(self._pipes.stdin):  # what it has said last is of no use any more
                    return

    async def _taken(self, line: bytes | Oversize) -> bool:
        """Take a line; return whether there was room for it."""
        if self._outbox.crowded:
            with anyio.move_on_after(AGAIN):
                await self._outbox.room()
            if self._outbox.crowded:
                return False
        try:
            self._take(line)
        except AnswerNotTaken:
            await anyio.sleep(AGAIN)
            return False
        except ProxyError as error:
            logger.info("refused: %s (%s)", error.reason, error)
            self._outbox.answer(problems.http_problem(error).body)
        return True

    def _take(self, line: bytes | Oversize) -> None:
        if isinstance(line, Oversize):
            self._take_oversize(line)
        elif line.lstrip()[:1] == b"[":
            self._handshake.take_batch(line)
        elif line.strip():
            message = wire.decode(line)
            self._client_for(message).take(message)

    def _client_for(self, message: Message) -> HandshakeChannel | ModernChannel:
        if message.kind is Kind.REQUEST:
            if message.method == "initialize":
                if not self._modern.begun:
                    self._speaks = self._handshake
            elif not self._handshake.begun and _is_modern(message):
                self._speaks = self._modern
            self._outbox.tells = self._speaks is self._handshake  # the other asks for what it hears
        return self._speaks

    def _take_oversize(self, line: Oversize) -> None:
        """Refuse what was too long to be read whole: that request alone, or that answer."""
        error = BodyTooLarge(f"the message has more than {self._max_line} bytes")
        asked = wire.sniff_response_id(line.head, line.tail)
        if asked is not None:
            data = wire.encode_error(problems.INTERNAL_ERROR, str(error), request_id=b"%d" % asked)
            self._speaks.take(wire.decode(data))
            return
        request_id = wire.sniff_request_id(line.head, line.tail) or b"null"
        self._outbox.answer(problems.modern_problem(error, request_id).body)

    # -- writing -----------------------------------------------------------------------------------

    async def _write(self) -> None:
        """Write what there is to write, to the end of it, or until nobody reads it any more."""
        while not self._outbox.over():
            chunk = self._outbox.take()
            if not chunk:
                await self._outbox.wait()
                continue
            try:
                await write_all(self._pipes.stdout, chunk)
            except OSError as error:
                logger.info("the client has gone: %s", error.strerror)
                self._left = True
                self._outbox.detach(0, 0.0)


def _line(message: bytes) -> bytes:
    return b"%b\n" % message


def _is_modern(message: Message) -> bool:
    return message.method == "server/discover" or says_modern(message)
