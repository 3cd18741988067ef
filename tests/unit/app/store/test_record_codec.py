from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from app.errors import CorruptRecordError
from app.store.record_codec import Answer, Answers, Outcome, Record, decode_record, encode_record
from model.interventions.decide import Decision, Decisions, Group

MODEL, OTHER_MODEL = "0011223344556677", "8899aabbccddeeff"
ANSWER = Answer(0.25, 2, MODEL, Outcome.OPEN, folded=True)
BOUGHT = Answer(0.25, 2, MODEL, Outcome.PURCHASE, folded=False)


def a_record(**changes):
    fields: dict[str, Any] = {
        "version": bytes(range(1, 9)),
        "model": MODEL,
        "probability": 0.25,
        "events": 2,
        "first_seen_ms": 1_000_000_000_000,
        "last_seen_ms": 1_000_000_000_001,
        "last_event_ms": 1_000_000_000_002,
        "outcome": Outcome.OPEN,
        "outcome_ms": 0,
        "answers": Answers().with_answer(7, ANSWER, 64),
        "state": b"state",
        "properties_code": 0x0102030405060708,
    }
    return Record(**(fields | changes))


def a_closed_record(**changes):
    return a_record(
        **changes,
        outcome=Outcome.PURCHASE,
        outcome_ms=1_000_000_000_003,
        answers=Answers().with_answer(7, ANSWER, 64).with_answer(8, BOUGHT, 64),
    )


# Records of every codec version there ever was: what is in Redis when a release is rolled out must stay readable.
VERSION_1 = bytes.fromhex(
    "0101020304050607080011223344556677000000000000d03f020000000010a5d4e80000000110a5d4e80000000210a5d4e80000"
    "0000000000000000000001010500000000112233445566770700000000000000000000000000d03f020000000000017374617465"
)
VERSION_2 = {
    "compact": (
        a_record(),
        """
        02 0102030405060708 0011223344556677 00 0200 0010a5d4e8000000 01000000 02000000 01 0500
        0807060504030201  0700000000000000 0000803e  7374617465
        """,
    ),
    "closed by the shop": (
        a_record(outcome=Outcome.NONE, outcome_ms=1_000_000_000_003),
        """
        02 0102030405060708 0011223344556677 06 000000000000d03f 02000000 0010a5d4e8000000 0110a5d4e8000000
        0210a5d4e8000000 0310a5d4e8000000 01 05000000 0807060504030201  0700000000000000 0000803e  7374617465
        """,
    ),
    "bought": (
        a_closed_record(),
        """
        02 0102030405060708 0011223344556677 0d 000000000000d03f 02000000 0010a5d4e8000000 0110a5d4e8000000
        0210a5d4e8000000 0310a5d4e8000000 02 05000000 0807060504030201  01 0011223344556677
        0700000000000000 000000000000d03f 02000000 00 00 01
        0800000000000000 000000000000d03f 02000000 00 01 00  7374617465
        """,
    ),
    "of two models": (
        a_record(
            answers=Answers()
            .with_answer(7, replace(ANSWER, model=OTHER_MODEL, events=1), 64)
            .with_answer(8, ANSWER, 64)
        ),
        """
        02 0102030405060708 0011223344556677 0c 000000000000d03f 02000000 0010a5d4e8000000 0110a5d4e8000000
        0210a5d4e8000000 0000000000000000 02 05000000 0807060504030201  02 8899aabbccddeeff 0011223344556677
        0700000000000000 000000000000d03f 01000000 00 00 01
        0800000000000000 000000000000d03f 02000000 01 00 01  7374617465
        """,
    ),
}
VERSION_3 = {
    "compact": (
        a_record(history_bytes=225_444),
        """
        03 0102030405060708 0011223344556677 00 0200 0010a5d4e8000000 01000000 02000000 01 0500
        0807060504030201 a4700300  0700000000000000 0000803e  7374617465
        """,
    ),
    "closed by the shop": (
        a_record(history_bytes=225_444, outcome=Outcome.NONE, outcome_ms=1_000_000_000_003),
        """
        03 0102030405060708 0011223344556677 06 000000000000d03f 02000000 0010a5d4e8000000 0110a5d4e8000000
        0210a5d4e8000000 0310a5d4e8000000 01 05000000 0807060504030201 a4700300  0700000000000000 0000803e  7374617465
        """,
    ),
    "bought": (
        a_closed_record(history_bytes=225_444),
        """
        03 0102030405060708 0011223344556677 0d 000000000000d03f 02000000 0010a5d4e8000000 0110a5d4e8000000
        0210a5d4e8000000 0310a5d4e8000000 02 05000000 0807060504030201 a4700300  01 0011223344556677
        0700000000000000 000000000000d03f 02000000 00 00 01
        0800000000000000 000000000000d03f 02000000 00 01 00  7374617465
        """,
    ),
    "of two models": (
        a_record(
            history_bytes=225_444,
            answers=Answers()
            .with_answer(7, replace(ANSWER, model=OTHER_MODEL, events=1), 64)
            .with_answer(8, ANSWER, 64),
        ),
        """
        03 0102030405060708 0011223344556677 0c 000000000000d03f 02000000 0010a5d4e8000000 0110a5d4e8000000
        0210a5d4e8000000 0000000000000000 02 05000000 0807060504030201 a4700300  02 8899aabbccddeeff 0011223344556677
        0700000000000000 000000000000d03f 01000000 00 00 01
        0800000000000000 000000000000d03f 02000000 01 00 01  7374617465
        """,
    ),
}
DECISIONS = Decisions(
    [
        Decision("voucher", Group.TREATMENT, 0.25, 2, 1_000_000_000_002),
        Decision("chat", Group.CONTROL, 0.5, 1, 1_000_000_000_000, idle=True, told=False),
    ]
)
# As version 3, and then what rules know: 2 bytes of size, the facts, and the decisions as MessagePack.
VERSION_4 = {
    "compact, with facts": (
        a_record(history_bytes=225_444, facts=b"facts"),
        """
        04 0102030405060708 0011223344556677 00 0200 0010a5d4e8000000 01000000 02000000 01 0500
        0807060504030201 a4700300  0700000000000000 0000803e  7374617465  0500 6661637473 90
        """,
    ),
    "closed by the shop, with decisions": (
        a_record(history_bytes=225_444, outcome=Outcome.NONE, outcome_ms=1_000_000_000_003, decisions=DECISIONS),
        """
        04 0102030405060708 0011223344556677 06 000000000000d03f 02000000 0010a5d4e8000000 0110a5d4e8000000
        0210a5d4e8000000 0310a5d4e8000000 01 05000000 0807060504030201 a4700300  0700000000000000 0000803e  7374617465
        0000 92 97 a7766f7563686572 00 cb3fd0000000000000 02 cf000000e8d4a51002 c2 c3
        97 a463686174 01 cb3fe0000000000000 01 cf000000e8d4a51000 c3 c2
        """,
    ),
}
GOLDEN = [
    VERSION_1,
    *(bytes.fromhex(text) for _, text in (*VERSION_2.values(), *VERSION_3.values(), *VERSION_4.values())),
]


