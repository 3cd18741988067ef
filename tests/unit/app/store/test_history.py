import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import CorruptRecordError
from app.store.history_codec import (
    NAMES,
    Entry,
    decode_events,
    decode_for_board,
    decode_history,
    decode_joined,
    encode_event,
    hundredths,
    properties_code,
    whole,
)
from app.store.interface import Commit, whole_history
from app.store.record_codec import Answers, Outcome, Record
from model.events import FIELDS, GA4_EVENT_NAMES, Event, PropertyValue

NOW_MS = 1_795_392_006_224
ONE_MODEL, OTHER_MODEL = "9f86d081884c7d65", "0011223344556677"
FACTS: dict[str, PropertyValue] = {"device": "mobile", "visits": 3.0, "new": True}
FULL = Event("view_item", NOW_MS, "SKU-1", "shoes", 59.5, 2.0, FACTS)
VERSION_1 = [
    (Event("page_view", 1), bytes.fromhex("930101a9706167655f76696577")),
    (
        FULL,
        bytes.fromhex(
            "9801cf000001a205b3e850a9766965775f6974656da5534b552d31a573686f6573cb404dc00000000000cb4000000000000000"
            "83a6646576696365a66d6f62696c65a6766973697473cb4008000000000000a36e6577c3"
        ),
    ),
]
VERSION_2 = [
    (Entry(Event("page_view", 1)), bytes.fromhex("930201a9706167655f76696577")),
    (Entry(Event("page_view", 1), 0.25), bytes.fromhex("940201a9706167655f76696577ce3e800000")),
    (
        Entry(FULL, 0.75, ONE_MODEL),
        bytes.fromhex(
            "9a02cf000001a205b3e850a9766965775f6974656dce3f400000a5534b552d31a573686f6573cb404dc00000000000cb4000000000"
            "00000083a6646576696365a66d6f62696c65a6766973697473cb4008000000000000a36e6577c3c4089f86d081884c7d65"
        ),
    ),
]
# A whole history in version 3: what is appended, and its bytes.
VERSION_3: list[tuple[dict[str, Any], Entry, str]] = [
    (
        {"probability": 0.75, "model": ONE_MODEL},
        Entry(FULL, 0.75, ONE_MODEL),
        """
        9a 03 cf000001a205b3e850 02 ce3f400000 a5534b552d31 a573686f6573 cd173e 02
        83 a6646576696365 a66d6f62696c65 a6766973697473 03 a36e6577 c3 c408 9f86d081884c7d65
        """,
    ),
    (
        {"probability": 0.25, "after_ms": NOW_MS, "repeats_properties": True},
        Entry(Event("page_view", NOW_MS + 9000, properties=FACTS), 0.25, ONE_MODEL),
        "93 05 cd2328 ce3e800000",
    ),
    # Late, and under a name of the shop's own
    (
        {"probability": 1.0, "after_ms": NOW_MS + 9000, "repeats_properties": True},
        Entry(Event("wheel", NOW_MS + 8000, price=0.1 + 0.2, properties=FACTS), 1.0, ONE_MODEL),
        "97 04 d1fc18 a5776865656c ce3f800000 c0 c0 cb3fd3333333333334",
    ),
    # Its properties are others, and its score is not known
    (
        {"after_ms": NOW_MS + 9000, "model": OTHER_MODEL},
        Entry(Event("search", NOW_MS + 9001), None, OTHER_MODEL),
        "99 08 01 c0 c0 c0 c0 c0 80 c408 0011223344556677",
    ),
    # One that stands alone within a history has no properties if it says none
    (
        {"probability": 0.0},
        Entry(Event("search", NOW_MS), 0.0, OTHER_MODEL),
        "94 03 cf000001a205b3e850 03 00",
    ),
]
GOLDEN_3 = [bytes.fromhex(text) for *_, text in VERSION_3]

