"""What the everything server's tools and prompts are made of, and the list of its tools.

A tool asks the same way whatever its client: one of the handshake era gets a request while the tool
waits; a modern one gets `input_required`, and the tool runs again from its start, with the answers,
when the client comes back (2026-07-28 basic/patterns/mrtr).

Neighbours: `everything` and `asking` define the tools.
"""

import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeAlias, TypeVar, cast, get_args

import anyio
import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from pydantic import BaseModel

Request: TypeAlias = ServerRequestContext[dict[str, Any], Any]
Content: TypeAlias = list[types.ContentBlock]
AnswerT = TypeVar("AnswerT", bound=BaseModel, covariant=True)

LEVELS: Final[tuple[types.LoggingLevel, ...]] = get_args(types.LoggingLevel)  # least severe first
STEP: Final = 0.05
"""Seconds between two messages of one call, so that they cannot arrive as one piece."""

PNG: Final = (  # one red pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)


@dataclass
class State:
    """What one connection has set; over stdio there is only one."""

    log_level: types.LoggingLevel = "debug"
    subscribed: set[str] = field(default_factory=set[str])
    initialize: dict[str, Any] | None = None
    """The params as they arrived, unknown members too; kept over stdio only."""
    changed: dict[str, bool] = field(default_factory=dict[str, bool])
    """The kinds of list that have one more entry just now."""
    revision: int = 0
    cancelled: defaultdict[str, anyio.Event] = field(
        default_factory=lambda: defaultdict[str, anyio.Event](anyio.Event)
    )
    """Calls that waited and were cancelled, by their names."""


STATES: dict[str, State] = {}


def state_of(ctx: Request) -> State:
    """The state of the connection that the request came by."""
    headers = getattr(ctx.request, "headers", {})
    return STATES.setdefault(headers.get("mcp-session-id", ""), State())


def is_handshake(ctx: Request) -> bool:
    return ctx.protocol_version in HANDSHAKE_PROTOCOL_VERSIONS


class Question(Generic[AnswerT]):
    """What a client can be asked, and the kind of its answer."""

    def __init__(self, request: types.InputRequest, answer: type[AnswerT]) -> None:
        self.request = request
        self.answer = answer


class InputRequired(Exception):
    """The call can go on only when the client comes back with answers."""

    def __init__(self, questions: Mapping[str, types.InputRequest], state: str | None) -> None:
        super().__init__()
        self.result = types.InputRequiredResult(input_requests=dict(questions), request_state=state)


@dataclass
class Call:
    """One request that may ask, and what may be done while it is worked on."""

    ctx: Request
    params: types.CallToolRequestParams | types.GetPromptRequestParams

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.params.arguments or {})

    async def ask(
        self, question: Question[AnswerT], key: str = "question", *, stateful: bool = False
    ) -> AnswerT:
        """Returns the client's answer. A tool asks also a client that did not offer to answer.

        `key` and `stateful` are for modern clients: what names the question, and whether the first
        round has a state to carry; later ones always have.

        Raises:
            InputRequired: the client is modern and has yet to answer.
            MCPError: it is not, and refuses.
        """
        answers = await self.ask_all({key: question}, stateful=stateful)
        return cast("AnswerT", answers[key])

    async def ask_all(
        self, questions: Mapping[str, Question[BaseModel]], *, stateful: bool = False
    ) -> dict[str, BaseModel]:
        """Returns the answers to several questions, which are asked at once. Raises: as `ask`."""
        if is_handshake(self.ctx):
            return await self._request_all(questions)
        known = self._answers()
        open_ones = {key: q.request for key, q in questions.items() if key not in known}
        if open_ones:
            raise InputRequired(open_ones, json.dumps(known) if known or stateful else None)
        return {
            key: question.answer.model_validate(known[key], by_name=False)
            for key, question in questions.items()
        }

    def _answers(self) -> dict[str, Any]:
        """What the client has answered in this round, and in those before."""
        known = cast("dict[str, Any]", json.loads(self.params.request_state or "{}"))
        for key, given in (self.params.input_responses or {}).items():
            known[key] = given.model_dump(by_alias=True, mode="json", exclude_none=True)
        return known

    async def _request_all(
        self, questions: Mapping[str, Question[BaseModel]]
    ) -> dict[str, BaseModel]:
        answers: dict[str, BaseModel] = {}
        refused: list[MCPError] = []
        metadata = ServerMessageMetadata(related_request_id=self.ctx.request_id)

        async def request(key: str, question: Question[BaseModel]) -> None:
            try:
                answers[key] = await self.ctx.session.send_request(
                    question.request, question.answer, metadata=metadata
                )
            except MCPError as error:
                refused.append(error)

        async with anyio.create_task_group() as tasks:
            for key, question in questions.items():
                tasks.start_soon(request, key, question)
        if refused:
            raise refused[0]
        return answers

    async def log(self, level: types.LoggingLevel, data: object) -> None:
        """Sends a log message, if it is one that the client wants."""
        wanted = (self.ctx.meta or {}).get(types.LOG_LEVEL_META_KEY)
        if is_handshake(self.ctx):
            wanted = state_of(self.ctx).log_level
        if wanted in LEVELS[: LEVELS.index(level) + 1]:
            params = types.LoggingMessageNotificationParams(level=level, data=data, logger="tests")
            await self.ctx.session.send_notification(
                types.LoggingMessageNotification(params=params), self.ctx.request_id
            )


Run: TypeAlias = Callable[[Call], Awaitable[Content | str]]
TOOLS: dict[str, tuple[types.Tool, Run]] = {}


def tool(
    description: str, schema: dict[str, Any] | None = None, *, name: str | None = None
) -> Callable[[Run], Run]:
    """Lists the function as a tool, under its own name unless told another."""

    def register(run: Run) -> Run:
        called = name or cast("Any", run).__name__
        input_schema = schema or {"type": "object", "properties": {}}
        listed = types.Tool(name=called, description=description, input_schema=input_schema)
        TOOLS[called] = (listed, run)
        return run

    return register


def takes(**properties: str) -> dict[str, Any]:
    """The schema of an object of required strings, from their descriptions."""
    described = {name: {"type": "string", "description": d} for name, d in properties.items()}
    return {"type": "object", "properties": described, "required": list(described)}


def text(value: str) -> types.TextContent:
    return types.TextContent(type="text", text=value)


def image() -> types.ImageContent:
    return types.ImageContent(type="image", data=PNG, mime_type="image/png")


def embedded(uri: str, mime_type: str, value: str) -> types.EmbeddedResource:
    contents = types.TextResourceContents(uri=uri, mime_type=mime_type, text=value)
    return types.EmbeddedResource(type="resource", resource=contents)
