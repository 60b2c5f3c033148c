"""What is shown once the proxy listens. The whole of it, over a process, is in `test_cli.py`."""

import io
import json

import pytest
from rich.console import Console

from sessionproxy import banner
from sessionproxy.config import settings_from


def shown(**settings: object) -> dict[str, str]:
    out = io.StringIO()
    banner.show(
        Console(file=out, width=80),
        settings_from(settings),
        ["cat"],
        url="https://127.0.0.1:8080/mcp",
        containment="guardian",
    )
    return dict(line.split(": ", 1) for line in out.getvalue().splitlines()[1:])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "share the default one of their user"),
        ({"path": "/x"}, "(/x/s/NAME) share"),
        ({"default_session": "off"}, "are refused"),
        ({"host": "0.0.0.0", "insecure": True}, "are refused"),
        ({"insecure": True}, "share the default one of their user"),
        ({"host": "0.0.0.0", "token_file": "x"}, "share the default one of their user"),
        ({"key_cookie": "on"}, "by cookie"),
        ({"handles": "optional"}, "in the session argument of a tool"),
        ({"affinity": "principal"}, "one for each user"),
    ],
)
def test_it_says_how_clients_without_sessions_are_told_apart(
    settings: dict[str, object], says: str
) -> None:
    """DESIGN 6: use of the default session is said in the banner."""
    assert says in shown(**settings)["conversations"]


def test_it_shows_where_a_user_puts_the_own_token() -> None:
    """To be copied, but for the token itself."""
    found = shown(token_file="/etc/tokens")
    assert '--header "Authorization: Bearer TOKEN"' in found["Claude Code"]
    server = json.loads(found["mcp.json"])["mcpServers"]["sessionproxy"]
    assert server["headers"] == {"Authorization": "Bearer TOKEN"}
    assert "INSECURE" not in found
    assert "/etc/tokens" not in str(found)
    assert "headers" not in shown()["mcp.json"]
