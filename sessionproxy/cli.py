"""The command line. Its options are the fields of `config.Settings`, one for one.

Neighbours: calls `serve` and `doctor`. Every error that is the user's ends in one line and exit
status 2.
"""

import inspect
import os
import sys
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Annotated, Final, NoReturn, TypeAlias, cast

import anyio
import msgspec
import typer
from rich.console import Console

from . import __version__, banner, doctor, logs
from .app import ProxyApp
from .config import (
    ENV_PREFIX,
    LINES,
    REPEATED,
    Affinity,
    ConfigError,
    Settings,
    description_of,
    flag_of,
    variable_of,
)
from .plan import OF_FRONTS, told
from .serve import serve
from .serve_stdio import serve_stdio
from .servers import Configuration

GROUPS: Final = {
    "host": "Where it listens",
    "token_file": "Who may connect",
    "idle": "How long a session lives",
    "mode": "Which session a request belongs to",
    "max_sessions": "How many",
    "start_timeout": "How long things may take",
    "max_body": "How large",
    "config": "Several servers",
    "url": "A backend elsewhere",
    "env": "What the backend gets",
    "log_level": "What is written",
}
"""The first option of each group in the help."""

NOT_STDIO: Final = frozenset({*OF_FRONTS, "linger", "forward_authorization"})
"""Settings that mean nothing to a process with one client, on its own pipes."""

Commanded: TypeAlias = "tuple[str, ...] | Configuration"
"""What a command line names: a command, the demo server where it is empty; or several servers."""

COMMAND_HELP: Final = (
    "What starts one backend: a stdio MCP server. Left out: the demo server. A URL is read as "
    "--url, the name of a .json or .toml file as --config."
)

STDIO_DEFAULTS: Final[Mapping[str, object]] = {"idle": 0.0}
"""The one client ends its backend when it ends; to stop it earlier would lose state for nothing."""

UsageError: Final[type[Exception]] = typer.BadParameter.__mro__[1]
"""What typer raises for wrong use: its copy of click, or click itself, has the class."""

app: Final = typer.Typer(
    name="sessionproxy",
    help="Puts stateful MCP servers behind HTTP for many users.",
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

EXAMPLES: Final = """
[bold]Examples[/bold]

  A browser for every client:
  sessionproxy run --idle 300 -- npx -y @playwright/mcp --headless --isolated

  At most ten, two of them started in advance, each in a directory of its own:
  sessionproxy run --max-sessions 10 --warm 2 --cwd {session.dir} -- my-server --stdio

  Several servers, each under its name (or: --config servers.json):
  sessionproxy run servers.json

  A server elsewhere, with a credential of ours (or: --url https://...):
  sessionproxy run --header "Authorization=Bearer ..." https://mcp.example.com/mcp

  Something to try, without installing anything:
  sessionproxy run
"""


def _parameters(
    command_help: str, without: Collection[str], defaults: Mapping[str, object]
) -> list[inspect.Parameter]:
    """Return a parameter for the context, for COMMAND, and one for every setting."""
    argument = typer.Argument(metavar="COMMAND ARG...", help=command_help, show_default=False)
    keyword = inspect.Parameter.KEYWORD_ONLY
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        inspect.Parameter("context", positional, annotation=typer.Context),
        inspect.Parameter(
            "command",
            positional,
            default=None,
            annotation=Annotated[list[str] | None, argument],
        ),
    ]
    group = ""
    for field in msgspec.structs.fields(Settings):
        group = GROUPS.get(field.name, group)
        if field.name in without:
            continue
        option = typer.Option(
            *_spellings(field.name),
            envvar=variable_of(field.name),
            help=description_of(field.name),
            rich_help_panel=group,
            show_envvar=False,
        )
        default = defaults.get(field.name, field.default)
        default = list(cast("tuple[str, ...]", default)) if field.name in REPEATED else default
        annotation = Annotated[_kind(field.name, default), option]
        parameters.append(
            inspect.Parameter(field.name, keyword, default=default, annotation=annotation)
        )
    return parameters


