"""Traces: what a span says, whose child it is, and that a collector gets it; and that nobody else pays for it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from diastole.serve import run, tracing
from diastole.types import UserError
from serve.fakes import Running, config
from serve.test_chat import HELLO, URL, wait_ready

otel = pytest.mark.skipif("not __import__('importlib.util').util.find_spec('opentelemetry.sdk')", reason="extra otel")
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An exporter that keeps what it gets; servers that start from now on use it."""
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    monkeypatch.setattr(run, "traces_of", lambda config: tracing.Spans(SimpleSpanProcessor(exporter)))
    return exporter


@otel
def test_a_span_per_request(spans: Any) -> None:
    with Running() as server:
        wait_ready(server)
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        body = {**HELLO, "model": "parrot", "max_tokens": 5, "n": 2}
        assert httpx.post(server.url + URL, json=body, headers=headers).status_code == 200
        httpx.get(server.url + "/health")
        httpx.request("PROPFIND", server.url + "/nowhere", headers={"traceparent": "00-" + "f" * 5000})
        server.service.fault_after = 1
        httpx.post(server.url + URL, json={**HELLO, "stream": False})
    generated, odd, faulty = spans.get_finished_spans()
    assert generated.name == "chat echo"
    assert f"{generated.context.trace_id:032x}" == TRACE
    assert f"{generated.parent.span_id:016x}" == PARENT
    assert generated.kind.name == "SERVER"
    assert generated.resource.attributes["service.name"] == "diastole"
    attributes = dict(generated.attributes)
    for name, value in {
        "http.request.method": "POST",
        "http.route": URL,
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "diastole",
        "gen_ai.request.model": "echo",
        "gen_ai.response.model": "echo",
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.choice.count": 2,
        "gen_ai.usage.input_tokens": len("Grüße, 世界 🌍!".encode()) + 1,
        "gen_ai.usage.output_tokens": 10,
        "gen_ai.response.finish_reasons": ("length", "length"),
    }.items():
        assert attributes[name] == value
    seconds = (generated.end_time - generated.start_time) / 1e9
    assert 0 < attributes["gen_ai.server.time_to_first_token"] <= seconds < 20
    assert attributes["gen_ai.server.time_per_output_token"] > 0
    assert (odd.name, odd.attributes["http.response.status_code"]) == ("_OTHER", 404)
    assert odd.parent is None
    assert faulty.status.status_code.name == "ERROR"
    assert faulty.attributes["error.type"] == "500"
    assert faulty.attributes["gen_ai.response.finish_reasons"] == ("error",)
    assert "Grüße" not in str([dict(span.attributes) for span in (generated, odd, faulty)])


@contextmanager
def collector(got: list[tuple[str, bytes]]) -> Iterator[str]:
    """An OTLP collector of one's own: keeps what is posted to it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@otel
@pytest.mark.parametrize("path", ["", "/", "/v1/traces"])
def test_a_collector_gets_them_before_the_server_ends(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    got: list[tuple[str, bytes]] = []
    with collector(got) as url:
        with Running(otlp_endpoint=url + path) as server:
            wait_ready(server)
            httpx.post(server.url + URL, json=HELLO)
        assert server.error is None
    assert [where for where, _ in got] == ["/v1/traces"]
    sent = ExportTraceServiceRequest.FromString(got[0][1])
    (span,) = sent.resource_spans[0].scope_spans[0].spans
    assert span.name == "chat echo"


@otel
def test_a_collector_that_is_not_there_disturbs_nobody() -> None:
    with Running(otlp_endpoint="http://127.0.0.1:9") as server:
        wait_ready(server)
        for _ in range(20):
            assert httpx.post(server.url + URL, json=HELLO).status_code == 200
    assert server.error is None


def test_nothing_is_imported_unless_asked() -> None:
    code = (
        "import sys\n"
        "from diastole.config import ServerConfig\n"
        "from diastole.serve.run import Server\n"
        "Server(None, ServerConfig(port=0))\n"
        "print([m for m in sys.modules if m.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_extra_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(UserError, match=r"pip install 'diastole\[otel\]'") as error:
        tracing.traces_of(config(otlp_endpoint="http://localhost:4318"))
    assert error.value.param == "server.otlp_endpoint"


@pytest.mark.parametrize("address", ["localhost:4318", "grpc://localhost", "http://", "http://[", "x"])
def test_a_wrong_address_is_said_at_the_start(address: str) -> None:
    with pytest.raises(UserError, match="must be an address such as"):
        tracing.traces_of(config(otlp_endpoint=address))
