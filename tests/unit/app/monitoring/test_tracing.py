"""Traces of requests through the real app, with a real Redis and the exporter that keeps spans for tests."""

import asyncio
import subprocess
import sys
from contextlib import asynccontextmanager

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased
from opentelemetry.trace import SpanKind, StatusCode
from support.artifacts import write_artifact

from app.main import create_app
from app.monitoring import tracing
from app.monitoring.logging import build_logger
from app.scoring.events import QueuedEvent
from app.settings import Settings
from model.events import Event

pytestmark = pytest.mark.anyio

NOW_MS = 1_795_342_600_000
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED_CALLER = CALLER[:-1] + "0"


class Traced:
    """An app, a client of it, and the spans that have ended."""

    def __init__(self, app, client, exporter):
        self.app = app
        self.client = client
        self._exporter = exporter

    @property
    def spans(self):
        return self._exporter.get_finished_spans()

    def named(self, name):
        return [span for span in self.spans if span.name == name]

    async def post(self, session_id, **headers):
        body = {"session_id": session_id, "event_name": "page_view"}
        return await self.client.post("/v1/events", json=body, headers=headers)


@asynccontextmanager
async def traced(artifact, redis_url, sampler=ALWAYS_ON):
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(sampler), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    settings = Settings(
        artifact=artifact,
        open_access=True,
        redis_url=redis_url,
    )
    app = create_app(settings, tracer_provider=provider, now_ms=lambda: NOW_MS)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://willbuy") as client:
            yield Traced(app, client, exporter)


def queued(span):
    return QueuedEvent("s", Event("page_view", NOW_MS), 1, has_event_id=False, received_ms=NOW_MS, span=span)


def children(spans, parent):
    return sorted(span.name for span in spans if span.parent and span.parent.span_id == parent.context.span_id)


async def test_a_request_a_batch_and_its_parts_are_one_trace_that_goes_on_the_callers(artifact, valkey):
    async with traced(artifact, valkey.url) as service:
        answer = await service.post("s-1", traceparent=CALLER)
        spans = service.spans
        (request,) = service.named("POST /v1/events")
        (batch,) = service.named("batch")
    assert answer.status_code == 200
    assert request.kind is SpanKind.SERVER
    assert f"{request.context.trace_id:032x}" == CALLER.split("-")[1]
    assert f"{request.parent.span_id:016x}" == CALLER.split("-")[2]
    assert dict(request.attributes) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/v1/events",
        "willbuy.request_id": answer.headers["x-request-id"],
    }
    assert children(spans, request) == ["batch"]
    assert [link.context.span_id for link in batch.links] == [request.context.span_id]
    assert children(spans, batch) == ["model.step", "store.commit", "store.load"]
    assert {span.context.trace_id for span in spans} == {request.context.trace_id}


async def test_one_batch_has_links_to_all_its_requests_and_each_of_them_leads_to_it(artifact, valkey):
    async with traced(artifact, valkey.url) as service:
        # Given more requests than the first batch takes: they come while it runs
        await asyncio.gather(*(service.post(f"s-{number}") for number in range(20)))
        requests = {span.context.span_id: span for span in service.named("POST /v1/events")}
        batches = service.named("batch")
    assert len(requests) == 20
    assert len(batches) < 20
    linked = [link.context.span_id for batch in batches for link in batch.links]
    assert sorted(linked) == sorted(requests)
    for batch in batches:
        first, *others = [requests[link.context.span_id] for link in batch.links]
        assert batch.parent.span_id == first.context.span_id
        assert all([link.context for link in other.links] == [batch.context] for other in others)


async def test_many_events_of_one_request_are_one_link(artifact, valkey):
    async with traced(artifact, valkey.url) as service:
        events = [{"session_id": f"s-{number}", "event_name": "page_view"} for number in range(5)]
        assert (await service.client.post("/v1/events/batch", json=events)).status_code == 200
        (batch,) = service.named("batch")
    assert len(batch.links) == 1
    assert batch.attributes == {"willbuy.events": 5, "willbuy.requests": 1}