@pytest.mark.parametrize(("record", "text"), VERSION_2.values(), ids=VERSION_2)
def test_version_2_is_still_read_and_written_again_in_version_3(record, text):
    assert decode_record(bytes.fromhex(text)) == record
    again = encode_record(record)
    assert again[0] == 3
    assert decode_record(again) == record


@pytest.mark.parametrize(("record", "text"), VERSION_4.values(), ids=VERSION_4)
def test_version_4_reads_and_writes_its_golden_bytes(record, text):
    assert encode_record(record).hex() == bytes.fromhex(text).hex()
    assert decode_record(bytes.fromhex(text)) == record


@pytest.mark.parametrize(("record", "text"), VERSION_3.values(), ids=VERSION_3)
def test_version_3_reads_and_writes_its_golden_bytes(record, text):
    assert encode_record(record).hex() == bytes.fromhex(text).hex()
    assert decode_record(bytes.fromhex(text)) == record


def test_version_1_is_still_read_and_written_again_in_version_3():
    record = decode_record(VERSION_1)
    assert replace(record, answers=Answers()) == a_record(answers=Answers(), properties_code=0)
    assert record.answers.find(7) == ANSWER
    assert len(record.answers) == 1

    again = encode_record(record)
    assert again[0] == 3
    assert decode_record(again) == record

    grown = replace(record, events=3, answers=record.answers.with_answer(8, replace(ANSWER, events=3), 64))
    found = decode_record(encode_record(grown)).answers
    assert [found.find(7), found.find(8)] == [ANSWER, replace(ANSWER, events=3)]


