"""The command line of `scripts/bench`: what to measure, for how long, and what to print.

Exit 0 when measured, 1 when `--check-cpu` found too much, 2 when there was nothing to measure,
130 on Ctrl-C.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from types import FrameType
from typing import Final

from . import results as r
from .measures import FULL, QUICK, SESSIONS, WARM_UP_SESSIONS, Measures, Plan
from .peers import PEERS
from .processes import stopping
from .report import MODERN_LIMIT, Report, cell
from .results import Results, Spread
from .rounds import run, run_cpu_only
from .targets import MODERN, PROXY, STARLETTE, STDIO, Targets

CHECK: Final = Plan(9, 1.0, 0.5, 1.0, 0, 0, 60, 120)
LIBRARIES: Final = ("starlette", "uvicorn", "uvloop", "httptools", "msgspec", "mcp")


class OutOfTime(Exception):
    """The plan's hard limit has passed."""


def main(root: Path) -> int:
    options = parse()
    signal.signal(signal.SIGTERM, interrupt)
    try:
        if options.check_cpu is not None:
            return check_cpu(root, options.check_cpu)
        return measure(root, options)
    except KeyboardInterrupt:
        print("bench: interrupted; everything it started has been stopped", file=sys.stderr)
        return 130


class Options(argparse.Namespace):
    quick: bool
    peers: str | None
    rounds: int | None
    json: Path | None
    check_cpu: float | None


def parse() -> Options:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds; under two minutes")
    parser.add_argument(
        "--peers",
        metavar="WHICH",
        help="all (default; installs what is missing), installed (default of --quick), none, or "
        "names with commas: " + ", ".join(peer.name for peer in PEERS),
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="how many rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw results")
    parser.add_argument(
        "--check-cpu",
        type=float,
        metavar="LIMIT",
        help="only sessionproxy's CPU per call as a multiple of the bare Starlette answer's, and "
        "of a modern call as a multiple of a handshake one; exit 1 when the first is above LIMIT, "
        "or the second above that of the design",
    )
    options = parser.parse_args(namespace=Options())
    known = {"all", "installed", "none", *(peer.name for peer in PEERS)}
    unknown = set((options.peers or "all").split(",")) - known
    if unknown:
        parser.error(f"--peers: unknown {', '.join(sorted(unknown))}; {', '.join(sorted(known))}")
    return options


def interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def out_of_time(number: int, frame: FrameType | None) -> None:
    raise OutOfTime


@contextlib.contextmanager
def time_limit(seconds: float) -> Generator[None]:
    """Raises: OutOfTime inside the block, once `seconds` have passed."""
    signal.signal(signal.SIGALRM, out_of_time)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def measure(root: Path, options: Options) -> int:
    plan = QUICK if options.quick else FULL
    if options.rounds is not None:
        plan = dataclasses.replace(plan, rounds=max(1, options.rounds))
    peers = options.peers or ("installed" if options.quick else "all")
    results = Results()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        # Those of modern clients stay until the end.
        max_sessions = plan.idle_sessions + WARM_UP_SESSIONS + 2 * SESSIONS + 4 + 2 * plan.rounds
        targets = Targets(root, Path(scratch), max_sessions)
        measures = Measures(targets, plan)
        with stopping(targets.servers):
            targets.start_starlette()
            targets.start_proxies()
            targets.start_peers(peers, root / ".cache" / "bench")
            try:
                with time_limit(plan.hard_limit):
                    run(targets, measures, results)
            except OutOfTime:
                print(f"bench: cut off after {plan.hard_limit:.0f} s", file=sys.stderr)
            finally:
                measures.forget(STDIO)
        print_report(root, targets, results, plan, time.monotonic() - began)
        if options.json is not None:
            write_json(options.json, root, targets, results, plan)
    return 0 if STARLETTE in targets.servers else 2


def check_cpu(root: Path, limit: float) -> int:
    results = Results()
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        targets = Targets(root, Path(scratch), SESSIONS * 4)
        measures = Measures(targets, CHECK)
        with stopping(targets.servers):
            targets.start_starlette()
            targets.start_proxy()
            targets.start_proxy(MODERN)
            if targets.missing:
                print("\n".join(f"bench: {n}: {why}" for n, why in targets.missing.items()))
                return 2
            with contextlib.suppress(OutOfTime), time_limit(CHECK.hard_limit):
                run_cpu_only(measures, results)
    one, many = cpu_ratio(results, r.CPU_ONE), cpu_ratio(results, r.CPU_MANY)
    modern = results.ratio(r.CPU_ONE, MODERN, results.of(r.CPU_ONE, PROXY).get)
    if one is None or many is None or modern is None:
        print(f"bench: not measured: {results.failures}")
        return 2
    print(f"CPU per call as a multiple of bare Starlette's, 8 sessions: {cell(many)}")
    print(f"CPU per call as a multiple of bare Starlette's, 1 session: {cell(one)}")
    kept = one.median <= limit
    print(f"limit for 1 session: {limit:.2f}, {'kept' if kept else 'EXCEEDED'}")
    cheap = modern.median <= MODERN_LIMIT
    print(f"CPU per call of 2026-07-28 as a multiple of a handshake one's: {cell(modern)}")
    print(f"limit for that: {MODERN_LIMIT:.2f}, {'kept' if cheap else 'EXCEEDED'}")
    return 0 if kept and cheap else 1


def cpu_ratio(results: Results, metric: str) -> Spread | None:
    """sessionproxy's to bare Starlette's, round by round."""
    return results.ratio(metric, PROXY, results.of(metric, STARLETTE).get)


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def commit_of(root: Path) -> str:
    """The state of the tree that was measured, as git names it."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() or "no commit"
    return "no git"


def node_version() -> str:
    with contextlib.suppress(OSError):
        done = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False)
        return done.stdout.strip()
    return "none"


def facts(root: Path, targets: Targets) -> dict[str, str]:
    """What one must know to judge the figures."""
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()} "
    versions = {name: version_of(name) for name in LIBRARIES} | targets.versions
    return {
        "machine": machine + platform.release(),
        "Python": platform.python_version(),
        "Node": node_version(),
        "sessionproxy": commit_of(root),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "command": "scripts/bench " + shlex.join(sys.argv[1:]),
    }


def print_report(
    root: Path, targets: Targets, results: Results, plan: Plan, seconds: float
) -> None:
    report = Report(targets, results, plan)
    print(f"## sessionproxy and its peers, {results.rounds} interleaved rounds\n")
    print("Medians over rounds of the ratios within a round, in brackets the least and the most.\n")
    print(report.ratios())
    print("\n### As measured\n")
    print(report.absolutes())
    print("\n### Missing or wrong\n")
    print(report.faults())
    print("\n### Run\n")
    for name, text in facts(root, targets).items():
        print(f"- {name}: {text}")
    print(f"- idle sessions for the memory row: {plan.idle_sessions}; {seconds:.0f} s in all")


def write_json(path: Path, root: Path, targets: Targets, results: Results, plan: Plan) -> None:
    raw = {
        "facts": facts(root, targets),
        "plan": dataclasses.asdict(plan),
        "rounds": results.rounds,
        "missing": targets.missing,
        "failures": results.failures,
        "values": results.values,
    }
    path.write_text(json.dumps(raw, indent=1) + "\n")
