from itertools import islice

import pytest
from msgspec.structs import fields, replace

from app.outcomes.record_outcome import with_outcome
from app.scoring.events import QueuedEvent
from app.scoring.session_update import (
    Disposition,
    PendingEvent,
    SessionUpdate,
    random_versions,
    updates_by_session,
    with_fold,
    without_fold,
)
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


def an_update(loaded, *events, probability=0.5, model=MODEL):
    """What a batch makes of a session: its events are folded, purchases and what follows them are not."""
    pending = [PendingEvent(one, index) for index, one in enumerate(events)]
    update = SessionUpdate("s", pending, loaded=loaded, current=loaded)
    for each in pending:
        one, record = each.queued, update.current
        if one.is_purchase or (record is not None and record.outcome is not Outcome.OPEN):
            following, answer = without_fold(record, one, version=bytes(8), model=model, window=8)
            update.apply(each, Disposition.PURCHASE, following, answer)
        else:
            following, answer = with_fold(
                record, one, version=bytes(8), model=model, probability=probability, state=b"state", window=8
            )
            update.apply(each, Disposition.FOLD, following, answer)
            update.appended.append(one.event)
            update.probabilities.append(probability)
    return update


def committed(read, *events, probability=0.5, model=MODEL):
    """The record and the history entries of a commit of events that are folded."""
    commit = an_update(read, *events, probability=probability, model=model).commit()
    return decode_record(encode_record(commit.record)), commit.entries()


def rebuilt(record, model):
    """The record as a rebuild leaves it: of another model, and loaded as it was."""
    return replace(record, model=model, state=b"other")


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


def test_of_events_that_are_committed_together_the_first_alone_names_the_model():
    _, entries = committed(None, queued(), queued(code=2), queued(code=3))
    assert [len(entry) for entry in entries[1:]] == [8, 8]
    assert [one.model for one in decode_history(entries)] == [MODEL] * 3


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


# --- the commit, whole


def test_a_commit_of_a_new_session_names_its_model_and_continues_nothing():
    events = [queued(), queued(code=2)]
    update = an_update(None, *events)
    commit = update.commit()
    assert replace(commit, encoded=None) == Commit(
        session_id="s",
        expected=None,
        record=replace(update.current, history_bytes=sum(map(len, commit.entries()))),
        appended=[one.event for one in events],
        probabilities=[0.5, 0.5],
        model=MODEL,
        closed_by=None,
        previous=None,
    )


def test_a_commit_continues_the_record_that_was_read_and_names_no_model_twice():
    loaded = replace(folded(None, queued()), version=b"version1")
    update = an_update(loaded, queued(code=2))
    commit = update.commit()
    assert replace(commit, encoded=None) == Commit(
        session_id="s",
        expected=b"version1",
        record=replace(update.current, history_bytes=sum(map(len, commit.entries()))),
        appended=[queued().event],
        probabilities=[0.5],
        model=None,
        closed_by=None,
        previous=loaded,
    )


def test_after_a_reload_a_commit_names_the_new_model():
    # Given a record of the model before, whose state was made anew for the current one
    loaded = folded(None, queued())
    update = an_update(rebuilt(loaded, OTHER_MODEL), queued(code=2), model=OTHER_MODEL)
    update.loaded = loaded
    assert update.commit().model == OTHER_MODEL
    assert update.commit().previous == loaded
    # And the next one does not name it again
    assert an_update(update.current, queued(code=3), model=OTHER_MODEL).commit().model is None


@pytest.mark.parametrize("is_new", [True, False])
def test_a_purchase_closes_its_session_in_one_commit_and_no_later_one_does_again(is_new):
    loaded = None if is_new else folded(None, queued())
    bought = an_update(loaded, queued("purchase", code=2)).commit()
    assert (bought.closed_by, bought.appended, bought.probabilities) == ("event", [], [])
    for again in ("page_view", "purchase"):
        after = an_update(bought.record, queued(again, code=3)).commit()
        assert (after.closed_by, after.appended, after.expected) == (None, [], bought.record.version)
        assert after.record.outcome is Outcome.PURCHASE


def test_a_session_that_the_shop_has_closed_is_not_closed_again_by_an_event():
    closed = with_outcome(folded(None, queued()), Outcome.NONE, outcome_ms=5)
    for name in ("page_view", "purchase"):
        after = an_update(closed, queued(name, code=2)).commit()
        assert after.closed_by is None
        assert (after.record.outcome, after.record.outcome_ms) == (Outcome.NONE, 5)


def test_a_purchase_is_answered_by_the_model_whose_score_it_repeats():
    # Given a session of one model, and another one loaded since
    record = folded(None, queued())
    bought, answer = without_fold(record, queued("purchase", code=2), version=bytes(8), model=OTHER_MODEL, window=8)
    assert (answer.model, bought.model) == (MODEL, MODEL)
    # Only a session that begins with it has the model in use
    _, answer = without_fold(None, queued("purchase"), version=bytes(8), model=OTHER_MODEL, window=8)
    assert (answer.model, answer.probability, answer.events) == (OTHER_MODEL, None, 0)


