"""Handles: the conversation that a tool is called in, as one more of its arguments (DESIGN 6).

Where the operator wants them, every tool is shown with an argument for it, and there is one more
tool, which closes a conversation. A call without one begins a conversation and is told its handle.
The backend sees nothing of this. Neighbours: `frontend.modern`, and `core.catalogue` has what the
backend offers.
"""

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import anyio
import msgspec
from msgspec import Raw

from .. import wire
from ..core.binding import CONVERSATION
from ..core.catalogue import Offer
from ..core.manager import SessionManager
from ..core.state import EndReason
from ..errors import HandleEnded, HandleMissing, InvalidMessage, UnknownHandle
from ..wire import Bytes
from ..wire.envelope import text
from .loss import ended

NEW: Final = "new"
"""What stands in place of a handle to begin a conversation."""

LIST: Final = "tools/list"


class Asked(NamedTuple):
    """A call as the backend is to see it, and what it says of its conversation."""

    params: Bytes | None
    argument: str
    """Its name; empty where there is none for it."""
    handle: str | None = None
    new: bool = False
    """It says that it is to begin one."""
    closes: bool = False
    """It is a call of the tool that closes one."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a backend offers, as clients see it."""

    of: Offer
    offer: Offer
    arguments: Mapping[str, str]
    """By tool: the name of the argument."""
    closer: str
    """Name of the tool that closes a conversation."""


class Handles:
    """The handles of one route."""

    def __init__(
        self,
        manager: SessionManager,
        authentic: Callable[[str, str], bool],
        *,
        required: bool,
        idle: float | None,
    ) -> None:
        """`authentic`: whether a handle was minted for an owner. `required`: a call without one
        has to say that it begins a conversation. `idle`: seconds; None: no limit."""
        self._manager = manager
        self._authentic = authentic
        self._required = required
        self._idle = idle
        self._shown: Shown | None = None

    # -- what is shown -----------------------------------------------------------------------------

    def shown(self, offer: Offer) -> Shown:
        if self._shown is None or self._shown.of is not offer:
            self._shown = self._show(offer)
        return self._shown

    def _show(self, offer: Offer) -> Shown:
        listed = wire.members(offer.lists.get(LIST))
        tools = _tools(listed.get("tools"))
        closer = _free(tools, ("session_close", "close_session"))
        arguments: dict[str, str] = {}
        schemas = dict(offer.schemas)
        for name, tool in tools.items():
            found = self._with_argument(tool)
            if found is not None:
                tools[name], arguments[name], schemas[name] = found
        if not arguments:
            return Shown(offer, offer, {}, closer)
        tools[closer], arguments[closer], schemas[closer] = self._closer(closer)
        items = msgspec.json.encode([Raw(tools[name]) for name in sorted(tools)])
        lists = {**offer.lists, LIST: wire.rebuilt({**listed, "tools": items})}
        return Shown(offer, replace(offer, lists=lists, schemas=schemas), arguments, closer)

    def _with_argument(self, tool: bytes) -> tuple[bytes, str, bytes] | None:
        """Return a tool with one more argument, that one's name, and the whole schema.

        None: its schema has no place for it.
        """
        fields = wire.members(tool)
        whole = fields.get("inputSchema", Raw(b""))
        schema: dict[str, Bytes] = {**wire.members(whole)}
        properties: dict[str, Bytes] = {**wire.members(schema.get("properties"))}
        if not _is_object(whole) or not _is_object(schema.get("properties", b"{}")):
            return None
        name = _free(properties, ("session", "session_id", "session_handle"))
        properties[name] = _property(self._described, _header(whole))
        schema["properties"] = wire.rebuilt(properties)
        if self._required:
            schema["required"] = _with_name(schema.get("required"), name)
        encoded = wire.rebuilt(schema)
        return wire.rebuilt({**fields, "inputSchema": encoded}), name, encoded

    @property
    def _described(self) -> str:
        begins = f'"{NEW}" begins one' if self._required else "leave it out to begin one"
        return f"Handle of the session whose state the call needs; {begins}."

    def _closer(self, name: str) -> tuple[bytes, str, bytes]:
        argument = "session"
        schema = {
            "type": "object",
            "properties": {argument: Raw(_property("Handle of the session to end.", "Session"))},
            "required": [argument],
            "additionalProperties": False,
        }
        tool = {
            "name": name,
            "title": "Close session",
            "description": "Ends a session; its state is gone then.",
            "inputSchema": schema,
            "annotations": {"destructiveHint": True, "openWorldHint": False},
        }
        return msgspec.json.encode(tool), argument, msgspec.json.encode(schema)

    # -- calls -------------------------------------------------------------------------------------

    def asked(self, shown: Shown, tool: str | None, params: Bytes | None) -> Asked:
        """Take the handle off a call, where its tool has a place for one.

        Raises: InvalidMessage: it cannot be taken off. UnknownHandle: it is no string.
        """
        argument = shown.arguments.get(tool or "")
        if argument is None:
            return Asked(params, "")
        closes = tool == shown.closer
        given = wire.member(params, "arguments")
        value = wire.member(given, argument)
        if params is None or given is None or value is None:
            return Asked(params, argument, closes=closes)
        rest = wire.without_member(given, argument)
        taken = None if rest is None else wire.with_member(params, "arguments", rest)
        if taken is None:
            raise InvalidMessage(f"the argument {argument} is there twice, or not to be found")
        handle = text(value)
        if handle is None and bytes(value) != b"null":
            raise self._unknown(argument)
        new = handle == NEW
        return Asked(taken, argument, None if new else handle, new, closes)

    def names(self, owner: str, handle: str) -> bool:
        """Return whether it is a handle of this owner's."""
        return self._authentic(owner, handle)

    def check(self, owner: str, asked: Asked) -> None:
        """Check that a call of `owner` may go on.

        Raises: HandleMissing: it has none, and needs one. UnknownHandle: made up, or another
            owner's. HandleEnded: it was good once.
        """
        if not asked.handle:
            if self._required and not asked.new:
                raise HandleMissing(
                    f'This tool needs a session: pass "{asked.argument}": "{NEW}" to begin one, '
                    "or the handle that an earlier result told."
                )
            return
        if not self._authentic(owner, asked.handle):
            raise self._unknown(asked.argument)
        key = CONVERSATION + asked.handle
        if self._manager.conversation(owner, key) is None:
            loss = self._manager.ended(owner, key)
            when = "has ended" if loss is None else f"ended {ended(loss, anyio.current_time())}"
            raise HandleEnded(f"This session {when}. Its state is gone. {self._go_on(asked)}")

    def _unknown(self, argument: str) -> UnknownHandle:
        return UnknownHandle(f"There is no such session. {self._go_on(Asked(None, argument))}")

    def _go_on(self, asked: Asked) -> str:
        how = (
            f'with "{asked.argument}": "{NEW}"' if self._required else f'without "{asked.argument}"'
        )
        return f"Call again {how} to begin a new one."

    def close(self, owner: str, asked: Asked) -> bytes:
        """End the session that a call of the closing tool names; return its result.

        Raises: as `check`.
        """
        if not asked.handle:
            raise HandleMissing("Which session is to be closed?")
        self.check(owner, asked)
        session = self._manager.conversation(owner, CONVERSATION + asked.handle)
        if session is not None:
            self._manager.end(session, EndReason.CLIENT_DELETE)
        content = [{"type": "text", "text": "The session has ended."}]
        return msgspec.json.encode({"content": content, "resultType": "complete"})

    def told(self, argument: str, handle: str) -> str:
        """Return what a model is told of a session that its call has begun."""
        limit = (
            ""
            if self._idle is None
            else f" Its state is lost {self._idle:g} s after the last call."
        )
        return f'This call began a session. Pass "{argument}": "{handle}" to go on in it.{limit}'


