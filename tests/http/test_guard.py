"""2025-11-25 basic/transports#security-warning: who may ask at all. Pure; no socket.

That the guard stands before everything else is shown in `tests/frontend/test_endpoint.py`.
"""

import pytest

from sessionproxy.config import ConfigError
from sessionproxy.errors import ForwardedRefused, HostRefused, OriginRefused
from sessionproxy.http import Guard, is_loopback

LOCAL_HOSTS = [
    "localhost", "localhost:3000", "LOCALHOST:3000", "localhost.", "localhost.:80", "127.0.0.1",
    "127.0.0.1:8080", "127.1.2.3", "[::1]", "[::1]:8080",
]  # fmt: skip
EVIL_HOSTS = [
    "", "evil.com", "localhost.evil.com", "localhost:3000.evil.com", "localhost.evil.com:3000",
    "localhost:3000:80", "localhost:", "localhost:x", "localhost:-1", "localhost:123456",
    "evil.com:localhost", "evil.com#localhost", "evil.com@localhost", "localhost@evil.com",
    "user@localhost", "localhost/", "localhost ", " localhost", "local host", "xlocalhost",
    "localhostx", "127.0.0.1.evil.com", "127.0.0.1.nip.io", "1.127.0.0.1", "0.0.0.0", "0",
    "10.0.0.1", "2130706433", "0x7f.1", "127.1", "::1", "[::1", "::1]", "[::1]x",
    "[::1].evil.com", "[::1]:80.evil.com", "[::2]", "[fe80::1]", "[localhost]",
    "localhost,evil.com", "lo\ufb01", "%00", "localhost..",
]  # fmt: skip


def headers(**named: str) -> dict[bytes, bytes]:
    return {
        name.replace("_", "-").encode(): value.encode("utf-8")
        for name, value in {"host": "localhost", **named}.items()
    }


@pytest.mark.parametrize("host", LOCAL_HOSTS)
def test_loopback_names_are_served_on_loopback(host: str) -> None:
    """With any port and in any case (RFC 9110 section 4.2.3)."""
    Guard(local=True).check(headers(host=host))


@pytest.mark.parametrize("host", EVIL_HOSTS)
@pytest.mark.parametrize("local", [True, False])
def test_a_name_that_only_looks_like_ours_is_refused(host: str, local: bool) -> None:
    """FAULTS, Security: parsed, never prefix-matched."""
    if not local and host in ("0.0.0.0", "10.0.0.1", "[::2]", "[fe80::1]"):
        return  # addresses in numbers, which cannot be rebound: beyond loopback they may be ours
    with pytest.raises(HostRefused):
        Guard(local=local).check(headers(host=host))


def test_a_request_without_a_host_is_refused() -> None:
    """RFC 9112 section 3.2."""
    with pytest.raises(HostRefused):
        Guard(local=True).check({})


@pytest.mark.parametrize("origin", [f"{s}://{h}" for s in ("http", "https") for h in LOCAL_HOSTS])
def test_pages_on_loopback_are_served_on_loopback(origin: str) -> None:
    """Our choice: developers' pages are served from a port of their own."""
    Guard(local=True).check(headers(origin=origin))


@pytest.mark.parametrize(
    "origin",
    [
        *(f"http://{host}" for host in EVIL_HOSTS),
        "null", "", "localhost", "file://", "file://localhost", "ftp://localhost",
        "chrome-extension://abc", "http://localhost/", "http://localhost/x", "http://localhost?x",
        "http:/localhost", "http//localhost", "http://localhost http://evil.com",
        "http://evil.com http://localhost",
    ],
)  # fmt: skip
def test_other_origins_are_refused_on_loopback(origin: str) -> None:
    """DNS rebinding: the page's own name stands in its Origin."""
    with pytest.raises(OriginRefused):
        Guard(local=True).check(headers(origin=origin))


def test_beyond_loopback_only_named_hosts_and_addresses_are_served() -> None:
    """DESIGN 6."""
    guard = Guard(local=False, hosts=["api.example.com", "other.example:8443"])
    for host in (
        "api.example.com", "API.example.com:1234", "api.example.com.", "other.example:8443",
        "10.0.0.1", "10.0.0.1:80", "[2001:db8::1]:80", "localhost:8080",
    ):  # fmt: skip
        guard.check(headers(host=host))
    for host in (
        "localhost.example",
        "other.example",
        "other.example:80",
        "x.api.example.com",
        "example.com",
    ):
        with pytest.raises(HostRefused):
            guard.check(headers(host=host))


def test_beyond_loopback_only_named_origins_are_served() -> None:
    """DESIGN 6: compared whole, with scheme and port."""
    guard = Guard(local=False, origins=["https://App.example", "http://dev.example:3000/"])
    host = "10.0.0.1"
    for origin in ("https://app.example", "HTTPS://APP.EXAMPLE", "http://dev.example:3000"):
        guard.check(headers(host=host, origin=origin))
    for origin in (
        "http://app.example", "https://app.example:8443", "https://app.example.evil.com",
        "http://dev.example", "http://localhost", "http://10.0.0.1", "null",
    ):  # fmt: skip
        with pytest.raises(OriginRefused):
            guard.check(headers(host=host, origin=origin))


@pytest.mark.parametrize(
    "name", ["forwarded", "via", "x_forwarded_for", "x_forwarded_host", "x_forwarded_x"]
)
def test_what_came_through_another_proxy_is_refused_on_loopback_only(name: str) -> None:
    """DESIGN 6: else a reverse proxy makes the whole internet `local`."""
    sent = headers(host="127.0.0.1", **{name: ""})
    Guard(local=False).check(sent)
    with pytest.raises(ForwardedRefused):
        Guard(local=True).check(sent)


@pytest.mark.parametrize("host", ["", "a b", "http://x", "x/y", "*", "*.example.com", "x:y"])
def test_a_malformed_host_is_a_wrong_setting(host: str) -> None:
    """DESIGN 11: names the flag and what is allowed."""
    with pytest.raises(ConfigError, match=r"--allow-host .*: expected NAME or NAME:PORT"):
        Guard(local=True, hosts=[host])


@pytest.mark.parametrize(
    "origin", ["", "x", "https://", "https://x/y", "//x", "https://x?y", "null"]
)
def test_a_malformed_origin_is_a_wrong_setting(origin: str) -> None:
    """DESIGN 11."""
    with pytest.raises(ConfigError, match=r"--allow-origin .*: expected SCHEME://HOST"):
        Guard(local=True, origins=[origin])


def test_verdicts_on_many_values_do_not_fill_the_memory() -> None:
    """DESIGN 5.3: bounded; and the verdicts stay right."""
    guard = Guard(local=True)
    for number in range(2000):
        with pytest.raises(HostRefused):
            guard.check(headers(host=f"evil{number}.com"))
    guard.check(headers(host="localhost:1"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("localhost", True), ("127.0.0.1", True), ("::1", True), ("[::1]", True),
        ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("example.com", False),
        ("localhost.evil.com", False), ("", False),
    ],
)  # fmt: skip
def test_loopback_is_this_machine_alone(name: str, expected: bool) -> None:
    """`is_loopback` decides whether nobody need be authenticated."""
    assert is_loopback(name) is expected