def test_an_attempt_that_is_discarded_leaves_nothing_of_it():
    loaded = folded(None, queued())
    update = an_update(loaded, queued(code=2), queued("purchase", code=3))
    # What outlives an attempt; tokens are used again
    kept = {"session_id": "s", "pending": update.pending, "tokens": {"r": 1}, "conflicts": 2, "is_decided": False}
    for field in fields(SessionUpdate):
        setattr(update, field.name, kept.get(field.name, "of this attempt"))
    update.reset()
    fresh = [PendingEvent(one.queued, one.index) for one in update.pending]
    assert update == SessionUpdate(**kept | {"pending": fresh})


def test_a_new_visit_whose_first_event_failed_leaves_the_record_as_it_was():
    # Given a session that has bought, and a commit that only confirms an answer of it
    bought = an_update(folded(None, queued()), queued("purchase", code=2)).commit().record
    again, failed = queued(code=1), queued(code=3)
    update = SessionUpdate("s", [PendingEvent(again, 0), PendingEvent(failed, 1)], loaded=bought, current=bought)
    update.restart(failed, MODEL)
    commit = update.commit()
    assert (commit.record, commit.expected) == (bought, bought.version)
    assert not commit.restarts
    assert (commit.closed_by, commit.appended) == (None, [])


@pytest.mark.parametrize(
    ("dropped", "holds", "is_decided"),
    [({0}, False, False), ({1}, True, False), ({0, 1}, False, True), ({7}, True, False)],
)
def test_a_dropped_event_has_its_error_and_the_record_holds_unless_it_had_changed_it(dropped, holds, is_decided):
    # Given an event that is folded, and one that gets the stored answer of an earlier one
    update = an_update(None, queued(), queued(code=2))
    update.pending[1].disposition = Disposition.DUPLICATE
    both, error = list(update.pending), TimeoutError("gone")
    assert update.drop(dropped, error) is holds
    assert update.is_decided is is_decided
    assert [one.result for one in both] == [error if one.index in dropped else None for one in both]
    assert update.pending == [one for one in both if one.index not in dropped]


def test_events_are_grouped_by_session_in_their_order():
    events = [queued(code=code) for code in range(4)]
    events[1] = replace(events[1], session_id="t")
    pending = [PendingEvent(one, index) for index, one in enumerate(events)]
    grouped = updates_by_session(pending)
    assert [(one.session_id, one.pending) for one in grouped] == [
        ("s", [pending[0], pending[2], pending[3]]),
        ("t", [pending[1]]),
    ]


# --- clocks: the server's, the event's, and the one of another replica


def timed(event_name="page_view", *, server_ms, event_ms, code=1):
    return QueuedEvent("s", Event(event_name, event_ms), code=code, has_event_id=True, received_ms=server_ms)


def times(record):
    return record.first_seen_ms, record.last_seen_ms, record.last_event_ms, record.outcome_ms


def test_a_session_is_seen_by_the_servers_clock_and_continued_by_the_events():
    # Given a browser whose clock is an hour ahead
    first = folded(None, timed(server_ms=1000, event_ms=3_601_000))
    assert times(first) == (1000, 1000, 3_601_000, 0)
    later = folded(first, timed(server_ms=2000, event_ms=3_600_500, code=2))
    assert times(later) == (1000, 2000, 3_601_000, 0)
    # When another replica, whose clock is behind, folds an event, then nothing goes back
    behind = folded(later, timed(server_ms=900, event_ms=3_603_000, code=3))
    assert times(behind) == (1000, 2000, 3_603_000, 0)


@pytest.mark.parametrize(("server_ms", "seen_ms"), [(2000, 2000), (900, 1000)])
def test_a_purchase_is_seen_when_it_came_and_dated_when_it_was(server_ms, seen_ms):
    first = folded(None, timed(server_ms=1000, event_ms=3_601_000))
    purchase = timed("purchase", server_ms=server_ms, event_ms=3_605_000, code=2)
    bought, _ = without_fold(first, purchase, version=bytes(8), model=MODEL, window=8)
    assert times(bought) == (1000, seen_ms, 3_601_000, 3_605_000)
    # What follows moves when it was seen last, and neither the purchase's time nor what its history is continued by
    for name in ("page_view", "purchase"):
        event = timed(name, server_ms=server_ms + 5000, event_ms=9_999_999, code=3)
        after, _ = without_fold(bought, event, version=bytes(8), model=MODEL, window=8)
        assert times(after) == (1000, server_ms + 5000, 3_601_000, 3_605_000)


def test_a_session_that_begins_with_its_purchase_has_folded_no_time():
    purchase = timed("purchase", server_ms=1000, event_ms=3_601_000)
    bought, _ = without_fold(None, purchase, version=bytes(8), model=MODEL, window=8)
    assert times(bought) == (1000, 1000, 0, 3_601_000)


def test_an_outcome_by_a_call_is_dated_by_the_call_and_no_visit():
    first = folded(None, timed(server_ms=1000, event_ms=3_601_000))
    assert times(with_outcome(first, Outcome.NONE, outcome_ms=7)) == (1000, 1000, 3_601_000, 7)