async def test_a_rebuild_for_another_model_is_between_two_batches(artifact, valkey, tmp_path):
    async with traced(artifact, valkey.url) as service:
        await service.post("s-1")
    async with traced(write_artifact(tmp_path / "other.pt", seed=1), valkey.url) as service:
        assert (await service.post("s-1")).status_code == 200
        # The first batch begins the rebuild, and the event comes again in the second.
        first, second = service.named("batch")
        assert children(service.spans, first) == ["store.load"]
        assert children(service.spans, second) == ["model.step", "store.commit", "store.load"]


async def test_a_request_that_gave_up_is_not_linked():
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.start(build_logger(log_level="info"), provider)
    tracer = provider.get_tracer("test")
    ended, waiting = tracer.start_span("gave up"), tracer.start_span("waits")
    ended.end()
    with tracing.batch_span([queued(span) for span in (ended, waiting, waiting, None)]):
        pass
    await tracing.close()
    assert not tracing.is_enabled()
    (batch,) = (span for span in exporter.get_finished_spans() if span.name == "batch")
    assert [link.context for link in batch.links] == [waiting.get_span_context()]
    assert batch.attributes == {"willbuy.events": 4, "willbuy.requests": 1}


async def test_what_is_not_sampled_leaves_no_span_at_all(artifact, valkey):
    async with traced(artifact, valkey.url) as service:
        assert (await service.post("s-1", traceparent=UNSAMPLED_CALLER)).status_code == 200
        assert service.spans == ()
    async with traced(artifact, valkey.url, ALWAYS_OFF) as service:
        assert (await service.post("s-1")).status_code == 200
        assert service.spans == ()
        # But the caller's wish goes first
        assert (await service.post("s-1", traceparent=CALLER)).status_code == 200
        assert {"batch", "store.load"} < {span.name for span in service.spans}


async def test_what_machines_ask_all_the_time_is_not_traced(artifact, valkey):
    async with traced(artifact, valkey.url) as service:
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await service.client.get(path)).status_code == 200
        assert service.spans == ()


async def test_spans_name_no_session(artifact, valkey):
    async with traced(artifact, valkey.url) as service:
        await service.post("secret-visitor")
        await service.client.get("/v1/sessions/secret-visitor")
        await service.client.delete("/v1/sessions/secret-visitor")
        assert {"GET /v1/sessions/{session_id:path}", "store.delete"} <= {span.name for span in service.spans}
        assert "secret-visitor" not in "".join(span.to_json() for span in service.spans)


async def test_a_failure_is_marked_as_an_error_and_a_refusal_is_not(artifact, valkey):
    async with traced(artifact, valkey.url) as service:
        assert (await service.client.get("/v1/sessions/nobody")).status_code == 404
        await service.app.state.services.batcher.close()
        assert (await service.post("s-1")).status_code == 503
        refused, failed = service.spans[-2:]
    assert refused.status.status_code is StatusCode.UNSET
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.attributes["http.response.status_code"] == 503


async def test_lines_of_the_log_name_the_trace(artifact, valkey, capfd):
    async with traced(artifact, valkey.url) as service:

        async def fails():
            raise RuntimeError("a defect")

        service.app.add_api_route("/fails", fails)
        service.app.middleware_stack = service.app.build_middleware_stack()
        answer = await service.client.get("/fails", headers={"traceparent": CALLER})
        assert answer.status_code == 500
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "request_failed" in line]
    assert f'"trace_id": "{CALLER.split("-")[1]}"' in line
    assert answer.json()["request_id"] in line


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_without_an_endpoint_or_when_switched_off_nothing_is_traced(environment, monkeypatch, capfd):
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    tracing.start(build_logger(log_level="info"))
    assert not tracing.is_enabled()
    assert capfd.readouterr().err == ""


WITHOUT_THE_EXTRA = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name in ("opentelemetry.sdk", "opentelemetry.exporter"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
from app.main import create_app
from app.settings import Settings
create_app(Settings(artifact=sys.argv[1], open_access=True))
assert not any(name.startswith(("opentelemetry.sdk", "opentelemetry.exporter")) for name in sys.modules)
"""


@pytest.mark.slow
def test_without_the_extra(artifact, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    command = [sys.executable, "-c", WITHOUT_THE_EXTRA, artifact]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "not_traced" in done.stderr
    assert "pip install '.[otel]'" in done.stderr
    assert "Traceback" not in done.stderr
