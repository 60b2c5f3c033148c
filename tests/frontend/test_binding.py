"""DESIGN 6: how a request of a client that has no session finds its conversation.

By its path, a header, `_meta`, a cookie; and what it is told that names none. Handles are in
`tests/frontend/test_handles.py`.
"""

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx2
import msgspec
import pytest

from sessionproxy.app import http_app
from sessionproxy.config import KNOWN_META_KEYS, Affinity, ConfigError
from sessionproxy.core.ports import Identity
from sessionproxy.errors import (
    ConflictingKeys,
    InvalidMessage,
    InvalidRequestState,
    MissingKey,
)
from sessionproxy.frontend.keys import COOKIE, Bound, KeyFinder, Places, Way
from sessionproxy.http import Certificate
from sessionproxy.wire.envelope import read_request
from tests.rig.counting import MODES, SCRIPT, apart, counted, sdk
from tests.rig.embedded import Embedded, embedded, plain, scripted, until
from tests.rig.http import Client, Json, calling, connect, http
from tests.rig.modern import Modern
from tests.rig.tls import issue

from .test_auth import ALICE, BOB, bearer, line

META = "io.sessionproxy/conversation"
SESSION = "sessionproxy/session"
LONG = "0123456789abcdefghijkl"


# -- the finder, alone -----------------------------------------------------------------------------


def finder(**places: object) -> KeyFinder:
    """A finder that mints `minted-OWNER`."""
    fields = {"affinity": Affinity.CONVERSATION, "meta": KNOWN_META_KEYS, **places}
    return KeyFinder(
        Places(**fields),  # type: ignore[arg-type] # as the test has them
        lambda owner, key: key == f"minted-{owner}",
        lambda owner: f"minted-{owner}",
    )


def bind(
    keys: KeyFinder,
    owner: str,
    headers: dict[bytes, bytes],
    path: str | None,
    params: bytes | None,
    *,
    handle: str | None = None,
    opens: bool = False,
    stateless: bool = False,
    retry: Identity | None = None,
) -> Bound:
    """Find the conversation of a request."""
    given, meta = keys.given(owner, headers, path), read_request(params).meta
    return keys.bind(
        owner, given, meta, handle=handle, opens=opens, stateless=stateless, retry=retry
    )


def meta(**members: object) -> bytes:
    return msgspec.json.encode(
        {"_meta": {name.replace("__", "/"): v for name, v in members.items()}}
    )


def cookie(*pairs: str) -> dict[bytes, bytes]:
    return {b"cookie": "; ".join(pairs).encode()}


@pytest.mark.parametrize(
    "sent",
    [
        {"io.sessionproxy/conversation": "k"},
        {"vscode.conversationId": "k"},
        {"vscode": {"conversationId": "k"}},
        {"openai/session": "k"},
        {"ai.opencode/sessionID": "k"},
        {"antigravity.google/conversation_id": "k"},
        {"threadId": "k", "other": "x"},
        {"threadId": "x", "openai/session": "k"},
        {"openai/session": 5, "threadId": "k"},
        {"openai/session": "", "threadId": "k"},
    ],
)
def test_the_ids_that_clients_send_anyway_name_the_conversation(sent: Json) -> None:
    """DESIGN 6: an ordered allow-list; what is no text is none."""
    params = msgspec.json.encode({"_meta": sent})
    assert bind(finder(), "a", {}, None, params).key == "c:k"


def test_keys_in_two_places_may_agree_and_must_not_disagree() -> None:
    """DESIGN 6: 400; the names themselves are not told."""
    both = finder(header="X-Thread", cookie=True)
    headers = {b"x-thread": b"k", **cookie(f"{COOKIE}=forged")}
    bound = bind(both, "a", headers, "k", meta(threadId="k"))
    assert (bound.key, bound.way, bound.cookie) == ("c:k", Way.NAMED, None)
    for path, params in (("other", meta(**{META: "k"})), ("k", meta(**{META: "other"}))):
        with pytest.raises(ConflictingKeys) as caught:
            bind(both, "a", headers, path, params)
        assert "other" not in str(caught.value).replace("name different", "")
    with pytest.raises(ConflictingKeys, match="path and cookie"):
        bind(both, "a", cookie(f"{COOKIE}=minted-a"), "k", None)
    with pytest.raises(ConflictingKeys, match="handle and path"):
        bind(both, "a", {}, "k", None, handle="other")


