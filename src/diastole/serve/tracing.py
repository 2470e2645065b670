"""Traces: one OpenTelemetry span per request, with the ``gen_ai`` attributes, sent to a collector over OTLP.

Nothing of OpenTelemetry is imported unless ``server.otlp_endpoint`` is set. A span is made when its request is over,
with the times it had, from the same notes as the log line; a caller's ``traceparent`` becomes its parent.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from diastole import __version__
from diastole.serve.exchange import Exchange
from diastole.serve.metrics import METHODS
from diastole.types import UserError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

    from diastole.config import ServerConfig

EXPORT_SECONDS = 5  # for the collector to take a batch
TRACES_PATH = "/v1/traces"

OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}
ATTRIBUTES = {
    "model": "gen_ai.request.model",
    "max_tokens": "gen_ai.request.max_tokens",
    "choices": "gen_ai.request.choice.count",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "ttft": "gen_ai.server.time_to_first_token",
    "tpot": "gen_ai.server.time_per_output_token",
}

Value = str | int | float | tuple[str, ...]


class Traces(Protocol):
    """Where requests that are over are told."""

    def record(self, exchange: Exchange, status: int, seconds: float) -> None:
        """This request took so long and was answered with this status. Notes the trace's id, if there is one."""
        ...

    def close(self) -> None:
        """Send what waits. Takes up to ``EXPORT_SECONDS``: not for the event loop."""
        ...


class NoTraces:
    """Nowhere."""

    def record(self, exchange: Exchange, status: int, seconds: float) -> None:
        pass

    def close(self) -> None:
        pass


class Spans:
    """To OpenTelemetry.

    Args:
        processor: takes the spans, without waiting.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.name": "diastole", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("diastole", __version__)
        self._parent = TraceContextTextMapPropagator().extract
        self._server, self._fault = SpanKind.SERVER, Status(StatusCode.ERROR)

    def record(self, exchange: Exchange, status: int, seconds: float) -> None:
        end = time.time_ns()
        attributes = span_attributes(exchange, status)
        operation, model = attributes.get("gen_ai.operation.name"), attributes.get("gen_ai.request.model")
        where = f"{attributes['http.request.method']} {exchange.route or ''}".strip()
        span = self._tracer.start_span(
            f"{operation} {model}" if operation and model else where,
            context=self._parent(exchange.headers),
            kind=self._server,
            attributes=attributes,
            start_time=end - int(seconds * 1e9),
        )
        if status >= 500:
            span.set_status(self._fault)
        span.end(end)
        exchange.notes["trace"] = f"{span.get_span_context().trace_id:032x}"

    def close(self) -> None:
        self._provider.shutdown()


def span_attributes(exchange: Exchange, status: int) -> dict[str, Value]:
    """A request's attributes by OpenTelemetry's names; nothing in them was made up by the client."""
    method = exchange.scope["method"]
    attributes: dict[str, Value] = {
        "http.request.method": method if method in METHODS else "_OTHER",
        "http.response.status_code": status,
        "diastole.request.id": exchange.id,
    }
    if exchange.route is not None:
        attributes["http.route"] = exchange.route
    if status >= 500:
        attributes["error.type"] = str(status)
    notes = exchange.notes
    if "model" not in notes:
        return attributes
    attributes["gen_ai.provider.name"] = "diastole"
    attributes["gen_ai.response.model"] = notes["model"]
    if exchange.route in OPERATIONS:
        attributes["gen_ai.operation.name"] = OPERATIONS[exchange.route]
    if "finish" in notes:
        attributes["gen_ai.response.finish_reasons"] = tuple(str(notes["finish"]).split(","))
    attributes.update({name: notes[note] for note, name in ATTRIBUTES.items() if note in notes})
    return attributes


def traces_of(config: ServerConfig) -> Traces:
    """What the settings ask for.

    Raises:
        UserError: the endpoint is no http address, or the extra 'otel' is not installed.
    """
    if not config.otlp_endpoint:
        return NoTraces()
    if not _is_http(config.otlp_endpoint):
        message = f"server.otlp_endpoint must be an address such as http://localhost:4318, not {config.otlp_endpoint!r}"
        raise UserError(message, param="server.otlp_endpoint")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as e:
        message = f"server.otlp_endpoint needs what pip install 'diastole[otel]' brings ({e})"
        raise UserError(message, param="server.otlp_endpoint") from None
    base = config.otlp_endpoint.rstrip("/").removesuffix(TRACES_PATH)
    return Spans(BatchSpanProcessor(OTLPSpanExporter(base + TRACES_PATH, timeout=EXPORT_SECONDS)))


def _is_http(address: str) -> bool:
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)
