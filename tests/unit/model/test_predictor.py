"""The predictor: its answers are the offline model's, and a state is bytes of a known layout."""

import copy
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.artifacts import random_model, write_artifact
from support.event_strategies import ALL_SCOPES, columns_of, random_session, random_sessions, sessions
from support.states import parts_of

from model.artifact import ArtifactDigestError, ArtifactMissingError, BaseRateUnknownError, load, manifest_of, save
from model.cells import CELLS
from model.columns import fingerprint
from model.device_step import DeviceStep
from model.events import Event
from model.interventions.decide import cart_value, facts_of
from model.predictor import Predictor, _faster, _step_s, load_predictor  # private: there is no GPU here

LENGTHS = [60, 1, 33, 2, 60, 17, 5, 48]
TOLERANCE = {"float32": 1e-5, "float16": 2e-3}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """Path and eager model of an artifact for each hidden size."""
    folder = tmp_path_factory.mktemp("artifacts")
    made = {}
    for hidden_size, layers in ((8, 2), (64, 1)):
        model = random_model(hidden_size=hidden_size, layers=layers, properties=ALL_SCOPES, calendar=True)
        save(model, folder / f"{hidden_size}.pt")
        made[hidden_size] = (folder / f"{hidden_size}.pt", model)
    return made


@pytest.fixture(scope="module")
def predictor(artifacts):
    """One of hidden size 8, two layers, with float32 states, used by many tests: it keeps nothing of a session."""
    return load_predictor(artifacts[8][0], state_dtype="float32")


def stepwise(predictor, events):
    """Probability and state after each event, one call an event."""
    state, trace = None, []
    for event in events:
        (probability,), (state,) = predictor.advance([event], [state])
        trace.append((probability, state))
    return trace


# --- the fold


@pytest.mark.parametrize("state_dtype", ["float32", "float16"])
@pytest.mark.parametrize("hidden_size", [8, 64])
def test_stepwise_answers_are_the_offline_models(artifacts, hidden_size, state_dtype):
    # Given whole sessions, what the eager model says of each prefix
    path, model = artifacts[hidden_size]
    shopping = random_sessions(LENGTHS)
    with torch.inference_mode():
        offline = model(*columns_of(shopping, ALL_SCOPES))
    # When they are stepped together, states as bytes in between, or folded
    predictor = load_predictor(path, state_dtype=state_dtype)
    for traces in (stepped_together(predictor, shopping), [trace for trace, _ in predictor.traces(shopping)]):
        # Then no answer differs by more than was promised
        assert [len(trace) for trace in traces] == LENGTHS
        for row, trace in enumerate(traces):
            difference = np.abs(np.array(trace) - offline[row, : len(trace)].numpy()).max()
            assert difference <= TOLERANCE[state_dtype]
        assert np.concatenate(traces).std() > 0.05  # else a constant would do