amounts = st.none() | st.floats(0, 1e12) | st.integers(0, 10**7).map(lambda n: n / 100) | st.sampled_from([0.0, -0.0])
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
events = st.builds(
    Event,
    event_name=texts | st.sampled_from(NAMES),
    timestamp_ms=st.integers(-(2**53), 2**53) | st.integers(NOW_MS - 10**6, NOW_MS + 10**6),
    item_id=st.none() | texts,
    item_category=st.none() | texts,
    price=amounts,
    quantity=amounts,
    properties=st.dictionaries(
        texts, texts | st.booleans() | st.floats(-1e12, 1e12) | st.integers(-3, 3).map(float), max_size=4
    )
    | st.just({"device": "mobile"})
    | st.just({"device": "mobile", "new": True})
    | st.just({"device": "mobile", "new": 1.0}),
)


def exactly(event):
    """The event with all that an equal one may have otherwise: True == 1.0, and 0.0 == -0.0."""
    numbers = (event.price, event.quantity)
    return event, repr(numbers), {key: (type(value), repr(value)) for key, value in event.properties.items()}


def joined(entries):
    return b"\xdd" + len(entries).to_bytes(4, "big") + b"".join(entries)


def a_record(events_so_far):
    last = events_so_far[-1] if events_so_far else None
    return Record(
        version=b"12345678",
        model=ONE_MODEL,
        probability=0.5,
        events=len(events_so_far),
        first_seen_ms=NOW_MS,
        last_seen_ms=NOW_MS,
        last_event_ms=max([0, *(event.timestamp_ms for event in events_so_far)]),
        outcome=Outcome.OPEN,
        outcome_ms=0,
        answers=Answers(),
        state=b"state",
        properties_code=properties_code(last.properties) if last else 0,
    )


def test_version_3_writes_its_golden_bytes():
    written = [encode_event(entry.event, **known) for known, entry, _ in VERSION_3]
    assert [data.hex(" ") for data in written] == [data.hex(" ") for data in GOLDEN_3]


def test_version_3_reads_its_golden_bytes():
    assert decode_history(GOLDEN_3) == [entry for _, entry, _ in VERSION_3]
    assert [exactly(event) for event in decode_events(GOLDEN_3)] == [exactly(entry.event) for _, entry, _ in VERSION_3]


@pytest.mark.parametrize(("event", "data"), VERSION_1)
def test_version_1_is_still_read(event, data):
    assert decode_history([data]) == [Entry(event)]


@pytest.mark.parametrize(("entry", "data"), VERSION_2)
def test_version_2_is_still_read(entry, data):
    assert decode_history([data]) == [entry]


def test_a_history_of_all_versions_is_read_from_its_first_entry_on():
    # Given a session that lived through two releases, of which the last one goes on with what it knows of it
    older = [VERSION_1[1][1], VERSION_2[1][1], VERSION_2[2][1]]
    begun = [Event("page_view", NOW_MS), Event("search", NOW_MS - 1, properties=FACTS)]
    newer = [
        encode_event(begun[0], 0.5, OTHER_MODEL, after_ms=NOW_MS),
        encode_event(begun[1], 0.25, after_ms=NOW_MS),
        *GOLDEN_3,
    ]
    expected = [
        Entry(FULL),
        Entry(Event("page_view", 1), 0.25),
        Entry(FULL, 0.75, ONE_MODEL),
        Entry(begun[0], 0.5, OTHER_MODEL),
        Entry(begun[1], 0.25, OTHER_MODEL),
        *(entry for _, entry, _ in VERSION_3),
    ]
    # Then it reads the same from Redis' list and in one piece
    assert decode_history(older + newer) == expected
    assert decode_joined(joined(older + newer)) == expected


