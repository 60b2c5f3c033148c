"""`GET /metrics`: PARITY row 78 (Prometheus counters), DESIGN 5.5 (one word) and 5.8 (no ids).

Real sockets and real backends; the page is parsed as Prometheus does.
"""

import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import anyio
from starlette.applications import Starlette
from starlette.routing import Mount

from sessionproxy.app import http_app
from sessionproxy.core.counts import BOUNDS
from tests.ops.scraping import Samples, scraped
from tests.rig.embedded import embedded, scripted, served, session, until
from tests.rig.http import Client, connect, http, request
from tests.rig.modern import Modern
from tests.rig.proxy import proxy as program


async def test_requests_are_counted_by_method_and_outcome(both_ways: None) -> None:
    """Also those that take the short way, of which there are the most."""
    async with session() as (proxy, client):
        for _ in range(5):
            await client.do()
        await client.request("prompts/list")
        error = {"code": -32000, "message": "no"}
        await client.request("tools/call", _failing({"replies": {"error": error}}))
        found = await scraped(proxy.base)
    assert found("requests_total", method="tools/call", outcome="result") == 5
    assert found("requests_total", method="tools/call", outcome="error") == 1
    assert found("requests_total", method="tools/call", outcome="failure") == 0
    assert found("requests_total", method="prompts/list", outcome="result") == 1
    assert found("request_duration_seconds_count", method="tools/call") == 6
    assert found("request_duration_seconds_sum", method="tools/call") > 0
    assert found("request_duration_seconds_bucket", method="tools/call", le="+Inf") == 6


def _failing(*steps: object) -> dict[str, object]:
    return {"name": "do", "arguments": {"steps": list(steps)}}


async def test_a_request_that_a_backend_died_over_is_a_failure_with_its_reason() -> None:
    """The reason is that of the error (`errors`), and how the backend stopped is counted too."""
    async with session() as (proxy, client):
        await client.request("tools/call", _failing({"exit": 3}))
        await until(lambda: not proxy.manager.registry.awake())
        found = await scraped(proxy.base)
    assert found("requests_total", method="tools/call", outcome="failure") == 1
    assert found("request_failures_total", reason="backend_gone") == 1
    assert found("request_duration_seconds_count", method="tools/call") == 0
    assert found("stops_total", reason="backend_exit") == 1
    assert found("sessions", state="asleep") == 1
    assert found("sessions", state="ready") == 0
    assert found("backends") == 0


async def test_lives_of_sessions_are_counted() -> None:
    """From the opening to the end, by the one word that the log has too (DESIGN 5.5)."""
    async with embedded() as proxy:
        async with connect(proxy.url) as alice, connect(proxy.url) as bob:
            during = await scraped(proxy.base)
            await alice.delete()
            await bob.request("tools/call", _failing({"exit": 0}))
            await until(lambda: len(proxy.manager.registry) == 1)
            await until(lambda: not proxy.manager.registry.awake())
            await bob.request("tools/list")
        after = await scraped(proxy.base)
    assert (during("sessions", state="ready"), during("backends")) == (2, 2)
    assert (during("sessions_opened_total"), during("starts_total")) == (2, 2)
    assert after("ends_total", reason="client_delete") == 1
    assert after("stops_total", reason="backend_exit") == 1
    assert (after("sessions_opened_total"), after("starts_total")) == (2, 3)
    assert (after("sessions", state="ready"), after("sessions", state="asleep")) == (1, 0)


async def test_a_start_that_fails_is_counted_with_its_reason() -> None:
    async with embedded(scripted(start=[{"exit": 1}])) as proxy, http() as pool:
        before = await scraped(proxy.base)
        for _ in range(5):
            await Client(pool, proxy.url).initialize()
        await until(lambda: not len(proxy.manager.registry))
        found = await scraped(proxy.base)
    assert found("starts_total") == 5
    assert found("start_failures_total", reason="backend_start_failed") == 5
    assert found("ends_total", reason="start_failed") == 5
    assert (before("resting"), found("resting")) == (0, 1)


async def test_what_is_in_flight_waits_or_drains_shows() -> None:
    async with embedded(max_sessions=1) as proxy, connect(proxy.url) as alice, http() as pool:
        found = Samples("", {})
        async with anyio.create_task_group() as tasks, alice.doing({"log": 1}, {"wait": "go"}):
            tasks.start_soon(Client(pool, proxy.url).initialize)
            await until(lambda: proxy.manager.admission.queued == 1)
            found = await scraped(proxy.base)
            tasks.cancel_scope.cancel()
        proxy.manager.draining = True
        drains = await scraped(proxy.base)
    assert found("requests_in_flight") == 1
    assert found("queued") == 1
    assert found("sessions", state="starting") == 1
    assert (found("draining"), drains("draining")) == (0, 1)


async def test_what_backends_ask_is_counted_by_method() -> None:
    async with session() as (proxy, client):
        async with client.doing({"ask": {"method": "roots/list"}}) as incoming:
            asked = await incoming.until("roots/list")
            await client.respond(asked["id"], result={"roots": []})
            await incoming.answer()
        found = await scraped(proxy.base)
    assert found("asks_total", method="roots/list") == 1