def test_an_id_that_a_client_sends_by_itself_gives_way_to_what_it_was_told() -> None:
    """`docs/decisions.md`: nobody who sets a path can take it out of every request."""
    keys, sent = finder(header="X-Thread", cookie=True), meta(threadId="t", openai__session="s")
    for headers, path, handle in (
        ({}, "k", None),
        ({b"x-thread": b"k"}, None, None),
        ({}, None, "k"),
    ):
        assert bind(keys, "a", headers, path, sent, handle=handle).key == "c:k"
    assert bind(keys, "a", cookie(f"{COOKIE}=minted-a"), None, sent).key == "c:minted-a"
    assert bind(keys, "a", {}, None, sent).key == "c:s"


@pytest.mark.parametrize("name", [3, "", None, ["k"]])
def test_what_is_meant_as_a_name_and_is_none_is_refused(name: object) -> None:
    """Else its client would share the default conversation, and not know."""
    with pytest.raises(InvalidMessage, match=META):
        bind(finder(), "a", {}, None, meta(**{META: name}))


@pytest.mark.parametrize("key", ["", "x" * 257, "a\nb", "a\x00"])
def test_a_key_that_cannot_be_one_is_refused(key: str) -> None:
    """`MAX_KEY`: a key stands in memory for as long as its session."""
    with pytest.raises(InvalidMessage):
        bind(finder(header="x"), "a", {b"x": key.encode()}, None, None)


def test_where_nobody_is_authenticated_a_key_must_be_beyond_guessing() -> None:
    """DESIGN 6, `--insecure`: one of ours, or of 22 characters; and there is no default one."""
    unguessable = finder(unguessable=True, default=False)
    for key in (LONG, "minted-a"):
        assert bind(unguessable, "a", {}, key, None).key == f"c:{key}"
    with pytest.raises(InvalidMessage, match="22 characters"):
        bind(unguessable, "a", {}, "short", None)
    with pytest.raises(InvalidMessage, match="22 characters"):
        bind(unguessable, "b", {}, "minted-a", None)
    with pytest.raises(MissingKey, match="22 characters"):
        bind(unguessable, "a", {}, None, None)


def test_a_request_without_a_key_is_told_where_to_put_one() -> None:
    """DESIGN 6: `--default-session off`; only the ways that are open are named."""
    with pytest.raises(MissingKey) as caught:
        bind(
            finder(default=False, header="X-Thread", handles=True, path="/tools"),
            "a",
            {},
            None,
            None,
        )
    for way in ("session argument", "/tools/s/NAME", "the header X-Thread", f"_meta ({META})"):
        assert way in str(caught.value)
    with pytest.raises(MissingKey) as caught:
        bind(finder(default=False, meta=()), "a", {}, None, meta(threadId="k"))
    assert str(caught.value).endswith("name one in the path (/mcp/s/NAME)")


def test_a_request_that_needs_no_conversation_gets_none() -> None:
    """A listener for lists alone is refused nothing, and makes nothing."""
    bound = bind(finder(default=False, cookie=True), "a", {}, None, None, stateless=True)
    assert (bound.way, bound.cookie) == (Way.DEFAULT, None)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        cookie("a=b"),
        cookie(COOKIE),
        cookie(f"{COOKIE}="),
        cookie(f"{COOKIE}=forged"),
        cookie(f"{COOKIE}=minted-b"),
        cookie(f"x{COOKIE}=minted-a"),
        cookie(f"{COOKIE}=forged", f"{COOKIE}=minted-a"),
    ],
)
def test_without_a_cookie_of_ours_a_client_gets_one(headers: dict[bytes, bytes]) -> None:
    """DESIGN 6: forged, another owner's and never given are one: none. The first of two counts."""
    bound = bind(finder(cookie=True), "a", headers, None, None)
    assert (bound.key, bound.way) == ("c:minted-a", Way.OPENED)
    assert bound.cookie == (
        b"__Host-sessionproxy=minted-a; Path=/; Secure; HttpOnly; SameSite=Strict"
    )


def test_a_cookie_among_others_is_found() -> None:
    """Whatever those of other applications on the same host look like."""
    found = cookie("a[b]=c d", 'x="y', f"{COOKIE}=minted-a", "z")
    bound = bind(finder(cookie=True), "a", found, None, None)
    assert (bound.key, bound.way, bound.cookie) == ("c:minted-a", Way.NAMED, None)
    assert bind(finder(cookie=False), "a", found, None, None).way is Way.DEFAULT


