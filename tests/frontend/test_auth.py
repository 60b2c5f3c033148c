"""DESIGN 5.8, 6 and 11: who is let in, what a foreign credential sees, and what ends with it.

The tokens themselves are in `tests/http/test_auth.py`. Real sockets, and both ways into the proxy.
"""

import json
import logging
import signal
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

import anyio
import httpx2
import pytest

from tests.rig.embedded import Embedded, plain, scripted, until
from tests.rig.http import Client, Json, calling, http, notification, request
from tests.rig.modern import Modern
from tests.rig.proxy import proxy as process

ALICE = "alice-token-0123456789"
ALSO_ALICE = "another-token-of-alices"
BOB = "bob-token-0123456789"
WAITS: Json = {"wait": "never"}


def line(name: str, token: str) -> str:
    return f"{name} {sha256(token.encode()).hexdigest()}\n"


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


class Proxy:
    """A proxy whose users have tokens."""

    def __init__(self, running: Embedded, file: Path, pool: httpx2.AsyncClient) -> None:
        self.running = running
        self.url = running.url
        self.file = file
        self.pool = pool

    def client(self, token: str) -> Client:
        return Client(self.pool, self.url, headers=bearer(token))

    async def session(self, token: str) -> Client:
        client = self.client(token)
        assert (await client.initialize()).status_code == 200
        await client.notify("notifications/initialized")
        return client

    def modern(self, token: str) -> Modern:
        return Modern(self.pool, self.url, bearer(token))

    def only(self, *lines: str) -> None:
        """Let in from now on whose lines these are."""
        self.file.write_text("".join(lines))
        self.running.app.reread()


@asynccontextmanager
async def proxy(
    tmp_path: Path, command: tuple[str, ...] = scripted(), **settings: object
) -> AsyncGenerator[Proxy]:
    file = tmp_path / "tokens"
    file.write_text(line("alice", ALICE) + line("alice", ALSO_ALICE) + line("bob", BOB))
    serving = plain(
        command, observers=(), local=True, certificate=None, token_file=str(file), **settings
    )
    async with serving as running, http() as pool:
        yield Proxy(running, file, pool)


def challenge(answer: httpx2.Response) -> tuple[int, str | None]:
    return answer.status_code, answer.headers.get("www-authenticate")


# -- who is let in ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE", "PUT"])
async def test_without_a_credential_nothing_is_told_and_nothing_started(
    method: str, tmp_path: Path, both_ways: None
) -> None:
    """DESIGN 11: 401 with `WWW-Authenticate`; the same whether an id is good or not."""
    async with proxy(tmp_path) as p:
        alice = await p.session(ALICE)
        nobody = Client(p.pool, p.url)
        bodies: set[bytes] = set()
        for found in (alice.id, "x" * 60, ""):
            nobody.id = found
            answer = await nobody.send(method, request("tools/call", calling()))
            assert challenge(answer) == (401, "Bearer")
            bodies.add(answer.content)
        wrong = p.client("no-such-token")
        wrong.id = alice.id
        answer = await wrong.send(method, request("initialize", {}))
        assert challenge(answer) == (401, 'Bearer error="invalid_token"')
        assert len(bodies | {answer.content}) == 1
        assert p.running.manager.admission.running == 1
        assert (await alice.do())["count"] == 1


async def test_a_modern_request_without_a_credential_is_refused_too(tmp_path: Path) -> None:
    """DESIGN 11: also one that would be answered from the catalogue."""
    async with proxy(tmp_path) as p:
        nobody = Modern(p.pool, p.url)
        for method in ("server/discover", "tools/list", "subscriptions/listen"):
            assert challenge(await nobody.post(method)) == (401, "Bearer")
        assert challenge(await nobody.post("tools/call", calling())) == (401, "Bearer")
        assert p.running.manager.admission.running == 0


async def test_the_guard_stands_before_the_credential(tmp_path: Path) -> None:
    """DESIGN 4 and 11."""
    async with proxy(tmp_path) as p:
        for token in (ALICE, "wrong"):
            answer = await p.client(token).post(request("ping"), host="evil.com")
            assert answer.status_code == 403


async def test_two_credentials_are_none(tmp_path: Path) -> None:
    """A header that says who it is from is never taken from two."""
    async with proxy(tmp_path) as p:
        both = [("authorization", f"Bearer {token}") for token in (ALICE, BOB)]
        headers = [*both, ("content-type", "application/json")]
        answer = await p.pool.post(p.url, headers=headers, content=b"{}")
        assert answer.status_code == 400


