from itertools import islice

import pytest

from app.outcomes.record_outcome import with_outcome
from app.scoring.events import QueuedEvent
from app.scoring.session_update import random_versions, with_fold, without_fold
from app.store.history_codec import decode_history, properties_code
from app.store.interface import Commit
from app.store.record_codec import Outcome, decode_record, encode_record
from model.events import Event, PropertyValue

NOW_MS = 1_795_392_000_000
MODEL, OTHER_MODEL = "ab" * 8, "cd" * 8
FACTS: dict[str, PropertyValue] = {"device": "mobile", "visits": 2.0}


def queued(event_name="page_view", *, at_ms=NOW_MS, code=1, properties=FACTS):
    event = Event(event_name, at_ms, properties=properties)
    return QueuedEvent("s", event, code=code, has_event_id=True, received_ms=NOW_MS)


def folded(record, one, probability=0.5, model=MODEL):
    return with_fold(record, one, version=bytes(8), model=model, probability=probability, state=b"state", window=8)[0]


def committed(read, *events, probability=0.5, model=MODEL):
    """The record and the history entries of a commit of events that are folded."""
    record = read
    for one in events:
        record = folded(record, one, probability, model)
    commit = Commit(
        "s",
        read and read.version,
        record,
        [one.event for one in events],
        [probability] * len(events),
        model=None if read and read.model == model else model,
        previous=read,
    )
    return decode_record(encode_record(record)), commit.entries()


def test_what_a_session_repeats_stands_in_its_history_once():
    # Given a session of one visitor, committed event by event and several at once
    sent = [queued(code=number, at_ms=NOW_MS + 1000 * number) for number in range(5)]
    record, entries = committed(None, sent[0])
    for some in (sent[1:2], sent[2:4], sent[4:]):
        record, more = committed(record, *some)
        entries += more
    # Then the model and the properties stand in the first entry, which alone is long
    assert [len(entry) for entry in entries[1:]] == [10] * 4
    assert len(entries[0]) > 40
    assert [(one.event, one.model) for one in decode_history(entries)] == [(one.event, MODEL) for one in sent]


def test_another_model_and_other_properties_are_said_where_they_begin():
    sent = [queued(code=number, properties=FACTS if number < 2 else {"device": "tablet"}) for number in range(4)]
    record, first = committed(None, sent[0])
    record, second = committed(record, *sent[1:3], model=OTHER_MODEL)
    _, third = committed(record, sent[3], model=OTHER_MODEL)
    history = decode_history(first + second + third)
    assert [one.model for one in history] == [MODEL, *[OTHER_MODEL] * 3]
    assert [one.event for one in history] == [one.event for one in sent]


def test_a_record_knows_the_last_folded_events_properties_and_largest_time():
    first = folded(None, queued())
    assert (first.properties_code, first.last_event_ms) == (properties_code(FACTS), NOW_MS)
    late = folded(first, queued(code=2, at_ms=NOW_MS - 5, properties={}))
    assert (late.properties_code, late.last_event_ms) == (properties_code({}), NOW_MS)


@pytest.mark.parametrize("end", ["purchase", "said"])
def test_what_is_not_folded_leaves_what_the_history_is_continued_by(end):
    first = folded(None, queued())
    if end == "purchase":
        closed, _ = without_fold(
            first,
            queued("purchase", code=2, at_ms=NOW_MS + 5, properties={}),
            version=bytes(8),
            model=MODEL,
            window=8,
        )
    else:
        closed = with_outcome(first, Outcome.NONE, outcome_ms=NOW_MS + 5)
    assert (closed.properties_code, closed.last_event_ms) == (first.properties_code, NOW_MS)
    assert decode_record(encode_record(closed)) == closed


def test_a_purchase_is_answered_again_with_the_score_before_it():
    # Given a session whose score is no float32, as a model on another device might have it
    record = folded(None, queued(), probability=1 / 3)
    bought, answer = without_fold(record, queued("purchase", code=2), version=bytes(8), model=MODEL, window=8)
    found = decode_record(encode_record(bought)).answers
    assert (answer.probability, answer.events, answer.outcome) == (1 / 3, 1, Outcome.PURCHASE)
    assert found.find(2) == answer
    again = found.find(1)
    assert again is not None
    assert (again.probability, again.outcome, again.folded) == (1 / 3, Outcome.OPEN, True)


def test_versions_go_on_without_end_and_none_comes_twice():
    # More than are drawn at a time
    versions = list(islice(random_versions(3), 20))
    assert {len(version) for version in versions} == {8}
    assert len(set(versions)) == 20
