"""What a shared backend has asked, and of which session.

The backend outlives its sessions, so what one is asked is not the backend's own request but another
in its place: whoever leaves it, the backend is answered. Neighbours: `backends.share`.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final, Generic, Protocol, TypeVar

import msgspec

from .. import wire
from ..core.caller import NO_ROOTS
from ..core.exchange import Ask, Exchange, Outcome
from ..core.ports import Upstream
from ..wire import Bytes

MAX_ELICITATIONS: Final = 1024
"""Elicitations whose session is remembered until the backend says that they are complete."""

_UNDECLARED: Final[Mapping[str, Outcome]] = {
    "roots/list": NO_ROOTS,
    "elicitation/create": Outcome(result=b'{"action":"decline"}'),
    "sampling/createMessage": Outcome(
        error=b'{"code":-1,"message":"The client does not support sampling"}'
    ),
}


class Asked(Protocol):
    """Who can be asked."""

    @property
    def upstream(self) -> Upstream: ...


S = TypeVar("S", bound=Asked)


class _InItsPlace(Ask):
    """What a session is asked. It is over before the backend's own, or together with it."""

    def __init__(self, ask: Ask, left: Callable[[Ask], None]) -> None:
        """`left` is told once the session needs to answer no more."""
        super().__init__(ask.method, ask.params, ask.answer)
        self._left = lambda: left(ask)

    def withdraw(self) -> None:
        super().withdraw()
        self._left()


class Questions(Generic[S]):
    """Of one backend, to all its sessions."""

    def __init__(self) -> None:
        self._waiting: dict[Ask, tuple[S, Ask]] = {}
        """By the backend's own request: who was asked, and what in its place."""
        self._elicitations: OrderedDict[bytes, S] = OrderedDict()

    def put(self, ask: Ask, session: S, exchange: Exchange | None) -> None:
        """Ask a session."""
        mine = _InItsPlace(ask, self._left)
        self._waiting[ask] = session, mine
        key = _elicitation_of(ask.params)
        if key:
            self._elicitations[key] = session
            while len(self._elicitations) > MAX_ELICITATIONS:
                self._elicitations.popitem(last=False)
        session.upstream.ask(mine, exchange)

    def _left(self, ask: Ask) -> None:
        """A session has answered, or never will: then the backend would wait for ever."""
        if self._waiting.pop(ask, None) is not None:
            ask.decline(refusal("The client that was asked is no longer there."))

    def withdraw(self, ask: Ask, params: Bytes | None) -> None:
        """The backend has taken it back, or is gone."""
        session, mine = self._waiting.pop(ask, (None, None))
        if session is not None and mine is not None:
            session.upstream.withdraw(mine, params)
        ask.withdraw()

    def forget(self, session: S) -> None:
        """A session is over."""
        for ask in [ask for ask, (asked, _) in self._waiting.items() if asked is session]:
            self._left(ask)
        for key in [key for key, asked in self._elicitations.items() if asked is session]:
            del self._elicitations[key]

    def completed(self, params: Bytes | None) -> S | None:
        """Return who was asked for what is complete now (2025-11-25 client/elicitation)."""
        return self._elicitations.pop(_elicitation_of(params), None)

    def asked_under(self, session: S, token: Bytes) -> bool:
        """Return whether a session was asked something whose progress is told under `token`."""
        return any(
            asked is session and _token_of(ask.params) == bytes(token)
            for ask, (asked, _) in self._waiting.items()
        )


def refusal(text: str) -> Outcome:
    return Outcome(error=msgspec.json.encode({"code": -32603, "message": text}))


def undeclared(method: str) -> Outcome:
    """Return what a backend is told that asks what the client did not declare."""
    return _UNDECLARED.get(method) or refusal("The client does not support this.")


def _elicitation_of(params: Bytes | None) -> bytes:
    return bytes(wire.member(params, "elicitationId") or b"")


def _token_of(params: Bytes | None) -> bytes:
    return bytes(wire.members(wire.members(params).get("_meta")).get("progressToken", b""))