def stepped_together(predictor, shopping):
    """The answers of `advance`, each step with all sessions that have another event."""
    states = dict.fromkeys(range(len(shopping)))
    traces: list[list[float]] = [[] for _ in shopping]
    for position in range(max(map(len, shopping))):
        going = [index for index, events in enumerate(shopping) if position < len(events)]
        probabilities, following = predictor.advance(
            [shopping[index][position] for index in going], [states[index] for index in going]
        )
        states |= dict(zip(going, following, strict=True))
        for index, probability in zip(going, probabilities, strict=True):
            traces[index].append(probability)
    return traces


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn", "feed-forward"])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_fold_in_parts_is_step_by_step(tmp_path, cell, layers, monkeypatch):
    path = write_artifact(tmp_path / "model.pt", cell=cell, layers=layers, hidden_size=16, properties=ALL_SCOPES)
    predictor = load_predictor(path, state_dtype="float32", max_batch_size=3)
    monkeypatch.setattr("model.predictor._FOLDED_AT_ONCE", 7)  # private: several rounds of few sessions
    shopping = random_sessions([40, 1, 23, 40, 8])
    first = predictor.fold([events[:5] for events in shopping], [None] * 5)
    again = [index for index, events in enumerate(shopping) if len(events) > 5]
    second = predictor.fold([shopping[index][5:] for index in again], [first[index][1] for index in again])
    traces = {index: trace for index, (trace, _) in enumerate(first)}
    states = {index: state for index, (_, state) in enumerate(first)}
    for index, (trace, state) in zip(again, second, strict=True):
        traces[index] = traces[index] + trace
        states[index] = state
    for index, events in enumerate(shopping):
        alone = stepwise(predictor, events)
        assert traces[index] == pytest.approx([probability for probability, _ in alone], abs=1e-6)
        for part, expected in zip(parts_of(predictor, states[index]), parts_of(predictor, alone[-1][1]), strict=True):
            np.testing.assert_allclose(part, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_a_long_history_is_folded_to_the_state_of_its_steps(predictor):
    events = random_session(5, 700)
    ((trace, state),) = predictor.fold([events], [None])
    alone = stepwise(predictor, events)
    assert trace == pytest.approx([probability for probability, _ in alone], abs=1e-6)
    for part, expected in zip(parts_of(predictor, state), parts_of(predictor, alone[-1][1]), strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_a_fold_of_nothing_or_of_a_strange_state_is_refused(predictor):
    event = random_session(0, 1)[0]
    with pytest.raises(ValueError, match="one a history"):
        predictor.fold([[event]], [])
    with pytest.raises(ValueError, match="at least one event"):
        predictor.fold([[]], [None])
    with pytest.raises(ValueError, match="states"):
        predictor.fold([[event]], [b"strange"])


@settings(max_examples=12, deadline=None)
@given(shopping=st.lists(sessions(max_size=10), min_size=1, max_size=5))
def test_ugly_sessions_get_the_offline_answers_too(artifacts, predictor, shopping):
    with torch.inference_mode():
        offline = artifacts[8][1](*columns_of(shopping, ALL_SCOPES))
    assert offline.isfinite().all()
    for row, (trace, _) in enumerate(predictor.traces(shopping)):
        assert trace == pytest.approx(offline[row, : len(trace)].tolist(), abs=1e-5)


@settings(max_examples=8, deadline=None)
@given(shopping=st.lists(sessions(min_size=0, max_size=10), max_size=5))
def test_scored_sessions_are_the_offline_models_and_keep_their_order(artifacts, predictor, shopping):
    scores = predictor.score_sessions(shopping)
    assert [len(row) for row in scores] == [len(events) for events in shopping]
    for row, events in zip(scores, shopping, strict=True):
        if events:
            with torch.inference_mode():
                alone = artifacts[8][1](*columns_of([events], ALL_SCOPES))[0]
            assert row == pytest.approx(alone.tolist(), abs=1e-5)


@pytest.mark.parametrize("state_dtype", ["float32", "float16"])
def test_answers_and_states_do_not_depend_on_who_is_in_the_batch(artifacts, state_dtype):
    predictor = load_predictor(artifacts[8][0], state_dtype=state_dtype)
    shopping = random_sessions([20] * 7)  # padded to 8
    together = predictor.traces(shopping)
    for events, (trace, state) in zip(shopping, together, strict=True):
        alone = stepwise(predictor, events)
        assert trace == pytest.approx([probability for probability, _ in alone], abs=TOLERANCE[state_dtype] / 2)
        *counted, hidden = parts_of(predictor, state)
        *counted_alone, hidden_alone = parts_of(predictor, alone[-1][1])
        for part, part_alone in zip(counted[:2], counted_alone[:2], strict=True):
            np.testing.assert_array_equal(part, part_alone)
        np.testing.assert_allclose(counted[2], counted_alone[2], rtol=1e-6, equal_nan=True)
        np.testing.assert_allclose(hidden, hidden_alone, rtol=2e-3 if state_dtype == "float16" else 1e-5, atol=2e-3)


def test_the_same_call_gives_the_same_bytes(predictor):
    event = random_session(0, 1)[0]
    assert predictor.advance([event], [None]) == predictor.advance([event], [None])


def test_refold_is_what_stepping_left(predictor):
    histories = random_sessions([12, 1, 30, 12])
    for (probability, state), events in zip(predictor.refold(histories), histories, strict=True):
        expected_probability, expected_state = stepwise(predictor, events)[-1]
        assert probability == pytest.approx(expected_probability, abs=1e-6)
        for part, expected in zip(parts_of(predictor, state), parts_of(predictor, expected_state), strict=True):
            np.testing.assert_allclose(part, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_a_state_goes_on_where_a_refold_stopped(predictor):
    events = random_session(3, 20)
    ((_, state),) = predictor.refold([events[:12]])
    for event, (expected, _) in zip(events[12:], stepwise(predictor, events)[12:], strict=True):
        (probability,), (state,) = predictor.advance([event], [state])
        assert probability == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("count", "max_batch_size"), [(2, 1), (2, 3), (4, 4), (5, 4), (11, 3)])
def test_more_events_than_a_batch_takes_are_split_in_order(artifacts, predictor, count, max_batch_size):
    small = load_predictor(artifacts[8][0], state_dtype="float32", max_batch_size=max_batch_size)
    events = [random_session(seed, 1)[0] for seed in range(count)]
    states: list[bytes | None] = [None if seed % 2 else stepwise(predictor, random_session(seed, 3))[-1][1]
                                  for seed in range(count)]  # fmt: skip
    expected, expected_states = predictor.advance(events, states)
    answers, following = small.advance(events, states)
    assert answers == pytest.approx(expected, abs=1e-6)
    for state, expected_state in zip(following, expected_states, strict=True):
        assert parts_of(small, state)[0].tolist() == parts_of(predictor, expected_state)[0].tolist()
    assert [len(row) for row in small.score_sessions([[event] for event in events])] == [1] * count
    assert small.score_sessions([[event] for event in events]) == [
        pytest.approx([answer], abs=1e-6) for answer in predictor.advance(events, [None] * count)[0]
    ]


def test_nothing_in_gives_nothing_out(predictor):
    assert predictor.advance([], []) == ([], [])
    assert predictor.refold([]) == []
    assert predictor.traces([]) == []
    assert predictor.score_sessions([]) == []
    assert predictor.score_sessions([[], []]) == [[], []]


def test_histories_without_an_event_are_refused(predictor):
    with pytest.raises(ValueError, match="histories: expected at least one event in each"):
        predictor.refold([[Event("page_view", 0)], []])


# --- states


def test_states_that_it_does_not_read_are_refused_by_their_place(predictor):
    good = predictor.advance([Event("page_view", 0)], [None])[1][0]
    assert predictor.reads(good)
    for wrong in (b"", b"x", good[:-1], good + b"x", good + b"xx"):
        assert not predictor.reads(wrong)
        with pytest.raises(
            ValueError, match=rf"^states: expected float32 states of .* found number 1 of {len(wrong)} b"
        ):
            predictor.advance([Event("page_view", 1)] * 2, [good, wrong])


def test_a_float16_state_is_not_taken_for_a_float32_one(artifacts, predictor):
    half = load_predictor(artifacts[8][0], state_dtype="float16")
    _, states = half.advance([Event("page_view", 0)], [None])
    assert half.reads(states[0])
    assert not predictor.reads(states[0])
    with pytest.raises(ValueError, match="states: expected"):
        predictor.advance([Event("page_view", 1)], states)


@pytest.mark.parametrize("events", [0, 2])
def test_one_state_an_event_is_asked_for(predictor, events):
    with pytest.raises(ValueError, match=f"states: expected {events}, one an event, not 1"):
        predictor.advance([Event("page_view", 0)] * events, [None])


@pytest.mark.parametrize("state_dtype", ["float32", "float16"])
def test_the_layout_of_a_state_is_the_documented_one(artifacts, state_dtype):
    # Given two events whose every trace in the state is known
    predictor = load_predictor(artifacts[8][0], state_dtype=state_dtype)
    start_ms, last_ms = 1_700_000_000_123, 1_700_000_009_456
    first = Event("view_item", start_ms, "SKU-9", "shoes", price=12.5, properties={"device": "mobile", "visits": 3})
    second = Event("add_to_cart", last_ms, "SKU-1", "hats", price=7.25, quantity=2, properties={"page": "mobile"})
    state = stepwise(predictor, [first, second])[-1][1]
    # Then the bytes hold them where they always stood
    times, rest_of_memory, carry, hidden = parts_of(predictor, state)
    assert times.tolist() == [start_ms, last_ms]
    previous_item, *memory = rest_of_memory.tolist()
    items, categories, sticky = memory[:16], memory[16:24], memory[24:]
    assert previous_item == fingerprint("SKU-1")
    assert items == [fingerprint("SKU-9"), fingerprint("SKU-1")] + [0] * 14
    assert categories == [fingerprint("shoes"), fingerprint("hats")] + [0] * 6
    assert sticky == [fingerprint("mobile"), 0]
    log_gap = math.log1p(9.333)
    by_name = dict(zip(["events", "run_length"], carry[:2].tolist(), strict=True))
    assert by_name == {"events": 2, "run_length": 1}
    # Mean, squares and largest of the one gap so far
    assert carry[3:6].tolist() == pytest.approx([log_gap, 0, log_gap])
    assert carry[6] == pytest.approx(log_gap)  # the gap before this event, for the next one's log_gap_previous
    assert carry[7:11].tolist() == [2, 2, 0, 2]  # distinct items, events with an item, repeats, distinct categories
    assert carry[11:18].tolist() == [2, 14.5, 19.75, 2, 12.5, 7.25, 7.25]  # the cart, then the prices
    assert sorted(carry[18:26].tolist()) == [0] * 6 + [1, 1]
    assert sorted(carry[26:34].tolist()) == [-1] * 6 + [0, pytest.approx(9.333)]
    assert carry[34:58].tolist() == [1, 1] + [0] * 14 + [1, 1] + [0] * 6
    assert carry[58] == 3
    assert math.isnan(carry[59])  # an event's own number is not kept
    assert len(hidden) == 2 * 2 * 8
    assert np.abs(hidden).max() <= 2
    assert hidden.any()


def test_golden_bytes_of_a_state_that_an_untrained_lstm_cannot_change(tmp_path):
    # Given a network whose weights are all zero, so that only what the encoder counts is in the state
    model = random_model(hidden_size=1, event_names=("page_view",), properties=())
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    save(model, tmp_path / "zero.pt")
    predictor = load_predictor(tmp_path / "zero.pt")
    # When one event is folded
    (probability,), (state,) = predictor.advance([Event("page_view", 258, "SKU-1", price=2.0)], [None])
    # Then the bytes are those of every release that reads format 1
    assert probability == 0.5
    one, two = 0x3F80.to_bytes(2, "little"), 0x4000.to_bytes(2, "little")  # upper halves of 1.0 and 2.0
    item = bytes.fromhex("9a7cf267")
    words_by_offset = {
        0: (258).to_bytes(2, "little"),  # start; the last event came no later
        16: item[:2],  # the previous item
        18: item[2:],
        20: item[:2],  # the first item slot
        22: item[2:],
        116 + 2: one,  # events, run length, type
        120 + 2: one,
        124 + 2: one,
        144 + 2: one,  # distinct items, events with an item
        148 + 2: one,
        168 + 2: two,  # sum of the prices, their count, the largest, the least, the last
        172 + 2: one,
        176 + 2: two,
        180 + 2: two,
        184 + 2: two,
        192 + 2: one,  # count of page_view, the second type
        200 + 2: 0xBF80.to_bytes(2, "little"),  # its time, 0.0 instead of -1.0
        204 + 2: one,  # the first item slot's count
    }
    mask = sum(1 << (8 * 19 - 1 - offset // 2) for offset in words_by_offset).to_bytes(19, "big")
    assert state == bytes([1]) + bytes(2 * 2) + mask + b"".join(words_by_offset.values())


def test_only_h_and_c_are_rounded_to_float16(artifacts, predictor):
    half = load_predictor(artifacts[8][0], state_dtype="float16")
    events = random_session(5, 30)
    state, half_state = (stepwise(each, events)[-1][1] for each in (predictor, half))
    for part, half_part in zip(parts_of(predictor, state)[:3], parts_of(half, half_state)[:3], strict=True):
        np.testing.assert_array_equal(half_part, part)


def test_a_cell_past_float16s_range_is_kept_finite(artifacts):
    predictor = load_predictor(artifacts[8][0], state_dtype="float16")
    hidden, carry, memory = predictor._module.initial_state(2)  # noqa: SLF001 - no event brings a cell there
    hidden[0], hidden[1] = 1e6, -1e6
    packed = predictor._states.pack(hidden, carry, memory)  # noqa: SLF001 - same
    values = [set(parts_of(predictor, state)[3].tolist()) for state in packed]
    assert values == [{65504.0}, {-65504.0}]
    probabilities, _ = predictor.advance([Event("page_view", 0)] * 2, packed)
    assert all(0 <= probability <= 1 for probability in probabilities)


@settings(max_examples=20, deadline=None)
@given(events=sessions(max_size=6))
def test_unpacking_and_packing_gives_the_same_bytes(predictor, events):
    states = [state for _, state in stepwise(predictor, events)]
    assert predictor._states.pack(*predictor._states.unpack(states, len(states))) == states  # noqa: SLF001 - the pair is what a step does around the network


def test_states_survive_a_new_process_of_the_same_artifact(artifacts, predictor):
    events = random_session(6, 10)
    state = stepwise(predictor, events[:9])[-1][1]
    other = load_predictor(artifacts[8][0], state_dtype="float32")
    assert other.fingerprint == predictor.fingerprint
    assert other.advance(events[9:], [state])[0] == pytest.approx(predictor.advance(events[9:], [state])[0], abs=1e-6)


# --- properties


def test_a_session_property_sent_once_sticks_and_an_event_property_does_not(predictor):
    def last_answer(*properties):
        return stepwise(predictor, [Event("view_item", n, properties=p) for n, p in enumerate(properties)])[-1][0]

    assert last_answer({"device": "mobile"}, {}) == last_answer({"device": "mobile"}, {"device": "mobile"})
    assert last_answer({"visits": 9}, {}) == last_answer({"visits": 9}, {"visits": 9})
    assert last_answer({"page": "mobile"}, {}) != last_answer({"page": "mobile"}, {"page": "mobile"})
    assert last_answer({"scroll": 9}, {}) != last_answer({"scroll": 9}, {"scroll": 9})
    assert last_answer({}, {}) == last_answer({}, {"undeclared": 1})


# --- what it knows of itself


def test_it_knows_its_vocabulary_and_nothing_else(predictor):
    assert predictor.knows("view_item")
    assert not any(map(predictor.knows, ("wheel_of_fortune", "View Item", "", "purchase")))


def test_it_reads_names_as_its_log_was_read(tmp_path):
    # Given a model of a log whose purchase had a name of its own, and whose transactions were pages
    model = random_model(hidden_size=8, layers=1, properties=ALL_SCOPES, calendar=True)
    data = {"purchase_names": ["payres"], "event_renames": {"put": "add_to_cart", "transaction": "transaction"}}
    save(model, tmp_path / "model.pt", manifest_of(model, data=data))
    predictor = load_predictor(tmp_path / "model.pt")
    # Then live names mean the same, and others go by the aliases
    read = [predictor.canonical_name(name) for name in ("payres", " put", "transaction", "Order Completed", "payre")]
    assert read == ["purchase", "add_to_cart", "transaction", "purchase", "payre"]


def test_a_name_of_its_vocabulary_stays_a_page_though_it_became_an_alias(predictor):
    own = predictor.manifest.event_names
    assert [predictor.canonical_name(name) for name in own] == own


def test_it_names_the_properties_that_were_not_in_the_log(predictor):
    assert predictor.undeclared_properties({"device": "mobile", "visits": "9", "undeclared": "x"}) == ["undeclared"]


def test_it_names_the_properties_whose_values_it_does_not_know(predictor):
    assert predictor.unknown_properties({"device": "mobile", "visits": "9", "undeclared": "x"}) == []
    assert predictor.unknown_properties({"device": "Fridge", "page": "", "visits": "many"}) == ["device", "visits"]


def test_it_carries_its_manifest(artifacts, predictor):
    _, manifest = load(artifacts[8][0])
    assert predictor.manifest == manifest
    assert predictor.fingerprint == manifest.fingerprint
    assert (predictor.device, predictor.state_dtype, predictor.max_batch_size) == ("cpu", "float32", 256)


@pytest.mark.parametrize(
    ("max_batch_size", "sizes"), [(1, [1]), (4, [1, 2, 4]), (6, [1, 2, 4, 6]), (50, [1, 2, 4, 8, 16, 24, 32, 48, 50])]
)
def test_warming_up_runs_every_size_that_a_request_can_come_in_and_changes_no_answer(artifacts, max_batch_size, sizes):
    predictor = load_predictor(artifacts[8][0], max_batch_size=max_batch_size)
    event = random_session(7, 1)[0]
    before = predictor.advance([event], [None])
    module: Any = predictor._module  # noqa: SLF001 - sizes are counted where the network is called
    run: list[int] = []

    class Counting:
        def __getattr__(self, name):
            return getattr(module, name)

        def step(self, timestamp_ms, *rest):
            run.append(len(timestamp_ms))
            return module.step(timestamp_ms, *rest)

    counting: Any = Counting()
    predictor._module = counting  # noqa: SLF001 - same
    predictor.warm_up()
    assert sorted(set(run)) == sizes
    assert min(run.count(size) for size in sizes) >= 2
    warmed = set(run)
    for count in range(1, max_batch_size + 1):
        predictor.advance([event] * count, [None] * count)
    assert set(run) == warmed
    after = predictor.advance([event], [None])
    assert after[0] == pytest.approx(before[0], abs=1e-6)


# --- each cell


@pytest.fixture(scope="module", params=[(cell, aggregates) for cell in CELLS for aggregates in (True, False)])
def rung(request, tmp_path_factory):
    """An artifact of each cell, with and without aggregates: its path and what it is of."""
    cell, aggregates = request.param
    path = tmp_path_factory.mktemp("rung") / "model.pt"
    return write_artifact(path, layers=2, properties=ALL_SCOPES, cell=cell, aggregates=aggregates), cell, aggregates


@pytest.mark.slow
@pytest.mark.parametrize("state_dtype", ["float32", "float16"])
def test_every_cell_is_stepped_as_offline_with_as_much_state_as_it_needs(rung, state_dtype):
    path, cell, aggregates = rung
    predictor = load_predictor(path, state_dtype=state_dtype, max_batch_size=4)
    shopping = random_sessions([30, 1, 12])
    # When sessions are stepped together
    traces = predictor.traces(shopping)
    # Then the answers are the offline model's
    for (trace, _), offline in zip(traces, predictor.score_sessions(shopping), strict=True):
        assert trace == pytest.approx(offline, abs=TOLERANCE[state_dtype])
    # And the state holds what the cell remembers beside what the encoder counts
    assert (predictor.manifest.sizes["cell"], predictor.manifest.sizes["aggregates"]) == (cell, aggregates)
    widths = {"feed-forward": 0, "rnn": 2 * 8, "gru": 2 * 8, "lstm": 2 * 2 * 8}[cell]
    assert predictor.manifest.state["hidden"] == widths
    hidden = np.concatenate([parts_of(predictor, state)[3] for _, state in traces])
    assert len(hidden) == 3 * widths
    assert not widths or (hidden != 0).mean() > 0.9


# --- another base rate


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    """An artifact that tells that a tenth of its training sessions bought."""
    return write_artifact(tmp_path_factory.mktemp("rated") / "model.pt", data={"base_rate": 0.1})


def logit(probability):
    return math.log(probability / (1 - probability))


@pytest.mark.parametrize("base_rate", [0.001, 0.02, 0.1, 0.5, 0.9])
def test_a_live_base_rate_shifts_the_logit_of_every_prefix_alike(rated, base_rate):
    shopping = random_sessions([20, 7])
    plain, shifted = (load_predictor(rated, state_dtype="float32", base_rate=rate) for rate in (None, base_rate))
    assert shifted.base_rate == base_rate
    expected = logit(base_rate) - logit(0.1)
    for before, after in zip(plain.traces(shopping), shifted.traces(shopping), strict=True):
        moved = [logit(there) - logit(here) for here, there in zip(before[0], after[0], strict=True)]
        assert moved == pytest.approx([expected] * len(moved), abs=2e-4)
        assert after[1] == before[1]  # the state knows nothing of it


@pytest.mark.parametrize("state_dtype", ["float32", "float16"])
def test_stepped_and_offline_answers_agree_at_another_base_rate(rated, state_dtype):
    predictor = load_predictor(rated, state_dtype=state_dtype, base_rate=0.45)
    shopping = random_sessions([30, 12])
    for (trace, _), offline in zip(predictor.traces(shopping), predictor.score_sessions(shopping), strict=True):
        assert trace == pytest.approx(offline, abs=TOLERANCE[state_dtype])


def test_the_base_rate_of_training_changes_nothing_and_no_base_rate_is_as_trained(rated):
    (one,), (other,) = (
        load_predictor(rated, base_rate=rate).score_sessions(random_sessions([20])) for rate in (None, 0.1)
    )
    assert other == pytest.approx(one, abs=1e-6)


def test_a_module_that_was_shifted_before_is_not_shifted_twice(rated):
    module, manifest = load(rated)
    session = random_sessions([9])
    (once,) = Predictor(module, manifest, base_rate=0.3).score_sessions(session)
    (again,) = Predictor(module, manifest, base_rate=0.3).score_sessions(session)
    assert again == once


def test_the_fingerprint_is_the_artifacts_whatever_the_base_rate(rated):
    assert load_predictor(rated, base_rate=0.3).fingerprint == load_predictor(rated).fingerprint


@pytest.mark.parametrize("base_rate", [0.0, 1.0, -0.1, 2.0, math.nan, math.inf])
def test_a_base_rate_that_is_no_share_is_refused(rated, base_rate):
    with pytest.raises(
        ValueError, match=f"^base_rate: expected a share of sessions above 0 and below 1, not {base_rate}"
    ):
        load_predictor(rated, base_rate=base_rate)


@pytest.mark.parametrize("data", [{}, {"base_rate": None}, {"base_rate": 0}, {"base_rate": 1.0}, {"base_rate": "2 %"}])
def test_an_artifact_without_a_base_rate_cannot_be_shifted(tmp_path, data):
    path = write_artifact(tmp_path / "model.pt", data=data)
    assert load_predictor(path).manifest.base_rate is None
    with pytest.raises(
        BaseRateUnknownError, match=r"^base_rate: cannot shift to 0\.3, since model [0-9a-f]{16} does not"
    ):
        load_predictor(path, base_rate=0.3)


# --- loading


def test_auto_is_the_cpu_where_there_is_no_gpu(artifacts, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    predictor = load_predictor(artifacts[8][0], device="auto")
    assert (predictor.device, predictor.device_reason) == ("cpu", "torch sees no GPU")
    with pytest.raises(ValueError, match="device: cuda was asked for, but torch sees no GPU; set it to auto or cpu"):
        load_predictor(artifacts[8][0], device="cuda")


@pytest.mark.parametrize(("gpu_s", "is_faster"), [(0.0004, True), (0.002, False)])
def test_auto_takes_the_faster_device_and_names_the_reason(predictor, monkeypatch, gpu_s, is_faster):
    # Given a GPU's predictor, and what a step takes on both
    gpu = copy.copy(predictor)
    monkeypatch.setattr(
        "model.predictor._step_s", lambda timed: gpu_s if timed is gpu else 0.001
    )  # private: there is no GPU here
    chosen = _faster(predictor, lambda: gpu)
    assert chosen is (gpu if is_faster else predictor)
    assert chosen.device_reason == f"a step of 64 sessions takes {gpu_s * 1000:.2f} ms on the GPU, 1.00 on the CPU"


def test_a_gpu_that_fails_is_not_taken(predictor):
    def fail():
        raise RuntimeError("CUDA error: out of memory\nand many lines more")

    host = copy.copy(predictor)
    assert _faster(host, fail) is host
    assert host.device_reason == "the GPU cannot be used: CUDA error: out of memory"


def test_the_time_of_a_step_is_the_median_of_those_after_the_warm_up(predictor, monkeypatch):
    # Given steps that take a hundred seconds while torch's executor specialises, and then one second to eleven
    seconds, clock = iter([*[100] * 3, *range(11, 0, -1)]), SimpleNamespace(now=0.0)
    advance = predictor.advance

    def advanced(events, states):
        clock.now += next(seconds)
        return advance(events, states)

    timed = copy.copy(predictor)
    monkeypatch.setattr(timed, "advance", advanced)
    monkeypatch.setattr("model.predictor.time", SimpleNamespace(perf_counter=lambda: clock.now))
    assert _step_s(timed) == 6
    assert next(seconds, None) is None


def test_a_device_with_a_memory_of_its_own_gives_the_same_answers(predictor):
    apart = copy.copy(predictor)
    apart._device_step = DeviceStep(predictor._module.step, torch.device("cpu"))  # noqa: SLF001 - a device apart without having one
    shopping = random_sessions(LENGTHS)
    assert apart.traces(shopping) == predictor.traces(shopping)


@pytest.mark.parametrize("device", ["", "tpu", "cuda:0", "CPU"])
def test_other_devices_are_refused(artifacts, device):
    with pytest.raises(ValueError, match=f"device: expected auto, cpu or cuda, not '{device}'"):
        load_predictor(artifacts[8][0], device=device)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_dtype": "bfloat16"}, "state_dtype: expected float16 or float32, not 'bfloat16'"),
        ({"max_batch_size": 0}, "max_batch_size: expected a whole number from 1 up, not 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(artifacts, options, message):
    with pytest.raises(ValueError, match=message):
        load_predictor(artifacts[8][0], **options)


def test_what_is_wrong_with_a_file_is_told(artifacts, tmp_path):
    with pytest.raises(ArtifactMissingError):
        load_predictor(tmp_path / "none.pt")
    with pytest.raises(ArtifactDigestError):
        load_predictor(artifacts[8][0], sha256="0" * 64)


def test_the_number_of_threads_is_set_where_it_is_asked_for(artifacts):
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            load_predictor(artifacts[8][0], threads=threads)
            assert torch.get_num_threads() == threads
        torch.set_num_threads(2)
        load_predictor(artifacts[8][0])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_answers_on_a_gpu_are_those_of_the_cpu(artifacts, predictor):
    shopping = random_sessions(LENGTHS)
    on_gpu: Predictor = load_predictor(artifacts[8][0], device="cuda", state_dtype="float32")
    on_gpu.warm_up()
    for (trace, _), (expected, _) in zip(on_gpu.traces(shopping), predictor.traces(shopping), strict=True):
        assert trace == pytest.approx(expected, abs=1e-4)


# --- the cart


@pytest.mark.parametrize("state_dtype", ["float32", "float16"])
def test_the_carts_value_is_read_from_the_state_as_the_rules_count_it(artifacts, state_dtype):
    predictor = load_predictor(artifacts[8][0], state_dtype=state_dtype)
    histories = [random_session(seed, 30) for seed in range(20)] + [[Event("add_to_cart", 1, price=59.9, quantity=2.0)]]
    states = [state for _, state in predictor.refold(histories)]
    values = predictor.cart_values(states) or []
    assert values == pytest.approx([cart_value(facts_of(history)) for history in histories], rel=1e-5, abs=1e-3)
    assert values[-1] == pytest.approx(119.8)
    assert max(values[:-1]) > 0
