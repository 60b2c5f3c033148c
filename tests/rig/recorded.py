"""A client that notes every request and how it ended in a history.

Neighbours: `tests.rig.http` has the client, `tests.rig.history` the record; `tests.rig.invariants`
hands these clients out.
"""

import json
import secrets
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Self, cast

import httpx2

from .history import TOKEN, Entry, History, Outcome
from .http import VERSION, Client, EndOfStream, Incoming, Json


class Recorded(Client):
    """Its requests are in the history, but for those written by hand with `send` or `post`."""

    def __init__(
        self,
        http: httpx2.AsyncClient,
        url: str,
        *,
        version: str = VERSION,
        headers: Mapping[str, str] | None = None,
        history: History,
        label: str,
    ) -> None:
        """`label`: the name of its first session in the history."""
        super().__init__(http, url, version=version, headers=headers)
        self.history = history
        self.label = label
        self.session = label
        """The name of its present session: another one each time it initialises."""
        self.ids: list[str] = []
        """Of all its sessions."""
        self._times = 0

    def also(self, **headers: str) -> Self:
        client = type(self)(
            self.http,
            self.url,
            version=self.version,
            headers={**self.more, **{k.replace("_", "-"): v for k, v in headers.items()}},
            history=self.history,
            label=self.label,
        )
        client.id, client.session, client.ids = self.id, self.session, self.ids
        return client

    async def initialize(
        self, *, capabilities: Json | None = None, client: Json | None = None, **more: object
    ) -> httpx2.Response:
        self._times += 1
        self.session = self.label if self._times == 1 else f"{self.label}/{self._times}"
        entry = self.history.sent(self.session, "initialize")
        with self._noting(entry):
            response = await super().initialize(capabilities=capabilities, client=client, **more)
            if self.id:
                self.ids.append(self.id)
            if response.status_code != 200:
                self.history.finished(entry, Outcome.REFUSED, status=response.status_code)
            else:
                for message in messages_of(response):
                    self._hear(entry, message)
        return response

    async def request(self, method: str, params: object = None, *, number: object = 1) -> Json:
        async with self.open(method, params, number=number) as incoming:
            answer = await incoming.answer()
            if incoming.is_stream:
                await incoming.rest()  # among which there must be no further answer
            return answer

    @asynccontextmanager
    async def open(
        self, method: str, params: object = None, *, number: object = 1
    ) -> AsyncGenerator[Incoming]:
        token = f"{self.session}-{secrets.token_hex(4)}"
        entry = self.history.sent(self.session, method, token)
        with self._noting(entry):
            async with super().open(method, marked(params, token), number=number) as incoming:
                if incoming.status == 200:
                    incoming.heard = partial(self._hear, entry)
                else:
                    self.history.finished(entry, Outcome.REFUSED, status=incoming.status)
                yield incoming

    @contextmanager
    def _noting(self, entry: Entry) -> Generator[None]:
        with noting(self.history, entry):
            yield
        entry.left = entry.outcome is None

    def _hear(self, entry: Entry, message: Json) -> None:
        if "method" not in message:
            self.history.answered(entry, message)


@contextmanager
def noting(history: History, entry: Entry) -> Generator[None]:
    """Note how a request ended that had no answer; nothing, where one was waited for in vain."""
    try:
        yield
    except TimeoutError:
        raise
    except (httpx2.TransportError, EndOfStream):
        if entry.outcome is None:
            history.finished(entry, Outcome.CLOSED)
        raise
    except BaseException:
        entry.left = entry.outcome is None
        raise


def marked(params: object, token: str) -> object:
    """Return `params` with the request's token, where they are an object or absent."""
    if not isinstance(params, dict | None):
        return params
    fields = cast("Json", params or {})
    meta: Json = fields.get("_meta") or {}
    return {**fields, "_meta": {**meta, TOKEN: token}}


def messages_of(response: httpx2.Response) -> Iterator[Json]:
    """Yield the messages of a whole answer, JSON or events."""
    if response.headers["content-type"] == "application/json":
        yield response.json()
        return
    for line in response.text.splitlines():
        if line.startswith("data:") and line != "data:":
            yield json.loads(line.removeprefix("data:"))
