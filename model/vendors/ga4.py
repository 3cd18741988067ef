"""Google Analytics 4: rows of its export to BigQuery, and requests of the Measurement Protocol, read as such rows.

Export: https://support.google.com/analytics/answer/7029846. Measurement Protocol:
https://developers.google.com/analytics/devguides/collection/protocol/ga4/reference. `ga_session_id` is the session's
start in seconds, which several users may share, so that a session is the user and `ga_session_id` together. A tag
manager's server also sends its own event data: one flat object an event,
https://developers.google.com/tag-platform/tag-manager/server-side/common-event-data. An event with several items is one
event and has the values of the first item; the property `items` is their number.
"""

from collections.abc import Sequence
from typing import Any, Final

from model.vendors.table import Record, UnreadableError, Vendor, VendorProperty, VendorTable

SESSION: Final = "event_params[ga_session_id]"
USER: Final = "user_pseudo_id"
# A user of the Measurement Protocol: on the web, and in apps.
CLIENTS: Final = ("client_id", "app_instance_id")
_EVENTS: Final = "events"
_TIME: Final = "timestamp_micros"

TABLE: Final = VendorTable(
    timestamp=("event_timestamp",),
    time_format="epoch_us",
    event_name=("event_name",),
    session_id=(SESSION,),
    visitor_id=(USER,),
    session_of_visitor=True,
    item_id=("items[0].item_id",),
    item_category=("items[0].item_category",),
    price=("items[0].price",),
    quantity=("items[0].quantity",),
    properties=(
        VendorProperty("device", ("device.category",)),
        VendorProperty("country", ("geo.country",)),
        VendorProperty("source", ("traffic_source.source",)),
        VendorProperty("medium", ("traffic_source.medium",)),
        VendorProperty("items", ("items[#]",), "number", absent="0"),
    ),
    missing_values=("(not set)", "(data deleted)"),
    value=("event_params[value]",),
    currency=("event_params[currency]",),
)


def units(document: Any) -> Sequence[Any]:  # noqa: ANN401 - any JSON
    """Return the events of a request, each as a request of its own."""
    if isinstance(document, list):
        return document
    events = document.get(_EVENTS) if isinstance(document, dict) else None
    return [{**document, _EVENTS: [event]} for event in events] if isinstance(events, list) else [document]


def row(request: Any) -> Record:  # noqa: ANN401 - any JSON
    """Return the columns of an event as the export has them.

    Raises:
        UnreadableError: this is no request with an event.
    """
    if not isinstance(request, dict):
        raise UnreadableError("body", "expected a JSON object")
    if _EVENTS in request:
        events = request[_EVENTS]
        event = events[0] if isinstance(events, list) and events else None
        if not isinstance(event, dict):
            raise UnreadableError(_EVENTS, "expected events as JSON objects")
        held = event.get("params")
        return _row(request, event.get("name"), held if isinstance(held, dict) else {}, event.get(_TIME))
    if USER not in request and any(name in request for name in CLIENTS):
        return _row(request, request.get("event_name"), request, None)
    return request


def _row(request: dict[str, Any], name: object, params: dict[str, Any], time: object) -> Record:
    session = params.get("ga_session_id", params.get("session_id"))
    return {
        "event_name": name,
        "event_timestamp": request.get(_TIME) if time is None else time,
        USER: next((request[client] for client in CLIENTS if request.get(client)), None),
        "event_params": {**params, "ga_session_id": session},
        "items": params.get("items"),
        "device": request.get("device"),
    }


GA4: Final = Vendor("ga4", TABLE, units, row)
