"""What an application would export: spans of the proxy's, kept in memory by OpenTelemetry's SDK.

Neighbours: `tests.ops.test_tracing`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from tests.rig.embedded import until


@dataclass(frozen=True)
class Spans:
    """Those that have ended."""

    exporter: InMemorySpanExporter
    provider: TracerProvider

    def all(self) -> Sequence[ReadableSpan]:
        return self.exporter.get_finished_spans()

    def some(self, kind: SpanKind, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.kind is kind and span.name == name]

    def served(self, name: str) -> ReadableSpan:
        """The one of a client's request."""
        (span,) = self.some(SpanKind.SERVER, name)
        return span

    def asked(self, name: str) -> ReadableSpan:
        """The one of a request to a backend."""
        (span,) = self.some(SpanKind.CLIENT, name)
        return span

    async def until(self, ended: Callable[[], bool]) -> None:
        """Wait for spans that end beside the answer."""
        await until(ended)


def use(monkeypatch: pytest.MonkeyPatch, *processors: SpanProcessor) -> Spans:
    """Have the proxies of this test give their spans to a provider of its own.

    The provider of a whole process can be set but once, so what finds it is replaced."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for processor in processors:
        provider.add_span_processor(processor)
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return Spans(exporter, provider)


def told(span: ReadableSpan) -> dict[str, object]:
    """What it says."""
    return dict(span.attributes or {})


def is_child(span: ReadableSpan, of: ReadableSpan) -> bool:
    return span.parent is not None and span.parent == of.context
