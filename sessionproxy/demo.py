"""A small stateful MCP server over stdio, to try the proxy with: a notebook that calculates.

`python -m sessionproxy.demo` is one notebook for one conversation: variables, counter and log
level live in the process and are gone with it, so a user who sees another's variables has found
a fault in whatever stands between. It also asks the user, reports progress and logs.
Neighbours: none; no other room imports it, and it reaches its client only through `mcp`.
"""

import ast
import math
import operator
from collections.abc import Callable
from typing import Annotated, Any, Final, TypeAlias, cast, get_args

import anyio
import mcp_types as types
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.mcpserver import AcceptedElicitation, Context, Elicit, ElicitationResult, MCPServer
from mcp.server.mcpserver import Resolve as Ask
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from pydantic import BaseModel, Field

Number: TypeAlias = int | float

MAX_SOURCE: Final = 500
"""Characters of one entry: bounds the time to parse it and the depth of its tree."""
MAX_BITS: Final = 4096
"""Size of an integer: keeps every operation in microseconds and every answer printable."""
MAX_VARIABLES: Final = 100
"""Variables of one notebook: bounds its memory together with `MAX_BITS`."""

VARIABLES_URI: Final = "notebook://variables"
LEVELS: Final[tuple[types.LoggingLevel, ...]] = get_args(types.LoggingLevel)  # least severe first
READS: Final = types.ToolAnnotations(read_only_hint=True, open_world_hint=False)
WRITES: Final = types.ToolAnnotations(destructive_hint=False, open_world_hint=False)


def power(base: Number, exponent: Number) -> object:
    """Raises: OverflowError: the result is sure to pass `MAX_BITS`; said before it is computed."""
    if isinstance(base, int) and isinstance(exponent, int):
        if exponent > 0 and (base.bit_length() - 1) * exponent > MAX_BITS:
            raise OverflowError("that power is too large")
    return base**exponent


