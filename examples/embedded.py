"""A proxy inside an application of your own: `uvicorn examples.embedded:app`.

The endpoint is http://127.0.0.1:8000/tools/mcp. Every message that is passed on is printed with the
client's address, which the observer reads from a ContextVar of the request it belongs to.
"""

from contextvars import ContextVar

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from sessionproxy import Forwarded, http_app

CLIENT = ContextVar("CLIENT", default="nobody")


class RememberClient:
    """Keeps the client's address for whatever runs on behalf of its request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        CLIENT.set(str((scope.get("client") or ["nobody"])[0]))
        await self.app(scope, receive, send)


def show(message: Forwarded) -> None:
    arrow = "->" if message.to_backend else "<-"
    print(f"{CLIENT.get()} {arrow} {message.kind} {message.method}", flush=True)  # noqa: T201


tools = http_app(idle=300, observers=[show])  # the demo server, where no command is given
app = Starlette(
    routes=[Mount("/tools", app=tools)],
    middleware=[Middleware(RememberClient)],
    lifespan=tools.lifespan,
)