async def test_a_browser_may_ask_without_a_credential_what_it_may_send(tmp_path: Path) -> None:
    """Fetch, CORS preflight: it carries none."""
    async with proxy(tmp_path) as p:
        nobody = Client(p.pool, p.url)
        answer = await nobody.send("OPTIONS", origin="http://localhost:3000")
        assert answer.status_code == 204
        assert "authorization" in answer.headers["access-control-allow-headers"]
        answer = await nobody.post(request("ping"), origin="http://localhost:3000")
        assert "www-authenticate" in answer.headers["access-control-expose-headers"]


async def test_behind_another_proxy_users_are_told_apart_by_their_credentials(
    tmp_path: Path,
) -> None:
    """DESIGN 6: `Forwarded` is refused on loopback only where everybody would be one owner."""
    async with proxy(tmp_path) as p:
        alice = p.client(ALICE).also(x_forwarded_for="1.2.3.4", via="1.1 x", forwarded="for=1")
        assert (await alice.initialize()).status_code == 200


async def test_health_is_for_anybody_and_tells_of_no_user(tmp_path: Path) -> None:
    """DESIGN 5.8."""
    async with proxy(tmp_path) as p:
        alice = await p.session(ALICE)
        answer = await p.pool.get(f"{p.running.base}/readyz")
        assert answer.status_code == 200
        assert alice.id not in answer.text
        assert "alice" not in answer.text


# -- whose a session is ----------------------------------------------------------------------------


async def test_a_foreign_credential_on_a_session_is_answered_as_an_unknown_one(
    tmp_path: Path, both_ways: None
) -> None:
    """DESIGN 5.8, FAULTS F37 and I7: POST, GET and DELETE, byte for byte."""
    async with proxy(tmp_path) as p:
        alice, bob = await p.session(ALICE), await p.session(BOB)
        for _ in range(3):
            await alice.do()
        bob.id, own = alice.id, bob.id
        foreign: list[tuple[int, bytes]] = []
        for found in (alice.id, own[:-4] + "AAAA", "never-issued"):
            bob.id = found
            for method in ("POST", "GET", "DELETE"):
                answer = await bob.send(method, request("tools/call", calling()))
                foreign.append((answer.status_code, answer.content))
        assert set(foreign) == {(404, foreign[0][1])}
        assert (await alice.do())["count"] == 4
        bob.id = own
        assert (await bob.do())["count"] == 1


async def test_another_token_of_the_same_owner_finds_the_session(tmp_path: Path) -> None:
    """DESIGN 6: the owner is the subject, never a token's hash."""
    async with proxy(tmp_path) as p:
        alice = await p.session(ALICE)
        await alice.do()
        again = p.client(ALSO_ALICE)
        again.id = alice.id
        assert (await again.do())["count"] == 2


async def test_the_same_key_of_two_owners_names_two_conversations(tmp_path: Path) -> None:
    """DESIGN 6: keys count only inside their owner; and so does the default one."""
    async with proxy(tmp_path) as p:
        alice, bob = p.modern(ALICE), p.modern(BOB)
        found = {(await client.call())["structuredContent"]["nonce"] for client in (alice, bob)}
        for client in (alice, bob):
            client.url += "/s/the-same-name"
            found.add((await client.call())["structuredContent"]["nonce"])
        assert len(found) == 4