CONSTANTS: Final[dict[str, Number]] = {"pi": math.pi, "e": math.e}
FUNCTIONS: Final[dict[str, Any]] = {f.__name__: f for f in (abs, max, min)} | {
    f.__name__: f for f in (math.ceil, math.cos, math.floor, math.log, math.sin, math.sqrt)
}
OPERATORS: Final[dict[type[ast.operator], Callable[[Any, Any], object]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda left, right: left / right,
    ast.FloorDiv: lambda left, right: left // right,
    ast.Mod: operator.mod,
    ast.Pow: power,
}
NO_ARITHMETIC: Final = (
    ValueError,
    TypeError,
    ArithmeticError,
    SyntaxError,
    RecursionError,
    MemoryError,
)
"""What `Notebook.run` raises: the entry is no arithmetic, or too much of it."""


def bounded(value: object) -> Number:
    """Returns it if it is a number that a notebook may hold. Raises: ValueError otherwise."""
    if type(value) is int and value.bit_length() <= MAX_BITS:
        return value
    if type(value) is float and math.isfinite(value):
        return value
    raise ValueError(f"not a real, finite number of at most {MAX_BITS} bits")


class Notebook:
    """The state of one conversation."""

    def __init__(self) -> None:
        self.variables: dict[str, Number] = {}
        self.count = 0
        self.log_level: types.LoggingLevel = "info"  # this and the next: handshake era only
        self.subscribed: set[str] = set()

    def run(self, source: str) -> tuple[str | None, Number]:
        """Returns the value of one expression or assignment, and the name it was assigned to.

        Raises: one of `NO_ARITHMETIC`; then no variable has changed.
        """
        if len(source) > MAX_SOURCE:
            raise ValueError(f"longer than {MAX_SOURCE} characters")
        match ast.parse(source.strip()).body:
            case [ast.Expr(value=tree)]:
                return None, self._value(tree)
            case [ast.Assign(targets=[ast.Name(id=name)], value=tree)]:
                value = self._value(tree)
                if len(self.variables.keys() | {name}) > MAX_VARIABLES:
                    raise ValueError(f"the notebook is full: {MAX_VARIABLES} variables")
                self.variables[name] = value
                return name, value
            case _:
                raise ValueError("write one expression, or one assignment: name = expression")

    def _value(self, tree: ast.expr) -> Number:
        match tree:
            case ast.Constant(value=value):
                return bounded(value)
            case ast.Name(id=name) if name in self.variables or name in CONSTANTS:
                return self.variables[name] if name in self.variables else CONSTANTS[name]
            case ast.Name(id=name):
                raise ValueError(f"no variable is called {name!r}")
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self._value(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                return bounded(OPERATORS[type(op)](self._value(left), self._value(right)))
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
                return bounded(FUNCTIONS[name](*map(self._value, args)))
            case _:
                raise ValueError(f"{type(tree).__name__} is not arithmetic of this notebook")


notebook: Notebook = Notebook()


async def serve_handshake(
    ctx: ServerRequestContext[Any, Any], call_next: CallNext
) -> HandlerResult:
    """Declares and answers what `MCPServer` leaves out for clients before 2026-07-28.

    Later ones subscribe by `subscriptions/listen` and choose the log level per request.
    """
    if ctx.protocol_version not in HANDSHAKE_PROTOCOL_VERSIONS:
        return await call_next(ctx)
    params = ctx.params or {}
    match ctx.method:
        case "logging/setLevel":
            notebook.log_level = types.SetLevelRequestParams.model_validate(params).level
        case "resources/subscribe":
            notebook.subscribed.add(types.SubscribeRequestParams.model_validate(params).uri)
        case "resources/unsubscribe":
            notebook.subscribed.discard(types.UnsubscribeRequestParams.model_validate(params).uri)
        case _:
            result = await call_next(ctx)
            if ctx.method == "initialize":
                capabilities = cast("dict[str, Any]", result)["capabilities"]
                capabilities["logging"] = {}
                capabilities["resources"]["subscribe"] = True
            return result
    return {}


server: MCPServer[Any] = MCPServer(
    "sessionproxy-demo",
    title="Notebook calculator",
    version="1.0",
    instructions=(
        "A calculator with a memory. Assign with evaluate('x = 6 * 7') and use x in later calls. "
        "Everything it remembers belongs to this conversation alone and ends with it."
    ),
    log_level="WARNING",
    middleware=[serve_handshake],
)


async def log(ctx: Context, text: str) -> None:
    """Sends an `info` message if the client wants to hear that level."""
    wanted = (ctx.request_context.meta or {}).get(types.LOG_LEVEL_META_KEY)
    if ctx.protocol_version in HANDSHAKE_PROTOCOL_VERSIONS:
        wanted = notebook.log_level
    if wanted in LEVELS[: LEVELS.index("info") + 1]:
        params = types.LoggingMessageNotificationParams(level="info", logger="notebook", data=text)
        message = types.LoggingMessageNotification(params=params)
        await ctx.session.send_notification(message, related_request_id=ctx.request_id)


@server.tool(title="Evaluate", annotations=WRITES)
async def evaluate(
    source: Annotated[str, Field(description="e.g. x = 2 ** 10, or sqrt(x) + pi")], ctx: Context
) -> str:
    """Evaluate one arithmetic expression, or assign it to a variable that stays."""
    try:
        name, value = notebook.run(source)
    except NO_ARITHMETIC as why:
        raise ToolError(str(why)) from why
    if name is None:
        return str(value)
    await ctx.notify_resource_updated(VARIABLES_URI)
    if VARIABLES_URI in notebook.subscribed:
        await ctx.session.send_resource_updated(VARIABLES_URI)
    return f"{name} = {value}"


@server.tool(title="Variables", annotations=READS)
@server.resource(VARIABLES_URI, title="Variables", mime_type="application/json")
def variables() -> dict[str, Number]:
    """Every variable of this notebook, with its value."""
    return notebook.variables


@server.tool(title="Count", annotations=WRITES)
def count(by: Annotated[int, Field(ge=-1000, le=1000)] = 1) -> int:
    """Add to the counter of this notebook and return where it stands."""
    notebook.count += by
    return notebook.count


class Who(BaseModel):
    """The form that `greet` shows."""

    name: str = Field(title="Your name", description="What shall I call you?", max_length=80)


def ask_name(ctx: Context) -> Elicit[Who] | Who:
    """Asks as the client's revision has it: by a request of its own, or by `input_required`."""
    able = ctx.client_capabilities is not None and ctx.client_capabilities.elicitation is not None
    return Elicit("Who are you?", Who) if able else Who(name="user whose client cannot ask")


@server.tool(title="Greet", annotations=READS)
async def greet(who: Annotated[ElicitationResult[Who], Ask(ask_name)]) -> str:
    """Ask the user for a name, then greet."""
    return f"Hello, {who.data.name if isinstance(who, AcceptedElicitation) else 'stranger'}!"


@server.tool(title="Countdown", annotations=READS)
async def countdown(
    ctx: Context,
    steps: Annotated[int, Field(ge=1, le=1000)] = 5,
    delay: Annotated[float, Field(ge=0, le=10, description="Seconds before each step")] = 0.2,
) -> str:
    """Count down, reporting progress and logging at every step."""
    for step in range(1, steps + 1):
        await anyio.sleep(delay)
        await ctx.report_progress(step, steps, f"{steps - step} to go")
        await log(ctx, f"step {step} of {steps}")
    return "Lift-off."


@server.prompt(title="Solve step by step")
def solve(problem: Annotated[str, Field(description="What is to be calculated")]) -> str:
    """Have a problem solved with this notebook."""
    return (
        "Solve this with the notebook's evaluate tool, one named variable per step, "
        f"and look at them all with the variables tool at the end: {problem}"
    )


if __name__ == "__main__":
    server.run("stdio")
