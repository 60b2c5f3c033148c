"""A server with every feature the official conformance suite asks for, over stdio.

Tools, resources and prompts carry the names and answers of the suite's server scenarios
(requirement set 2025-11-25, and the pending ones where a server has a part in them); a few more
tools let a test set off what a backend does on its own: changed lists, updated resources, roots.
A handshake client is asked by a request to it, a modern one by `input_required`.

Neighbours: the conformance run and the end-to-end tests start it behind the proxy. `--http PORT`
serves the same over the SDK's own Streamable HTTP, to tell a fault of ours from one of theirs.
"""

import argparse
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar, cast, get_args

import anyio
import mcp_types as types
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.models import InitializationOptions
from mcp.server.stdio import stdio_server
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
    ToolsListChanged,
)
from mcp.shared.exceptions import MCPError, UrlElicitationRequiredError
from mcp.shared.message import ServerMessageMetadata
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from pydantic import BaseModel

Request: TypeAlias = ServerRequestContext[dict[str, Any], Any]
Content: TypeAlias = list[types.ContentBlock]
AnswerT = TypeVar("AnswerT", bound=BaseModel)

LEVELS: Final[tuple[types.LoggingLevel, ...]] = get_args(types.LoggingLevel)  # least severe first
STEP: Final = 0.05
"""Seconds between two messages of one call, so that they cannot arrive as one piece."""

