"""Clients of the SDK's that count, so that a backend which somebody else called is found out.

Neighbours: tests of what tells conversations apart; `tests.rig.scripted` counts the calls.
"""

import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import anyio
import httpx2
from mcp import Client
from mcp.client.session import ElicitationFnT
from mcp.client.streamable_http import streamable_http_client
from mcp_types import RequestParamsMeta

from .http import Json
from .modern import listing, naming

MODES: Final = ("auto", "2026-07-28")
"""As a user leaves it, and as one who wants no other era."""

PATIENCE: Final = 30.0
"""Seconds for anything, on a busy machine too."""

DO: Final = naming("do", {"type": "object", "properties": {"echo": {"type": "integer"}}})
SCRIPT: Final = listing(DO)
"""Of a backend with the tool that `counted` calls."""

Caller = Callable[[], Awaitable[str]]
"""Returns which backend it had."""


@asynccontextmanager
async def sdk(
    url: str,
    mode: str,
    *,
    headers: Mapping[str, str] | None = None,
    verify: ssl.SSLContext | None = None,
    elicits: ElicitationFnT | None = None,
) -> AsyncGenerator[Client]:
    """A client that is connected, with the HTTP client that a user would give it."""
    pool = httpx2.AsyncClient(
        headers=dict(headers or {}),
        verify=True if verify is None else verify,
        timeout=PATIENCE,
        trust_env=False,
    )
    transport = streamable_http_client(url, http_client=pool)
    async with pool, Client(transport, mode=mode, elicitation_callback=elicits) as client:
        assert client.protocol_version == "2026-07-28"
        yield client


async def counted(client: Client, times: int, *, meta: RequestParamsMeta | None = None) -> str:
    """Call so often; the backend must be one that nobody else calls. Return which it is."""
    nonces: set[str] = set()
    for number in range(1, times + 1):
        with anyio.fail_after(PATIENCE):
            result = await client.call_tool("do", {"echo": number}, meta=meta)
        found: Json = result.structured_content or {}
        assert not result.is_error, result
        assert (found["echo"], found["count"]) == (number, number)
        nonces.add(found["nonce"])
    (nonce,) = nonces
    return nonce


async def apart(*callers: Caller) -> None:
    """Run callers at once; each must have found a backend of its own."""
    found: list[str] = []

    async def run(caller: Caller) -> None:
        found.append(await caller())

    async with anyio.create_task_group() as tasks:
        for caller in callers:
            tasks.start_soon(run, caller)
    assert len(set(found)) == len(callers)
