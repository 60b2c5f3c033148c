"""A modern client that notes every request and how it ended in a history.

A call that is answered with questions is one request all the same: it has one entry, and its
outcome is the last answer. Neighbours: `tests.rig.recorded` is the one of the handshake era,
`tests.rig.modern` the client beneath.
"""

import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final, cast

import httpx2

from .history import Entry, History, Outcome
from .http import Incoming, Json, calling
from .modern import Modern
from .recorded import marked, noting

ANSWERS: Final[Mapping[str, Json]] = {
    "roots/list": {"roots": [{"uri": "file:///tests", "name": "tests"}]},
    "elicitation/create": {"action": "accept", "content": {"name": "Ann"}},
    "sampling/createMessage": {
        "role": "assistant",
        "content": {"type": "text", "text": "yes"},
        "model": "tests",
    },
}
"""What is answered, by what is asked."""

FORM: Final[Json] = {
    "method": "elicitation/create",
    "params": {
        "message": "Who?",
        "requestedSchema": {"type": "object", "properties": {"name": {"type": "string"}}},
    },
}
"""A question of a backend."""


class RecordedModern(Modern):
    """Its calls are in the history, but for those written by hand with `post`."""

    def __init__(
        self,
        http: httpx2.AsyncClient,
        url: str,
        *,
        history: History,
        label: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`label`: the name of its conversation in the history."""
        super().__init__(http, url, headers)
        self.history = history
        self.session = label

    def begins(self, method: str, params: Json) -> tuple[Entry, Json]:
        """Return the entry of a request, and what it is to be sent with."""
        token = f"{self.session}-{secrets.token_hex(4)}"
        return self.history.sent(self.session, method, token), _with_token(params, token)

    async def ask(
        self, params: Json, *, answer: Callable[[Json], Json] | None = None
    ) -> tuple[int, Json]:
        """Make a call, and answer what it asks; return the last HTTP status and message.

        `answer` is given each question.
        """
        entry, params = self.begins("tools/call", params)
        with noting(self.history, entry):
            while True:
                status, message = await self.once(entry, params)
                result: Json = message.get("result") or {}
                if result.get("resultType") != "input_required":
                    return status, message
                params = retry(params, result, answer)

    async def once(self, entry: Entry, params: Json) -> tuple[int, Json]:
        """Send a call, or one more round of it; note its outcome, if that is one."""
        async with self.open("tools/call", params) as incoming:
            if incoming.status != 200:
                if "requestState" in params:
                    entry.left = True  # it had begun: nobody knows how far it got
                else:
                    self.history.finished(entry, Outcome.REFUSED, status=incoming.status)
                return incoming.status, await incoming.message()
            message = await incoming.answer()
            if incoming.is_stream:
                await incoming.rest()
        result: Json = message.get("result") or {}
        if result.get("resultType") != "input_required":
            self.history.answered(entry, message)
        return 200, message

    async def parked(self, *steps: Json, **more: object) -> tuple[Entry, Json, Json]:
        """Make a call that asks something; return its entry, its params, and what it was told."""
        entry, params = self.begins("tools/call", calling(*steps, **more))
        with noting(self.history, entry):
            status, message = await self.once(entry, params)
        result: Json = message.get("result") or {}
        assert result.get("resultType") == "input_required", f"HTTP {status} {message}"
        return entry, params, result

    @asynccontextmanager
    async def listens(self, uri: str) -> AsyncGenerator[Incoming]:
        """Hear of a resource. Leaving hangs up."""
        self.listened()
        wanted = {"notifications": {"resourceSubscriptions": [uri]}}
        async with self.open("subscriptions/listen", wanted) as incoming:
            yield incoming

    def listened(self) -> None:
        """Note what the proxy asks the backend for somebody who hears of a resource."""
        for kind in ("resources/subscribe", "resources/unsubscribe"):
            self.history.finished(self.history.sent(self.session, kind), Outcome.RESULT)


def retry(params: Json, asked: Json, answer: Callable[[Json], Json] | None = None) -> Json:
    """Return the call as it goes on, with answers to what was asked."""
    answer = answer or (lambda question: ANSWERS[question["method"]])
    answers = {key: answer(question) for key, question in asked["inputRequests"].items()}
    return {**params, "requestState": asked["requestState"], "inputResponses": answers}


def _with_token(params: Json, token: str) -> Json:
    return cast("Json", marked(params, token))