WATCHED: Final = "test://watched-resource"
TEMPLATE: Final = ("test://template/", "/data")
PNG: Final = (  # one red pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
WAV: Final = (
    "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQIAAACAgA=="  # two silent samples
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


STATES: dict[str, State] = {}
BUS: Final = InMemorySubscriptionBus()


def state_of(ctx: Request) -> State:
    """The state of the connection that the request came by."""
    headers = getattr(ctx.request, "headers", {})
    return STATES.setdefault(headers.get("mcp-session-id", ""), State())


def is_handshake(ctx: Request) -> bool:
    return ctx.protocol_version in HANDSHAKE_PROTOCOL_VERSIONS


@dataclass
class Call:
    """One `tools/call`, and what a tool may do while it runs."""

    ctx: Request
    params: types.CallToolRequestParams

    @property
    def arguments(self) -> dict[str, Any]:
        return self.params.arguments or {}

    async def ask(self, question: types.InputRequest, answer: type[AnswerT]) -> AnswerT:
        """Returns the client's answer. A tool asks once, also a client that did not offer to.

        Raises: InputRequired: the client is modern and has yet to answer.
        """
        if is_handshake(self.ctx):
            metadata = ServerMessageMetadata(related_request_id=self.ctx.request_id)
            return await self.ctx.session.send_request(question, answer, metadata=metadata)
        given = (self.params.input_responses or {}).get("question")
        if given is None:
            raise InputRequired(question)
        return answer.model_validate(given.model_dump(by_alias=True), by_name=False)

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


class InputRequired(Exception):
    """The call can go on only when the client comes back with an answer."""

    def __init__(self, question: types.InputRequest) -> None:
        super().__init__()
        self.question = question


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


# Content


@tool("Answers with a line of text")
async def test_simple_text(call: Call) -> Content | str:
    return "This is a simple text response for testing."


@tool("Answers with an image")
async def test_image_content(call: Call) -> Content | str:
    return [image()]


@tool("Answers with a sound")
async def test_audio_content(call: Call) -> Content | str:
    return [types.AudioContent(type="audio", data=WAV, mime_type="audio/wav")]


@tool("Answers with an embedded resource")
async def test_embedded_resource(call: Call) -> Content | str:
    uri, value = "test://embedded-resource", "This is an embedded resource content."
    return [embedded(uri, "text/plain", value)]


@tool("Answers with text, an image and an embedded resource")
async def test_multiple_content_types(call: Call) -> Content | str:
    data = json.dumps({"test": "data", "value": 123})
    resource = embedded("test://mixed-content-resource", "application/json", data)
    return [text("Multiple content types test:"), image(), resource]


@tool("Fails, always")
async def test_error_handling(call: Call) -> Content | str:
    raise RuntimeError("This tool intentionally returns an error for testing")


@tool(
    "Has a schema with keywords of JSON Schema 2020-12",
    {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "$defs": {
            "address": {
                "$anchor": "addressDef",
                "type": "object",
                "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
            }
        },
        "properties": {
            "name": {"type": "string"},
            "address": {"$ref": "#/$defs/address"},
            "contactMethod": {"type": "string", "enum": ["phone", "email"]},
            "phone": {"type": "string"},
            "email": {"type": "string"},
        },
        "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
        "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
        "then": {"required": ["phone"]},
        "else": {"required": ["email"]},
        "additionalProperties": False,
    },
)
async def json_schema_2020_12_tool(call: Call) -> Content | str:
    return json.dumps(call.arguments)


# Messages before the result


@tool("Logs three times while it runs")
async def test_tool_with_logging(call: Call) -> Content | str:
    await call.log("info", "Tool execution started")
    await anyio.sleep(STEP)
    await call.log("info", "Tool processing data")
    await anyio.sleep(STEP)
    await call.log("info", "Tool execution completed")
    return "Logged three times."


@tool("Reports progress three times while it runs")
async def test_tool_with_progress(call: Call) -> Content | str:
    await call.ctx.session.report_progress(0, 100)
    await anyio.sleep(STEP)
    await call.ctx.session.report_progress(50, 100)
    await anyio.sleep(STEP)
    await call.ctx.session.report_progress(100, 100)
    return "Reported three times."


@tool("Hangs up on its caller where the transport lets it, then answers")
async def test_reconnection(call: Call) -> Content | str:
    if call.ctx.close_sse_stream is not None:
        await call.ctx.close_sse_stream()
    await anyio.sleep(2 * STEP)
    return "Answered after the stream was closed."


# Questions to the client


@tool("Has the client's model complete a prompt", takes(prompt="What the model is told"))
async def test_sampling(call: Call) -> Content | str:
    content = text(call.arguments["prompt"])
    message = types.SamplingMessage(role="user", content=content)
    params = types.CreateMessageRequestParams(messages=[message], max_tokens=100)
    result = await call.ask(types.CreateMessageRequest(params=params), types.CreateMessageResult)
    said = result.content.text if isinstance(result.content, types.TextContent) else "no text"
    return f"LLM response: {said}"


async def fill_in(call: Call, message: str, schema: dict[str, Any]) -> str:
    """Has the user fill in a form; returns what came back as text."""
    params = types.ElicitRequestFormParams(message=message, requested_schema=schema)
    result = await call.ask(types.ElicitRequest(params=params), types.ElicitResult)
    return f"action={result.action}, content={json.dumps(result.content)}"


@tool("Asks the user for a name and an address", takes(message="What the user is told"))
async def test_elicitation(call: Call) -> Content | str:
    schema = takes(username="The user's name", email="The user's e-mail address")
    return f"User response: {await fill_in(call, call.arguments['message'], schema)}"


@tool("Asks with a form whose fields have defaults")
async def test_elicitation_sep1034_defaults(call: Call) -> Content | str:
    statuses = ["active", "inactive", "pending"]
    properties: dict[str, Any] = {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {"type": "string", "enum": statuses, "default": "active"},
        "verified": {"type": "boolean", "default": True},
    }
    schema = {"type": "object", "properties": properties}
    return f"Elicitation completed: {await fill_in(call, 'Check these values', schema)}"


@tool("Asks with a form that has every kind of enumeration")
async def test_elicitation_sep1330_enums(call: Call) -> Content | str:
    plain = ["option1", "option2", "option3"]
    titled = [{"const": f"value{n}", "title": f"Choice {n}"} for n in (1, 2, 3)]
    legacy = {"enum": ["opt1", "opt2", "opt3"], "enumNames": ["One", "Two", "Three"]}
    properties: dict[str, Any] = {
        "untitledSingle": {"type": "string", "enum": plain},
        "titledSingle": {"type": "string", "oneOf": titled},
        "legacyEnum": {"type": "string", **legacy},
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": plain}},
        "titledMulti": {"type": "array", "items": {"anyOf": titled}},
    }
    schema = {"type": "object", "properties": properties}
    return f"Elicitation completed: {await fill_in(call, 'Choose', schema)}"


def visit(elicitation_id: str) -> types.ElicitRequestURLParams:
    url = f"https://example.com/visit/{elicitation_id}"
    return types.ElicitRequestURLParams(
        message="Please visit this page", url=url, elicitation_id=elicitation_id
    )


@tool(
    "Sends the user to a page; tells a client of the handshake era when the visit is over",
    takes(elicitationId="The id of the visit"),
)
async def test_elicitation_url(call: Call) -> Content | str:
    params = visit(call.arguments["elicitationId"])
    result = await call.ask(types.ElicitRequest(params=params), types.ElicitResult)
    if result.action == "accept" and is_handshake(call.ctx):
        await anyio.sleep(STEP)
        await call.ctx.session.send_elicit_complete(
            call.arguments["elicitationId"], call.ctx.request_id
        )
    return f"Visit: action={result.action}"


@tool(
    "Fails with the error that names a page to visit first",
    takes(elicitationId="The id of the visit"),
)
async def test_elicitation_url_required(call: Call) -> Content | str:
    raise UrlElicitationRequiredError([visit(call.arguments["elicitationId"])])


@tool("Reports the client's roots as JSON")
async def test_list_roots(call: Call) -> Content | str:
    result = await call.ask(types.ListRootsRequest(), types.ListRootsResult)
    return json.dumps([root.model_dump(mode="json", exclude_none=True) for root in result.roots])


# What a backend does on its own


@tool(
    "Makes a new revision of a resource and tells subscribers",
    {"type": "object", "properties": {"uri": {"type": "string", "default": WATCHED}}},
)
async def test_trigger_resource_updated(call: Call) -> Content | str:
    state, uri = state_of(call.ctx), call.arguments.get("uri", WATCHED)
    state.revision += 1
    await BUS.publish(ResourceUpdated(uri=uri))
    if uri not in state.subscribed:
        return f"revision {state.revision}, not subscribed"
    await call.ctx.session.send_resource_updated(uri)
    return f"revision {state.revision}, subscribed"


CHANGES: Final[dict[str, tuple[ServerEvent, types.ServerNotification]]] = {
    "tools": (ToolsListChanged(), types.ToolListChangedNotification()),
    "resources": (ResourcesListChanged(), types.ResourceListChangedNotification()),
    "prompts": (PromptsListChanged(), types.PromptListChangedNotification()),
}


@tool(
    "Adds an entry to a list, or takes it away again, and tells the client",
    {"type": "object", "properties": {"kind": {"type": "string", "enum": list(CHANGES)}}},
)
async def test_trigger_list_changed(call: Call) -> Content | str:
    kind = call.arguments.get("kind", "tools")
    changed = state_of(call.ctx).changed
    changed[kind] = not changed.get(kind, False)
    event, notification = CHANGES[kind]
    await BUS.publish(event)
    await call.ctx.session.send_notification(notification)
    return f"{kind}: {'one more' if changed[kind] else 'as before'}"


@tool("Reports who the client said it is, as JSON")
async def test_client_info(call: Call) -> Content | str:
    return json.dumps(introduction(call.ctx))


def introduction(ctx: Request) -> dict[str, Any]:
    """What the client sent with `initialize`, or in the envelope of this request."""
    seen: dict[str, Any] = {"protocolVersion": ctx.protocol_version}
    if not is_handshake(ctx):
        meta = (ctx.params or {}).get("_meta", {})
        seen["clientInfo"] = meta.get(types.CLIENT_INFO_META_KEY)
        seen["capabilities"] = meta.get(types.CLIENT_CAPABILITIES_META_KEY)
    elif (sent := state_of(ctx).initialize) is not None:
        seen |= {"clientInfo": sent.get("clientInfo"), "capabilities": sent.get("capabilities")}
    elif (known := ctx.session.client_params) is not None:
        dumped = known.model_dump(by_alias=True, mode="json", exclude_none=True)
        seen |= {"clientInfo": dumped["clientInfo"], "capabilities": dumped["capabilities"]}
    return seen


async def keep_initialize(ctx: Request, call_next: CallNext) -> HandlerResult:
    """Keeps the params of `initialize` as they came: the SDK's models drop unknown members."""
    if ctx.method == "initialize" and ctx.request is None:
        state_of(ctx).initialize = dict(ctx.params or {})
    return await call_next(ctx)


# The handlers


async def list_tools(
    ctx: Request, params: types.PaginatedRequestParams | None
) -> types.ListToolsResult:
    tools = [listed for listed, _ in TOOLS.values()]
    if state_of(ctx).changed.get("tools"):
        added = TOOLS["test_simple_text"][0].model_copy(update={"name": "test_added_tool"})
        tools.append(added)
    return types.ListToolsResult(tools=tools)


async def call_tool(
    ctx: Request, params: types.CallToolRequestParams
) -> types.CallToolResult | types.InputRequiredResult:
    name = "test_simple_text" if params.name == "test_added_tool" else params.name
    if name not in TOOLS:
        raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {params.name}")
    try:
        content = await TOOLS[name][1](Call(ctx, params))
    except InputRequired as wanted:
        return types.InputRequiredResult(input_requests={"question": wanted.question})
    except RuntimeError as why:
        return types.CallToolResult(content=[text(str(why))], is_error=True)
    except KeyError as why:
        return types.CallToolResult(content=[text(f"Missing or unknown: {why}")], is_error=True)
    return types.CallToolResult(content=[text(content)] if isinstance(content, str) else content)


RESOURCES: Final = [
    types.Resource(
        uri="test://static-text",
        name="static-text",
        description="A text that never changes",
        mime_type="text/plain",
    ),
    types.Resource(
        uri="test://static-binary",
        name="static-binary",
        description="An image that never changes",
        mime_type="image/png",
    ),
    types.Resource(
        uri=WATCHED,
        name="watched-resource",
        description="A text with revisions",
        mime_type="text/plain",
    ),
]
ADDED_RESOURCE: Final = types.Resource(uri="test://added", name="added", mime_type="text/plain")


async def list_resources(
    ctx: Request, params: types.PaginatedRequestParams | None
) -> types.ListResourcesResult:
    added = [ADDED_RESOURCE] if state_of(ctx).changed.get("resources") else []
    return types.ListResourcesResult(resources=RESOURCES + added)


async def list_templates(
    ctx: Request, params: types.PaginatedRequestParams | None
) -> types.ListResourceTemplatesResult:
    template = types.ResourceTemplate(
        uri_template="{id}".join(TEMPLATE),
        name="template",
        description="A record made from its id",
        mime_type="application/json",
    )
    return types.ListResourceTemplatesResult(resource_templates=[template])


async def read_resource(
    ctx: Request, params: types.ReadResourceRequestParams
) -> types.ReadResourceResult:
    return types.ReadResourceResult(contents=[contents_of(params.uri, state_of(ctx))])


def contents_of(uri: str, state: State) -> types.TextResourceContents | types.BlobResourceContents:
    """Raises: MCPError: there is no such resource."""
    if uri == "test://static-binary":
        return types.BlobResourceContents(uri=uri, mime_type="image/png", blob=PNG)
    mime_type = "text/plain"
    if uri == "test://static-text":
        value = "This is the content of the static text resource."
    elif uri == WATCHED:
        value = f"Revision {state.revision}"
    elif uri == ADDED_RESOURCE.uri and state.changed.get("resources"):
        value = "Added."
    elif uri.startswith(TEMPLATE[0]) and uri.endswith(TEMPLATE[1]):
        record = uri.removeprefix(TEMPLATE[0]).removesuffix(TEMPLATE[1])
        mime_type = "application/json"
        value = json.dumps({"id": record, "templateTest": True, "data": f"Data for ID: {record}"})
    else:
        raise MCPError(types.INVALID_PARAMS, "Resource not found", {"uri": uri})
    return types.TextResourceContents(uri=uri, mime_type=mime_type, text=value)


async def subscribe(ctx: Request, params: types.SubscribeRequestParams) -> types.EmptyResult:
    state_of(ctx).subscribed.add(params.uri)
    return types.EmptyResult()


async def unsubscribe(ctx: Request, params: types.UnsubscribeRequestParams) -> types.EmptyResult:
    state_of(ctx).subscribed.discard(params.uri)
    return types.EmptyResult()


async def set_level(ctx: Request, params: types.SetLevelRequestParams) -> types.EmptyResult:
    state_of(ctx).log_level = params.level
    return types.EmptyResult()


def prompt(name: str, description: str, **arguments: str) -> types.Prompt:
    listed = [
        types.PromptArgument(name=key, description=value, required=True)
        for key, value in arguments.items()
    ]
    return types.Prompt(name=name, description=description, arguments=listed)


PROMPTS: Final = [
    prompt("test_simple_prompt", "A prompt without arguments"),
    prompt("test_prompt_with_arguments", "A prompt with two", arg1="The first", arg2="The second"),
    prompt(
        "test_prompt_with_embedded_resource",
        "A prompt that carries a resource",
        resourceUri="The URI under which it is embedded",
    ),
    prompt("test_prompt_with_image", "A prompt that carries an image"),
]


async def list_prompts(
    ctx: Request, params: types.PaginatedRequestParams | None
) -> types.ListPromptsResult:
    added = [prompt("test_added_prompt", "There while the list is changed")]
    return types.ListPromptsResult(
        prompts=PROMPTS + (added if state_of(ctx).changed.get("prompts") else [])
    )


async def get_prompt(ctx: Request, params: types.GetPromptRequestParams) -> types.GetPromptResult:
    given = params.arguments or {}
    blocks: Content
    match params.name:
        case "test_simple_prompt" | "test_added_prompt":
            blocks = [text("This is a simple prompt for testing.")]
        case "test_prompt_with_arguments":
            one, two = given.get("arg1", ""), given.get("arg2", "")
            blocks = [text(f"Prompt with arguments: arg1='{one}', arg2='{two}'")]
        case "test_prompt_with_embedded_resource":
            uri, value = given.get("resourceUri", ""), "Embedded resource content for testing."
            instruction = text("Please process the embedded resource above.")
            blocks = [embedded(uri, "text/plain", value), instruction]
        case "test_prompt_with_image":
            blocks = [image(), text("Please analyze the image above.")]
        case _:
            raise MCPError(types.INVALID_PARAMS, f"Unknown prompt: {params.name}")
    return types.GetPromptResult(
        messages=[types.PromptMessage(role="user", content=block) for block in blocks]
    )


async def complete(ctx: Request, params: types.CompleteRequestParams) -> types.CompleteResult:
    words = ["paris", "park", "party", "test", "testing", "123", "124"]
    found = [word for word in words if word.startswith(params.argument.value)]
    completion = types.Completion(values=found, total=len(found), has_more=False)
    return types.CompleteResult(completion=completion)


class EverythingServer(Server[dict[str, Any]]):
    """Declares that its lists may change, whichever transport asks."""

    def create_initialization_options(
        self,
        notification_options: NotificationOptions | None = None,
        experimental_capabilities: dict[str, dict[str, Any]] | None = None,
        extensions: dict[str, dict[str, Any]] | None = None,
    ) -> InitializationOptions:
        return super().create_initialization_options(
            NotificationOptions(prompts_changed=True, resources_changed=True, tools_changed=True),
            experimental_capabilities,
            extensions,
        )


def build() -> Server[dict[str, Any]]:
    """The server, with its state still in this module: one connection per process over stdio."""
    server = EverythingServer(
        "sessionproxy-everything",
        version="1.0.0",
        title="Everything",
        instructions="Call the tools by the names that the conformance suite gives them.",
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
        on_subscribe_resource=subscribe,
        on_unsubscribe_resource=unsubscribe,
        on_subscriptions_listen=ListenHandler(BUS),
        on_list_prompts=list_prompts,
        on_get_prompt=get_prompt,
        on_completion=complete,
    )
    # not by the constructor: its argument warns that 2026-07-28 has dropped the method
    server.add_request_handler("logging/setLevel", types.SetLevelRequestParams, set_level)
    server.middleware.append(keep_initialize)
    return server


async def serve_stdio() -> None:
    server = build()
    async with stdio_server() as (incoming, outgoing):
        await server.run(incoming, outgoing, server.create_initialization_options())


def serve_http(port: int) -> None:
    import uvicorn  # over stdio it is not needed, and starting is timed

    app = build().streamable_http_app(host="127.0.0.1")
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--http", type=int, metavar="PORT", help=argparse.SUPPRESS)
    port = cast("int | None", parser.parse_args().http)
    if port is None:
        anyio.run(serve_stdio)
    else:
        serve_http(port)


if __name__ == "__main__":
    main()