def _tools(encoded: Bytes | None) -> dict[str, bytes]:
    """Return tools by name, encoded."""
    items = msgspec.json.decode(encoded or b"[]", type=list[Raw])
    return {text(wire.member(item, "name")) or "": bytes(item) for item in items}


def _free(taken: Collection[str], names: tuple[str, ...]) -> str:
    return next(name for name in _candidates(names) if name not in taken)


def _candidates(names: tuple[str, ...]) -> Iterator[str]:
    yield from names
    for number in itertools.count(2):
        yield f"{names[-1]}_{number}"


def _is_object(value: Bytes) -> bool:
    return bytes(value).startswith(b"{")


def _header(schema: Bytes) -> str:
    """Return the header that mirrors the argument: one that no other has."""
    from mcp.shared.inbound import x_mcp_header_map  # takes most of a second to load

    taken = {name.lower() for name in x_mcp_header_map(msgspec.json.decode(schema)).values()}
    names = _candidates(("Session", "Session-Handle"))
    return next(
        name.replace("_", "-") for name in names if name.replace("_", "-").lower() not in taken
    )


def _property(description: str, header: str) -> bytes:
    found = {"type": "string", "description": description, "x-mcp-header": header}
    return msgspec.json.encode(found)


def _with_name(required: Bytes | None, name: str) -> bytes:
    try:
        names = msgspec.json.decode(required or b"[]", type=list[str])
    except msgspec.DecodeError:
        names = list[str]()
    return msgspec.json.encode([*names, name])
