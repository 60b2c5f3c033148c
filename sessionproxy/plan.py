"""What the settings come to: limits, and what is fronted. Checked here where they must go together.

Neighbours: `app` builds the proxy from it.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, TypeAlias, cast

import msgspec

from .backends import (
    InProcess,
    Target,
    Template,
    factory_of,
)
from .config import (
    Affinity,
    Carrier,
    ConfigError,
    HandleUse,
    Mode,
    Settings,
    flag_of,
)
from .core.manager import Limits
from .core.reaper import Ages

Fronted: TypeAlias = "Sequence[str] | InProcess"
"""What a session's backend is made of: a command with its arguments, or a server of the SDK that
runs in this process."""

Source: TypeAlias = "Template | Target | InProcess"
"""The same, judged: where backends come from."""

DEMO: Final = (sys.executable, "-m", "sessionproxy.demo")
"""What is fronted where no command is given."""

OF_COMMANDS: Final = ("env", "pass_env", "cwd", "warm", "memory_max", "pids_max")
OF_URLS: Final = ("transport", "header", "upstream_ca", "forward_authorization")
"""Settings that are about a backend started here, and about one elsewhere."""

LADDER: Final = 15.0
"""Seconds, at most, from the end of `stop_grace` until a backend is gone."""


def fronted_from(settings: Settings, command: Fronted) -> Source:
    """Return what backends are made of.

    Raises: ConfigError: there is something wrong with it.
    """
    if settings.url is not None:
        return target_from(settings, command)
    if not isinstance(command, Sequence):
        return served_from(settings, command)
    words = cast("Sequence[str]", command) or DEMO
    return Template(words, cwd=settings.cwd, env=settings.env, pass_env=settings.pass_env)


def target_from(settings: Settings, command: Fronted) -> Target:
    """Return the server elsewhere that the settings name.

    Raises: ConfigError: something is wrong with it, or is said of a command that there is not.
    """
    if command:
        raise ConfigError("--url: there is a COMMAND too; give one of them")
    _check_no_command(settings, "--url names a running server")
    return Target(
        settings.url or "",
        carrier=settings.transport,
        headers=settings.header,
        ca=settings.upstream_ca,
        forwards=settings.forward_authorization,
    )


def served_from(settings: Settings, server: InProcess) -> InProcess:
    """Return what runs in this process.

    Raises: ConfigError: it is no server; or something is said of a command that there is not.
    """
    factory_of(server)
    _check_no_command(settings, "the server runs in this process")
    return server


def _check_no_command(settings: Settings, instead: str) -> None:
    """Raises: ConfigError: a setting is about a command."""
    for name in OF_COMMANDS:
        if getattr(settings, name):
            raise ConfigError(f"{flag_of(name)}: is for a COMMAND; {instead}")


def check_together(settings: Settings) -> None:
    """Raises: ConfigError: settings that do not go together."""
    for name in OF_URLS:
        if settings.url is None and getattr(settings, name) not in ((), None, False, Carrier.AUTO):
            raise ConfigError(f"{flag_of(name)}: is for a running server; give its --url")
    if settings.forward_authorization and settings.mode is Mode.SHARED:
        raise ConfigError("--forward-authorization: with --mode shared all have one session there")
    if settings.insecure and settings.token_file:
        raise ConfigError("--insecure: --token-file says who may connect; give one of them")
    if settings.handles is not HandleUse.OFF and settings.affinity is Affinity.PRINCIPAL:
        raise ConfigError("--handles: with --affinity principal a user has just one session")


def knows_users(settings: Settings, *, local: bool) -> bool:
    """Return whether an owner is one user. `local`: this machine alone is served.

    Where credentials are forwarded there are several, and only the server behind tells them apart.
    """
    return settings.token_file is not None or (local and not settings.forward_authorization)


def limits_from(settings: Settings) -> Limits:
    if settings.mode is Mode.SHARED:
        return _shared_limits(settings)
    return Limits(
        max_sessions=settings.max_sessions,
        max_sessions_per_owner=settings.sessions_of_one_owner,
        starts_at_once=settings.cores_at_once,
        queue_timeout=settings.queue_timeout,
        start_timeout=settings.start_timeout,
        call_timeout=settings.call_timeout or None,
        max_asleep=settings.max_asleep,
        ages=Ages(
            idle=settings.idle or None,
            linger=settings.linger or None,
            max_age=settings.max_age or None,
            session_ttl=settings.session_ttl,
        ),
    )


def _shared_limits(settings: Settings) -> Limits:
    """Return the limits of sessions that share one backend: one that is awake costs memory, about
    as one asleep does, and no backend.

    What bounds the backend's start is `SharedLauncher`. A session may have to wait for up to three,
    and for the end of each: one that refuses the handshake, the probe of its era, one in that era.
    """
    alone = limits_from(msgspec.structs.replace(settings, mode=Mode.SESSION))
    return replace(
        alone,
        max_sessions=settings.max_asleep,
        max_sessions_per_owner=None,
        starts_at_once=settings.max_asleep,
        start_timeout=3 * (settings.start_timeout + settings.stop_grace + LADDER),
    )
