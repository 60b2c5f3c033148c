"""The clients of one session: who is told, who is asked, and who has to go."""

import anyio
import pytest

from sessionproxy.core.asks import Asks
from sessionproxy.core.attachments import MAX_ATTACHED, Attachment, Attachments
from sessionproxy.core.exchange import Ask, Exchange, Outbound, Outcome
from sessionproxy.core.ports import Identity
from sessionproxy.errors import BackendBusy, SessionEnded

from .fakes import FakeClient, FakeSink

ELICITS = b'{"elicitation":{}}'


class Shared:
    """A session's clients, and what it asks them."""

    def __init__(self) -> None:
        self.modern = FakeClient()
        self.clients = Attachments(self.modern)
        self.asks = Asks(self.clients)
        self.answers: list[Outcome] = []
        self._number = 0

    def attach(
        self,
        capabilities: bytes | None = ELICITS,
        *,
        listening: bool = False,
    ) -> tuple[Attachment, FakeClient]:
        self._number += 1
        client = FakeClient(listening=listening)
        found = Attachment(Identity("r", "alice", f"a{self._number}"), client, capabilities)
        leaves = self.clients.attach(found)
        assert leaves is None
        return found, client

    def ask(self, method: str = "elicitation/create") -> Ask:
        asked = Ask(method, b"{}", self.answers.append)
        self.asks.send(asked, None)
        return asked


async def later() -> None:
    await anyio.sleep(1)


# -- telling ---------------------------------------------------------------------------------------


async def test_what_belongs_to_nobody_is_told_to_all() -> None:
    """DESIGN 6."""
    shared = Shared()
    clients = [shared.modern, shared.attach()[1], shared.attach()[1]]
    shared.clients.message(Outbound(b'{"x":1}'))
    assert [client.said() for client in clients] == [[{"x": 1}]] * 3


async def test_one_who_left_is_told_nothing() -> None:
    shared = Shared()
    (one, gone), (_, stays) = shared.attach(), shared.attach()
    shared.clients.detach(one)
    shared.clients.detach(one)
    assert gone.closed
    shared.clients.message(Outbound(b"{}"))
    assert (len(gone.messages), len(stays.messages)) == (0, 1)
    assert len(shared.clients) == 1


async def test_its_own_stream_is_nobody_elses() -> None:
    """What belongs to a request of one client is not told to the others instead."""
    shared = Shared()
    shared.attach(listening=True)
    assert not shared.clients.listening
    assert shared.clients.left_at is None


async def test_the_end_reaches_all_and_so_does_sleep() -> None:
    shared = Shared()
    found = [shared.attach() for _ in range(2)]
    found[0][1].size, found[1][1].size = 3, 4
    assert shared.clients.size == 7
    shared.clients.heard()
    shared.clients.asleep()
    shared.clients.close()
    assert all(client.closed for _, client in found)
    assert shared.modern.closed


# -- asking ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capabilities", "method", "declares"),
    [
        (ELICITS, "elicitation/create", True),
        (ELICITS, "sampling/createMessage", False),
        (b'{"sampling":{},"roots":{}}', "roots/list", True),
        (None, "roots/list", False),
        (b"{}", "elicitation/create", False),
        (b"[]", "elicitation/create", False),
        (b"{}", "made/up", True),
    ],
)
async def test_a_client_says_what_it_can_be_asked(
    capabilities: bytes | None, method: str, declares: bool
) -> None:
    found, _ = Shared().attach(capabilities)
    assert found.declares(method) is declares
    assert found.takes(method) == (1 if declares else 0)


async def test_one_client_is_asked_and_only_one_that_can_be() -> None:
    """DESIGN 6: a backend's requests go only to attached clients that declared the capability."""
    shared = Shared()
    (_, able), (_, unable) = shared.attach(), shared.attach(b"{}")
    shared.ask()
    assert (len(able.messages), len(unable.messages)) == (1, 0)
    assert shared.modern.messages == []


async def test_one_that_listens_is_asked_best_the_one_heard_of_last() -> None:
    shared = Shared()
    clients = [shared.attach()[1]]
    await later()
    for _ in range(2):
        clients.append(shared.attach(listening=True)[1])
        await later()
    clients.append(shared.attach()[1])
    shared.ask()
    assert [len(client.messages) for client in clients] == [0, 0, 1, 0]