@pytest.mark.parametrize(
    "changes",
    [{"model": OTHER_MODEL}, {"events": 3}, {"events": 1}, {"model": OTHER_MODEL, "events": 9}],
    ids=["another model", "an event more", "an event less", "both"],
)
def test_answers_are_not_those_of_the_record_where_it_has_gone_on_without_them(changes):
    # Given two answers to a session that was then rebuilt for another model, or whose count has changed
    one, two = replace(ANSWER, events=1), replace(ANSWER, events=2)
    answers = Answers().with_answer(7, one, 64).with_answer(8, two, 64)
    assert not answers.is_wide
    record = a_record(**{"events": 2, "answers": answers, "probability": two.probability} | changes)
    # Then they come back as they were given, each by its model and with its number
    found = decode_record(encode_record(record))
    assert [found.answers.find(7), found.answers.find(8)] == [one, two]
    assert replace(found, answers=answers) == record


FIRST_MS = 1_795_392_000_000


@pytest.mark.parametrize(
    ("changes", "is_compact"),
    [
        ({"events": 65_535}, True),
        ({"events": 65_536}, False),
        ({"last_seen_ms": FIRST_MS}, True),
        ({"last_seen_ms": FIRST_MS + 2**32 - 1}, True),
        ({"last_seen_ms": FIRST_MS + 2**32}, False),
        ({"last_seen_ms": FIRST_MS - 1}, False),
        ({"last_event_ms": FIRST_MS - 1}, True),
        ({"last_event_ms": FIRST_MS - 2**31}, True),
        ({"last_event_ms": FIRST_MS - 2**31 - 1}, False),
        ({"last_event_ms": FIRST_MS + 2**31 - 1}, True),
        ({"last_event_ms": FIRST_MS + 2**31}, False),
        ({"state": b"s" * 65_535}, True),
        ({"state": b"s" * 65_536}, False),
        ({"probability": 0.0}, True),
        ({"probability": 1.0}, True),
        ({"probability": 0.1}, False),
        ({"properties_code": 2**64 - 1}, True),
        ({"history_bytes": 2**32 - 1}, True),
    ],
    ids=str,
)
def test_a_record_is_compact_up_to_the_limits_of_its_fields_and_wide_beyond(changes, is_compact):
    probability, events = changes.get("probability", 0.25), changes.get("events", 2)
    answers = Answers().with_answer(7, replace(ANSWER, probability=probability, events=events), 64)
    times = {"first_seen_ms": FIRST_MS, "last_seen_ms": FIRST_MS + 5, "last_event_ms": FIRST_MS + 3}
    record = a_record(**(times | {"answers": answers, "events": events, "probability": probability} | changes))
    data = encode_record(record)
    assert (data[17] == 0) is is_compact
    assert decode_record(data) == record


@pytest.mark.parametrize("events", [1, 2, 8])
def test_a_session_may_have_an_answer_for_each_of_its_events(events):
    answers = Answers()
    for number in range(1, events + 1):
        answers = answers.with_answer(number, replace(ANSWER, events=number), 8)
    record = a_record(events=events, answers=answers)
    assert decode_record(encode_record(record)) == record


@pytest.mark.parametrize("count", [254, 255, 256, 257, 600])
def test_as_many_models_may_answer_as_the_window_is_long(count):
    given = {number: replace(ANSWER, events=number, model=f"{number:016x}") for number in range(1, count + 1)}
    answers = Answers()
    for number, answer in given.items():
        answers = answers.with_answer(number, answer, 255)
    record = a_record(events=count, model=f"{count:016x}", answers=answers)
    found = decode_record(encode_record(record)).answers
    assert [found.find(number) for number in given] == [
        answer if number > count - 255 else None for number, answer in given.items()
    ]


@pytest.mark.parametrize(
    ("at", "value"), [(-3, 2), (-3, 255), (-2, 3), (-2, 255)], ids=["model", "no", "outcome", "no"]
)
def test_an_answer_of_an_unknown_model_or_outcome_is_corrupt(at, value):
    # Given two wide answers of two models, of which the bytes before the state are the last one's
    answers = Answers().with_answer(7, replace(ANSWER, model=OTHER_MODEL), 64).with_answer(8, BOUGHT, 64)
    data = bytearray(encode_record(a_record(answers=answers, state=b"")))
    assert decode_record(bytes(data)).answers.find(8) == BOUGHT
    data[at] = value
    with pytest.raises(CorruptRecordError, match="name a model, an outcome or an event that does not exist"):
        decode_record(bytes(data))


def test_an_unknown_outcome_of_the_session_is_named():
    data = bytearray(encode_record(a_closed_record()))
    data[17] |= 0b11
    with pytest.raises(CorruptRecordError, match="unknown outcome, 3"):
        decode_record(bytes(data))


