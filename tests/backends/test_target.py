"""Where an upstream is and what goes along: URL, TLS, proxies, headers, callers' credentials."""

import asyncio  # noqa: TID251 - the rig's own
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from sessionproxy import AppSettings, ConfigError, http_app
from sessionproxy.backends import RemoteLauncher, Target, shown
from sessionproxy.core.caller import Nobody, ask
from sessionproxy.core.context import caller_authorization
from sessionproxy.core.memory import Opening
from sessionproxy.core.ports import Identity
from tests.rig.embedded import until
from tests.rig.http import Client, Json, connect, http
from tests.rig.modern import Modern
from tests.rig.proxy import proxy
from tests.rig.tls import Pem, issue
from tests.rig.upstream import Asked, Said, Upstream, fronting, upstream

CALL: Json = {"name": "do", "arguments": {}}


@asynccontextmanager
async def serving(**settings: object) -> AsyncGenerator[tuple[Upstream, Client]]:
    async with (
        upstream() as server,
        fronting(server.url, settings) as proxy,
        connect(proxy.url) as client,
    ):
        yield server, client


async def count(client: Client) -> int:
    answer = await client.request("tools/call", CALL)
    return answer["result"]["structuredContent"]["count"]


# -- headers ---------------------------------------------------------------------------------------


async def test_the_operators_headers_go_with_every_request_and_into_no_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """FAULTS, credentials: what the operator says goes there, and is written nowhere."""
    caplog.set_level(logging.DEBUG, "sessionproxy")
    header = ("Authorization=Bearer top-s3cret", "X-Team= a=b c")
    async with serving(header=header) as (server, client):
        await count(client)
        await server.listened()
        await client.delete()
        await server.heard("DELETE")
    for asked in server.asked:
        assert asked.headers["authorization"] == "Bearer top-s3cret", asked.method
        assert asked.headers["x-team"] == "a=b c"
        assert asked.headers["user-agent"] == "sessionproxy"
        assert asked.headers["accept-encoding"] == "identity"
        revision = asked.headers.get("mcp-protocol-version")
        assert revision == (None if asked.method == "initialize" else "2025-11-25")
    assert "s3cret" not in caplog.text
    assert {asked.verb for asked in server.asked} == {"POST", "GET", "DELETE"}


async def test_a_callers_credential_stays_here_unless_the_operator_says_otherwise() -> None:
    """FAULTS, credentials: `Authorization` is consumed at the front."""
    async with serving() as (server, client):
        await count(client.also(authorization="Bearer mine"))
        assert all("authorization" not in asked.headers for asked in server.asked)


async def test_a_credential_that_is_known_is_not_sent_where_that_is_not_wanted() -> None:
    """FAULTS, credentials: whoever else has it noted for the present request."""
    token = caller_authorization.set(b"Bearer mine")
    opening = Opening(b'{"protocolVersion":"2025-11-25","capabilities":{}}')
    async with upstream() as server, RemoteLauncher(Target(server.url), max_line=1000) as launcher:
        who = Identity("route", "owner", "key")
        async with launcher.launch(who, "label", Nobody(), opening) as backend:
            assert (await ask(backend, opening.method, opening.params)).result is not None
        assert all("authorization" not in asked.headers for asked in server.asked)
    caller_authorization.reset(token)


async def test_a_callers_credential_goes_along_with_its_own_request_where_that_is_wanted(
    both_ways: None,
) -> None:
    """DESIGN 10: per request; with what is sent on nobody's behalf, the latest one."""
    async with upstream() as server, http() as pool:
        async with fronting(server.url, {"forward_authorization": True}) as proxy:
            client = Client(pool, proxy.url, headers={"authorization": "Bearer t-0"})
            await client.initialize()
            await client.notify("notifications/initialized")
            get = await server.listened()
            for n in (1, 1, 2, 2, 1):
                await count(client.also(authorization=f"Bearer t-{n}"))
            await client.also(authorization="Bearer t-3").delete()
            gone = await server.heard("DELETE")
    for method in ("initialize", "notifications/initialized"):
        assert server.all(method)[0].headers["authorization"] == "Bearer t-0"
    assert get.headers["authorization"] == "Bearer t-0"
    calls = [asked.headers["authorization"] for asked in server.all("tools/call")]
    assert calls == [f"Bearer t-{n}" for n in (1, 1, 2, 2, 1)]
    assert gone.headers["authorization"] == "Bearer t-1"


