"""Every public name, used as a user would: strict type checkers must have nothing to say.

Neighbours: `scripts/test` has pyright read it; it is not run.
"""

from collections.abc import Mapping
from typing import Any, Unpack, assert_type

import mcp_types as types
from mcp import StdioServerParameters
from mcp.client.session_group import SseServerParameters, StreamableHttpParameters
from mcp.server.lowlevel import Server as SdkServer
from mcp.server.mcpserver import Context, MCPServer

import sessionproxy
from sessionproxy import (
    AppSettings,
    CallNext,
    ClientFactory,
    ComponentIsMirrored,
    ConfigError,
    Configuration,
    ElicitationHandler,
    Exchange,
    Forwarded,
    FrontSettings,
    HandlerContext,
    Hook,
    LogHandler,
    ProgressHandler,
    Proxy,
    ProxyApp,
    ProxyClient,
    ProxyError,
    ProxyPrompt,
    ProxyProvider,
    ProxyResource,
    ProxySettings,
    ProxyTarget,
    ProxyTemplate,
    ProxyTool,
    Request,
    RequestFailed,
    RequestHook,
    Result,
    RootsHandler,
    Rules,
    SamplingHandler,
    Server,
    Sessions,
    StatefulProxyClient,
    ToolChange,
    Transport,
    create_proxy,
    current_exchange,
    current_request,
    default_proxy_elicitation_handler,
    default_proxy_log_handler,
    default_proxy_progress_handler,
    default_proxy_roots_handler,
    default_proxy_sampling_handler,
    http_app,
    read_configuration,
)

# -- targets ---------------------------------------------------------------------------------------

mine: MCPServer[Any] = MCPServer("mine")
low: SdkServer[Any] = SdkServer("low")


def make() -> MCPServer[Any]:
    return MCPServer("made")


async def make_later() -> SdkServer[Any]:
    return low


configuration: Configuration = read_configuration("servers.json")
server: Server = configuration.servers[0]
targets: list[ProxyTarget] = [
    "https://example.com/mcp",
    "server.py",
    ["npx", "-y", "@playwright/mcp"],
    ("uvx", "mcp-server-git"),
    {"mcpServers": {"git": {"command": "uvx", "args": ["mcp-server-git"]}}},
    configuration,
    server,
    StdioServerParameters(command="uvx", args=["mcp-server-git"], cwd="/tmp"),
    StreamableHttpParameters(url="https://example.com/mcp", headers={"X-Own": "1"}),
    SseServerParameters(url="https://example.com/sse"),
    mine,
    low,
    make,
    make_later,
    ProxyClient("server.py"),
    ProxyProvider(ProxyClient("server.py").new),
    create_proxy("server.py"),
]
policy: Sessions = "shared"
proxies: list[Proxy] = [create_proxy(target, sessions=policy) for target in targets]

# -- hooks -----------------------------------------------------------------------------------------


async def guard(request: Request, call_next: CallNext) -> Result:
    """Look at a request, change it, refuse it, and change its answer."""
    params: Mapping[str, Any] = request.params
    assert_type(request.method, str)
    assert_type(request.owner, str | None)
    assert_type(request.name, str | None)
    assert_type(request.raw, bytes | None)
    if request.server == "secret" or request.session == "":
        raise RequestFailed(-32001, "not here", {"why": "secret"})
    try:
        result = await call_next(request.with_params({**params, "more": 1}))
    except RequestFailed as failed:
        assert_type((failed.code, failed.message, failed.raw), tuple[int, str, bytes])
        raise
    except ProxyError as error:
        assert_type(error.reason, str)
        raise
    assert_type(result.raw, bytes)
    return Result.of({**result.value, "_meta": {}})


def look_on(forwarded: Forwarded) -> None:
    """See every message."""
    exchange: Exchange | None = forwarded.exchange
    assert exchange is current_exchange.get()
    assert_type((forwarded.to_backend, forwarded.kind, forwarded.method), tuple[bool, str, str])


hooks: list[RequestHook] = [guard]
observers: list[Hook] = [look_on]

# -- a gateway -------------------------------------------------------------------------------------

change: ToolChange = ToolChange(name="see", enabled=True)
rules: Rules = Rules(
    deny_tools=("rm_*",),
    rename_tools={"do": "make"},
    tools={"look": change},
    include_tags=("safe",),
)
gateway: Proxy = create_proxy(
    "https://example.com/mcp",
    name="gateway",
    instructions="Mind the gap.",
    sessions="frontend",
    hooks=hooks,
    observers=observers,
    rules=rules,
    idle=60,
    max_sessions=8,
    header=["X-Own=1"],
)
gateway.add_hook(guard)
gateway.mount(mine, prefix="mine")
gateway.mount(["npx", "-y", "@playwright/mcp"])