def test_a_retry_goes_on_with_its_session_and_no_other() -> None:
    """DESIGN 9: what it carries says which; 400 for another's."""
    keys, mine = finder(cookie=True), Identity("r", "a", "c:k")
    assert bind(keys, "a", {}, None, None, retry=mine) == ("c:k", Way.RETRY, None)
    assert bind(keys, "a", {}, "k", None, retry=mine, opens=True).key == "c:k"
    with pytest.raises(ConflictingKeys):
        bind(keys, "a", {}, "other", None, retry=mine)


@pytest.mark.parametrize("path", [None, "k", "other"])
def test_another_owners_retry_is_refused_as_one_that_is_made_up(path: str | None) -> None:
    """FAULTS, Security, requestState: whether it is good elsewhere is nobody else's to know."""
    with pytest.raises(InvalidRequestState):
        bind(finder(), "b", {}, path, None, retry=Identity("r", "a", "c:k"))


def test_one_for_each_user_is_refused_where_users_are_not_known() -> None:
    """DESIGN 5.1, 6: all who can reach it would have one session."""
    with pytest.raises(ConfigError, match=r"--affinity principal: .* --token-file"):
        http_app(("cat",), local=False, affinity="principal")
    http_app(("cat",), affinity="principal")


def test_one_for_each_user_means_that_no_name_counts() -> None:
    """DESIGN 6: `--affinity principal`."""
    keys = finder(affinity=Affinity.PRINCIPAL)
    assert {bind(keys, "a", {}, path, None).key for path in ("x", "y", None)} == {"p:"}


# -- over HTTP -------------------------------------------------------------------------------------


@asynccontextmanager
async def modern(
    *, local: bool = True, **settings: object
) -> AsyncGenerator[tuple[Embedded, Modern]]:
    running = plain(scripted(), observers=(), local=local, certificate=None, **settings)
    async with running as proxy, http() as pool:
        yield proxy, Modern(pool, proxy.url)


def told(result: Json) -> Json:
    """What a result says of its session."""
    return result["_meta"][SESSION]


async def test_a_result_says_when_it_came_from_the_default_session_and_for_how_long() -> None:
    """DESIGN 6 and 7; of methods other than tools too."""
    async with modern(idle=120) as (_, client):
        assert told(await client.call()) == {"default": True, "idleTimeout": 120}
        assert told(await client.call(meta={"threadId": "k"})) == {"idleTimeout": 120}
        answer = await client.post("resources/read", {"uri": "x://y"})
        assert told(answer.json()["result"]) == {"default": True, "idleTimeout": 120}
        assert "sessionproxy" not in (await client.post("tools/list")).text
    async with modern(idle=0) as (_, client):
        assert told(await client.call()) == {"default": True}
        assert SESSION not in (await client.call(meta={"threadId": "k"}))["_meta"]


@pytest.mark.parametrize(
    "result",
    [
        {"content": [], "_meta": {"x": 1}},
        {"content": [{"type": "text", "text": '"_meta" \\u0041 sessionproxy/session'}]},
        {"content": [], "_meta": {SESSION: {"default": False, "of": "another proxy"}}},
        {"x": "y" * 3_000_000},
        {},
    ],
    ids=["meta", "words", "ours", "large", "empty"],
)
async def test_what_a_backend_answered_stays_but_for_the_note(result: Json) -> None:
    """DESIGN 5.4."""
    async with modern() as (_, client):
        found = await client.call({"replies": {"result": result}})
    assert told(found)["default"] is True
    meta = {**result.get("_meta", {}), **found["_meta"]}
    assert found["_meta"] == meta
    assert {**result, "_meta": meta, "resultType": "complete"} == found


async def test_two_names_that_disagree_are_refused() -> None:
    """DESIGN 6: 400, nothing is started, and the names are not told."""
    async with modern(key_header="X-Thread") as (proxy, client):
        client.url += "/s/one"
        answer = await client.post("tools/call", calling(), x_thread="two")
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == -32602
        assert "path and header" in answer.json()["error"]["message"]
        assert proxy.manager.admission.running == 0
        answer = await client.post("tools/call", calling(), x_thread="one")
        assert answer.status_code == 200