async def test_requests_that_wait_together_keep_each_its_own_credential() -> None:
    """DESIGN 8: never one slot for the current request."""
    go = asyncio.Event()

    async def held(asked: Asked) -> None:
        await go.wait()
        await asked.say(202)

    async with upstream({"notifications/roots/list_changed": held}) as server:
        async with (
            fronting(server.url, {"forward_authorization": True}) as proxy,
            connect(proxy.url) as client,
            anyio.create_task_group() as tasks,
        ):
            await client.notify("notifications/roots/list_changed")
            await server.heard("notifications/roots/list_changed")
            for n in (1, 2):
                tasks.start_soon(count, client.also(authorization=f"Bearer t-{n}"))
            (session,) = proxy.manager.registry.awake()
            await until(lambda: session.leases == 2)
            go.set()
        calls = {asked.headers["authorization"] for asked in server.all("tools/call")}
        assert calls == {"Bearer t-1", "Bearer t-2"}


async def test_an_answer_that_broke_off_is_fetched_with_the_credential_of_who_asked() -> None:
    """DESIGN 10: and not with that of another client of the session, who has called meanwhile."""
    answers: list[Said] = []

    async def breaks_off(asked: Asked) -> None:
        answers.append(Said(asked.response({"messages": []}), id="e-2"))
        await asked.events(Said(id="e-1", retry=1))
        await asked.server.heard("tools/call")
        asked.drop()

    async def stream(asked: Asked) -> None:
        if "last-event-id" in asked.headers:
            await asked.events(*answers)
            asked.end()
        else:
            await asked.server.behave(asked)

    async with upstream({"prompts/get": breaks_off, "GET": stream}) as server:
        async with (
            fronting(server.url, {"forward_authorization": True}) as proxy,
            connect(proxy.url) as client,
            anyio.create_task_group() as tasks,
        ):
            one, two = (client.also(authorization=f"Bearer t-{n}") for n in (1, 2))
            tasks.start_soon(one.request, "prompts/get", {"name": "p"})
            await server.heard("prompts/get")
            await count(two)
        (fetched,) = [asked for asked in server.all("GET") if "last-event-id" in asked.headers]
        assert fetched.headers["authorization"] == "Bearer t-1"


async def test_a_session_is_woken_with_the_credential_of_the_one_who_wakes_it() -> None:
    """DESIGN 7 and 10: the stored `initialize` is sent in a task that is nobody's."""
    async with upstream() as server, http() as pool:
        async with fronting(server.url, {"forward_authorization": True, "idle": 0.2}) as proxy:
            client = Client(pool, proxy.url, headers={"authorization": "Bearer old"})
            await client.initialize()
            await client.notify("notifications/initialized")
            await until(lambda: not proxy.manager.registry.awake())
            await client.also(authorization="Bearer new").request("tools/list")
            assert server.all("initialize")[1].headers["authorization"] == "Bearer new"


async def test_each_caller_is_shown_what_the_upstream_offers_to_it() -> None:
    """DESIGN 6: the catalogue is of the route and the owner, where a mapped credential names one.
    What one may see is not shown to another, nor kept from the first."""

    async def listed(asked: Asked) -> None:
        who = asked.headers.get("authorization", "nobody").removeprefix("Bearer ")
        tool = {"name": f"of-{who}", "inputSchema": {"type": "object"}}
        await asked.result({"tools": [tool]})

    async with upstream({"tools/list": listed}) as server, http() as pool:
        async with fronting(server.url, {"forward_authorization": True}) as proxy:
            for who in ("alice", "bob", "alice"):
                client = Modern(pool, proxy.url, {"authorization": f"Bearer {who}"})
                answer = (await client.post("tools/list")).json()
                assert [tool["name"] for tool in answer["result"]["tools"]] == [f"of-{who}"]
            answer = (await Modern(pool, proxy.url).post("tools/list")).json()
            assert [tool["name"] for tool in answer["result"]["tools"]] == ["of-nobody"]
        assert len(server.all("tools/list")) == 3  # alice's was kept


