"""A server with every feature the official conformance suite asks for, over stdio.

Tools, resources and prompts carry the names and answers of the suite's server scenarios
(requirement sets 2025-11-25 and 2026-07-28, and the pending ones where a server has a part in
them); a few more tools let a test set off what a backend does on its own: changed lists, updated
resources, roots. It speaks both eras, or with `--era` only one: a server of the handshake era knows
nothing of `server/discover`, one of the modern era refuses `initialize`.

Neighbours: `tools` and `asking` have the tools that need a client; the conformance run and the
end-to-end tests start it behind the proxy. `--http PORT` serves the same over the SDK's own
Streamable HTTP, to tell a fault of ours from one of theirs, and `--sse PORT` over its HTTP with
SSE: `web` does that.
"""

import argparse
import gc
import json
from typing import Any, Final, cast

import anyio
import mcp_types as types
from mcp.server.context import CallNext, HandlerResult
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.models import InitializationOptions
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.runner import serve_loop
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
from mcp.shared._stream_protocols import ReadStream, WriteStream
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage

from .asking import asking_prompt
from .tools import (
    PNG,
    STEP,
    TOOLS,
    Call,
    Content,
    InputRequired,
    Request,
    State,
    embedded,
    image,
    is_handshake,
    state_of,
    text,
    tool,
)

NAME: Final = "sessionproxy-everything"
ERAS: Final = ("both", "handshake", "modern")

WATCHED: Final = "test://watched-resource"
TEMPLATE: Final = ("test://template/", "/data")
WAV: Final = (
    "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQIAAACAgA=="  # two silent samples
)

BUS: Final = InMemorySubscriptionBus()


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


@tool(
    "Has an argument that modern clients also send in a header",
    {
        "type": "object",
        "properties": {"region": {"type": "string", "x-mcp-header": "Region"}},
        "required": ["region"],
    },
)
async def test_header_argument(call: Call) -> Content | str:
    return f"region={call.arguments['region']}"


# Messages before the result


@tool("Logs three times while it runs")
async def test_tool_with_logging(call: Call) -> Content | str:
    await call.log("info", "Tool execution started")
    await anyio.sleep(STEP)
    await call.log("info", "Tool processing data")
    await anyio.sleep(STEP)
    await call.log("info", "Tool execution completed")
    return "Logged three times."


@tool("Logs once")
async def test_logging_tool(call: Call) -> Content | str:
    await call.log("info", "This tool logs")
    return "Logged."


@tool("Reports progress three times while it runs")
async def test_tool_with_progress(call: Call) -> Content | str:
    await call.ctx.session.report_progress(0, 100)
    await anyio.sleep(STEP)
    await call.ctx.session.report_progress(50, 100)
    await anyio.sleep(STEP)
    await call.ctx.session.report_progress(100, 100)
    return "Reported three times."


NAMED: Final = {"type": "object", "properties": {"name": {"type": "string"}}}


@tool("Reports progress, and waits until it is cancelled", NAMED)
async def test_wait(call: Call) -> Content | str:
    try:
        await call.ctx.session.report_progress(1, 2)
        await anyio.sleep_forever()
    finally:
        state_of(call.ctx).cancelled[call.arguments.get("name", "")].set()
    return "Not reached."


@tool("Answers once a call that waits under this name was cancelled", NAMED)
async def test_cancelled(call: Call) -> Content | str:
    await state_of(call.ctx).cancelled[call.arguments.get("name", "")].wait()
    return "It was cancelled."


@tool("Hangs up on its caller where the transport lets it, then answers")
async def test_reconnection(call: Call) -> Content | str:
    if call.ctx.close_sse_stream is not None:
        await call.ctx.close_sse_stream()
    await anyio.sleep(2 * STEP)
    return "Answered after the stream was closed."


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
    return await change(call, call.arguments.get("kind", "tools"))


@tool("Changes the list of tools")
async def test_trigger_tool_change(call: Call) -> Content | str:
    return await change(call, "tools")


@tool("Changes the list of prompts")
async def test_trigger_prompt_change(call: Call) -> Content | str:
    return await change(call, "prompts")


async def change(call: Call, kind: str) -> str:
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
        return wanted.result
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
    prompt("test_input_required_result_prompt", "A prompt for which the user is asked first"),
]


async def list_prompts(
    ctx: Request, params: types.PaginatedRequestParams | None
) -> types.ListPromptsResult:
    added = [prompt("test_added_prompt", "There while the list is changed")]
    return types.ListPromptsResult(
        prompts=PROMPTS + (added if state_of(ctx).changed.get("prompts") else [])
    )


async def get_prompt(
    ctx: Request, params: types.GetPromptRequestParams
) -> types.GetPromptResult | types.InputRequiredResult:
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
        case "test_input_required_result_prompt":
            try:
                blocks = [text(await asking_prompt(Call(ctx, params)))]
            except InputRequired as wanted:
                return wanted.result
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


class HandshakeServer(EverythingServer):
    """Knows nothing of the modern era, on whichever pair of streams."""

    async def run(
        self,
        read_stream: ReadStream[SessionMessage | Exception],
        write_stream: WriteStream[SessionMessage],
        initialization_options: InitializationOptions,
        raise_exceptions: bool = False,
    ) -> None:
        async with self.lifespan(self) as state:
            await serve_loop(
                self,
                read_stream,
                write_stream,
                lifespan_state=state,
                init_options=initialization_options,
            )


async def refuse_initialize(ctx: Request, call_next: CallNext) -> HandlerResult:
    """Stands for a server that knows only the modern era."""
    if ctx.method == "initialize":
        raise MCPError(types.METHOD_NOT_FOUND, "Method not found", "initialize")
    return await call_next(ctx)


def build(era: str = "both") -> Server[dict[str, Any]]:
    """The server, with its state still in this module: one connection per process over stdio."""
    server = (HandshakeServer if era == "handshake" else EverythingServer)(
        NAME,
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
    server.middleware.append(
        RequestStateBoundary(RequestStateSecurity.ephemeral(), default_audience=NAME)
    )
    if era == "modern":
        server.middleware.append(refuse_initialize)
    return server


async def serve_stdio(era: str) -> None:
    server = build(era)
    async with stdio_server() as (incoming, outgoing):
        await server.run(incoming, outgoing, server.create_initialization_options())


def main() -> None:
    gc.enable()  # see this package
    parser = argparse.ArgumentParser()
    parser.add_argument("--era", choices=ERAS, default="both", help="which it speaks")
    parser.add_argument("--http", type=int, metavar="PORT", help=argparse.SUPPRESS)
    parser.add_argument("--sse", type=int, metavar="PORT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    era = cast("str", arguments.era)
    http, sse = cast("int | None", arguments.http), cast("int | None", arguments.sse)
    if http is sse is None:
        anyio.run(serve_stdio, era)
        return
    from . import web  # over stdio it is not needed, and starting is timed

    if http is not None:
        web.serve_http(build(era), http, modern=era != "handshake")
    elif sse is not None:
        web.serve_sse(build("handshake"), sse)


if __name__ == "__main__":
    main()
