"""Spans of OpenTelemetry: request -> batch -> store.load, model.step, store.commit.

Each span starts where the work happens. A process traces after `start` has found an OTLP endpoint in the environment
and the extra `otel`. Until then every function here returns after one check, and neither SDK nor exporter is imported.

The request span continues the caller's `traceparent`. A batch answers many requests: the batch span is a child of the
first request that is sampled, with links to all of them, and each other request gets a link to the batch. Only sampled
requests count. Spans carry no session ids, and no paths, because paths contain session ids.

OpenTelemetry's own variables choose endpoint, headers, sampler and propagators:
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

import asyncio
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Final, Protocol
from uuid import uuid4

from opentelemetry import propagate, trace
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, Tracer
from opentelemetry.util.types import AnyValue
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_CLOSE_S: Final = 5.0
# Probes ask all the time, and a stream is open for hours.
_NOT_TRACED: Final = frozenset({"/healthz", "/readyz", "/metrics", "/v1/stream"})
_FIRST_SERVER_ERROR: Final = 500
_NO_SPAN: Final = nullcontext()


@dataclass(slots=True)
class _Process:
    """What this process traces with: one provider, as for every user of OpenTelemetry."""

    provider: "TracerProvider | None" = None
    tracer: Tracer | None = None


_process: Final = _Process()


class HasSpan(Protocol):
    """A queued item that knows the span of its request."""

    @property
    def span(self) -> Span | None:
        """The request's span; None when the request is not sampled."""
        ...


def start(logger: FilteringBoundLogger, provider: "TracerProvider | None" = None) -> None:
    """Trace this process if the environment names an OTLP endpoint; log whether the process is traced.

    `OTEL_SDK_DISABLED=true` and `OTEL_TRACES_EXPORTER=none` switch traces off.

    Args:
        logger: gets `traced`, or `not_traced` when the extra `otel` is missing.
        provider: makes and sends the spans; None reads the environment.
    """
    if provider is None:
        if not _is_wanted():
            return
        try:
            provider = _open_provider()
        except ModuleNotFoundError as exc:
            if not (exc.name or "").startswith("opentelemetry"):
                raise
            logger.warning("not_traced", reason="OpenTelemetry is missing: pip install '.[otel]' in a checkout")
            return
    _process.provider = provider
    _process.tracer = provider.get_tracer("willbuy", version("willbuy"))
    logger.info("traced", sampler=provider.sampler.get_description())


async def close() -> None:
    """Stop tracing and send the spans that are left; takes a few seconds at most."""
    provider, _process.provider, _process.tracer = _process.provider, None, None
    if provider is None:
        return
    # A daemon thread, so that a collector that does not answer cannot delay the end of the process.
    sending = threading.Thread(target=provider.shutdown, name="spans", daemon=True)
    sending.start()
    await asyncio.to_thread(sending.join, _CLOSE_S)


def is_enabled() -> bool:
    """Return whether this process is traced."""
    return _process.tracer is not None


def current_span() -> Span | None:
    """Return the current span if it is recorded."""
    if _process.tracer is None:
        return None
    span = trace.get_current_span()
    return span if span.is_recording() else None


def add_fields(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Add `trace_id` and `span_id` of the current span to a log line (a structlog processor)."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
        event["span_id"] = trace.format_span_id(context.span_id)
    return event


def batch_span(events: Sequence[HasSpan]) -> AbstractContextManager[object]:
    """Return a span around the handling of a batch, linked to the requests of its events."""
    return _NO_SPAN if _process.tracer is None else _linked_span(_process.tracer, events)


def store_span(call: str, sessions: int) -> AbstractContextManager[object]:
    """Return a span around a call of the store about so many sessions, within a recorded span; never a trace's root."""
    if _process.tracer is None or current_span() is None:
        return _NO_SPAN
    attributes: dict[str, AnyValue] = {"db.system.name": "redis", "willbuy.sessions": sessions}
    return _process.tracer.start_as_current_span(f"store.{call}", kind=SpanKind.CLIENT, attributes=attributes)


def model_span(call: str, fingerprint: str, sessions: int) -> AbstractContextManager[object]:
    """Return a span around a call of the model, under the same conditions as `store_span`."""
    if _process.tracer is None or current_span() is None:
        return _NO_SPAN
    attributes: dict[str, AnyValue] = {"willbuy.model": fingerprint, "willbuy.sessions": sessions}
    return _process.tracer.start_as_current_span(f"model.{call}", attributes=attributes)


@contextmanager
def _linked_span(tracer: Tracer, events: Sequence[HasSpan]) -> Iterator[None]:
    # A request may have many events in the batch. A request that gave up has ended its span.
    spans = (event.span for event in events)
    requests = list({id(span): span for span in spans if span is not None and span.is_recording()}.values())
    if not requests:
        yield
        return
    first, *others = requests
    with tracer.start_as_current_span(
        "batch",
        context=trace.set_span_in_context(first),
        links=[Link(request.get_span_context()) for request in requests],
        attributes={"willbuy.events": len(events), "willbuy.requests": len(requests)},
    ) as span:
        for request in others:
            request.add_link(span.get_span_context())
        yield


class RequestSpans:
    """Puts a span around each HTTP request, except for probes and streams; outermost ASGI middleware.

    The span is named by `scope["route"].path`, which the wrapped application has to set.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        tracer = _process.tracer
        if tracer is None or scope["type"] != "http" or scope["path"] in _NOT_TRACED:
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        with tracer.start_as_current_span(
            scope["method"],
            context=propagate.extract(headers),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": scope["method"]},
        ) as span:

            async def send_observed(message: Message) -> None:
                if message["type"] == "http.response.start":
                    _set_response(span, message)
                await send(message)

            try:
                await self._app(scope, receive, send_observed)
            finally:
                route = getattr(scope.get("route"), "path", None)
                if route is not None:
                    span.update_name(f"{scope['method']} {route}")
                    span.set_attribute("http.route", route)


def _set_response(span: Span, start: Message) -> None:
    span.set_attribute("http.response.status_code", start["status"])
    request_id = dict(start["headers"]).get(b"x-request-id")
    if request_id is not None:
        span.set_attribute("willbuy.request_id", request_id.decode("latin-1"))
    if start["status"] >= _FIRST_SERVER_ERROR:
        span.set_status(StatusCode.ERROR)


def _is_wanted() -> bool:
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return any(os.environ.get(name) for name in _ENDPOINTS)


def _open_provider() -> "TracerProvider":
    """Return a provider that sends spans as the environment says.

    Raises:
        ModuleNotFoundError: the extra `otel` is not installed.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415  # an extra
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    named_here = {"service.name": "willbuy", "service.version": version("willbuy"), "service.instance.id": uuid4().hex}
    resource = Resource.create().merge(Resource(named_here)).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