async def test_a_credential_goes_no_further_than_the_front(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """FAULTS, credentials: not to the backend by message, argument or environment, nor the log."""
    caplog.set_level(logging.DEBUG)
    async with proxy(tmp_path) as p:
        alice = await p.session(ALICE)
        seen = await alice.do({"tells": "seen"}, {"tells": "about"})
        result = await p.modern(ALICE).call({"tells": "seen"}, {"tells": "about"})
        await p.client("wrong-token-987").post(request("ping"))
        p.only(line("bob", BOB))
    told = json.dumps([seen, result]) + caplog.text
    assert ALICE not in told
    assert "wrong-token-987" not in told
    assert "authorization" not in json.dumps([seen, result]).lower()


async def test_what_a_backend_says_of_its_failure_is_for_the_operator(tmp_path: Path) -> None:
    """DESIGN 11: `expose_stderr`, by default only on loopback without authentication."""
    script = scripted(start=[{"stderr": ["a secret"]}, {"exit": 3}])
    async with proxy(tmp_path, script) as p:
        answer = await p.client(ALICE).initialize()
        assert "exit status 3" in answer.text
        assert "a secret" not in answer.text
    async with proxy(tmp_path, script, expose_stderr=True) as p:
        assert "a secret" in (await p.client(ALICE).initialize()).text


# -- what ends with a credential -------------------------------------------------------------------


async def test_a_revoked_token_is_worth_nothing_on_a_connection_that_knows_its_head(
    tmp_path: Path, both_ways: None
) -> None:
    """DESIGN 6: checked on every request, on the short way too; others go on."""
    async with proxy(tmp_path) as p:
        alice, also, bob = [await p.session(token) for token in (ALICE, ALSO_ALICE, BOB)]
        for client in (bob, also, alice):  # hers last: a connection knows the head it had last
            for _ in range(3):
                await client.do()
        p.only(line("alice", ALSO_ALICE), line("bob", BOB))
        answer = await alice.post(request("tools/call", calling()))
        assert challenge(answer) == (401, 'Bearer error="invalid_token"')
        assert (await bob.do())["count"] == 4
        assert (await also.do())["count"] == 4
        also.id = alice.id  # the session is its owner's, not the token's
        assert (await also.do())["count"] == 4


async def test_a_file_that_is_wrong_when_it_is_reread_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A slip of the editor's must not lock everybody out; the log says where it is."""
    async with proxy(tmp_path) as p:
        alice = await p.session(ALICE)
        p.only(line("bob", BOB), "alice oops\n")
        assert (await alice.do())["count"] == 1
    assert "tokens, line 2: expected NAME SHA256HEX" in caplog.text


async def test_the_streams_of_a_revoked_token_end_and_those_of_others_stay(
    tmp_path: Path, both_ways: None
) -> None:
    """FAULTS, credentials: GET streams and answers that have become streams."""
    async with proxy(tmp_path) as p:
        alice, bob = await p.session(ALICE), await p.session(BOB)
        for client in (alice, bob):
            await client.do()
        async with (
            alice.listen() as hers,
            bob.listen() as his,
            alice.doing({"log": "x"}, {"wait": "go"}, echo="kept") as call,
        ):
            await call.until("notifications/message")
            p.only(line("alice", ALSO_ALICE), line("bob", BOB))
            assert await hers.rest() == []
            assert await call.rest() == []
            await bob.do({"then": [{"note": {"method": "notifications/x"}}]})
            assert (await his.message())["method"] == "notifications/x"
            # The call goes on: in this era a lost connection is no cancellation.
            again = p.client(ALSO_ALICE)
            again.id = alice.id
            await again.do({"release": "go"})
            async with again.listen(call.last_id) as resumed:
                answer = await resumed.answer()
                assert answer["result"]["structuredContent"]["echo"] == "kept"


@pytest.mark.parametrize("streams", [True, False])
async def test_a_modern_call_of_a_revoked_token_is_cancelled(streams: bool, tmp_path: Path) -> None:
    """DESIGN 5.9: as if its client had hung up, which it is told in its answer if it still can."""
    steps = ({"until_cancelled": None},)
    async with proxy(tmp_path, keepalive=0.2 if streams else 30) as p:
        alice, bob = p.modern(ALICE), p.modern(BOB)
        await alice.call()
        async with anyio.create_task_group() as tasks:

            async def wait() -> None:
                async with alice.open("tools/call", calling(*steps)) as incoming:
                    assert incoming.status == (200 if streams else 401)
                    if streams:
                        await incoming.comment()
                        ready.set()
                        assert await incoming.rest() == []

            ready = anyio.Event()
            tasks.start_soon(wait)
            if streams:
                with anyio.fail_after(5):
                    await ready.wait()
            session = p.running.manager.registry.awake()[0]
            await until(lambda: session.leases == 1)
            p.only(line("bob", BOB), line("alice", ALSO_ALICE))
        seen = await p.modern(ALSO_ALICE).call({"tells": "seen"})
        methods = [message.get("method") for message in seen["structuredContent"]["seen"]]
        assert methods.count("notifications/cancelled") == 1
        assert (await bob.call())["structuredContent"]["count"] == 1


async def test_a_listener_of_a_revoked_token_hears_nothing_more(tmp_path: Path) -> None:
    """FAULTS, credentials."""
    wanted: Json = {"notifications": {"toolsListChanged": True}}
    async with proxy(tmp_path) as p:
        alice, bob = p.modern(ALICE), p.modern(BOB)
        async with (
            alice.open("subscriptions/listen", wanted) as hers,
            bob.open("subscriptions/listen", wanted) as his,
        ):
            for stream in (hers, his):
                await stream.until("notifications/subscriptions/acknowledged")
            p.only(line("bob", BOB))
            assert await hers.rest() == []
            await bob.call({"note": {"method": "notifications/tools/list_changed"}})
            await his.until("notifications/tools/list_changed")


async def test_a_call_that_waits_when_its_token_is_revoked_is_not_answered(
    tmp_path: Path, both_ways: None
) -> None:
    """On the short way, too, where no connection is watched."""
    async with proxy(tmp_path) as p:
        alice = await p.session(ALICE)
        for _ in range(3):
            await alice.do()
        answers: list[httpx2.Response] = []

        async def call() -> None:
            answers.append(await alice.post(request("tools/call", calling({"wait": "go"}))))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            (session,) = p.running.manager.registry.awake()
            await until(lambda: session.leases == 1)
            p.only(line("alice", ALSO_ALICE))
            again = p.client(ALSO_ALICE)
            again.id = alice.id
            await again.do({"release": "go"})
        assert [answer.status_code for answer in answers] == [401]
        assert "nonce" not in answers[0].text


async def test_a_modern_call_that_waits_when_its_token_is_revoked_is_cancelled_at_once(
    tmp_path: Path, both_ways: None
) -> None:
    """DESIGN 5.9. On the short way, too."""
    async with proxy(tmp_path) as p:
        alice, answers = p.modern(ALICE), list[httpx2.Response]()
        for _ in range(3):
            await alice.post("tools/call", calling())

        async def call() -> None:
            answers.append(await alice.post("tools/call", calling({"until_cancelled": None})))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            (session,) = p.running.manager.registry.awake()
            await until(lambda: session.leases == 1)
            p.only(line("alice", ALSO_ALICE))
        assert [challenge(answer) for answer in answers] == [(401, 'Bearer error="invalid_token"')]
        seen = await p.modern(ALSO_ALICE).call({"tells": "seen"})
        methods = [message.get("method") for message in seen["structuredContent"]["seen"]]
        assert methods.count("notifications/cancelled") == 1


async def test_what_is_whole_after_its_token_was_revoked_is_not_executed(
    tmp_path: Path, both_ways: None
) -> None:
    """Whether its head is known or not, and whether or not a part of it came before."""
    async with proxy(tmp_path) as p:
        alice = await p.session(ALICE)
        head, body = _raw(alice.headers, p.running.port)
        for known in (False, True):
            for before in (b"", head, head + body[:5]):
                async with await anyio.connect_tcp("127.0.0.1", p.running.port) as stream:
                    if known:
                        await stream.send(head + body)
                        assert b"200 OK" in await stream.receive()
                    if before:
                        await stream.send(before)
                        await anyio.sleep(0.05)  # so that it can have been read
                    p.only(line("bob", BOB))
                    await stream.send((head + body)[len(before) :])
                    with anyio.fail_after(5):
                        assert (await stream.receive()).startswith(b"HTTP/1.1 401 ")
                p.only(line("alice", ALICE))
        assert (await alice.do())["count"] == 4


def _raw(headers: Mapping[str, str], port: int) -> tuple[bytes, bytes]:
    body = json.dumps(request("tools/call", calling())).encode()
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = ["POST /mcp HTTP/1.1", f"host: 127.0.0.1:{port}", *lines]
    return "\r\n".join([*head, f"content-length: {len(body)}", "", ""]).encode(), body


async def test_a_connection_that_has_ended_is_not_kept_by_its_credential(
    tmp_path: Path, both_ways: None
) -> None:
    """10,000 requests must not leave 10,000 entries."""
    async with proxy(tmp_path) as p:
        alice = await p.session(ALICE)
        modern = p.modern(ALICE)
        for _ in range(5):
            await alice.do()
            await alice.do({"log": "x"})
            await alice.post(notification("x"))
            await alice.post(b"{")
            await modern.call()
            await modern.post("no/such")
        async with alice.listen():
            pass
        async with alice.doing({"log": "x"}, {"sleep": 0.1}):
            pass
        tokens = p.running.app._tokens  # pyright: ignore[reportPrivateUsage]
        assert tokens is not None
        credential = tokens.admit({b"authorization": b"Bearer " + ALICE.encode()})
        await until(lambda: credential.watched == 0)


# -- a process -------------------------------------------------------------------------------------


async def test_sighup_has_the_file_read_again(tmp_path: Path) -> None:
    """README: without a restart, and without an end to what others do."""
    file = tmp_path / "tokens"
    file.write_text(line("alice", ALICE) + line("bob", BOB))
    options = ("--token-file", str(file), "--host", "0.0.0.0")  # needs no --insecure
    async with process(scripted(), *options) as running, http() as pool:
        alice, bob = (Client(pool, running.url, headers=bearer(t)) for t in (ALICE, BOB))
        for client in (alice, bob):
            assert (await client.initialize()).status_code == 200
        await bob.do()
        async with alice.listen() as stream:
            for content, says in (
                ("alice", "line 1: expected NAME SHA256HEX"),
                (line("bob", BOB), "--token-file: read again"),
            ):
                file.write_text(content)
                running.signal(signal.SIGHUP)
                await until(lambda says=says: any(says in found for found in running.log))
            assert await stream.rest() == []
        assert (await alice.post(request("ping"))).status_code == 401
        assert (await bob.do())["count"] == 2
        assert not any(token in found for token in (ALICE, BOB) for found in running.log)
