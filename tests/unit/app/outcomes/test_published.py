"""The JSON of closed sessions, to the byte: other programs read it, and so does `willbuy collect`."""

import json
from typing import Any

import pytest

from app.outcomes.published import session_json
from app.store.history_codec import Entry
from app.store.outcomes import ClosedSession
from model.events import FIELDS, Event, EventField
from model.interventions.decide import Decision, Group

MODEL, OTHER_MODEL = "9f86d081884c7d65", "0011223344556677"


def closed(*entries: Entry, bought: bool = True) -> ClosedSession:
    return ClosedSession(
        entry="1795392009000-0",
        session_id="s-1",
        bought=bought,
        closed_by="event" if bought else "idle",
        outcome_ms=1_795_392_008_000 if bought else 0,
        last_seen_ms=1_795_392_008_500,
        entries=entries,
    )


def test_a_session_is_published_as_its_golden_bytes() -> None:
    session = closed(
        Entry(Event("view_item", 1, "SKU-1", "shoes", 59.5, 2.0, {"device": "mobile", "new": True}), 0.75, MODEL),
        Entry(Event("page_view", 2, price=0.0), 0.0, MODEL),
        Entry(Event("search", 3), None, OTHER_MODEL),
    )

    assert session_json(session) == (
        b'{"format":1,"session_id":"s-1","outcome":"purchase","closed_by":"event","outcome_ms":1795392008000,'
        b'"closed_ms":1795392009000,"last_seen_ms":1795392008500,"events":[{"event_name":"view_item","timestamp_ms":1,'
        b'"item_id":"SKU-1","item_category":"shoes","price":59.5,"quantity":2.0,"properties":{"device":"mobile",'
        b'"new":true},"probability":0.75,"model":"9f86d081884c7d65"},{"event_name":"page_view","timestamp_ms":2,'
        b'"price":0.0,"probability":0.0},{"event_name":"search","timestamp_ms":3,"model":"0011223344556677"}]}'
    )


def test_a_session_that_idled_out_has_no_outcome_time() -> None:
    assert session_json(closed(bought=False)) == (
        b'{"format":1,"session_id":"s-1","outcome":"none","closed_by":"idle","outcome_ms":null,'
        b'"closed_ms":1795392009000,"last_seen_ms":1795392008500,"events":[]}'
    )


def test_decisions_of_rules_follow_the_events() -> None:
    decided = Decision("voucher", Group.TREATMENT, 0.75, 1, 5)
    late = Decision("chat", Group.CONTROL, 0.5, 2, 9, idle=True, told=False)
    entries = (Entry(Event("page_view", 1), decisions=(decided,)), Entry(Event("search", 2), decisions=(late,)))

    published = json.loads(session_json(closed(*entries)))

    assert published["interventions"] == [
        {"rule": "voucher", "group": "treatment", "probability": 0.75, "event": 1, "decided_ms": 5},
        {"rule": "chat", "group": "control", "probability": 0.5, "event": 2, "decided_ms": 9, "idle": True},
    ]


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_the_table_is_published(field: EventField) -> None:
    value: Any = "x" if field.kind == "text" else 2.5
    event = Event("page_view", 1, **{field.name: value})

    (published,) = json.loads(session_json(closed(Entry(event))))["events"]

    assert published == {"event_name": "page_view", "timestamp_ms": 1, field.name: value}
