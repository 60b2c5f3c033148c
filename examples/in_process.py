"""A server in this process, changed on the way: `python examples/in_process.py`.

The server is somebody else's. One tool of it is hidden, one is renamed, and a hook changes what
another returns. One client on stdin and stdout is served, as a desktop client starts it; with PORT
in the environment, many over HTTP.
"""

import os

from mcp.server.mcpserver import MCPServer

from sessionproxy import CallNext, Request, Result, Rules, create_proxy

theirs = MCPServer("theirs")


@theirs.tool()
def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


@theirs.tool()
def internal_state() -> str:
    """Nobody's business."""
    return "secret"


@theirs.tool()
def add(a: int, b: int) -> int:
    """a and b"""
    return a + b


async def in_capitals(request: Request, call_next: CallNext) -> Result:
    """Have the weather told loudly."""
    result = await call_next(request)
    if request.method != "tools/call" or request.name != "weather":
        return result
    loud = [{**item, "text": item["text"].upper()} for item in result.value["content"]]
    told = {"result": loud[0]["text"]}  # the same for programs
    return Result.of({**result.value, "content": loud, "structuredContent": told})


proxy = create_proxy(
    theirs,
    rules=Rules(deny_tools=("internal_*",), rename_tools={"add": "sum"}),
    hooks=[in_capitals],
)

if __name__ == "__main__":
    if "PORT" in os.environ:
        proxy.run("http", port=int(os.environ["PORT"]))
    else:
        proxy.run()
