"""The interleaved run: every slice of every round visits all targets, in rotating order.

Neighbours: `measures` has the slices, `results` takes what they find.
"""

import gc
import sys
import time
from collections.abc import Callable
from typing import Final

import psutil

from .channels import CallFailed
from .measures import Measures
from .results import Results
from .targets import IDLE, MODERN, PROXY, STARLETTE, STDIO, UPSTREAM, WARM, Targets

Slice = Callable[[str], dict[str, float]]

ONLY_ONCE: Final = ("big_request", "big_answer", "big_each_way")  # a refusal is not repeated


def run(targets: Targets, measures: Measures, results: Results) -> None:
    """All rounds that the plan and its time allow are in `results`."""
    gc.disable()  # a collection of the client's would fall into somebody's slice
    plan = measures.plan
    began = time.monotonic()
    running = [name for name in targets.servers if not name.startswith(UPSTREAM)]
    names = [STDIO, *(name for name in running if name != IDLE)]
    for name in running:
        if name == IDLE:
            one(measures.idle_end, "idle_end", name, measures, results)
        elif name not in (STARLETTE, WARM):
            say("memory", name)
            one(measures.idle_memory, "idle_memory", name, measures, results)
    for name in names:
        if name != WARM:
            one(measures.warm_up, "warm_up", name, measures, results)
    while results.rounds < plan.rounds:
        if results.rounds and time.monotonic() - began > plan.soft_limit:
            say(f"the time is over after {results.rounds} rounds")
            break
        say(f"round {results.rounds + 1} of {plan.rounds}")
        turn = results.rounds % len(names)
        for part, measure, left_out in parts(measures):
            for name in names[turn:] + names[:turn]:
                if name not in left_out and not given_up(part, name, results):
                    one(measure, part, name, measures, results)
        results.rounds += 1
    gc.enable()


def parts(measures: Measures) -> list[tuple[str, Slice, tuple[str, ...]]]:
    """Every slice, its name, and the targets it is not for."""
    return [
        ("latency", measures.latency, (WARM,)),
        ("throughput", measures.throughput, (WARM,)),
        ("big_request", measures.big_request, (WARM, STARLETTE)),
        ("big_answer", measures.big_answer, (WARM, STARLETTE)),
        ("big_each_way", measures.big_each_way, (WARM, STARLETTE)),
        ("notes", measures.notes, (WARM, STARLETTE)),
        ("first_call", measures.first_call, (STARLETTE,)),
        ("identity", measures.identity, (WARM, STARLETTE)),
    ]


def run_cpu_only(measures: Measures, results: Results) -> None:
    """Only the slices that tell the processor time per call: Starlette's, and the proxy's for
    clients of either era."""
    gc.disable()
    names = (STARLETTE, PROXY, MODERN)
    for name in names:
        one(measures.warm_up, "warm_up", name, measures, results)
    while results.rounds < measures.plan.rounds:
        for name in names if results.rounds % 2 else reversed(names):
            one(measures.latency, "latency", name, measures, results)
            one(measures.throughput, "throughput", name, measures, results)
        results.rounds += 1
    gc.enable()


def one(measure: Slice, part: str, name: str, measures: Measures, results: Results) -> None:
    """The slice's values, or the reason why there are none."""
    try:
        found = measure(name)
    except (CallFailed, OSError, psutil.Error) as error:
        results.fail(part, name, str(error) or type(error).__name__)
        measures.forget(name)
        return
    for metric, value in found.items():
        results.add(metric, name, value)


def given_up(part: str, name: str, results: Results) -> bool:
    return part in ONLY_ONCE and name in results.failures.get(part, {})


def say(*words: str) -> None:
    print("bench:", *words, file=sys.stderr, flush=True)