async def test_with_nobody_to_ask_roots_get_an_empty_list_and_the_rest_an_error() -> None:
    """DESIGN 9."""
    shared = Shared()
    shared.attach(b"{}")
    shared.ask("roots/list")
    shared.ask()
    assert shared.answers[0] == Outcome(result=b'{"roots":[]}')
    assert isinstance(shared.answers[1].failure, SessionEnded)
    assert len(shared.asks.waiting) == 0


async def test_with_nobody_to_ask_a_backend_that_does_not_read_waits_for_nothing() -> None:
    shared = Shared()

    def busy(outcome: Outcome) -> None:
        if outcome.failure is None:
            raise BackendBusy("It does not read.")
        shared.answers.append(outcome)

    shared.asks.send(Ask("roots/list", b"{}", busy), None)
    assert len(shared.asks.waiting) == 0
    assert isinstance(shared.answers[0].failure, BackendBusy)


async def test_what_a_client_was_asked_and_left_without_answering_another_is_asked() -> None:
    """DESIGN 5.3: every request is answered; also the backend's, whose call waits for it."""
    shared = Shared()
    one, first = shared.attach()
    two, second = shared.attach()
    one.heard_at += 1
    answered, waiting = shared.ask(), shared.ask()
    shared.asks.answer(str(answered.client_id).encode(), Outcome(result=b"1"))
    shared.clients.detach(one)
    assert len(first.messages) == 2
    assert [message.ask for message in second.messages] == [waiting]
    assert waiting.sink is two
    assert shared.asks.answer(str(waiting.client_id).encode(), Outcome(result=b"2"))
    assert shared.answers == [Outcome(result=b"1"), Outcome(result=b"2")]


async def test_what_the_last_client_was_asked_is_answered_when_it_leaves() -> None:
    shared = Shared()
    one, _ = shared.attach()
    shared.ask()
    shared.clients.detach(one)
    assert isinstance(shared.answers[0].failure, SessionEnded)
    assert len(shared.asks.waiting) == 0


async def test_what_is_taken_back_is_taken_back_from_the_one_that_was_asked() -> None:
    shared = Shared()
    clients = [shared.attach()[1] for _ in range(2)]
    asked = shared.ask()
    shared.asks.withdraw(asked, None)
    lengths = sorted(len(client.messages) for client in clients)
    assert lengths == [0, 2]
    assert shared.modern.messages == []


async def test_what_was_asked_is_not_kept_once_it_is_over() -> None:
    shared = Shared()
    shared.attach()
    for _ in range(100):
        asked = shared.ask()
        shared.asks.answer(str(asked.client_id).encode(), Outcome(result=b"{}"))
    kept = shared.clients._asked  # pyright: ignore[reportPrivateUsage] - their number is the matter
    assert len(kept) <= 1


@pytest.mark.parametrize("listening", [True, False])
async def test_somebody_reads_where_the_one_that_was_asked_listens(listening: bool) -> None:
    """DESIGN 7: what a client that is away was asked is given up some time."""
    shared = Shared()
    shared.attach(listening=listening)
    shared.attach(b"{}", listening=True)
    shared.ask()
    assert shared.asks.nobody_reads() is not listening


async def test_a_client_is_given_no_exchange() -> None:
    found, client = Shared().attach()
    found.settled(Exchange("ping", None, client_id=b"1", sink=FakeSink()))
    assert client.messages == []


# -- too many --------------------------------------------------------------------------------------


async def test_of_too_many_the_one_heard_of_the_longest_ago_goes() -> None:
    """Those that open a session for every call never say goodbye."""
    shared = Shared()
    found: list[Attachment] = []
    for _ in range(MAX_ATTACHED):
        found.append(shared.attach()[0])
        await later()
    found[0].heard_at = anyio.current_time()
    extra = Attachment(Identity("r", "alice", "extra"), FakeClient(), ELICITS)
    assert shared.clients.attach(extra) is found[1]


async def test_a_new_client_is_not_the_one_that_goes() -> None:
    """It has no stream open yet, and all the others may."""
    shared = Shared()
    first, _ = shared.attach(listening=True)
    for _ in range(MAX_ATTACHED - 1):
        await later()
        shared.attach(listening=True)
    extra = Attachment(Identity("r", "alice", "extra"), FakeClient(), ELICITS)
    assert shared.clients.attach(extra) is first
    assert extra in tuple(shared.clients)
