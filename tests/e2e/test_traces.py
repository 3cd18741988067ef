"""Traces that leave the service: a real process, and a collector that takes them as any collector of OTLP does."""

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Collector:
    """Takes spans by OTLP over HTTP, and keeps them."""

    def __init__(self):
        self.requests: list[tuple[str, ExportTraceServiceRequest]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.requests.append((self.path, ExportTraceServiceRequest.FromString(body)))
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def resources(self):
        return [resource for _, request in self.requests for resource in request.resource_spans]

    def spans(self):
        return [span for resource in self.resources() for scope in resource.scope_spans for span in scope.spans]

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def collector():
    collector = Collector()
    yield collector
    collector.close()


def post(replica, session_id):
    body = {"session_id": session_id, "event_name": "page_view"}
    return httpx.post(f"{replica.base_url}/v1/events", json=body, timeout=60)


def test_what_was_traced_is_sent_at_the_latest_when_the_service_ends(service, valkey, collector, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    replica = service(redis_url=valkey.url)
    assert post(replica, "s-1").status_code == 200
    assert replica.stop() == 0
    assert {path for path, _ in collector.requests} == {"/v1/traces"}
    names = {span.name for span in collector.spans()}
    assert names == {"POST /v1/events", "batch", "store.load", "model.step", "store.commit"}
    assert len({span.trace_id for span in collector.spans()}) == 1
    resource = {one.key: one.value.string_value for one in collector.resources()[0].resource.attributes}
    assert resource["service.name"] == "willbuy"
    assert resource["deployment.environment.name"] == "test"
    assert "traced" in replica.output()


def test_a_collector_that_is_away_holds_up_no_answer_and_no_end(service, valkey, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    replica = service(redis_url=valkey.url)
    assert post(replica, "s-1").status_code == 200
    # It is killed, and that raised, where this takes a minute
    assert replica.stop() == 0
