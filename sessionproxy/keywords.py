"""The settings as keyword arguments, for type checkers: which there are, and of which types.

`config.Settings` is the table, with defaults, units and bounds; these say no more than it does, and
a test compares them. Neighbours: `app` and `client` take them. Imports nothing of ours.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, TypedDict

Pairs: TypeAlias = Mapping[str, str] | Sequence[str]
"""Names and their values; or texts of the form `NAME=VALUE`."""

Switched: TypeAlias = Literal["on", "off"]


class FrontSettings(TypedDict, total=False):
    """Settings of a proxy that an application for it may change (`Proxy.http_app`): all that are
    not about its servers."""

    host: str
    port: int
    path: str
    sse: Switched
    allow_host: Sequence[str]
    allow_origin: Sequence[str]
    tls_cert: str | None
    tls_key: str | None
    token_file: str | None
    insecure: bool
    idle: float
    linger: float
    shared_linger: float
    max_age: float
    session_ttl: float
    max_asleep: int
    on_loss: Literal["tell", "annotate", "not-found"]
    affinity: Literal["session", "conversation", "principal"] | None
    key_header: str | None
    key_meta: Sequence[str]
    key_cookie: Switched
    handles: Literal["off", "optional", "required"]
    default_session: Switched
    catalogue_ttl: float
    catalogue_public: bool
    max_sessions: int
    max_sessions_per_owner: int
    max_connections: int
    starts_at_once: int
    queue_timeout: float
    start_timeout: float
    call_timeout: float
    stop_grace: float
    drain_timeout: float
    keepalive: float
    max_body: int
    max_line: int
    state_dir: str | None
    containment: Literal["auto", "process-group", "guardian", "pid-namespace", "cgroup"]
    expose_stderr: bool | None
    log_level: Literal["debug", "info", "warning", "error"]
    log_json: bool
    tracing: Switched


class ProxySettings(FrontSettings, total=False):
    """Settings of `create_proxy` and `ProxyClient`: those of the command line, but for the ones
    that say what the target is. A client refuses those about clients on the network."""

    env: Pairs
    pass_env: Sequence[str]
    cwd: str | None
    warm: int
    memory_max: int
    pids_max: int
    transport: Literal["auto", "http", "sse"]
    header: Pairs
    upstream_ca: str | None
    forward_authorization: bool


class AppSettings(ProxySettings, total=False):
    """Settings of `http_app`: all of the command line's."""

    config: str | None
    url: str | None
    mode: Literal["session", "request", "shared"]
