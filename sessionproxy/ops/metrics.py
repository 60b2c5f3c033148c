"""The metrics: their names, labels and units. `docs/monitoring.md` lists them.

Everything is looked up when it is asked for, in what the core keeps (`core.counts`). No label tells
of a session, an owner or a key, and none has values that clients make up. Neighbours: `ops.scrape`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Final

import anyio
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from ..core.counts import BOUNDS, Requests
from ..core.manager import SessionManager
from ..core.state import SessionState
from .scrape import Numbers

PREFIX: Final = "sessionproxy_"


class Metrics(Collector):
    """Of one proxy."""

    def __init__(self, look: Callable[[], Numbers], *, own_process: bool) -> None:
        self._look = look
        self._registry = CollectorRegistry()
        self._registry.register(self)
        if own_process:
            ProcessCollector(registry=self._registry)

    def exposition(self) -> tuple[bytes, bytes]:
        """Return the content type and the text."""
        return CONTENT_TYPE_LATEST.encode(), generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing: to know the names, the registry need not look while nothing runs."""
        return ()

    def collect(self) -> Iterator[Metric]:
        numbers = self._look()
        yield from _of_all(numbers)
        yield from _of_sessions(numbers.managers)
        yield from _of_lives(numbers.managers)
        yield from _of_requests(numbers.managers)


def _of_all(numbers: Numbers) -> Iterator[Metric]:
    info = _gauge("info", "Always 1; the labels say what runs.", "version", "containment")
    info.add_metric([numbers.version, numbers.containment], 1)
    yield info
    text = "Backends that run, until they are reaped."
    yield GaugeMetricFamily(PREFIX + "backends", text, value=numbers.backends)
    text = "Sessions that wait for a backend's place."
    yield GaugeMetricFamily(PREFIX + "queued", text, value=numbers.queued)
    text = "HTTP requests that got no further than the frontend."
    yield _counter("refused", text, numbers.refusals, "reason")
    text = "Connections, lines and messages that were dropped or refused."
    yield _counter("dropped", text, numbers.dropped, "kind")
    text = "Processes killed that belonged to no backend any more."
    yield CounterMetricFamily(PREFIX + "orphans", text, value=numbers.orphans)
    yield CounterMetricFamily(
        PREFIX + "stalls", "Times that the event loop stood still.", value=numbers.stalls
    )


def _of_sessions(managers: Iterable[SessionManager]) -> Iterator[Metric]:
    sessions = _gauge("sessions", "Sessions there are, by state.", "server", "state")
    leases = _gauge("requests_in_flight", "Requests that a backend works on.", "server")
    draining = _gauge("draining", "1 while no new sessions are taken, for good.", "server")
    resting = _gauge("resting", "1 while none is started, since several have failed.", "server")
    now = anyio.current_time()
    for manager in managers:
        awake = manager.registry.awake()
        states = Counter(session.state for session in awake)
        states[SessionState.ASLEEP] += len(manager.registry) - len(awake)
        for state in SessionState:
            if state is not SessionState.CLOSED:
                sessions.add_metric([manager.route, state.value], states[state])
        leases.add_metric([manager.route], sum(session.leases for session in awake))
        draining.add_metric([manager.route], manager.draining)
        resting.add_metric([manager.route], manager.circuit.rests(now))
    yield from (sessions, leases, draining, resting)


def _of_lives(managers: Iterable[SessionManager]) -> Iterator[Metric]:
    opened = _counter("sessions_opened", "Sessions that began.", {}, "server")
    starts = _counter("starts", "Attempts to give a session a backend.", {}, "server")
    text = "Those of them that came to nothing."
    failures = _counter("start_failures", text, {}, "server", "reason")
    text = "Backends that stopped while their session lives on."
    stops = _counter("stops", text, {}, "server", "reason")
    ends = _counter("ends", "Sessions that ended.", {}, "server", "reason")
    asks = _counter("asks", "Requests of backends to clients.", {}, "server", "method")
    for manager in managers:
        route, counts = manager.route, manager.counts
        opened.add_metric([route], counts.opened)
        starts.add_metric([route], counts.starts)
        _add(failures, route, counts.start_failures.items())
        _add(stops, route, counts.stops.items())
        _add(ends, route, counts.ends.items())
        _add(asks, route, counts.asks.items())
    yield from (opened, starts, failures, stops, ends, asks)


def _of_requests(managers: Iterable[SessionManager]) -> Iterator[Metric]:
    text = "Requests of clients that were passed on, and are over."
    requests = _counter("requests", text, {}, "server", "method", "outcome")
    text = "Those of them that the backend gave no answer to."
    failures = _counter("request_failures", text, {}, "server", "reason")
    durations = HistogramMetricFamily(
        PREFIX + "request_duration_seconds",
        "From passing a request on to the backend's answer.",
        labels=["server", "method"],
    )
    for manager in managers:
        route = manager.route
        _add(failures, route, manager.counts.failures.items())
        for method, found in manager.counts.requests():
            outcomes = {
                "result": found.answered - found.errors,
                "error": found.errors,
                "failure": found.failed,
            }
            for outcome, count in outcomes.items():
                requests.add_metric([route, method, outcome], count)
            durations.add_metric([route, method], _buckets(found), found.seconds)
    yield from (requests, failures, durations)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, text, labels=labels)


def _counter(name: str, text: str, counts: Mapping[str, int], *labels: str) -> CounterMetricFamily:
    family = CounterMetricFamily(PREFIX + name, text, labels=labels)
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def _add(family: CounterMetricFamily, server: str, counts: Iterable[tuple[str, int]]) -> None:
    for reason, count in counts:
        family.add_metric([server, str(reason)], count)


def _buckets(requests: Requests) -> list[tuple[str, float]]:
    """Return them as Prometheus has them: each counts all that is below its bound."""
    bounds = [*(str(float(bound)) for bound in BOUNDS), "+Inf"]
    return list(zip(bounds, map(float, accumulate(requests.durations)), strict=True))
