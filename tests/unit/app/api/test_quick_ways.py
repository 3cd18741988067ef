"""The quick ways of the hot path give what the careful ones give."""

import asyncio
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.api.bodies import score_json
from app.errors import WillbuyError
from app.schemas.events import EVENT_EXAMPLE, EventIn, ScoreOut
from app.scoring.parsing import (
    _careful_event,
    _value,
    parse_event,
    parse_events,
    read_event,
    read_events,
)  # private: held against the public way
from app.scoring.session_update import Score
from app.store.record_codec import Answer, Outcome
from model.interventions.decide import Decision, Group

KEYS = list(EventIn.model_fields)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.sampled_from(["", " ", "view_item", "2026-11-22T10:15:00Z", 'a":b', "\\", '"', "\x7f", "é", "x" * 300, "1e400"]),
    st.text(max_size=8),
)
PROPERTIES = st.lists(st.tuples(st.sampled_from(["a", "b", ' " :', ""]), SCALARS), max_size=3)
GAPS = st.sampled_from(["", " ", "\n", "\t"])


@st.composite
def objects(draw):
    """JSON objects as text, with keys that come twice and white space in odd places."""
    pairs = draw(st.lists(st.tuples(st.sampled_from([*KEYS, "unknown"]), SCALARS), max_size=6))
    if draw(st.booleans()):
        pairs = [("session_id", "s-1"), ("event_name", "view_item"), *pairs]
    texts = [f"{json.dumps(key)}{draw(GAPS)}:{draw(GAPS)}{json.dumps(value)}" for key, value in pairs]
    if draw(st.booleans()):
        inner = ",".join(f"{json.dumps(key)}:{json.dumps(value)}" for key, value in draw(PROPERTIES))
        texts.append(f'"properties":{{{inner}}}')
    return f"{{{draw(GAPS)}{','.join(texts)}}}"


def outcome_of(parse, body):
    try:
        return parse(body)
    except WillbuyError as error:
        return type(error), error.detail, dict(error.members)


def carefully(body):
    return _careful_event(_value(body))


@given(objects())
@example('{"session_id":"s-1","event_name":"view_item","event_name":"search"}')
@example('{"session_id" :"s-1","event_name":"view_item","event_name":"search"}')
@example('{"session_id":"s-1","event_name":"view_item","properties":{"a":1,"a":2}}')
@example('{"session_id":"s-1","event_name":"a\\":b"}')
@example('{"session_id":"s-1","event_name":"view_item","price":NaN}')
@example('{"session_id":"s-1","event_name":"view_item","price":1e999}')
@example('{"session_id":"\\ud800","event_name":"view_item"}')
def test_an_event_is_read_as_the_careful_way_reads_it(text):
    body = text.encode("utf-8", "surrogatepass")
    assert outcome_of(parse_event, body) == outcome_of(carefully, body)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(EVENT_EXAMPLE),
        '{"session_id":"s-1","event_name":"view_item"}',
        '{"session_id":"s-1","event_name":"Schuhe f\\u00fcr M\u00e4nner","item_id":null,"timestamp":1795342500250}',
        '{"session_id":"s:1","event_name":"view_item","price":0,"quantity":2.5,"properties":{"a":true,"b":"x","c":-3}}',
    ],
)
def test_plain_events_are_read_the_quick_way(text):
    assert read_event(text.encode()) == carefully(text.encode())
    assert read_events(f"[{text},{text}]".encode()) == [carefully(text.encode())] * 2


@pytest.mark.parametrize(
    "text",
    [
        '{"session_id":"s-1","event_name":"view_item","price":1,"price":1}',
        '{"session_id":"s-1","event_name":"view_item","properties":{"a":1,"a":1}}',
        '{"session_id":"s-1","event_name":"view\\u0007item"}',
        '{"session_id":"s-1","event_name":" "}',
        '{"session_id":"s-1","event_name":"view_item","timestamp":"2026-13-22T10:15:00Z"}',
        '{"session_id":"s-1","event_name":"view_item","propertys":{}}',
        '{"session_id":"s-1","event_name":"view_item","item_id":""}',
        '{"session_id":"s-1","event_name":"view_item","properties":null}',
        '{"session_id":"s-1","event_name":"view_item","properties":{"a":null}}',
        '{"session_id":"s-1","event_name":"view_item","properties":{"a":""}}',
        '{"session_id":"s-1","event_name":"view_item","properties":{"a":"\\u0000"}}',
        '{"session_id":"s-1","event_name":"view_item","properties":{"a":"\\ud83d"}}',
    ],
)
def test_what_is_not_plain_is_left_to_the_careful_way(text):
    assert read_event(text.encode()) is None
    assert read_events(f"[{text}]".encode()) is None


@given(st.lists(objects(), min_size=1, max_size=4))
def test_so_are_the_events_of_an_array_and_of_lines(texts):
    expected = [outcome_of(carefully, text.encode()) for text in texts]

    def read(body, *, is_lines):
        found = asyncio.run(parse_events(body, is_lines=is_lines, max_events=10, max_event_bytes=65536))
        return [outcome_of(lambda one: one, one) if not isinstance(one, Exception) else fault(one) for one in found]

    def fault(error):
        return type(error), error.detail, dict(error.members)

    lines = "\n".join(text.replace("\n", " ") for text in texts).encode()
    assert read(lines, is_lines=True) == expected
    assert read(f"[{','.join(texts)}]".encode(), is_lines=False) == expected


@pytest.mark.parametrize(
    ("given", "outcome", "probability"),
    [(0.25, Outcome.OPEN, 0.25), (0.25, Outcome.PURCHASE, None), (None, Outcome.PURCHASE, None)],
)
def test_an_answer_is_what_the_description_says(given, outcome, probability):
    answer = Answer(given, 3, "00" * 8, outcome, folded=False)
    decisions = (
        Decision("voucher", Group.TREATMENT, 0.25, 3, 7),
        Decision("held", Group.CONTROL, 0.25, 3, 7, told=False),
        Decision("open", Group.CONTROL, 0.25, 3, 7, told=True),
    )
    body = score_json(Score('s"1', answer, duplicate=True, warnings=("late",), decisions=decisions))
    read = ScoreOut.model_validate_json(body, strict=True, extra="forbid")
    assert list(json.loads(body)) == list(ScoreOut.model_fields)
    assert read.model_dump() == {
        "session_id": 's"1',
        "probability": probability,
        "events": 3,
        "model": "00" * 8,
        "outcome": outcome.word,
        "folded": False,
        "duplicate": True,
        "warnings": ["late"],
        # An answer contains a control group only where its rule says so
        "interventions": [
            {"name": "voucher", "group": "treatment", "probability": 0.25},
            {"name": "open", "group": "control", "probability": 0.25},
        ],
    }
