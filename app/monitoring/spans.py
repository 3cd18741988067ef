"""Spans of OpenTelemetry, sent by OTLP; the only module that imports it. It needs the extra `otel`.

A request's span goes on where the caller's `traceparent` ends. A batch answers many requests: its span is a child of
the first of them and has links to all, and each of the others has a link to it. Only requests that are sampled count;
a batch without any is not recorded. Spans carry no session ids and no paths, which have session ids in them.

OpenTelemetry's own variables choose endpoint, headers, sampler and propagators:
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Any, Final, cast
from uuid import uuid4

from fastapi import FastAPI
from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, Tracer
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

from app.scoring.batcher import Batcher
from app.scoring.events import QueuedEvent
from app.scoring.session_update import Score
from app.store.interface import StateStore
from model.interface import SessionScorer

_CLOSE_S: Final = 5.0
# Machines ask these all the time, and a stream is open for hours.
_NOT_TRACED: Final = frozenset({"/healthz", "/readyz", "/metrics", "/v1/stream"})
_STORE_CALLS: Final = ("load", "load_histories", "load_session", "commit", "delete")
_MODEL_CALLS: Final = {"advance": "model.step", "refold": "model.refold"}
_FIRST_SERVER_ERROR: Final = 500


def open_spans() -> "Spans":
    """Return spans that are sent as the environment says."""
    named_here = {"service.name": "willbuy", "service.version": version("willbuy"), "service.instance.id": uuid4().hex}
    resource = Resource.create().merge(Resource(named_here)).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Spans(provider)


class Spans:
    """Spans of one service (see `app.monitoring.telemetry.Telemetry`); nothing global knows of them.

    Args:
        provider: makes and sends them.
    """

    follows_requests = True

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("willbuy", version("willbuy"))
        # Spans of the requests that wait, by the identity of what they submitted, which they hold meanwhile.
        self._waiting: dict[int, Span] = {}

    def add_fields(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """See `Telemetry.add_fields`."""
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            event["trace_id"] = trace.format_trace_id(context.trace_id)
            event["span_id"] = trace.format_span_id(context.span_id)
        return event

    def say(self, logger: FilteringBoundLogger) -> None:
        """See `Telemetry.say`."""
        logger.info("traced", sampler=self._provider.sampler.get_description())

    def add_to(self, app: FastAPI) -> None:
        """See `Telemetry.add_to`."""
        app.add_middleware(RequestSpans, tracer=self._tracer)

    def batcher(self, batcher: Batcher[QueuedEvent, Score]) -> Batcher[QueuedEvent, Score]:
        """See `Telemetry.batcher`."""
        return cast("Batcher[QueuedEvent, Score]", _LinkedBatcher(batcher, self._waited_for))

    @contextmanager
    def batch(self, submissions: Sequence[QueuedEvent]) -> Iterator[None]:
        """See `Telemetry.batch`."""
        found = (self._waiting.get(id(submission)) for submission in submissions)
        # A request may wait for many of them; the span is what it is one of.
        requests = list({id(span): span for span in found if span is not None}.values())
        if not requests:
            yield
            return
        first, *others = requests
        with self._tracer.start_as_current_span(
            "batch",
            context=trace.set_span_in_context(first),
            links=[Link(request.get_span_context()) for request in requests],
            attributes={"willbuy.events": len(submissions), "willbuy.requests": len(requests)},
        ) as span:
            for request in others:
                request.add_link(span.get_span_context())
            yield

    def store(self, store: StateStore) -> StateStore:
        """See `Telemetry.store`."""
        spans = {name: f"store.{name}" for name in _STORE_CALLS}
        attributes = {"db.system.name": "redis"}
        return cast("StateStore", _Spanned(store, spans, self._tracer, SpanKind.CLIENT, attributes))

    def stepper(self, model: SessionScorer) -> SessionScorer:
        """See `Telemetry.stepper`."""
        attributes = {"willbuy.model": model.fingerprint}
        return cast("SessionScorer", _Spanned(model, _MODEL_CALLS, self._tracer, SpanKind.INTERNAL, attributes))

    async def close(self) -> None:
        """See `Telemetry.close`."""
        # A thread that does not hold up the end of the process when nobody takes the spans.
        sending = threading.Thread(target=self._provider.shutdown, name="spans", daemon=True)
        sending.start()
        await asyncio.to_thread(sending.join, _CLOSE_S)

    @contextmanager
    def _waited_for(self, items: Sequence[object]) -> Iterator[None]:
        span = trace.get_current_span()
        if not span.is_recording():
            yield
            return
        places = [id(item) for item in items]
        self._waiting.update(dict.fromkeys(places, span))
        try:
            yield
        finally:
            for place in places:
                self._waiting.pop(place, None)


class RequestSpans:
    """Puts a span around each request, but for those that nobody wants to see."""

    def __init__(self, app: ASGIApp, *, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http" or scope["path"] in _NOT_TRACED:
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        with self._tracer.start_as_current_span(
            scope["method"],
            context=propagate.extract(headers),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": scope["method"]},
        ) as span:

            async def send_seen(message: Message) -> None:
                if message["type"] == "http.response.start":
                    _answered(span, message)
                await send(message)

            try:
                await self._app(scope, receive, send_seen)
            finally:
                route = getattr(scope.get("route"), "path", None)
                if route is not None:
                    span.update_name(f"{scope['method']} {route}")
                    span.set_attribute("http.route", route)


def _answered(span: Span, start: Message) -> None:
    span.set_attribute("http.response.status_code", start["status"])
    request_id = dict(start["headers"]).get(b"x-request-id")
    if request_id is not None:
        span.set_attribute("willbuy.request_id", request_id.decode("latin-1"))
    if start["status"] >= _FIRST_SERVER_ERROR:
        span.set_status(StatusCode.ERROR)


class _LinkedBatcher:
    """Stands for a batcher and notes who waits for what."""

    def __init__(self, batcher: Batcher[QueuedEvent, Score], waited_for: Callable[[Sequence[object]], Any]) -> None:
        self._batcher = batcher
        self._waited_for = waited_for

    async def submit(self, item: QueuedEvent, *, give_up_at: float | None = None) -> Score:
        with self._waited_for([item]):
            return await self._batcher.submit(item, give_up_at=give_up_at)

    async def submit_many(self, items: Sequence[QueuedEvent], *, give_up_at: float) -> list[Score | Exception | None]:
        with self._waited_for(items):
            return await self._batcher.submit_many(items, give_up_at=give_up_at)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the batcher has
        return getattr(self._batcher, name)


class _Spanned:
    """Stands for an object, some calls of which are spans when they are part of a recorded one; never a trace's first.

    Args:
        target: the object.
        spans: names of spans by names of methods, all of which take what they are called with as their first argument.
        tracer: makes the spans.
        kind: of the spans.
        attributes: of the spans.
    """

    def __init__(
        self, target: object, spans: Mapping[str, str], tracer: Tracer, kind: SpanKind, attributes: Mapping[str, str]
    ) -> None:
        self._target = target

        @contextmanager
        def span_of(name: str, of: object) -> Iterator[None]:
            if not trace.get_current_span().is_recording():
                yield
                return
            size = 1 if isinstance(of, str) or not hasattr(of, "__len__") else len(of)
            with tracer.start_as_current_span(name, kind=kind, attributes={**attributes, "willbuy.sessions": size}):
                yield

        for method, name in spans.items():
            setattr(self, method, _within(getattr(target, method), partial(span_of, name)))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the object has
        return getattr(self._target, name)


def _within(call: Callable[..., Any], context: Callable[[object], Any]) -> Callable[..., Any]:
    """Return the function or coroutine function with a context, made from its first argument, around each call."""
    if inspect.iscoroutinefunction(call):

        async def awaited(first: object, *others: object, **named: object) -> Any:  # noqa: ANN401 - as `call` does
            with context(first):
                return await call(first, *others, **named)

        return awaited

    def called(first: object, *others: object, **named: object) -> Any:  # noqa: ANN401 - as `call` does
        with context(first):
            return call(first, *others, **named)

    return called
