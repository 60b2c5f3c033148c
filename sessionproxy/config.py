"""Every setting: its name, unit, default, bounds, and what it does.

One table, `Settings`, from which the command line, the environment variables and the
documentation are made. Neighbours: `cli` fills it, `plan` reads it. Imports nothing of ours.
"""

import difflib
import enum
import os
from collections.abc import Mapping
from typing import Annotated, Final, cast

import msgspec
from msgspec import Meta

ENV_PREFIX: Final = "SESSIONPROXY_"


class ConfigError(Exception):
    """A setting, flag or command is wrong; the message names it and what is allowed.

    Raised before anything is started, so it is no answer to a client: the command line prints
    it as one line and exits with 2.
    """


class Affinity(enum.Enum):
    """What tells the conversations of one owner apart."""

    SESSION = "session"
    CONVERSATION = "conversation"
    PRINCIPAL = "principal"


class HandleUse(enum.Enum):
    """Whether tools have an argument that names the conversation."""

    OFF = "off"
    OPTIONAL = "optional"
    REQUIRED = "required"


class Mode(enum.Enum):
    """Who has a backend."""

    SESSION = "session"
    REQUEST = "request"
    SHARED = "shared"


class Switch(enum.Enum):
    ON = "on"
    OFF = "off"


OUR_META_KEY: Final = "io.sessionproxy/conversation"
"""The name in `_meta` that says which conversation of the proxy's is meant, and nothing else."""

KNOWN_META_KEYS: Final = (
    OUR_META_KEY,
    "vscode.conversationId",
    "openai/session",
    "ai.opencode/sessionID",
    "antigravity.google/conversation_id",
    "threadId",
)
"""Names in `_meta` under which clients are known to send the id of their conversation."""


class Rung(enum.Enum):
    """Of the containment ladder, from the lowest; AUTO is the highest that there is."""

    AUTO = "auto"
    PROCESS_GROUP = "process-group"
    GUARDIAN = "guardian"
    PID_NAMESPACE = "pid-namespace"
    CGROUP = "cgroup"


class Carrier(enum.Enum):
    """How a backend elsewhere is spoken to; AUTO finds out."""

    AUTO = "auto"
    HTTP = "http"
    SSE = "sse"