@given(st.lists(events, min_size=1, max_size=12), st.data())
def test_a_session_that_is_committed_bit_by_bit_comes_back_as_it_was(sent, data):
    # Given commits of one or more events each, some of which know nothing of what was before
    history: list[bytes] = []
    done = 0
    while done < len(sent):
        many = data.draw(st.integers(1, 3))
        before, appended = sent[:done], sent[done : done + many]
        done += len(appended)
        previous = a_record(before) if before else None
        commit = Commit(
            "a",
            previous and previous.version,
            a_record(sent[:done]),
            appended,
            [0.5] * len(appended),
            model=ONE_MODEL if data.draw(st.booleans()) else None,
            previous=previous if data.draw(st.integers(0, 4)) else None,
        )
        history += commit.entries()
    # Then every event comes back with every bit
    assert [exactly(event) for event in decode_events(history)] == [exactly(event) for event in sent]
    assert [entry.event for entry in decode_joined(joined(history))] == sent


def test_the_same_event_twice_is_there_twice():
    before, history = [FULL], encode_event(FULL, 0.5, ONE_MODEL)
    twice = Commit("a", b"12345678", a_record([FULL] * 3), [FULL] * 2, [0.25, 0.75], previous=a_record(before))
    assert decode_history([history, *twice.entries()]) == [
        Entry(FULL, 0.5, ONE_MODEL),
        Entry(FULL, 0.25, ONE_MODEL),
        Entry(FULL, 0.75, ONE_MODEL),
    ]


def test_a_record_of_an_older_release_is_continued_with_the_properties_in_full():
    # Given a record that does not know the code of its last event's properties
    older = msgspec.structs.replace(a_record([FULL]), properties_code=0)
    plain = Event("page_view", NOW_MS + 1)
    for following in (plain, Event("page_view", NOW_MS + 1, properties=FACTS)):
        commit = Commit("a", older.version, a_record([FULL, following]), [following], [0.5], previous=older)
        # Then the entry says them itself, also that there are none
        assert decode_events([VERSION_2[2][1], *commit.entries()]) == [FULL, following]


def test_an_entry_that_repeats_a_visitors_facts_is_short():
    following = Event("view_item", NOW_MS + 30_000, "SKU-1234", "category-12", 59.9, 1.0, FACTS)
    commit = Commit("a", b"12345678", a_record([FULL, following]), [following], [0.3], previous=a_record([FULL]))
    (entry,) = commit.entries()
    # Array, kind, time; score; item, category; price, quantity
    assert len(entry) == 1 + 1 + 3 + 5 + 9 + 12 + 3 + 1


@given(events, st.floats(0, 1, width=32))
def test_a_score_comes_back_to_the_last_bit_of_a_float32(event, probability):
    assert decode_history([encode_event(event, probability)]) == [Entry(event, probability)]


@given(events, st.floats(0, 1, width=32))
def test_name_score_and_item_stand_in_an_entry_alone(event, probability):
    stored = decode_for_board(encode_event(event, probability, after_ms=NOW_MS, repeats_properties=True))
    assert stored == (event.event_name, probability, event.item_id, event.currency)


@given(st.floats())
@pytest.mark.parametrize(("short", "long"), [(hundredths, 100), (whole, 1)])
def test_a_short_number_gives_back_every_bit(short, long, amount):
    written = short(amount)
    again = written / long if isinstance(written, int) else written
    assert math.isnan(again) if math.isnan(amount) else repr(float(again)) == repr(amount)


@pytest.mark.parametrize(("amount", "written"), [(0.0, 0), (0.01, 1), (59.9, 5990), (1e9, 10**11), (2.675, 2.675)])
def test_prices_are_hundredths(amount, written):
    assert hundredths(amount) == written
    assert type(hundredths(amount)) is type(written)


def test_every_well_known_name_has_its_number_for_good():
    assert len(set(NAMES)) == len(NAMES)
    assert set(NAMES) >= GA4_EVENT_NAMES
    # Numbers are stored: a new name goes to the end of the list.
    assert [NAMES.index(name) for name in ("page_view", "purchase", "add_to_wishlist", "view_search_results")] == [
        *(0, 10, 11, 26)
    ]