async def test_what_a_server_speaks_is_found_out_with_the_credential_of_who_asks() -> None:
    """DESIGN 9; and one who is sent away, with whatever words, has found nothing out."""

    async def discovered(asked: Asked) -> None:
        if asked.headers.get("authorization") == "Bearer alice":
            await asked.server.behave(asked)
        else:
            error = {"code": -32001, "message": "who is that?"}
            await asked.say(401, {"jsonrpc": "2.0", "id": None, "error": error})

    async with (
        upstream({"server/discover": discovered}, modern=True, handshake=False) as server,
        http() as pool,
    ):
        async with fronting(server.url, {"forward_authorization": True}) as proxy:
            for who in ("bob", "alice"):
                client = Modern(pool, proxy.url, {"authorization": f"Bearer {who}"})
                answer = await client.post("tools/list")
                assert ("HTTP 401" in answer.text) == (who == "bob"), answer.text
                assert ("result" in answer.json()) == (who == "alice"), answer.text
        (asked,) = server.all("initialize")  # does it keep sessions? It does not
        assert asked.headers["authorization"] == "Bearer alice"


async def test_one_who_is_sent_away_changes_nothing_for_the_others() -> None:
    """FAULTS I1: a server that refuses a caller its handshake speaks the handshake all the same;
    taken for one that does not, it would have no sessions for anybody."""

    async def initialized(asked: Asked) -> None:
        if asked.headers.get("authorization") == "Bearer alice":
            await asked.server.behave(asked)
        else:
            await asked.say(401)

    async with upstream({"initialize": initialized}, modern=True) as server, http() as pool:
        async with fronting(server.url, {"forward_authorization": True}) as proxy:
            bob = Client(pool, proxy.url, headers={"authorization": "Bearer bob"})
            assert "HTTP 401" in (await bob.initialize()).text
            alice = Client(pool, proxy.url, headers={"authorization": "Bearer alice"})
            await alice.initialize()
            answer = await alice.request("tools/call", CALL)
            assert answer["result"]["structuredContent"]["session"] in server.sessions
            for who in ("bob", "alice"):
                modern = Modern(pool, proxy.url, {"authorization": f"Bearer {who}"})
                found = await modern.post("tools/call", CALL)
                assert ("HTTP 401" in found.text) == (who == "bob"), found.text


async def test_a_caller_without_a_credential_borrows_nobody_elses(both_ways: None) -> None:
    """DESIGN 10: the caller's current credential; who has none sends none, though the session was
    opened with one."""
    async with upstream() as server, http() as pool:
        async with fronting(server.url, {"forward_authorization": True}) as proxy:
            client = Client(pool, proxy.url, headers={"authorization": "Bearer t-0"})
            await client.initialize()
            await client.notify("notifications/initialized")
            await server.listened()
            client.more = {}
            await count(client)
            await client.notify("notifications/roots/list_changed")
            await server.heard("notifications/roots/list_changed")
    for method in ("tools/call", "notifications/roots/list_changed"):
        assert "authorization" not in server.all(method)[0].headers


async def test_the_command_line_takes_headers_from_the_environment_and_shows_no_secret() -> None:
    """FAULTS, credentials: arguments are there for all to see, and so are banner and log."""
    async with upstream() as server:
        secret = {"SESSIONPROXY_HEADER": "Authorization=Bearer s3 cret\nX-Two=2\n"}
        url = f"{server.url}?key=s3cret"
        async with proxy((), "--url", url, "--log-level", "debug", env=secret) as running:
            async with connect(running.url) as client:
                assert await count(client) == 1
            asked = server.all("tools/call")[0]
            assert asked.headers["authorization"] == "Bearer s3 cret"
            assert asked.headers["x-two"] == "2"
            assert asked.path.endswith("?key=s3cret")
            shown = [*running.banner, *await running.more_banner()]
        assert f"backend: {server.url}" in shown
        assert not any(line.startswith("containment") for line in shown)
        assert "cret" not in "\n".join((*shown, *running.log))


# -- TLS -------------------------------------------------------------------------------------------


@pytest.fixture
def pem(tmp_path: Path) -> Pem:
    return issue(tmp_path)


@asynccontextmanager
async def over_tls(pem: Pem, **settings: object) -> AsyncGenerator[Client]:
    import ssl

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem.cert, pem.key)
    async with upstream(tls=context) as server, http() as pool:
        async with fronting(server.url, settings) as proxy:
            yield Client(pool, proxy.url)


