"""`POST /v1/ingest/...`: events in the shapes of vendors, which go through the batches of `POST /v1/events/batch`.

A vendor sends a request again after 429 and 503, and drops its events after most other errors. So those two statuses
say that no caller can be served now, and a record that can never become an event is counted in an answer of 200.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from fastapi import APIRouter, Query, Request, Response
from starlette.types import Scope

from app.api.bodies import check_headers, gunzip, out_of_time, read_body, too_late
from app.api.events import log_failures
from app.api.openapi import documented
from app.api.responses import json_response
from app.api.services import Services, in_time, services_of
from app.auth.middleware import COUNT_EVENTS
from app.auth.scopes import INGEST_PATH
from app.auth.vendors import check_signature
from app.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    ConflictError,
    DeadlineExceededError,
    InvalidEventError,
    InvalidJsonError,
    InvalidRequestError,
    OverloadedError,
    RateLimitedError,
    ShuttingDownError,
    StoreUnavailableError,
    TooManyEventsError,
    TooManySessionEventsError,
    UnsupportedEncodingError,
    UnsupportedMediaTypeError,
    WillbuyError,
    without_traceback,
)
from app.runtime.deadlines import RequestTimeout, WhileConnected
from app.runtime.slices import Slices
from app.schemas.ingest import IngestOut, RejectOut, RejectsOut
from app.scoring.events import QueuedEvent
from app.scoring.parsing import checked_event, document_parts, read_document
from app.scoring.session_update import Score
from app.store.ingest import MOST_REJECTS, Reject, session_of
from model.clock import utc
from model.events import canonical_event_name
from model.vendors.ga4 import GA4
from model.vendors.segment import RUDDERSTACK, SEGMENT
from model.vendors.snowplow import SNOWPLOW
from model.vendors.table import UnreadableError, Vendor, VendorEvent, read_row

INGEST_PATHS: Final = tuple(f"{INGEST_PATH}{vendor.name}" for vendor in (SEGMENT, RUDDERSTACK, SNOWPLOW, GA4))
_REJECTS_PATH: Final = f"{INGEST_PATH}rejects"
_MOST_SAMPLES: Final = 5
_LONGEST_SAMPLE: Final = 2000
_JSON: Final = "application/json"
_PLAIN_TEXT: Final = "text/plain"
# Of one event the failure may be its own, but these befall whatever is sent now.
_UNAVAILABLE: Final = frozenset({RateLimitedError.status, StoreUnavailableError.status})
_encode: Final = msgspec.json.Encoder().encode

router = APIRouter(tags=["vendors"])


class _Checked(NamedTuple):
    """A record of a request.

    Attributes:
        place: among the records of the request.
        unit: the record.
        event: None: the record is ignored; an exception: why the record cannot become an event.
        visitor_id: the visitor whose session must be found; None: the record has a session.
    """

    place: int
    unit: Any
    event: QueuedEvent | Exception | None
    visitor_id: str | None = None


def _add_route(vendor: Vendor, sender: str, example: Any) -> None:  # noqa: ANN401 - JSON
    async def ingest(request: Request) -> Response:
        return await _ingest(request, vendor)

    ingest.__doc__ = (
        f"Answer 200 once all events of {sender} are stored, and say how many records could not become events. "
        "Sent again, an event counts once: by the vendor's id of it, or by its content where it has a time. After 429 "
        "and 503 send the whole request again."
    )
    router.add_api_route(
        f"{INGEST_PATH}{vendor.name}",
        ingest,
        methods=["POST"],
        name=f"post_{vendor.name}",
        summary=f"Take events of {sender}",
        response_model=IngestOut,
        responses=documented(
            BodyTimeoutError,
            BodyTooLargeError,
            TooManyEventsError,
            UnsupportedMediaTypeError,
            UnsupportedEncodingError,
            OverloadedError,
            ShuttingDownError,
            DeadlineExceededError,
            StoreUnavailableError,
        ),
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    _JSON: {
                        "schema": {"anyOf": [{"type": "object"}, {"type": "array", "items": {"type": "object"}}]},
                        "example": example,
                    }
                },
            }
        },
    )


_add_route(
    SEGMENT,
    "a Segment webhook",
    {
        "type": "track",
        "messageId": "ajs-next-1764500000000-81",
        "anonymousId": "6f1c2a4e-81",
        "event": "Product Viewed",
        "timestamp": "2026-11-22T10:15:00.000Z",
        "properties": {"product_id": "SKU-1", "category": "shoes", "price": 59.9},
    },
)
_add_route(
    RUDDERSTACK,
    "a RudderStack webhook",
    {
        "type": "page",
        "messageId": "1f0e5a80-81",
        "anonymousId": "6f1c2a4e-81",
        "originalTimestamp": "2026-11-22T10:15:00.000Z",
        "properties": {"path": "/shoes"},
    },
)
_add_route(
    SNOWPLOW,
    "Snowplow, enriched",
    [
        {
            "event": "page_view",
            "event_name": "page_view",
            "event_id": "c6ef3124-b53a-4b13-a233-0088f79dcbcb",
            "domain_userid": "bc2e92ec",
            "domain_sessionid": "3b1d1a39",
            "derived_tstamp": "2026-11-22T10:15:00.000Z",
        }
    ],
)
_add_route(
    GA4,
    "the Measurement Protocol of Google Analytics 4",
    {
        "client_id": "1034.55",
        "timestamp_micros": 1795342500000000,
        "events": [{"name": "view_item", "params": {"session_id": "1795342500", "items": [{"item_id": "SKU-1"}]}}],
    },
)


@router.get(
    _REJECTS_PATH,
    summary="Records that could not become events",
    response_model=RejectsOut,
    responses=documented(InvalidRequestError, DeadlineExceededError, StoreUnavailableError),
)
async def get_rejects(request: Request, limit: Annotated[int, Query(ge=1, le=MOST_REJECTS)] = 20) -> RejectsOut:
    """Answer with the last records of vendors that were rejected, and why: samples, the last hundred of a day."""
    with in_time(request):
        rejects = await services_of(request).store.ingest.rejects(limit)
    return RejectsOut(
        rejects=[
            RejectOut(
                vendor=one.vendor,
                rejected=utc(one.rejected_ms),
                code=one.code,
                detail=one.detail,
                record=one.record,
            )
            for one in rejects
        ]
    )


async def _ingest(request: Request, vendor: Vendor) -> Response:
    services, scope = services_of(request), request.scope
    timeout_s, is_read = services.settings.request_timeout_s, False
    content_type = request.headers.get("content-type")
    if vendor is GA4 and (content_type or _PLAIN_TEXT).partition(";")[0].strip().lower() == _PLAIN_TEXT:
        # As browsers' `fetch` and beacons send the Measurement Protocol.
        content_type = _JSON
    form = check_headers(content_type, request.headers.get("content-encoding"))
    try:
        with RequestTimeout(scope, services.deadlines, timeout_s) as timeout:
            body = await read_body(request.receive)
            is_read = True
            units = await _units(services, vendor, scope, body, is_gzip=form.is_gzip)
            if len(units) > services.settings.max_batch_events:
                raise TooManyEventsError(f"Expected at most {services.settings.max_batch_events} events.")
            if (count := scope.get(COUNT_EVENTS)) is not None:
                await count(len(units))
            checked = await _checked(services, vendor, units, give_up_at=timeout.at)
            checked = await _with_sessions(services, checked)
    except TimeoutError as exc:
        error = DeadlineExceededError(too_late(timeout_s))
        raise (error if is_read else await out_of_time(request.receive, timeout_s)) from exc
    return await _answer(request, services, vendor, checked, give_up_at=timeout.at)


async def _units(
    services: Services, vendor: Vendor, scope: Scope, body: bytes, *, is_gzip: bool
) -> list[tuple[Any, Exception | None]]:
    """Return the single records of a body, each with what is wrong with it as JSON.

    Raises:
        UnauthorizedError: the request has no key, and its signature is wrong.
        BodyTooLargeError: the body has more bytes when decompressed.
    """
    most, most_events = services.settings.max_body_bytes, services.settings.max_batch_events
    if is_gzip:
        try:
            body = gunzip(body, services.settings.max_batch_body_bytes)
        except InvalidJsonError as exc:
            check_signature(scope, ())
            return [("", without_traceback(exc))]
    parts = document_parts(body)
    # Segment signs the first event of a list.
    check_signature(scope, (body, *parts[:1]))
    found: list[tuple[Any, Exception | None]] = []
    slices = Slices()
    for part in parts or (body,):
        try:
            document = read_document(part)
        except InvalidJsonError as exc:
            found.append((part.decode("utf-8", "replace"), without_traceback(exc)))
            continue
        for unit in islice(vendor.units(document), most_events + 1):
            is_large = len(body) > most and len(part) > most and _size(unit) > most
            found.append((unit, BodyTooLargeError(f"Expected an event of at most {most} bytes.") if is_large else None))
        if len(found) > most_events:
            break
        await slices.pause()
    return found


async def _checked(
    services: Services, vendor: Vendor, units: Sequence[tuple[Any, Exception | None]], *, give_up_at: float
) -> list[_Checked]:
    """Return each record with its checked event; an event of a visitor has a session for the time being."""
    now_ms, model, settings = services.now_ms(), services.model, services.settings
    checked: list[_Checked] = []
    slices = Slices()
    for place, (unit, error) in enumerate(units):
        if error is not None:
            checked.append(_Checked(place, unit, error))
            continue
        try:
            row = vendor.row(unit)
            if row is None:
                checked.append(_Checked(place, unit, None))
                continue
            read = read_row(vendor.table, row, placeholders_count=settings.allow_placeholder_ids)
            body = checked_event(_event(read, model.canonical_name))
            queued = services.intake.submission(body, now_ms=now_ms, model=model, give_up_at=give_up_at)
            checked.append(_Checked(place, unit, queued, None if read.session_id else read.visitor_id))
        except UnreadableError as exc:
            checked.append(_Checked(place, unit, InvalidEventError(str(exc), [])))
        except Exception as exc:  # noqa: BLE001 - whatever a record raises is its own
            checked.append(_Checked(place, unit, without_traceback(exc)))
        await slices.pause()
    return checked


def _event(read: VendorEvent, canonical_name: Callable[[str], str]) -> dict[str, Any]:
    """Return the members of an `app.schemas.events.EventIn`."""
    # Where the model's log had another meaning for the vendor's name, that goes first.
    is_renamed = canonical_name(read.own_name) != canonical_event_name(read.own_name)
    return {
        "session_id": read.session_id or session_of(read.visitor_id or "", read.timestamp_ms or 0),
        "event_name": read.own_name if is_renamed else read.event_name,
        "event_id": read.event_id,
        "timestamp": read.timestamp_ms,
        "visitor_id": read.visitor_id,
        "properties": read.properties,
        **read.fields,
    }


async def _with_sessions(services: Services, checked: Sequence[_Checked]) -> list[_Checked]:
    """Return the records in the order of their times, with the sessions of visitors; too many of a session are errors.

    Raises:
        StoreError: Redis does not say which session a visitor is in.
    """
    checked = sorted(checked, key=_order)
    times: defaultdict[str, list[int]] = defaultdict(list)
    for one in checked:
        if one.visitor_id is not None and isinstance(one.event, QueuedEvent):
            times[one.visitor_id].append(one.event.event.timestamp_ms)
    assigned = await services.store.ingest.assign(times) if times else {}
    sessions = {visitor_id: iter(found) for visitor_id, found in assigned.items()}
    most = services.settings.dedupe_window
    of_session: defaultdict[str, int] = defaultdict(int)
    found: list[_Checked] = []
    for one in checked:
        event = one.event
        if not isinstance(event, QueuedEvent):
            found.append(one)
            continue
        if one.visitor_id is not None:
            event = msgspec.structs.replace(event, session_id=next(sessions[one.visitor_id]))
        of_session[event.session_id] += 1
        if of_session[event.session_id] > most:
            error = TooManySessionEventsError(f"Expected at most {most} events of one session in a request.")
            found.append(one._replace(event=error))
        else:
            found.append(one._replace(event=event))
    return found


def _order(one: _Checked) -> tuple[int, bool]:
    """Return the place of a record: by time, as a log is read, and a purchase is the last event of its time."""
    return (one.event.event.timestamp_ms, one.event.is_purchase) if isinstance(one.event, QueuedEvent) else (0, False)


async def _answer(
    request: Request, services: Services, vendor: Vendor, checked: Sequence[_Checked], *, give_up_at: float
) -> Response:
    """Fold the events, and say what became of the records.

    Raises:
        WillbuyError: an event could not be stored now, and may be later.
    """
    events = [one.event for one in checked if isinstance(one.event, QueuedEvent)]
    with WhileConnected(request.scope):
        answers = iter(await services.batcher.submit_many(events, give_up_at=give_up_at))
    results = [next(answers) if isinstance(one.event, QueuedEvent) else one.event for one in checked]
    log_failures(services, results)
    late = DeadlineExceededError(too_late(services.settings.request_timeout_s))
    counts: Counter[str] = Counter()
    rejected: list[tuple[_Checked, WillbuyError]] = []
    for one, result in zip(checked, results, strict=True):
        if isinstance(result, Score):
            counts["duplicate" if result.duplicate else "accepted"] += 1
        elif result is None and not isinstance(one.event, QueuedEvent):
            counts["ignored"] += 1
        else:
            rejected.append((one, _rejection(late if result is None else result)))
    counts.update(error.code for _, error in rejected)
    for name, number in counts.items():
        services.metrics.vendor_events.labels(vendor.name, name).inc(number)
    shown = rejected[:_MOST_SAMPLES]
    now_ms = services.now_ms()
    await _keep(services, [Reject(vendor.name, now_ms, why.code, why.detail, _sample(one.unit)) for one, why in shown])
    answer = {
        "accepted": counts["accepted"],
        "duplicates": counts["duplicate"],
        "ignored": counts["ignored"],
        "rejected": len(rejected),
        "rejects": [{"index": one.place, "code": why.code, "detail": why.detail} for one, why in shown],
    }
    return json_response(_encode(answer))


def _rejection(error: Exception) -> WillbuyError:
    """Return why a record can never become an event; raise the error where it can later, whatever the record is."""
    if isinstance(error, ConflictError):
        raise OverloadedError("Others changed a session at the same time; send again.") from error
    if not isinstance(error, WillbuyError):
        return WillbuyError("The service failed on this event; the log says why.")
    if error.status in _UNAVAILABLE:
        raise error
    return error


async def _keep(services: Services, samples: Sequence[Reject]) -> None:
    """Keep samples of rejected records; they are not worth an error."""
    if not samples:
        return
    try:
        await services.store.ingest.add_rejects(samples)
    except Exception as exc:  # noqa: BLE001 - the events are stored, and the rejects are counted
        services.logger.warning("rejects_not_kept", error=type(exc).__name__)


def _sample(unit: Any) -> str:  # noqa: ANN401 - any JSON
    try:
        text = unit if isinstance(unit, str) else _encode(unit).decode()
    except Exception as exc:  # noqa: BLE001 - half a surrogate pair, or too deep
        text = f"not shown: {type(exc).__name__}"
    return text[:_LONGEST_SAMPLE]


def _size(unit: Any) -> int:  # noqa: ANN401 - any JSON
    try:
        return len(_encode(unit))
    except Exception:  # noqa: BLE001 - the reading of the record says what is wrong
        return 0