def test_properties_have_one_code_each():
    alike: list[dict[str, PropertyValue]] = [{}, {"a": 1.0}, {"a": True}, {"a": "1"}, {"b": 1.0}, {"a": 1.0, "b": 1.0}]
    codes = {properties_code(one) for one in alike}
    assert len(codes) == len(alike)
    assert 0 not in codes
    # Other processes, and later releases, know them again.
    assert properties_code({"device": "mobile"}) == 4782903013641436264


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        VERSION_1[1][1][:-1],
        VERSION_1[0][1] + b"\x00",
        GOLDEN_3[0][:-1],
        GOLDEN_3[0] + b"\x00",
        msgspec.msgpack.encode([1, "yesterday", "page_view"]),
        msgspec.msgpack.encode([1, 1]),
        msgspec.msgpack.encode({"codec_version": 1}),
        b"\x93\x01\x01\xa2\xff\xfe",
        # Scores that are no probabilities: -1, not a number, more than 32 bits
        msgspec.msgpack.encode([2, 1, "page_view", 0xBF800000]),
        msgspec.msgpack.encode([2, 1, "page_view", 0x7FC00000]),
        msgspec.msgpack.encode([3, 1, 0, 2**32]),
        msgspec.msgpack.encode([3, 1, 0, -1]),
        # A name that nobody has, an older version with a number for one, a time that is none
        msgspec.msgpack.encode([3, 1, len(NAMES)]),
        msgspec.msgpack.encode([3, 1, -1]),
        msgspec.msgpack.encode([2, 1, 0]),
        msgspec.msgpack.encode([3, 2**60, 0]),
        # A history that begins with what was before it
        *GOLDEN_3[1:4],
    ],
)
def test_other_bytes_are_corrupt(data):
    with pytest.raises(CorruptRecordError):
        decode_history([data])


@pytest.mark.parametrize("sign", [1, -1])
def test_times_are_read_as_far_as_floats_are_exact_on_either_side(sign):
    farthest = encode_event(Event("page_view", sign * 2**53))
    assert decode_events([farthest]) == [Event("page_view", sign * 2**53)]
    with pytest.raises(CorruptRecordError, match="time that is out of range"):
        decode_events([encode_event(Event("page_view", sign * (2**53 + 1)))])


@pytest.mark.parametrize(("counted", "stored"), [(2, 1), (2, 3), (0, 1)])
def test_a_history_of_another_length_than_the_record_counts_is_corrupt(counted, stored):
    events = [Event("page_view", number) for number in range(3)]
    record, events = a_record(events[:counted]), events[:stored]
    with pytest.raises(CorruptRecordError, match=f"counts {counted} events and the history has {stored}"):
        whole_history(record, events)
    assert whole_history(a_record(events), events) == events


def test_a_time_that_runs_away_is_corrupt():
    with pytest.raises(CorruptRecordError, match="time"):
        decode_history([GOLDEN_3[0], msgspec.msgpack.encode([5, 2**53])])


@pytest.mark.parametrize(
    "data",
    [b"", joined(GOLDEN_3[1:]), joined(GOLDEN_3)[:-1], joined(GOLDEN_3) + b"\x00", b"\x91\x01", b"\x81\x01\x01"],
)
def test_another_history_in_one_piece_is_corrupt(data):
    with pytest.raises(CorruptRecordError):
        decode_joined(data)


def test_another_kind_is_named():
    unknown = 5 + len(NAMES)
    with pytest.raises(CorruptRecordError, match=f"kind {unknown}; this release reads kinds 1 to {unknown - 1}"):
        decode_for_board(msgspec.msgpack.encode([unknown, 1]))


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("known", [{}, {"after_ms": NOW_MS, "repeats_properties": True}, {"model": OTHER_MODEL}])
def test_every_field_of_the_table_is_stored(field, known):
    value: Any = "x" if field.kind == "text" else 2.5
    event = Event("view_item", NOW_MS, properties=FACTS, **{field.name: value})
    before = [] if "model" in known or not known else [encode_event(FULL)]
    assert decode_events([*before, encode_event(event, **known)])[-1] == event
