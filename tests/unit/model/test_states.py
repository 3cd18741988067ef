"""States as bytes: nothing is lost, sessions do not touch each other, and other bytes are not read."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.artifacts import random_model
from support.event_strategies import ALL_SCOPES, columns_of, random_sessions

from model.states import StateCodec

INT64 = st.integers(-(2**63), 2**63 - 1)
INT32 = st.integers(-(2**31), 2**31 - 1)
# By their bits, so that NaN, infinities, -0.0 and what is too small to be normal are among them.
FLOAT32_BITS = st.one_of(
    st.sampled_from([0, 0x3F800000, 0x80000000, 0x7FC00000, 0xFFFFFFFF, 1]), st.integers(0, 2**32 - 1)
)
WIDTHS = SimpleNamespace(hidden=3, carry=5, memory=6)


def initial_state(hidden=WIDTHS.hidden):
    carry = torch.tensor([[0.0, 0.0, -1.0, float("nan"), 1.0]])
    return torch.zeros(1, hidden), carry, torch.zeros((1, WIDTHS.memory), dtype=torch.int64)


def a_codec(dtype="float32", hidden=WIDTHS.hidden):
    return StateCodec(dtype, initial_state(hidden))


def bits_of(state):
    """Tensors by their bits: NaN equals itself."""
    hidden, carry, memory = state
    return [part.contiguous().numpy().view(np.uint32).tolist() for part in (hidden, carry)] + [memory.tolist()]


def floats(bits):
    return torch.from_numpy(np.array(bits, np.uint32).view(np.float32))


@st.composite
def any_states(draw):
    """Some states of whatever numbers."""
    size = draw(st.integers(1, 9))

    def rows(width, values):
        return [[draw(values) for _ in range(width)] for _ in range(size)]

    memory = [[*times, *rest] for times, rest in zip(rows(2, INT64), rows(WIDTHS.memory - 2, INT32), strict=True)]
    return floats(rows(WIDTHS.hidden, FLOAT32_BITS)), floats(rows(WIDTHS.carry, FLOAT32_BITS)), torch.tensor(memory)


def some_states(codec, size=3, seed=0):
    """Bytes of states with changed and unchanged words."""
    generator = torch.Generator().manual_seed(seed)
    hidden, carry, memory = (part.repeat(size, 1) for part in initial_state())
    hidden = torch.randn(hidden.shape, generator=generator)
    carry = torch.where(
        torch.rand(carry.shape, generator=generator) < 0.5, torch.randn(carry.shape, generator=generator), carry
    )
    memory += torch.randint(0, 2, memory.shape, generator=generator) * 1_700_000_000
    return codec.pack(hidden, carry, memory)


@settings(max_examples=150, deadline=None)
@given(states=any_states())
def test_nothing_of_a_float32_state_is_lost_whatever_its_numbers(states):
    codec = a_codec()
    packed = codec.pack(*states)
    assert all(map(codec.reads, packed))
    assert max(map(len, packed)) <= codec.largest_bytes
    assert bits_of(codec.unpack(packed, len(packed))) == bits_of(states)


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        ("float16", "01 0038 00c0 0000 e8b34400 4007c202a201 60ea 0100 ffff ffff ffff ff7f 4040 68ff"),
        ("float32", "02 0000003f 000000c0 00000000 e8b34400 4007c202a201 60ea 0100 ffff ffff ffff ff7f 4040 68ff"),
    ],
)
def test_stored_bytes_are_golden(dtype, stored):
    """Live sessions have them: other bytes need another format."""
    codec = a_codec(dtype)
    hidden = torch.tensor([[0.5, -2.0, 0.0]])
    carry = torch.tensor([[3.0, 0.0, 7.25, float("nan"), 1.0]])
    memory = torch.tensor([[1_795_342_600_000, 1_795_342_660_000, 1, -1, 0, 2**31 - 1]])
    assert codec.pack(hidden, carry, memory) == [bytes.fromhex(stored)]
    assert bits_of(codec.unpack([bytes.fromhex(stored)], 1)) == bits_of((hidden, carry, memory))


def test_a_float16_state_loses_nothing_but_digits_of_hidden():
    codec = a_codec("float16")
    _, carry, memory = initial_state()
    hidden = torch.tensor([[1e6, -1e6, 0.123456789]])
    read, *counted = codec.unpack(codec.pack(hidden, carry + 0.1, memory + 7), 1)
    assert read.tolist() == [[65504, -65504, pytest.approx(0.123456789, rel=1e-3)]]
    assert bits_of((read, *counted))[1:] == bits_of((read, carry + 0.1, memory + 7))[1:]


def test_the_initial_state_is_as_short_as_can_be_and_each_word_that_differs_takes_two_bytes():
    codec = a_codec()
    hidden, carry, memory = initial_state()
    (shortest,) = codec.pack(hidden, carry, memory)
    # Format, three floats, and the mask of 2 x 8 + 4 x 4 + 5 x 4 bytes, filled up to 64, in words
    assert len(shortest) == 1 + 3 * 4 + 64 // 16
    carry[0, 0] = 1.0
    memory[0, 3] = 2**31 - 1
    (longer,) = codec.pack(hidden, carry, memory)
    assert len(longer) == len(shortest) + 2 + 4


def test_none_and_what_fills_a_batch_up_are_the_initial_state():
    codec = a_codec()
    (state, *_) = some_states(codec)
    expected = initial_state()
    for states, place in (([None, state], 1), ([state, None], 0), ([state], 0)):
        hidden, carry, memory = codec.unpack(states, 4)
        for row in {0, 1, 2, 3} - {place}:
            assert bits_of((hidden[row : row + 1], carry[row : row + 1], memory[row : row + 1])) == bits_of(expected)
        assert codec.pack(hidden, carry, memory)[place] == state
    assert [len(part) for part in codec.unpack([], 0)] == [0, 0, 0]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_network_without_hidden_has_states_too(dtype):
    codec = a_codec(dtype, hidden=0)
    _, carry, memory = initial_state()
    packed = codec.pack(torch.zeros(2, 0), carry.repeat(2, 1) + 1, memory.repeat(2, 1) + 5)
    hidden, carry_read, memory_read = codec.unpack(packed, 2)
    assert hidden.shape == (2, 0)
    torch.testing.assert_close(carry_read, carry.repeat(2, 1) + 1, rtol=0, atol=0, equal_nan=True)
    assert memory_read.tolist() == [[5] * WIDTHS.memory] * 2


def test_sessions_of_a_batch_get_the_bytes_that_they_get_alone():
    model = random_model(properties=ALL_SCOPES)
    with torch.inference_mode():
        codec = StateCodec("float16", model.initial_state(1))
        state = model.initial_state(5)
        for position in range(6):
            stamps, codes, numbers = (
                column[:, position] for column in columns_of(random_sessions([6] * 5), ALL_SCOPES)
            )
            _, hidden, carry, memory = model.step(stamps, codes, numbers, *state)
            state = hidden, carry, memory
    together = codec.pack(*state)
    assert len(set(together)) == 5
    assert together == [codec.pack(*(part[row : row + 1] for part in state))[0] for row in range(5)]


# --- other bytes


@pytest.mark.parametrize(("dtype", "other"), [("float16", "float32"), ("float32", "float16")])
def test_a_state_is_read_as_the_type_that_it_was_written_in_only(dtype, other):
    (state, *_) = some_states(a_codec(dtype))
    assert a_codec(dtype).reads(state)
    assert not a_codec(other).reads(state)


def test_the_previous_releases_states_which_had_all_bytes_and_no_format_are_not_read():
    # Given its layout: times, the rest of memory, carry and hidden, each whole
    for start_ms, dtype in product(range(1_700_000_000_000, 1_700_000_000_256), ("<f2", "<f4")):
        codec = a_codec("float16" if dtype == "<f2" else "float32")
        parts = [np.array([start_ms] * 2, "<i8"), np.arange(4, dtype="<i4"), np.ones(5, "<f4"), np.full(3, 0.3, dtype)]
        # Then it is another's, whatever the byte where the format stands now
        assert not codec.reads(b"".join(part.tobytes() for part in parts))


def test_a_state_cut_short_or_with_more_behind_it_is_refused():
    codec = a_codec()
    (state, *_) = some_states(codec)
    for wrong in [*(state[:length] for length in range(len(state))), state + b"\1", state + b"\1\1", bytes(10_000)]:
        assert not codec.reads(wrong)
        with pytest.raises(ValueError, match=rf"^states: expected float32 states .* number 1 of {len(wrong)} bytes$"):
            codec.unpack([None, wrong], 2)


def test_lengths_that_agree_only_in_sum_are_refused():
    codec = a_codec()
    one, other, whole = some_states(codec)
    # Given a word of one session's that went to the next one's end
    moved = [one[:-2], other + one[-2:], whole]
    with pytest.raises(
        ValueError, match=rf"found number 0 of {len(one) - 2} bytes, number 1 of {len(other) + 2} bytes$"
    ):
        codec.unpack(moved, 3)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_whatever_the_bytes_they_are_refused_or_read_and_nothing_else_happens(data):
    codec = a_codec()
    good, other, _ = some_states(codec, seed=data.draw(st.integers(0, 20)))
    wrong = bytearray(other)
    for _ in range(data.draw(st.integers(1, 4))):
        wrong[data.draw(st.integers(0, len(wrong) - 1))] = data.draw(st.integers(0, 255))
    if not codec.reads(bytes(wrong)):
        with pytest.raises(ValueError, match=r"^states: expected"):
            codec.unpack([good, bytes(wrong)], 2)
        return
    # What is read of one state says nothing of the other
    assert codec.pack(*codec.unpack([good, bytes(wrong)], 2))[0] == good