async def test_a_certificate_that_nobody_vouches_for_is_not_accepted(pem: Pem) -> None:
    """FAULTS F01: the reason is told; nothing was sent."""
    async with over_tls(pem) as client:
        message = (await client.initialize()).json()["error"]["message"]
        assert "CERTIFICATE_VERIFY_FAILED" in message


async def test_certificates_of_ones_own_are_trusted_besides_the_usual_ones(pem: Pem) -> None:
    """Our choice: `--upstream-ca` adds to what is trusted, as NODE_EXTRA_CA_CERTS does."""
    async with over_tls(pem, upstream_ca=str(pem.cert)) as client:
        assert (await client.initialize()).headers["mcp-session-id"]


async def test_ssl_cert_file_says_whom_to_trust(pem: Pem, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL, SSL_CERT_FILE: as other programs on the machine have it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(pem.cert))
    async with over_tls(pem) as client:
        assert (await client.initialize()).headers["mcp-session-id"]


# -- proxies ---------------------------------------------------------------------------------------


async def test_the_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP_PROXY, as everywhere; with it the whole URL is asked for (RFC 9112, section 3.2.2)."""
    async with upstream() as server, http() as pool:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.port}")
        async with fronting("http://mcp.invalid/mcp") as proxy:
            assert (await Client(pool, proxy.url).initialize()).headers["mcp-session-id"]
        assert {asked.path for asked in server.asked} == {"http://mcp.invalid/mcp"}


async def test_no_proxy_says_what_is_reached_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_PROXY, as everywhere: the proxy that is named here does not exist."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "example.org,127.0.0.1")
    async with serving() as (_, client):
        assert await count(client) == 1


# -- what is wrong is said before anything is started ----------------------------------------------


@pytest.mark.parametrize(
    ("command", "settings", "said"),
    [
        ((), {"url": "mcp.example.com"}, "url: expected http://HOST/PATH"),
        ((), {"url": "ftp://x/secret"}, "url: expected http://HOST/PATH"),
        ((), {"url": "http://"}, "url: expected http://HOST/PATH"),
        (("cat",), {"url": "http://x/"}, "COMMAND too"),
        ((), {"url": "http://x/", "warm": 1}, "--warm: is for a COMMAND"),
        ((), {"url": "http://x/", "env": ("A=b",)}, "--env: is for a COMMAND"),
        ((), {"header": ("A=b",)}, "--header: is for a running server"),
        ((), {"transport": "sse"}, "--transport: is for a running server"),
        ((), {"forward_authorization": True}, "--forward-authorization: is for a running server"),
        ((), {"url": "http://x/", "upstream_ca": "x"}, "--upstream-ca: --url is not https"),
        ((), {"url": "https://x/", "upstream_ca": "/none"}, "--upstream-ca /none: No such file"),
        ((), {"url": "https://x/", "upstream_ca": __file__}, "expected certificates in PEM"),
        ((), {"url": "http://x/", "transport": "pigeon"}, "transport"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    command: Sequence[str], settings: AppSettings, said: str
) -> None:
    """DESIGN 11: bad configuration: the key and what is allowed; nothing started."""
    with pytest.raises(ConfigError, match=r"^[^\n]*$") as caught:
        http_app(command, hooks=(), observers=(), local=True, **settings)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "header",
    ["nothing", "=x", "A B=x", "A=x\r\nB: y", "A=", "A=ä", "Host=x", "EXPECT=x", "Mcp-Param-A=b"],
)
def test_a_header_that_cannot_be_sent_is_refused_and_its_value_not_shown(header: str) -> None:
    """FAULTS, credentials. The protocol's own headers are not the operator's."""
    with pytest.raises(ConfigError) as caught:
        Target("http://x/", headers=[header.replace("x", "s3cret")])
    assert str(caught.value).startswith("--header")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://x/", "http://me:pw@x/"])
def test_there_is_one_credential_and_not_two(url: str) -> None:
    """FAULTS, credentials: a caller without one must not go with the operator's."""
    headers = ["Authorization=x"] if "@" not in url else []
    with pytest.raises(ConfigError, match="has a credential already"):
        Target(url, headers=headers, forwards=True)


def test_a_url_is_shown_without_what_may_be_secret_of_it() -> None:
    """DESIGN 5.8: the banner and the log are read by others."""
    assert shown("https://me:pw@host:8443/mcp?key=k#f") == "https://host:8443/mcp"
    assert "pw" not in repr(Target("http://me:pw@host/mcp"))