async def test_methods_that_clients_make_up_are_one() -> None:
    """Else a client could fill the operator's memory, and write what it likes into labels."""
    async with session() as (proxy, client):
        for number in range(20):
            await client.request(f"x/made-up-{number}")
        asks = [{"method": f"x/asked-{number}"} for number in range(3)]
        async with client.doing({"ask": asks}) as incoming:
            for _ in asks:
                message = await incoming.message()
                await client.respond(message["id"], result={})
            await incoming.answer()
        found = await scraped(proxy.base)
    over = [found.get("requests_total", method="other", outcome=o) for o in ("result", "error")]
    assert sum(over) == 20
    assert found("asks_total", method="other") == 3
    assert "made-up" not in found.text
    assert "asked-" not in found.text


async def test_what_is_refused_is_counted_by_reason() -> None:
    """Of both eras, and below both."""
    async with session() as (proxy, client), http() as pool:
        stranger = Client(pool, proxy.url)
        stranger.id = "no-such-session"
        await stranger.post(request("tools/list"))
        await pool.get(f"{proxy.base}/nowhere")
        await Modern(pool, proxy.url).post("ping")
        await client.post(b"not json")
        found = await scraped(proxy.base)
    for reason in ("session_not_found", "unknown_path", "method_not_found", "malformed_message"):
        assert found("refused_total", reason=reason) == 1, reason


async def test_what_is_dropped_is_counted() -> None:
    async with session() as (proxy, client):
        await client.do({"raw": "rubbish\n"})
        found = await scraped(proxy.base)
    assert found("dropped_total", kind="garbage_line") == 1
    assert found("orphans_total") == 0
    assert found("stalls_total") == 0


async def test_no_session_owner_or_key_is_in_it(tmp_path: Path) -> None:
    """DESIGN 5.8: ids are in no page of others; and labels must be few."""
    tokens = tmp_path / "tokens"
    token = "t" * 32
    tokens.write_text(f"alice-the-owner {sha256(token.encode()).hexdigest()}\n")
    async with embedded(token_file=str(tokens)) as proxy, http() as pool:
        client = Client(pool, proxy.url, headers={"authorization": f"Bearer {token}"})
        await client.initialize()
        await client.do(echo="secret-argument")
        more = {"authorization": f"Bearer {token}"}
        modern = Modern(pool, f"{proxy.url}/s/secret-key", more)
        await modern.call(echo="secret-argument")
        labels = {session.label for session in proxy.manager.registry.awake()}
        found = await scraped(proxy.base)
    assert found("requests_total", method="tools/call", outcome="result") == 2
    for secret in (client.id, "alice", "secret", token, *labels):
        assert secret not in found.text
    assert found.labels() <= {
        "server", "state", "method", "outcome", "reason", "kind", "le", "version", "containment",
    }  # fmt: skip


async def test_who_may_ask_is_as_for_readyz() -> None:
    """The guard is the same: no foreign Host, and only GET and HEAD."""
    async with embedded() as proxy, http() as pool:
        url = f"{proxy.base}/metrics"
        foreign = await pool.get(url, headers={"host": "evil.example"})
        posted = await pool.post(url, content=b"")
        head = await pool.head(url)
        again = await pool.get(url)
    assert (foreign.status_code, posted.status_code) == (403, 405)
    assert (head.status_code, again.status_code) == (200, 200)
    assert again.headers["cache-control"] == "no-store"


async def test_a_proxy_in_another_application_has_numbers_of_its_own(tmp_path: Path) -> None:
    """Each has a registry of its own, so that two in one process do not meet; what the process as a
    whole uses is the application's."""
    first, second = (
        http_app(scripted(), containment="guardian", state_dir=str(tmp_path / name))
        for name in "ab"
    )
    mounts = [Mount("/first", app=first), Mount("/second", app=second)]
    async with (
        first.lifespan(),
        second.lifespan(),
        served(Starlette(routes=mounts)) as base,
        http() as pool,
    ):
        client = Client(pool, f"{base}/first/mcp")
        await client.initialize()
        await client.do()
        ones, others = await scraped(f"{base}/first"), await scraped(f"{base}/second")
    assert ones("sessions_opened_total") == 1
    assert others("sessions_opened_total") == 0
    assert not [name for name in ones.names() if name.startswith("process_")]


async def test_in_shared_mode_the_one_backend_is_counted_once() -> None:
    async with embedded(mode="shared") as proxy, connect(proxy.url), connect(proxy.url):
        found = await scraped(proxy.base)
    assert found("sessions", state="ready") == 2
    assert found("backends") == 1


async def test_the_classes_of_durations_add_up() -> None:
    """As Prometheus has them: each counts all below its bound."""
    async with session() as (proxy, client):
        await client.do()
        await client.do({"sleep": 0.3})
        found = await scraped(proxy.base)

    def below(bound: float | str) -> float:
        le = bound if isinstance(bound, str) else str(float(bound))
        return found("request_duration_seconds_bucket", method="tools/call", le=le)

    counts = [below(bound) for bound in (*BOUNDS, "+Inf")]
    assert counts == sorted(counts)
    assert below("+Inf") == 2
    assert below(0.25) == 1, "one slept for longer than that"
    assert found("request_duration_seconds_sum", method="tools/call") >= 0.3


def test_nothing_of_prometheus_is_imported_before_it_is_asked_for() -> None:
    """Nor of OpenTelemetry, without tracing: what nobody uses costs nobody anything."""
    code = (
        "import sys; from sessionproxy.app import http_app; http_app(); "
        "print([m for m in ('prometheus_client', 'opentelemetry') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"


async def test_a_proxy_of_its_own_process_tells_what_that_uses_too() -> None:
    async with program() as proxy:
        found = await scraped(proxy.base)
    assert found.values["process_resident_memory_bytes", frozenset()] > 0
    assert found("sessions_opened_total") == 0