@gateway.tool
def add(x: int, y: int = 0) -> int:
    """Stays what it was."""
    return x + y


@gateway.tool(title="Ask", annotations=types.ToolAnnotations(read_only_hint=True))
async def ask(ctx: Context) -> str:
    await ctx.report_progress(1, 2)
    return "asked"


@gateway.resource("note://{name}", mime_type="text/plain")
def note(name: str) -> str:
    return name


@gateway.prompt
def greet(who: str) -> str:
    return who


@gateway.prompt(title="Part")
def part(who: str) -> str:
    return who


assert_type(add(1, y=2), int)
assert_type(note("one"), str)
assert_type(greet("Ann") + part("Bob"), str)
assert_type(gateway.local, MCPServer[Any])

app: ProxyApp = gateway.http_app(idle=10)
other: ProxyApp = http_app(["server"], hooks=hooks, observers=observers, idle=10)


# -- settings --------------------------------------------------------------------------------------


def patient(target: ProxyTarget, **settings: Unpack[ProxySettings]) -> Proxy:
    """A wrapper's own default."""
    kept: ProxySettings = {"call_timeout": 600, "on_loss": "annotate", **settings}
    return create_proxy(target, **kept)


def published(**settings: Unpack[FrontSettings]) -> ProxyApp:
    return patient("server.py", env={"LANG": "C"}, key_meta=["thread"]).http_app(**settings)


def configured(settings: AppSettings) -> ProxyApp:
    return http_app(**settings)


configured({"config": "servers.json", "mode": "shared", "sse": "off"})


def misspelt() -> None:
    """What does not exist, or is of another type, is found before it runs."""
    create_proxy("server.py", idel=60)  # pyright: ignore[reportCallIssue]
    create_proxy("server.py", mode="shared")  # pyright: ignore[reportCallIssue]
    create_proxy("server.py", env="LANG=C", sse="of")  # pyright: ignore[reportArgumentType]
    gateway.http_app(env={"LANG": "C"})  # pyright: ignore[reportCallIssue]
    ProxyClient("server.py", idle="long")  # pyright: ignore[reportArgumentType]


def serve() -> None:
    """Serve it, in each way."""
    transport: Transport = "stdio"
    gateway.run(transport)
    gateway.run("http", host="127.0.0.1", port=8080, path="/mcp")
    gateway.run(transport="sse")


async def serve_async() -> None:
    await gateway.run_async("http", port=0, on_ready=print)


# -- clients ---------------------------------------------------------------------------------------


async def own_roots(context: HandlerContext) -> types.ListRootsResult | types.ErrorData:
    assert_type(context.exchange, Exchange | None)
    return types.ListRootsResult(roots=[])


async def own_sampling(
    context: HandlerContext, params: types.CreateMessageRequestParams
) -> types.CreateMessageResult | types.CreateMessageResultWithTools | types.ErrorData:
    return await default_proxy_sampling_handler(context, params)


async def own_elicitation(
    context: HandlerContext, params: types.ElicitRequestParams
) -> types.ElicitResult:
    """May promise less than the type of a handler does."""
    found = await default_proxy_elicitation_handler(context, params)
    return found if isinstance(found, types.ElicitResult) else types.ElicitResult(action="cancel")


async def own_log(params: types.LoggingMessageNotificationParams) -> None:
    await default_proxy_log_handler(params)


async def own_progress(progress: float, total: float | None, message: str | None) -> None:
    await default_proxy_progress_handler(progress, total, message)


roots_handler: RootsHandler = own_roots
sampling_handler: SamplingHandler = own_sampling
elicitation_handler: ElicitationHandler = own_elicitation
log_handler: LogHandler = own_log
progress_handler: ProgressHandler = own_progress


