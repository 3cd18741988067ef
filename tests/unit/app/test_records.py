import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import CorruptRecordError
from app.stores.records import Answer, Answers, Outcome, Record, decode_record, encode_record

# One record of every codec version there ever was: what is in Redis when a release is rolled out must stay readable.
GOLDEN = {
    1: bytes.fromhex(
        "0101020304050607080011223344556677000000000000d03f020000000010a5d4e80000000110a5d4e80000000210a5d4e80000"
        "0000000000000000000001010500000000112233445566770700000000000000000000000000d03f020000000000017374617465"
    )
}


def a_record(**changes):
    answer = Answer(0.25, 2, "0011223344556677", Outcome.OPEN, folded=True)
    fields: dict[str, Any] = {
        "version": bytes(range(1, 9)),
        "model": "0011223344556677",
        "probability": 0.25,
        "events": 2,
        "first_seen_ms": 1_000_000_000_000,
        "last_seen_ms": 1_000_000_000_001,
        "last_event_ms": 1_000_000_000_002,
        "outcome": Outcome.OPEN,
        "outcome_ms": 0,
        "answers": Answers().with_answer(7, answer, 64),
        "state": b"state",
    }
    return Record(**(fields | changes))


def test_version_1_reads_and_writes_its_golden_bytes():
    assert encode_record(a_record()) == GOLDEN[1]
    assert decode_record(GOLDEN[1]) == a_record()


@given(
    probability=st.none() | st.floats(0, 1),
    events=st.integers(0, 2**32 - 1),
    times=st.tuples(*[st.integers(-(2**53), 2**53)] * 3),
    state=st.binary(max_size=600),
    outcome=st.sampled_from(Outcome),
    codes=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20),
)
def test_every_record_comes_back_as_it_was(probability, events, times, state, outcome, codes):
    answers = Answers()
    for code in codes:
        answers = answers.with_answer(code, Answer(probability, events, "ff" * 8, outcome, folded=False), 10)
    record = a_record(
        probability=probability,
        events=events,
        first_seen_ms=times[0],
        last_seen_ms=times[1],
        last_event_ms=times[2],
        outcome=outcome,
        answers=answers,
        state=state,
    )
    assert decode_record(encode_record(record)) == record


@pytest.mark.parametrize("length", [*range(len(GOLDEN[1])), len(GOLDEN[1]) + 1])
def test_truncated_or_longer_bytes_are_corrupt(length):
    with pytest.raises(CorruptRecordError):
        decode_record((GOLDEN[1] + b"x")[:length])


def test_another_codec_version_is_named():
    with pytest.raises(CorruptRecordError, match="codec version 2"):
        decode_record(b"\x02" + GOLDEN[1][1:])


@given(st.binary(max_size=200))
def test_garbage_is_corrupt_and_never_crashes(garbage):
    with pytest.raises(CorruptRecordError):
        decode_record(b"\x01" + garbage)


@given(position=st.integers(1, len(GOLDEN[1]) - 1), value=st.integers(0, 255))
def test_a_damaged_byte_gives_a_record_that_can_be_used_or_is_corrupt(position, value):
    damaged = bytearray(GOLDEN[1])
    damaged[position] = value
    try:
        record = decode_record(bytes(damaged))
    except CorruptRecordError:
        return
    record.answers.find(7)
    assert record.probability is None or 0 <= record.probability <= 1


@given(st.lists(st.integers(-3, 3), max_size=40), st.integers(1, 8))
def test_answers_keep_the_last_of_the_window_and_find_the_newest(codes, window):
    answers = Answers()
    for count, code in enumerate(codes):
        answers = answers.with_answer(code, Answer(count / 64, count, "ab" * 8, Outcome.OPEN, folded=True), window)
    kept = list(enumerate(codes))[-window:]
    assert len(answers) == len(kept)
    for code in range(-3, 4):
        newest = max((count for count, kept_code in kept if kept_code == code), default=None)
        found = answers.find(code)
        assert (found and found.events) == newest


def test_a_code_inside_another_answers_bytes_is_not_found():
    # Given an answer whose probability has the bytes of the code that is looked for
    code = int.from_bytes(math.pi.hex().encode()[:8], "little")
    (probability,) = memoryview(code.to_bytes(8, "little")).cast("d")
    answers = Answers().with_answer(1, Answer(probability, 1, "ab" * 8, Outcome.OPEN, folded=True), 4)
    # Then it is not taken for an event's code
    assert answers.find(code) is None
    assert answers.find(1) is not None


def test_more_models_than_a_byte_counts_are_forgotten_with_their_answers():
    answers = Answers()
    for count in range(600):
        answers = answers.with_answer(count, Answer(0.5, count, f"{count:016x}", Outcome.OPEN, folded=True), 255)
    assert len(answers) == 255
    found = [answers.find(count) for count in range(345, 600)]
    assert [answer and answer.model for answer in found] == [f"{count:016x}" for count in range(345, 600)]
