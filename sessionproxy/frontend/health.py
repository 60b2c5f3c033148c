"""`/healthz`, `/readyz` and `/metrics`: whether the process answers, whether it takes new sessions,
and its numbers.

No ids and no owners here: anybody may ask. Neighbours: `assembly` puts it beside the endpoint.
"""

from collections.abc import Awaitable, Callable

import anyio
import msgspec

from ..core.admission import Admission
from ..core.manager import SessionManager
from ..errors import MethodNotAllowed, ProxyError
from ..http import Guard, read_headers
from ..http.request import Receive, Scope, Send
from . import problems
from .connection import Connection


class Health:
    """Pages for whoever watches the proxy."""

    def __init__(
        self,
        manager: SessionManager,
        guard: Guard,
        facts: Callable[[], dict[str, object]],
        admission: Admission,
        metrics: Callable[[], Awaitable[tuple[bytes, bytes]]],
    ) -> None:
        """`manager`: of the endpoint. `admission`: of all backends. `facts` are added to `/readyz`
        as they are when it is asked. `metrics` returns the type and the text of `/metrics`."""
        self._manager = manager
        self._admission = admission
        self._guard = guard
        self._facts = facts
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = Connection(receive, send)
        try:
            self._guard.check(read_headers(scope))
            if scope["method"] not in ("GET", "HEAD"):
                raise MethodNotAllowed("only GET and HEAD")
            if scope["path"].endswith("/metrics"):
                await connection.text(*await self._metrics())
                return
            status, body = self._page(scope["path"])
            await connection.page(status, msgspec.json.encode(body))
        except ProxyError as error:
            await connection.problem(problems.http_problem(error))

    def _page(self, path: str) -> tuple[int, dict[str, object]]:
        if path.endswith("/healthz"):
            return 200, {"status": "ok"}
        status = self._status()
        body = {
            "status": status,
            "sessions": len(self._manager.registry),
            "backends": self._admission.running,
            "queued": self._admission.queued,
            **self._facts(),
        }
        return 200 if status == "ready" else 503, body

    def _status(self) -> str:
        if self._manager.draining:
            return "draining"
        return "resting" if self._manager.circuit.rests(anyio.current_time()) else "ready"
