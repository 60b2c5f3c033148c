"""DESIGN 11: a wrong setting is named, with what is allowed, before anything is started."""

import enum
from collections.abc import Sequence
from types import UnionType
from typing import Any, Literal, get_args, get_type_hints

import msgspec
import pytest

from sessionproxy.config import (
    IN_PYTHON,
    REPEATED,
    ConfigError,
    OnLoss,
    Settings,
    description_of,
    flag_of,
    settings_from,
    variable_of,
)
from sessionproxy.keywords import AppSettings, FrontSettings, Pairs, ProxySettings
from sessionproxy.plan import OF_COMMANDS, OF_URLS

NAMES = [field.name for field in msgspec.structs.fields(Settings)]


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_says_what_it_does(name: str) -> None:
    """One table, from which command line, environment and documentation are made."""
    assert description_of(name)
    assert flag_of(name) == "--" + name.replace("_", "-")
    assert variable_of(name) == "SESSIONPROXY_" + name.upper()


def keyword(name: str) -> object:
    """Return the type of a setting, as one who calls `http_app` writes it."""
    hint = get_type_hints(Settings)[name]
    kind: type[Any] = get_args(hint)[0] if isinstance(hint, UnionType) else hint
    found: Any = kind
    if issubclass(kind, enum.Enum):
        found = Literal[tuple(str(member.value) for member in kind)]
    elif name in REPEATED:
        found = Pairs if "=" in REPEATED[name] else Sequence[str]
    return found | None if isinstance(hint, UnionType) else found


def test_type_checkers_know_every_setting_as_it_is() -> None:
    """Issue 5, the typed API: `keywords` says of every setting what the table says of it."""
    assert get_type_hints(AppSettings) == {name: keyword(name) for name in NAMES}
    of_targets = {"config", "url", "mode"}
    assert get_type_hints(ProxySettings).keys() == {*NAMES} - of_targets
    of_servers = {*OF_COMMANDS, *OF_URLS}
    assert get_type_hints(FrontSettings).keys() == {*NAMES} - of_targets - of_servers


def test_the_defaults_are_those_of_the_design() -> None:
    """DESIGN 7 and 10."""
    settings = Settings()
    assert (settings.host, settings.path, settings.on_loss) == ("127.0.0.1", "/mcp", OnLoss.TELL)
    assert (settings.idle, settings.linger, settings.session_ttl) == (300, 60, 24 * 3600)
    assert (settings.max_age, settings.call_timeout) == (0, 0)
    assert (settings.max_sessions, settings.max_asleep, settings.queue_timeout) == (64, 10_000, 30)
    assert (settings.start_timeout, settings.stop_grace, settings.drain_timeout) == (60, 20, 30)
    assert (settings.max_body, settings.max_line) == (16 * 2**20, 64 * 2**20)
    assert settings.keepalive == 15
    assert settings.expose_stderr is None
    assert not settings.insecure


def test_one_owner_of_several_leaves_places_for_the_others() -> None:
    """DESIGN 5.3 and 7; our choice of the share."""
    assert Settings().sessions_of_one_owner is None
    assert Settings(token_file="tokens").sessions_of_one_owner == 48
    of_few = [Settings(token_file="t", max_sessions=n).sessions_of_one_owner for n in (1, 2, 4)]
    assert of_few == [1, 2, 3]
    assert Settings(token_file="tokens", max_sessions_per_owner=64).sessions_of_one_owner == 64
    assert Settings(max_sessions_per_owner=3).sessions_of_one_owner == 3


def test_values_may_be_written_as_text() -> None:
    """As the environment has them."""
    settings = settings_from(
        {"idle": "1.5", "port": "0", "insecure": "true", "on_loss": "annotate"}
    )
    assert (settings.idle, settings.port, settings.insecure) == (1.5, 0, True)
    assert settings.on_loss is OnLoss.ANNOTATE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("port", value) for value in (-1, 65536, "x")),
        *(("path", value) for value in ("mcp", "/", "/x/", "")),
        *(("idle", value) for value in (-1, "soon", float("nan"), None)),
        *((name, 0) for name in ("session_ttl", "max_sessions", "keepalive", "max_body")),
        *((name, 0) for name in ("queue_timeout", "start_timeout", "max_asleep")),
        ("warm", -1),
        ("max_line", 10),
        ("log_level", "loud"),
        ("on_loss", "shrug"),
        ("env", 5),
    ],
)
def test_a_value_out_of_its_bounds_is_named(name: str, value: object) -> None:
    """DESIGN 11: the key, and what is allowed, on one line."""
    with pytest.raises(ConfigError) as caught:
        settings_from({name: value})
    text = str(caught.value)
    assert text.startswith(f"{flag_of(name)}: ")
    assert "\n" not in text


def test_names_and_values_may_be_a_mapping_in_python() -> None:
    """As every other Python API has environments and headers."""
    given = {"env": {"A": "b=c", "D": ""}, "header": {"X-Key": "k"}}
    settings = settings_from(given, named=IN_PYTHON)
    assert settings.env == ("A=b=c", "D=")
    assert settings.header == ("X-Key=k",)
    with pytest.raises(ConfigError, match="env: expected a list such as"):
        settings_from(given, named="servers.json: sessionproxy.{}")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"env": "A=s3cret"}, 'env: expected a list such as ["NAME=VALUE"], or a mapping such as'),
        ({"pass_env": "PATH"}, 'pass_env: expected a list such as ["NAME"]'),
        ({"pass_env": {"A": "s3cret"}}, 'pass_env: expected a list such as ["NAME"]'),
        ({"env": {"A": 5}}, "env A: expected a string"),
        ({"header": {"A=s3cret": "b"}}, "header: expected a mapping of names to values"),
    ],
)
def test_what_is_no_list_is_refused_with_an_example(given: dict[str, object], text: str) -> None:
    """DESIGN 11: bad configuration; a value may be secret, so none is shown."""
    with pytest.raises(ConfigError) as refused:
        settings_from(given, named=IN_PYTHON)
    assert str(refused.value).startswith(text)
    assert "s3cret" not in str(refused.value)


def test_a_setting_that_does_not_exist_is_named() -> None:
    """DESIGN 11: a typo must not pass for the default."""
    with pytest.raises(ConfigError, match=r"max_session: no such setting; expected max_sessions\?"):
        settings_from({"max_session": 5}, named="{}")


def test_settings_of_several_values_are_those_that_are_tuples() -> None:
    """`REPEATED`: repeated flags."""
    assert {name for name in NAMES if isinstance(getattr(Settings(), name), tuple)} == set(REPEATED)


def test_starts_at_once_default_to_twice_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """DESIGN 7."""
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    assert Settings().cores_at_once == 6
    assert Settings(starts_at_once=1).cores_at_once == 1