class LogLevel(enum.Enum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class OnLoss(enum.Enum):
    """What a client is told whose backend, and so whose state, was lost."""

    TELL = "tell"
    ANNOTATE = "annotate"
    NOT_FOUND = "not-found"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What can be set. Durations are seconds, sizes bytes; 0 means no limit where it says so."""

    # Where it listens
    host: Annotated[str, Meta(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[
        int, Meta(ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    ] = 8080
    path: Annotated[str, Meta(pattern="^/.*[^/]$", description="Path of the MCP endpoint.")] = (
        "/mcp"
    )
    sse: Annotated[
        Switch,
        Meta(
            description="Serve clients of the old HTTP+SSE transport too, at /sse and /messages "
            "beside the MCP endpoint."
        ),
    ] = Switch.ON
    allow_host: Annotated[
        tuple[str, ...],
        Meta(description="Host header to answer besides the loopback names: NAME or NAME:PORT."),
    ] = ()
    allow_origin: Annotated[
        tuple[str, ...],
        Meta(
            description="Origin of web pages to answer besides those on loopback: SCHEME://HOST[:PORT]."
        ),
    ] = ()
    tls_cert: Annotated[
        str | None, Meta(description="PEM file with the certificate chain to serve HTTPS with.")
    ] = None
    tls_key: Annotated[str | None, Meta(description="PEM file with the certificate's key.")] = None

    # Who may connect
    token_file: Annotated[
        str | None,
        Meta(
            description="File with the users and their bearer tokens: NAME SHA256HEX on each "
            "line. Reread on SIGHUP."
        ),
    ] = None
    insecure: Annotated[
        bool,
        Meta(description="Serve beyond loopback although nobody is authenticated."),
    ] = False

    # How long a session lives
    idle: Annotated[
        float,
        Meta(ge=0, description="Seconds without a request after which a backend stops; 0: never."),
    ] = 300.0
    linger: Annotated[
        float,
        Meta(
            ge=0,
            description="Seconds after which the backend of a client that closed its stream and "
            "sent nothing more stops; 0: never.",
        ),
    ] = 60.0
    shared_linger: Annotated[
        float,
        Meta(
            ge=0,
            description="Seconds for which the one backend of --mode shared is kept when no "
            "session needs it; 0: it stops at once.",
        ),
    ] = 60.0
    max_age: Annotated[
        float, Meta(ge=0, description="Seconds after which a session ends in any case; 0: never.")
    ] = 0.0
    session_ttl: Annotated[
        float,
        Meta(gt=0, description="Seconds for which the id of a session outlives its backend."),
    ] = 86400.0
    max_asleep: Annotated[
        int, Meta(ge=1, description="Sessions kept without a backend; the oldest go first.")
    ] = 10_000
    on_loss: Annotated[
        OnLoss,
        Meta(
            description="What the next call after a lost backend gets: an error that says so "
            "(tell), its result with a note (annotate), or 404 (not-found)."
        ),
    ] = OnLoss.TELL

    # Which session a request belongs to
    mode: Annotated[
        Mode,
        Meta(
            description="A backend for each session (session), for each request (request), or one "
            "for all (shared). The last two are for servers that keep no state."
        ),
    ] = Mode.SESSION
    affinity: Annotated[
        Affinity | None,
        Meta(
            description="What has a backend of its own: each session of the protocol's (session), "
            "each conversation that a client names (conversation), or each user (principal). "
            "Default: session for clients that have sessions, conversation for those of 2026-07-28."
        ),
    ] = None
    key_header: Annotated[
        str | None, Meta(description="Request header that names the conversation.")
    ] = None
    key_meta: Annotated[
        tuple[str, ...],
        Meta(description="Members of `_meta` that name the conversation, the first one first."),
    ] = KNOWN_META_KEYS
    key_cookie: Annotated[
        Switch,
        Meta(
            description="Give clients that name no conversation a cookie for one of their own; "
            "needs HTTPS."
        ),
    ] = Switch.OFF
    handles: Annotated[
        HandleUse,
        Meta(
            description="Show each tool to clients of 2026-07-28 with one more argument, which "
            "names the conversation."
        ),
    ] = HandleUse.OFF
    default_session: Annotated[
        Switch,
        Meta(description="One conversation for all requests of a user that name none."),
    ] = Switch.ON
    catalogue_ttl: Annotated[
        float,
        Meta(
            ge=0,
            description="Seconds for which what the backend offers is kept for clients of "
            "2026-07-28.",
        ),
    ] = 300.0
    catalogue_public: Annotated[
        bool, Meta(description="Let caches share what the backend offers between users.")
    ] = False

    # How many
    max_sessions: Annotated[int, Meta(ge=1, description="Backends that run at once.")] = 64
    max_sessions_per_owner: Annotated[
        int,
        Meta(
            ge=0,
            description="Backends that run at once for one owner; 0: three quarters of "
            "--max-sessions where --token-file tells users apart, else no such limit.",
        ),
    ] = 0
    max_connections: Annotated[
        int,
        Meta(
            ge=0,
            description="Client connections that are open at once; 0: as many as the limit on open "
            "files leaves beside the backends.",
        ),
    ] = 0
    starts_at_once: Annotated[
        int, Meta(ge=0, description="Backends that start at once; 0: twice the number of cores.")
    ] = 0
    queue_timeout: Annotated[
        float, Meta(gt=0, description="Seconds a new session waits for a place before it gets 503.")
    ] = 30.0
    warm: Annotated[
        int, Meta(ge=0, description="Backends kept started in advance for the next sessions.")
    ] = 0

    # How long things may take
    start_timeout: Annotated[
        float, Meta(gt=0, description="Seconds a backend has to answer initialize.")
    ] = 60.0
    call_timeout: Annotated[
        float, Meta(ge=0, description="Seconds a backend has to answer a request; 0: no limit.")
    ] = 0.0
    stop_grace: Annotated[
        float,
        Meta(ge=0, description="Seconds a backend has to end by itself once its input is closed."),
    ] = 20.0
    drain_timeout: Annotated[
        float, Meta(ge=0, description="Seconds that requests in flight get at shutdown.")
    ] = 30.0
    keepalive: Annotated[
        float,
        Meta(gt=0, description="Seconds after which a stream with nothing to say sends a comment."),
    ] = 15.0

    # How large
    max_body: Annotated[
        int, Meta(ge=1, description="Bytes of a request body that are accepted.")
    ] = 16 * 1024 * 1024
    max_line: Annotated[
        int, Meta(ge=1024, description="Bytes of one message of a backend that are accepted.")
    ] = 64 * 1024 * 1024

    # Several servers
    config: Annotated[
        str | None,
        Meta(
            description="File that names the servers to front, instead of COMMAND: JSON or TOML, "
            "as other MCP programs have it (mcpServers). A part sessionproxy may have settings."
        ),
    ] = None

    # A backend elsewhere
    url: Annotated[
        str | None,
        Meta(description="URL of an MCP server to put sessions in front of, instead of COMMAND."),
    ] = None
    transport: Annotated[
        Carrier,
        Meta(
            description="What that server speaks: Streamable HTTP (http), the older HTTP with SSE "
            "(sse), or whichever is found (auto)."
        ),
    ] = Carrier.AUTO
    header: Annotated[
        tuple[str, ...],
        Meta(
            description="NAME=VALUE to send to that server with every request; not shown. In the "
            "environment one on each line."
        ),
    ] = ()
    upstream_ca: Annotated[
        str | None,
        Meta(description="PEM file of certificates to trust for that server besides the usual."),
    ] = None
    forward_authorization: Annotated[
        bool,
        Meta(description="Send that server the Authorization header of each client's request."),
    ] = False

    # What the backend gets
    env: Annotated[
        tuple[str, ...], Meta(description="NAME=VALUE for the backend's environment.")
    ] = ()
    pass_env: Annotated[
        tuple[str, ...], Meta(description="Variable that the backend inherits.")
    ] = ()
    cwd: Annotated[
        str | None,
        Meta(
            description="Working directory of the backend; may contain {session.dir}; default: "
            "where the proxy was started."
        ),
    ] = None
    state_dir: Annotated[
        str | None,
        Meta(
            description="Directory for keys, the journal and the sessions' private directories; "
            "default: sessionproxy below $XDG_STATE_HOME or ~/.local/state."
        ),
    ] = None
    containment: Annotated[
        Rung,
        Meta(
            description="What keeps hold of a backend's processes; auto: the best that this "
            "machine has (sessionproxy doctor)."
        ),
    ] = Rung.AUTO
    memory_max: Annotated[
        int,
        Meta(
            ge=0,
            description="Bytes of memory for one backend's processes; 0: no limit. Needs a cgroup.",
        ),
    ] = 0
    pids_max: Annotated[
        int,
        Meta(
            ge=0, description="Processes and threads of one backend; 0: no limit. Needs a cgroup."
        ),
    ] = 0
    expose_stderr: Annotated[
        bool | None,
        Meta(
            description="Show a client the last lines that a failed backend wrote to stderr; "
            "default: only on loopback without authentication."
        ),
    ] = None

    # What is written
    log_level: Annotated[LogLevel, Meta(description="The least that is written.")] = LogLevel.INFO
    log_json: Annotated[bool, Meta(description="Write one JSON object per log line.")] = False
    tracing: Annotated[
        Switch,
        Meta(
            description="Make OpenTelemetry spans of requests; what is to become of them, the "
            "process has to be told (opentelemetry-instrument)."
        ),
    ] = Switch.OFF

    @property
    def cores_at_once(self) -> int:
        """Backends that start at once, the default worked out."""
        return self.starts_at_once or 2 * (os.cpu_count() or 1)

    @property
    def sessions_of_one_owner(self) -> int | None:
        """Backends that run at once for one owner, the default worked out: where there are several,
        some places are left for others. None: no such limit."""
        if self.max_sessions_per_owner:
            return self.max_sessions_per_owner
        return self.max_sessions - self.max_sessions // 4 if self.token_file else None


REPEATED: Final[Mapping[str, str]] = {
    "allow_host": "mcp.example.org",
    "allow_origin": "https://example.org",
    "env": "NAME=VALUE",
    "header": "NAME=VALUE",
    "key_meta": "threadId",
    "pass_env": "NAME",
}
"""Settings that take several values: repeated flags, or separated by spaces in the environment. To
each an example."""

LINES: Final = frozenset({"header"})
"""Those of them whose values may have spaces: separated by line ends in the environment."""


IN_PYTHON: Final = "{}"
"""How a setting is called where it is an argument of a function."""


def near(name: str) -> str:
    """Return a hint at the setting that one which there is not may stand for; empty: there is none
    like it."""
    found = difflib.get_close_matches(name, Settings.__struct_fields__, n=1)
    return f"; expected {found[0]}?" if found else ""


def settings_from(values: Mapping[str, object], *, named: str = "--{}") -> Settings:
    """Return the settings with these values; the rest are defaults.

    `named` tells how a setting is called where the values come from, for messages.

    Raises: ConfigError: a value is out of its bounds, or of another kind.
    """
    for name in values:
        if name not in Settings.__struct_fields__:
            raise ConfigError(f"{named.format(name)}: no such setting{near(name)}")
    values = {name: _listed(name, value, named=named) for name, value in values.items()}
    try:
        return msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$.")
        setting = path.rstrip("`").split("[")[0]
        if named != IN_PYTHON:
            setting = setting.replace("_", "-")
        raise ConfigError(f"{named.format(setting)}: {_plain(text)}") from None


def _listed(setting: str, value: object, *, named: str) -> object:
    """Return a setting's value; in Python, one of `NAME=VALUE` each may be a mapping.

    Raises: ConfigError: it is one text where several can be, or no such mapping. No value is shown:
    it may be secret.
    """
    if setting not in REPEATED or not isinstance(value, str | Mapping):
        return value
    where, example = named.format(setting), REPEATED[setting]
    pairs = named == IN_PYTHON and "=" in example
    if isinstance(value, Mapping) and pairs:
        given = cast("Mapping[object, object]", value)
        return tuple(_pair(where, name, each) for name, each in given.items())
    name, _, each = example.partition("=")
    instead = f', or a mapping such as {{"{name}": "{each}"}}' if pairs else ""
    raise ConfigError(f'{where}: expected a list such as ["{example}"]{instead}')


def _pair(where: str, name: object, value: object) -> str:
    if not isinstance(name, str) or not name or "=" in name:
        raise ConfigError(f"{where}: expected a mapping of names to values")
    if not isinstance(value, str):
        raise ConfigError(f"{where} {name}: expected a string")
    return f"{name}={value}"


_PLAIN_WORDS: Final = (
    ("Expected", "expected"),
    ("`float` >= 0.0", "a number of at least 0"),
    ("`float` > 0.0", "a number above 0"),
    ("`float`", "a number"),
    ("`int`", "a whole number"),
    (">=", "of at least"),
    ("<=", "of at most"),
    ("`str` matching regex '^/.*[^/]$'", "a path such as /mcp"),
)


def _plain(text: str) -> str:
    for word, plain in _PLAIN_WORDS:
        text = text.replace(word, plain)
    return text


def flag_of(setting: str) -> str:
    return "--" + setting.replace("_", "-")


def variable_of(setting: str) -> str:
    return ENV_PREFIX + setting.upper()


def description_of(setting: str) -> str:
    """Return the sentence that says what a setting does."""
    field = next(f for f in msgspec.structs.fields(Settings) if f.name == setting)
    for meta in getattr(field.type, "__metadata__", ()):
        if isinstance(meta, Meta) and meta.description:
            return meta.description
    return ""