def test_a_session_of_ten_events_takes_51_bytes_and_12_for_each_answer():
    answers = Answers()
    for events in range(1, 11):
        answers = answers.with_answer(-events, replace(ANSWER, events=events), 64)
    assert len(encode_record(a_record(events=10, answers=answers, state=b""))) == 51 + 10 * 12


times_ms = st.integers(-(2**53), 2**53) | st.integers(1_795_392_006_224 - 2**33, 1_795_392_006_224 + 2**33)


@given(
    probability=st.none() | st.floats(0, 1) | st.floats(0, 1, width=32),
    events=st.integers(0, 2**32 - 1) | st.integers(65_534, 65_537),
    times=st.tuples(*[times_ms] * 3),
    state=st.binary(max_size=600) | st.just(b"s" * 65_536),
    outcome=st.sampled_from(Outcome),
    outcome_ms=st.just(0) | times_ms,
    answers=st.lists(
        st.tuples(st.integers(-(2**63), 2**63 - 1), st.booleans(), st.sampled_from([MODEL, MODEL, OTHER_MODEL])),
        max_size=20,
    ),
    properties_code=st.integers(0, 2**64 - 1),
    history_bytes=st.integers(0, 2**32 - 1),
)
def test_every_record_comes_back_as_it_was(
    probability, events, times, state, outcome, outcome_ms, answers, properties_code, history_bytes
):
    kept, count = Answers(), max(0, events - len(answers))
    for code, folded, model in answers:
        count += folded
        kept = kept.with_answer(code, Answer(probability, count, model, outcome, folded=folded), 10)
    record = a_record(
        probability=probability,
        events=events,
        first_seen_ms=times[0],
        last_seen_ms=times[1],
        last_event_ms=times[2],
        outcome=outcome,
        outcome_ms=outcome_ms,
        answers=kept,
        state=state,
        properties_code=properties_code,
        history_bytes=history_bytes,
    )

    found = decode_record(encode_record(record))

    # What is not the record's own model or number takes the other form, and says the same.
    assert replace(found, answers=kept) == record
    assert [found.answers.find(code) for code, *_ in answers] == [kept.find(code) for code, *_ in answers]
    assert decode_record(encode_record(found)) == found


@pytest.mark.parametrize("golden", GOLDEN)
def test_truncated_or_longer_bytes_are_corrupt(golden):
    for length in [*range(len(golden)), len(golden) + 1]:
        with pytest.raises(CorruptRecordError):
            decode_record((golden + b"x")[:length])


def test_another_codec_version_is_named():
    with pytest.raises(CorruptRecordError, match="codec version 5; this release reads versions 1 to 4"):
        decode_record(b"\x05" + GOLDEN[1][1:])


@pytest.mark.parametrize(
    ("golden", "flags"),
    [
        (1, 0b0001),
        (1, 0b0100),
        (1, 0b10000),
        (2, 0),
        (2, 0b0010),
        (2, 0b0111),
        (2, 0b1110),
        (3, 0b0101),
        (3, 0b11101),
        (5, 0b0100),
        (6, 0),
    ],
)
def test_flags_that_contradict_the_rest_are_corrupt(golden, flags):
    damaged = bytearray(GOLDEN[golden])
    damaged[17] = flags
    with pytest.raises(CorruptRecordError):
        decode_record(bytes(damaged))


def test_more_compact_answers_than_events_are_corrupt():
    damaged = bytearray(GOLDEN[1])
    damaged[18] = 0
    with pytest.raises(CorruptRecordError):
        decode_record(bytes(damaged))


@given(st.sampled_from([1, 2, 3]), st.binary(max_size=200))
def test_garbage_is_corrupt_and_never_crashes(version, garbage):
    with pytest.raises(CorruptRecordError):
        decode_record(bytes((version,)) + garbage)


@given(golden=st.sampled_from(GOLDEN), position=st.integers(1, max(map(len, GOLDEN)) - 1), value=st.integers(0, 255))
def test_a_damaged_byte_gives_a_record_that_can_be_used_or_is_corrupt(golden, position, value):
    damaged = bytearray(golden)
    damaged[position % len(golden)] = value
    try:
        record = decode_record(bytes(damaged))
    except CorruptRecordError:
        return
    assert record.probability is None or 0 <= record.probability <= 1
    record.answers.find(7)
    record.answers.with_answer(9, BOUGHT, 4).find(7)
    # Read again by the same release or by another one
    assert decode_record(encode_record(record)) == record