async def use_clients() -> None:
    """Make, connect, call."""
    client = ProxyClient(
        "server.py",
        name="client",
        roots_handler=own_roots,
        sampling_handler=own_sampling,
        elicitation_handler=own_elicitation,
        log_handler=own_log,
        progress_handler=None,
        idle=5,
    )
    defaults = ProxyClient("server.py", roots_handler=default_proxy_roots_handler)
    async with client as same, client, defaults:
        assert_type(same, ProxyClient)
        assert_type(client.is_connected, bool)
        assert_type(client.server_info, types.Implementation)
        assert_type(client.server_capabilities, types.ServerCapabilities)
        assert_type(client.instructions, str | None)
        assert_type(client.initialize_result, types.InitializeResult)
        assert_type(await client.list_tools(), list[types.Tool])
        assert_type(await client.list_resources(), list[types.Resource])
        assert_type(await client.list_resource_templates(), list[types.ResourceTemplate])
        assert_type(await client.list_prompts(), list[types.Prompt])
        result = await client.call_tool("do", {"x": 1}, progress_handler=own_progress)
        assert_type(result, types.CallToolResult)
        assert_type(await client.read_resource("note://one"), types.ReadResourceResult)
        assert_type(await client.get_prompt("greet", {"who": "A"}), types.GetPromptResult)
        reference = types.PromptReference(name="greet")
        completed = await client.complete(reference, {"name": "who", "value": "A"})
        assert_type(completed, types.Completion)
        await client.set_logging_level("info")
        await client.subscribe_resource("note://one")
        await client.unsubscribe_resource("note://one")
        await client.ping()
        assert_type(await client.raw_request("tools/list"), bytes)
        assert_type(
            await client.request("ping", {}, types.EmptyResult, meta={"own": 1}), types.EmptyResult
        )
        stop = client.listen(lambda method, params: None)
        stop()
    assert_type(client.new(), ProxyClient)


# -- providers and components ----------------------------------------------------------------------

stateful: StatefulProxyClient = StatefulProxyClient("server.py", log_handler=None)


async def choose() -> ProxyClient:
    request = current_request.get()
    return stateful.new_stateful() if request is not None and request.owner else stateful.new()


factory: ClientFactory = choose


async def use_components() -> None:
    """Mirror, copy, change, run."""
    provider = ProxyProvider(choose, cache_ttl=0)
    gateway.add_provider(provider, namespace="far")
    gateway.add_provider(ProxyProvider(stateful.new_stateful))
    tool: ProxyTool | None = await provider.get_tool("do")
    resource: ProxyResource | None = await provider.get_resource("note://one")
    template: ProxyTemplate | None = await provider.get_resource_template("note://{name}")
    prompt: ProxyPrompt | None = await provider.get_prompt("greet")
    assert_type(await provider.list_tools(), list[ProxyTool])
    assert_type(await provider.list_resources(), list[ProxyResource])
    assert_type(await provider.list_resource_templates(), list[ProxyTemplate])
    assert_type(await provider.list_prompts(), list[ProxyPrompt])
    if tool is None or resource is None or template is None or prompt is None:
        return
    try:
        tool.disable()
    except ComponentIsMirrored:
        tool = tool.copy(name="mine", description="Mine.")
    assert_type(tool, ProxyTool)
    assert_type(tool.definition, types.Tool)
    assert_type((tool.key, tool.backend_name), tuple[str, str])
    assert_type((tool.is_mirrored, tool.enabled), tuple[bool, bool])
    assert_type(tool.tags, frozenset[str])
    assert_type(tool.get_span_attributes(), dict[str, str])
    tool.enable()
    gateway.add_tool(tool)
    gateway.add_resource(resource.copy(uri="mine://one"))
    gateway.add_template(template.copy())
    gateway.add_prompt(prompt.copy())
    assert_type(await tool.run({"x": 1}), types.CallToolResult)
    assert_type(await resource.read(), types.ReadResourceResult)
    assert_type(template.expand({"name": "a"}), str)
    assert_type(await template.create_resource({"name": "a"}), ProxyResource)
    assert_type(await prompt.render({"who": "A"}), types.GetPromptResult)
    mirror = ProxyTool.from_mcp_tool(choose, tool.definition)
    assert_type(mirror, ProxyTool)
    ProxyResource.from_mcp_resource(stateful.new, resource.definition)
    ProxyTemplate.from_mcp_template(stateful.new, template.definition)
    ProxyPrompt.from_mcp_prompt(stateful.new, prompt.definition)
    await stateful.clear()
    async with gateway:
        assert_type(await gateway.get_tool("do"), ProxyTool | None)
        assert_type(await gateway.get_prompt_component("greet"), ProxyPrompt | None)
        assert_type(await gateway.call_tool("add", {"x": 1}), types.CallToolResult)


def wrong() -> str:
    """What is wrong is told of by one exception."""
    try:
        create_proxy("no-such.py")
    except ConfigError as error:
        return str(error)
    return sessionproxy.__version__