async def test_where_credentials_are_forwarded_a_name_must_be_beyond_guessing_too() -> None:
    """DESIGN 5.1: the server behind tells its users apart, and the proxy does not."""
    url = "http://127.0.0.1:9/mcp"
    async with plain((), url=url, forward_authorization=True) as proxy, http() as pool:
        for path in ("", "/s/guessable"):
            client = Modern(pool, proxy.url + path)
            answer = await client.post("resources/read", {"uri": "x://y"})
            assert answer.status_code == 400, path
            assert "at least 22 characters" in answer.text
    with pytest.raises(ConfigError, match="affinity principal"):
        http_app(url=url, forward_authorization=True, affinity="principal")


async def test_a_name_in_a_path_that_can_be_none_is_told_so() -> None:
    """DESIGN 6."""
    async with modern() as (_, client):
        client.url += "/s/a%20b"
        answer = await client.post("tools/call", calling())
        assert (answer.status_code, "a name in the path has" in answer.text) == (404, True)


async def test_the_log_tells_what_a_client_sends_that_could_name_its_conversation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`docs/clients.md`: names, and no values."""
    with caplog.at_level(logging.DEBUG, "sessionproxy.frontend.keys"):
        async with modern() as (_, client):
            await client.call(meta={"their/thread": "secret-1"})
            assert "their/thread" in caplog.text
            async with connect(client.url) as handshake:
                await handshake.request("tools/call", {**calling(), "_meta": {"x/y": "secret-2"}})
    assert "tools/call has in _meta: x/y" in caplog.text
    assert "secret" not in caplog.text


async def test_without_a_default_session_a_request_has_to_name_its_own() -> None:
    """DESIGN 6: refused in words that name the ways; who only listens for lists is not."""
    async with modern(default_session="off") as (proxy, client):
        named: dict[str, Json] = {"tools/call": {"name": "do"}, "resources/read": {"uri": "x://y"}}
        for method, params in named.items():
            answer = await client.post(method, params)
            assert answer.status_code == 400
            assert f"the path (/mcp/s/NAME) or in _meta ({META})" in answer.text
        lists: Json = {"notifications": {"toolsListChanged": True}}
        async with client.open("subscriptions/listen", lists) as stream:
            await stream.until("notifications/subscriptions/acknowledged")
        watched: Json = {"notifications": {"resourceSubscriptions": ["x://y"]}}
        assert (await client.post("subscriptions/listen", watched)).status_code == 400
        assert proxy.manager.admission.running == 0
        assert told(await client.call(meta={META: "k"})).get("default") is None


async def test_without_authentication_beyond_loopback_a_name_must_be_beyond_guessing() -> None:
    """DESIGN 6: `--insecure`."""
    async with modern(local=False) as (proxy, client):
        for path, status in (("", 400), ("/s/short", 400), (f"/s/{LONG}", 200)):
            client.url = proxy.url + path
            assert (await client.post("tools/call", calling())).status_code == status


@pytest.mark.parametrize(
    "path", ["/mcp/s/SECRET-KEY", "/mcp/s/SECRET-KEY/x", "/mcp/s/SECRET-KEY%00", "/x/s/SECRET-KEY"]
)
async def test_the_name_in_a_path_is_in_no_log(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """DESIGN 6: redacted, also where it is refused."""
    caplog.set_level(logging.DEBUG, logger="sessionproxy")
    async with modern() as (proxy, client):
        client.url = proxy.base + path
        await client.post("tools/call", calling())
        await client.post("tools/call", calling(), meta={META: "another"})
        await client.post("no/such")
    assert caplog.text
    assert "SECRET-KEY" not in "".join(
        line for line in caplog.text.splitlines() if "sessionproxy" in line
    )


# -- cookies ---------------------------------------------------------------------------------------


async def test_a_cookie_is_given_once_and_brings_its_client_back() -> None:
    """DESIGN 6: on a loopback, where a server that speaks HTTPS may stand in front."""
    async with modern(key_cookie="on") as (_, client):
        first = await client.post("tools/call", calling())
        given = first.headers["set-cookie"]
        assert given.endswith("; Path=/; Secure; HttpOnly; SameSite=Strict")
        kept = Modern(client.http, client.url, {"cookie": given.partition(";")[0]})
        again = await kept.post("tools/call", calling())
        assert "set-cookie" not in again.headers
        assert again.json()["result"]["structuredContent"]["count"] == 2
        assert told(again.json()["result"]).get("default") is None
        client.http.cookies.clear()
        other = await client.post("tools/call", calling())
        assert other.json()["result"]["structuredContent"]["count"] == 1
        assert other.headers["set-cookie"] != given


async def test_a_cookie_comes_with_a_stream_too_and_with_no_list() -> None:
    """A list belongs to no conversation; a stream's headers come before what it says."""
    async with modern(key_cookie="on") as (_, client):
        for method in ("server/discover", "tools/list"):
            assert "set-cookie" not in (await client.post(method)).headers
        async with client.open(
            "tools/call", calling({"progress": 1}), meta={"progressToken": 1}
        ) as s:
            assert s.is_stream
            assert s.response.headers["set-cookie"].startswith(f"{COOKIE}=")
            await s.rest()
        client.url += "/s/named"
        client.http.cookies.clear()
        assert "set-cookie" not in (await client.post("tools/call", calling())).headers