def _spellings(setting: str) -> tuple[str, ...]:
    flag = flag_of(setting)
    if setting == "expose_stderr":
        return (f"{flag}/--no-{flag.removeprefix('--')}",)
    return (flag,)


def _kind(setting: str, default: object) -> object:
    if setting in REPEATED:
        return list[str]
    if setting == "expose_stderr":
        return bool | None
    if setting == "affinity":
        return Affinity | None
    if default is None:
        return str | None
    return type(default)


def _with_settings(
    command_help: str,
    *,
    without: Collection[str] = (),
    defaults: Mapping[str, object] = MappingProxyType({}),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a function that takes a command and settings by name an option for each.

    `without`: settings that it does not take. `defaults`: of its own.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        parameters = _parameters(command_help, without, defaults)
        function.__signature__ = inspect.Signature(parameters)
        function.__annotations__ = {p.name: p.annotation for p in parameters}
        return function

    return decorate


@app.command(
    "run",
    epilog=EXAMPLES,
    # What follows COMMAND is its own: `run npx -y ...` works without `--` too.
    context_settings={"allow_interspersed_args": False},
)
@_with_settings(COMMAND_HELP)
def run(context: typer.Context, command: Sequence[str] | None = None, **values: object) -> None:
    """Serve an MCP server over HTTP: a backend of its own for every session.

    Every option can also be set in the environment: --max-sessions as SESSIONPROXY_MAX_SESSIONS.
    """
    with _naming_variables(context):
        _run(*_asked_for(context, command, values))


def _run(settings: Settings, fronted: Commanded) -> None:
    logs.set_up(level=settings.log_level.value, as_json=settings.log_json)
    console = Console()

    def ready(proxy: ProxyApp, url: str) -> None:
        banner.show(console, settings, fronted, url=url, containment=proxy.containment.name)

    serve(settings, fronted, on_ready=ready)


def _asked_for(
    context: typer.Context,
    command: Sequence[str] | None,
    values: dict[str, object],
    defaults: Mapping[str, object] = MappingProxyType({}),
) -> tuple[Settings, Commanded]:
    """Return the settings, and what is to be fronted."""
    argv = tuple(command or ())
    given = _given(context, _read(context, values))
    meant = _meant_by(argv)
    if meant is not None and meant not in given:
        given, argv = {**given, meant: argv[0]}, ()
    settings, configuration = told(given, defaults=defaults)
    if configuration is None:
        return settings, argv
    if argv:
        raise ConfigError("--config: there is a COMMAND too; give one of them")
    return settings, configuration


def _meant_by(argv: Sequence[str]) -> str | None:
    """Return the setting that a COMMAND stands for which is none: a URL, or a configuration."""
    if len(argv) != 1:
        return None
    if argv[0].lower().startswith(("http://", "https://")):
        return "url"
    return "config" if argv[0].endswith((".json", ".toml")) else None


STDIO_EXAMPLES: Final = """
[bold]Example[/bold], as a desktop client has it in its configuration:

  {"mcpServers": {"browser": {"command": "sessionproxy",
    "args": ["stdio", "--", "npx", "-y", "@playwright/mcp"]}}}
"""


@app.command("stdio", epilog=STDIO_EXAMPLES, context_settings={"allow_interspersed_args": False})
@_with_settings(
    COMMAND_HELP,
    without=NOT_STDIO,
    defaults=STDIO_DEFAULTS,
)
def stdio(context: typer.Context, command: Sequence[str] | None = None, **values: object) -> None:
    """Serve one client on stdin and stdout: for desktop clients that start their servers.

    It speaks both eras, whatever the backend speaks. The process ends when stdin does, and leaves
    nothing running. The log goes to stderr.
    """
    with _naming_variables(context):
        settings, fronted = _asked_for(context, command, values, STDIO_DEFAULTS)
        logs.set_up(level=settings.log_level.value, as_json=settings.log_json)
        raise typer.Exit(serve_stdio(settings, fronted))


@app.command("doctor", context_settings={"allow_interspersed_args": False})
@_with_settings("A backend to try: a stdio MCP server. Left out: only the machine is checked.")
def check(context: typer.Context, command: Sequence[str] | None = None, **values: object) -> None:
    """Check this machine; with a COMMAND, also start one backend and list its tools.

    Ends with status 1 where something is wrong.
    """
    with _naming_variables(context):
        settings, fronted = _asked_for(context, command, values)
        logs.set_up(level="warning", as_json=settings.log_json)
        if not anyio.run(_report, settings, fronted):
            raise typer.Exit(1)


async def _report(settings: Settings, fronted: Commanded) -> bool:
    console = Console()
    well = True

    def tell(finding: doctor.Finding) -> None:
        mark = {True: "ok  ", False: "FAIL", None: "    "}[finding.good]
        line = f"{mark} {finding.what}: {finding.how}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    for finding in doctor.machine():
        tell(finding)
        well = well and finding.good is not False
    if fronted or settings.url is not None:
        async for finding in doctor.backends(settings, fronted):
            tell(finding)
            well = well and finding.good is not False
    return well


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sessionproxy {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def common(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Puts stateful MCP servers behind HTTP for many users."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _warn_of_unknown_variables() -> None:
    known = {variable_of(field.name) for field in msgspec.structs.fields(Settings)}
    for name in sorted(os.environ):
        if name.startswith(ENV_PREFIX) and name not in known:
            typer.echo(f"sessionproxy: {name}: no such option, ignored", err=True)


@contextmanager
def _naming_variables(context: typer.Context) -> Generator[None]:
    """Have what is wrong named as it was given: by its flag, or by its variable."""
    try:
        yield
    except ConfigError as error:
        flag = str(error).split(maxsplit=1)[0].rstrip(":")
        setting = flag.removeprefix("--").replace("-", "_")
        if not _from_variable(context, setting):
            raise
        raise ConfigError(variable_of(setting) + str(error).removeprefix(flag)) from None


def _given(context: typer.Context, values: dict[str, object]) -> dict[str, object]:
    """Return those values that somebody gave."""
    sources = {name: context.get_parameter_source(name) for name in values}
    return {
        name: value
        for name, value in values.items()
        if (source := sources[name]) is not None and source.name != "DEFAULT"
    }


def _read(context: typer.Context, values: dict[str, object]) -> dict[str, object]:
    """Return the values; those that may have spaces as their variables' lines."""
    read = dict(values)
    for name in LINES & values.keys():
        if _from_variable(context, name):
            lines = os.environ[variable_of(name)].splitlines()
            read[name] = [line for line in lines if line.strip()]
    return read


def _from_variable(context: typer.Context, setting: str) -> bool:
    source = context.get_parameter_source(setting)
    return source is not None and source.name == "ENVIRONMENT"


def _told(error: Exception) -> str:
    """Return what was wrong and with which option, which `str` of such an error leaves out."""
    context: typer.Context | None = getattr(error, "ctx", None)
    name: str | None = getattr(getattr(error, "param", None), "name", None)
    if context is not None and name is not None and _from_variable(context, name):
        error.param_hint = f"'{variable_of(name)}'"  # type: ignore[attr-defined] # of a BadParameter
    tell: Callable[[], str] = getattr(error, "format_message", error.__str__)
    return " ".join(tell().split())


def _fail(message: str) -> NoReturn:
    typer.echo(f"sessionproxy: {message}", err=True)
    sys.exit(2)


def main() -> None:
    """Run the command line. Exit status: 0, 1 where `doctor` found fault, 2 for wrong use."""
    _warn_of_unknown_variables()
    try:
        status = app(standalone_mode=False)
    except ConfigError as error:
        _fail(str(error))
    except UsageError as error:
        _fail(_told(error))
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)
