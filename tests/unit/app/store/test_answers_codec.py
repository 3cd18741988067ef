import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from app.store.record_codec import Answer, Answers, Outcome

MODEL, OTHER_MODEL = "ab" * 8, "cd" * 8
# 0.5, 0.25, ... are float32; a third is none.
FIRST = Answer(0.5, 1, MODEL, Outcome.OPEN, folded=True)


def answers_after(*given_answers, window=64):
    answers = Answers()
    for code, answer in enumerate(given_answers):
        answers = answers.with_answer(code, answer, window)
    return answers


@st.composite
def what_happened(draw):
    """Answers in the order in which a session may give them, and nonsense."""
    events, given_answers = 0, []
    for _ in range(draw(st.integers(0, 30))):
        folded = draw(st.integers(0, 9)) > 0
        events = events + folded if draw(st.integers(0, 19)) else draw(st.integers(0, 40))
        given_answers.append(
            Answer(
                draw(st.floats(0, 1, width=32) if draw(st.integers(0, 9)) else st.none() | st.floats(0, 1)),
                events,
                OTHER_MODEL if draw(st.integers(0, 19)) == 0 else MODEL,
                draw(st.sampled_from(Outcome)) if draw(st.integers(0, 9)) == 0 else Outcome.OPEN,
                folded=folded,
            )
        )
    return given_answers


@settings(deadline=None)  # slow on a busy machine, which is no failure
@given(what_happened(), st.integers(1, 8) | st.just(64), st.data())
def test_the_last_answers_of_the_window_are_found_as_they_were_given(given_answers, window, data):
    # Six bytes are of the event's id, the others do not tell events apart
    codes = [data.draw(st.integers(-3, 3) | st.integers(-(2**47), 2**47 - 1)) for _ in given_answers]
    answers = Answers()
    for code, answer in zip(codes, given_answers, strict=True):
        answers = answers.with_answer(code, answer, window)

    kept = dict(list(zip(codes, given_answers, strict=True))[-window:])
    assert len(answers) == min(window, len(codes))
    for code in {*codes, *range(-3, 4)}:
        assert answers.find(code) == kept.get(code)


@pytest.mark.parametrize(
    "second",
    [
        replace(FIRST, events=2, probability=1 / 3),
        replace(FIRST, events=2, model=OTHER_MODEL),
        replace(FIRST, outcome=Outcome.PURCHASE, folded=False),
        replace(FIRST, events=3),
        replace(FIRST, folded=False),
    ],
)
def test_what_float32_or_the_order_cannot_say_is_answered_again_as_it_was(second):
    third = replace(FIRST, events=second.events + 1)
    answers = answers_after(FIRST, second, third)
    assert [answers.find(code) for code in range(3)] == [FIRST, second, third]


def test_an_answer_takes_12_bytes_as_long_as_one_model_answers_one_event_after_another():
    one_model = [replace(FIRST, events=events) for events in range(1, 11)]
    assert len(answers_after(*one_model).packed) == 120
    # A window that is full stays as long
    assert len(answers_after(*one_model, window=4).packed) == 48
    assert answers_after(*one_model, window=4).find(6) == one_model[6]


@pytest.mark.parametrize("probability", [None, 0.75])
def test_a_code_inside_another_answers_bytes_is_not_found(probability):
    # Given answers that lie one behind the other, in either form
    answers = answers_after(FIRST, Answer(probability, 2, MODEL, Outcome.OPEN, folded=True))
    codes = {
        code for (code,) in (struct.unpack_from("<q", answers.packed, at) for at in range(len(answers.packed) - 7))
    }
    # Then only the codes of events are found
    assert len(codes) > 5
    assert {code & (2**48 - 1) for code in codes if answers.find(code) is not None} == {0, 1}


def test_more_models_than_a_byte_counts_are_forgotten_with_their_answers():
    answers = Answers()
    for count in range(600):
        answers = answers.with_answer(count, Answer(0.5, count, f"{count:016x}", Outcome.OPEN, folded=True), 255)
    assert len(answers) == 255
    found = [answers.find(count) for count in range(345, 600)]
    assert [answer and answer.model for answer in found] == [f"{count:016x}" for count in range(345, 600)]