async def test_a_conversation_whose_client_never_got_its_cookie_ends() -> None:
    """Nobody could come back to it: it must not hold a place until it is idle."""
    async with modern(key_cookie="on") as (proxy, client):
        await client.post("tools/list")
        request = client.build("tools/call", calling({"wait": "never"}))
        request.extensions["timeout"] = {"read": 1.0}
        with pytest.raises(httpx2.ReadTimeout):
            await client.http.send(request)
        await until(lambda: len(proxy.manager.registry) == 0)


async def test_a_handshake_client_that_attaches_gets_a_cookie_too() -> None:
    """DESIGN 6: clients that open a session for every call, where sessions are shared."""
    async with embedded(scripted(), key_cookie="on", affinity="conversation") as proxy:
        async with connect(proxy.url) as first, http() as pool:
            await first.do()
            second = Client(pool, proxy.url)
            answer = await second.initialize()
            given = answer.headers["set-cookie"].partition(";")[0]
            assert (await second.do())["count"] == 1
            third = Client(pool, proxy.url, headers={"cookie": given})
            assert "set-cookie" not in (await third.initialize()).headers
            assert (await third.do())["count"] == 2


# -- clients as they are ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
async def test_two_conversations_at_once_by_their_paths(mode: str) -> None:
    """DESIGN 6: ten calls each, apart and kept; and kept when its client connects again."""
    async with embedded(scripted(**SCRIPT)) as proxy:

        async def talk(name: str) -> str:
            url = f"{proxy.url}/s/{name}"
            async with sdk(url, mode) as client:
                nonce = await counted(client, 10)
            async with sdk(url, mode) as client:
                result = await client.call_tool("do", {})
            found: Json = result.structured_content or {}
            assert (found["nonce"], found["count"]) == (nonce, 11)
            return nonce

        await apart(partial(talk, "one"), partial(talk, "two"))
        assert proxy.manager.admission.running == 2


@pytest.mark.parametrize("mode", MODES)
async def test_two_conversations_of_one_client_at_once_by_their_ids_in_meta(mode: str) -> None:
    """DESIGN 6: ten calls each, interleaved on one connection."""
    async with embedded(scripted(**SCRIPT)) as proxy, sdk(proxy.url, mode) as client:
        await apart(
            *(partial(counted, client, 10, meta={"vscode.conversationId": n}) for n in "ab")
        )


@pytest.mark.parametrize("mode", MODES)
async def test_two_conversations_at_once_by_their_cookies(mode: str, tmp_path: Path) -> None:
    """DESIGN 6: over TLS, where the SDK's HTTP client keeps them."""
    pem = issue(tmp_path)
    certificate = Certificate(str(pem.cert), str(pem.key))
    running = plain(scripted(**SCRIPT), certificate=certificate, key_cookie="on")
    async with running as proxy:

        async def talk() -> str:
            async with sdk(proxy.url, mode, verify=pem.client()) as client:
                return await counted(client, 10)

        await apart(talk, talk)
        assert proxy.manager.admission.running == 2


@pytest.mark.parametrize("mode", MODES)
async def test_two_users_at_once_by_their_tokens(mode: str, tmp_path: Path) -> None:
    """DESIGN 6: each has a default session of their own."""
    file = tmp_path / "tokens"
    file.write_text(line("alice", ALICE) + line("bob", BOB))
    async with embedded(scripted(**SCRIPT), token_file=str(file)) as proxy:

        async def talk(token: str) -> str:
            async with sdk(proxy.url, mode, headers=bearer(token)) as client:
                return await counted(client, 10)

        await apart(partial(talk, ALICE), partial(talk, BOB))
        assert proxy.manager.admission.running == 2
