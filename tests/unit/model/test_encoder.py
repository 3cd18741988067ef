"""The encoder against a slow reference that looks at the complete prefix each time, one plain function a feature."""

import math
from collections import Counter, deque
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.artifacts import EVENT_NAMES, random_model
from support.event_strategies import ALL_SCOPES, columns_of, random_session, random_sessions, sessions

from model.columns import fingerprint, number_value
from model.encoder import CATEGORY_SLOTS, ITEM_SLOTS, Encoder, vocabulary_order
from model.events import Event, PropertyValue
from model.properties import PropertySpec
from model.text_rules import category_text

ITEMS, CATEGORIES, VALUES = ["SKU-1", "SKU-2"], ["shoes", "hats"], ["mobile", "desktop", "3", "true"]
LARGEST = 1e12


def an_encoder(*, calendar=True, properties=ALL_SCOPES):
    values = {spec.name: VALUES for spec in properties if spec.kind == "category"}
    return Encoder(list(EVENT_NAMES), CATEGORIES, ITEMS, list(properties), values, calendar=calendar)


def encoded(encoder, events):
    features, indices = encoder.sequence(*columns_of([events], encoder.properties))
    return features[0], indices[0]


# --- the reference


def amount(value):
    """A price or quantity as it counts: None where there is none, else between 0 and the largest."""
    return None if value is None or math.isnan(value) else min(max(value, 0.0), LARGEST)


def type_of(event):
    return event.event_name if event.event_name in EVENT_NAMES else "other"


def clock_ms(prefix):
    """The time of each event; a late one counts as if it came with the latest before it."""
    return [max(event.timestamp_ms for event in prefix[: n + 1]) for n in range(len(prefix))]


def seconds(duration_ms):
    # Times since the session's start are float32 in the encoder, and recency is the difference of two of them.
    return np.float32(duration_ms) / np.float32(1000)


def cart_of(prefix):
    # Float32 as in the encoder: after a huge value was taken out, what remains depends on the rounding.
    units, value = np.float32(0), np.float32(0)
    for event in prefix:
        sign = {"add_to_cart": 1, "remove_from_cart": -1}.get(event.event_name, 0)
        quantity = amount(event.quantity)
        change = np.float32(sign) * np.float32(1 if quantity is None else quantity)
        units = max(units + change, np.float32(0))
        value = max(value + change * np.float32(amount(event.price) or 0), np.float32(0))
        value = value if units > 0 else np.float32(0)
    return float(units), float(value)


def last_given(prefix, spec):
    """The property's value after the prefix, by its scope."""
    looked_at = prefix if spec.scope == "session" else prefix[-1:]
    values = [event.properties.get(spec.name) for event in looked_at]
    if spec.kind == "category":
        return next((text for text in map(category_text, reversed(values)) if text is not None), None)
    return next((number for number in map(number_value, reversed(values)) if not math.isnan(number)), None)


def reference_features(prefix, *, calendar=True):
    """Every feature after a prefix (with at most `ITEM_SLOTS` items and `CATEGORY_SLOTS` categories), by name."""
    *before, event = prefix
    clock = clock_ms(prefix)
    log_gaps = [math.log1p((later - earlier) / 1000) for earlier, later in pairwise(clock)]
    elapsed = [seconds(time_ms - clock[0]) for time_ms in clock]
    types = [type_of(e) for e in prefix]
    run = next((n for n, other in enumerate(reversed(types)) if other != types[-1]), len(types))
    items = [e.item_id for e in prefix if e.item_id]
    categories = [e.item_category for e in prefix if e.item_category]
    items_before = [e.item_id for e in before if e.item_id]
    repeats = sum(item in items[:n] for n, item in enumerate(items))
    prices = [price for price in (amount(e.price) for e in prefix) if price is not None]
    price = amount(event.price)
    earlier_price = prices[-2] if price is not None and len(prices) > 1 else None
    quantity = amount(event.quantity)
    units, value = cart_of(prefix)
    mean_gap = sum(log_gaps) / len(log_gaps) if log_gaps else 0.0
    log_mean_price = math.log1p(sum(prices) / len(prices)) if prices else 0.0
    day, week = (2 * math.pi * (clock[-1] % length) / length for length in (86_400_000, 604_800_000))
    features = {
        "log_gap": log_gaps[-1] if log_gaps else 0.0,
        "log_elapsed": math.log1p(elapsed[-1]),
        "log_events": math.log1p(len(prefix)),
        "log_run_length": math.log1p(run),
        "log_gap_mean": mean_gap,
        "log_gap_deviation": float(np.std(log_gaps)) if log_gaps else 0.0,
        "log_gap_max": max(log_gaps, default=0.0),
        "log_gap_previous": log_gaps[-2] if len(log_gaps) > 1 else 0.0,
        "is_first": float(not before),
        "has_item": float(bool(event.item_id)),
        "item_seen_before": float(event.item_id in items_before),
        "same_item_again": float(bool(event.item_id) and items_before[-1:] == [event.item_id]),
        "log_item_times_seen": math.log1p(items_before.count(event.item_id)),
        "log_distinct_items": math.log1p(len(set(items))),
        "log_item_events": math.log1p(len(items)),
        "item_repeat_share": repeats / max(len(items), 1),
        "has_category": float(bool(event.item_category)),
        "log_category_times_seen": math.log1p(max(categories.count(event.item_category) - 1, 0)),
        "log_distinct_categories": math.log1p(len(set(categories))),
        "log_cart_units": math.log1p(units),
        "log_cart_value": math.log1p(value),
        "cart_is_empty": float(units == 0),
        "has_price": float(price is not None),
        "log_price": math.log1p(price or 0.0),
        "log_price_mean": log_mean_price,
        "log_price_max": math.log1p(max(prices, default=0.0)),
        "log_price_min": math.log1p(min(prices, default=0.0)),
        "price_against_mean": 0.0 if price is None else math.log1p(price) - log_mean_price,
        "price_against_previous": 0.0 if earlier_price is None else math.log1p(price) - math.log1p(earlier_price),
        "log_quantity": math.log1p(1.0 if quantity is None else quantity),
        "hour_sin": math.sin(day) if calendar else 0.0,
        "hour_cos": math.cos(day) if calendar else 0.0,
        "weekday_sin": math.sin(week) if calendar else 0.0,
        "weekday_cos": math.cos(week) if calendar else 0.0,
    }
    for name, count in {**dict.fromkeys(["other", *EVENT_NAMES], 0), **Counter(types)}.items():
        features[f"log_count[{name}]"] = math.log1p(count)
        features[f"share[{name}]"] = count / len(prefix)
        since = elapsed[-1] - elapsed[len(types) - 1 - types[::-1].index(name)] if count else math.inf
        features[f"recency[{name}]"] = 1 / (1 + math.log1p(since))
    for spec in ALL_SCOPES:
        if spec.kind == "number":
            number = last_given(prefix, spec)
            features[f"value[{spec.name}]"] = math.asinh(min(max(number or 0.0, -LARGEST), LARGEST))
            features[f"given[{spec.name}]"] = float(number is not None)
    return features


def reference_indices(prefix):
    """The words behind the indices: 0 for no value, 1 for other, from 2 up the vocabulary by fingerprint."""
    event = prefix[-1]
    named = [(event.event_name, EVENT_NAMES), (event.item_id, ITEMS), (event.item_category, CATEGORIES)]
    named += [(last_given(prefix, spec), VALUES) for spec in ALL_SCOPES if spec.kind == "category"]
    return [
        0 if not word else 2 + sorted(known, key=fingerprint).index(word) if word in known else 1
        for word, known in named
    ]


def assert_same(actual, expected, where):
    for name, value in expected.items():
        # A variance of float32 sums is exact to about 1e-6 of the mean square; its root is not.
        power = 2 if name == "log_gap_deviation" else 1
        tolerance = 1e-4 if power == 2 else 3e-5
        assert actual[name] ** power == pytest.approx(value**power, rel=tolerance, abs=tolerance), (name, where)


# --- features


@settings(max_examples=60, deadline=None)
@given(events=sessions(), calendar=st.booleans())
def test_every_feature_is_what_the_whole_prefix_says(events, calendar):
    encoder = an_encoder(calendar=calendar)
    features, indices = encoded(encoder, events)
    for position in range(len(events)):
        prefix = events[: position + 1]
        expected = reference_features(prefix, calendar=calendar)
        assert sorted(expected) == sorted(encoder.feature_names)
        actual = dict(zip(encoder.feature_names, features[position].tolist(), strict=True))
        assert_same(actual, expected, position)
        assert indices[position].tolist() == reference_indices(prefix)


def test_long_ordinary_sessions_agree_with_the_reference_too():
    encoder = an_encoder()
    for seed in range(4):
        events = random_session(seed, 60, items=ITEM_SLOTS)
        features, _ = encoded(encoder, events)
        for position in (9, 29, 59):
            actual = dict(zip(encoder.feature_names, features[position].tolist(), strict=True))
            assert_same(actual, reference_features(events[: position + 1]), (seed, position))


@pytest.mark.parametrize("gap_ms", [7_000, 61_000, 300_000, 1_234_567])
def test_equal_gaps_have_no_deviation(gap_ms):
    # Differences of nearly equal sums would leave a root of their rounding, which differs from device to device.
    encoder = an_encoder()
    features, _ = encoded(encoder, [Event("page_view", gap_ms * n) for n in range(40)])
    assert features[:, encoder.feature_names.index("log_gap_deviation")].max() < 1e-4


@settings(max_examples=40, deadline=None)
@given(sessions(max_size=12))
def test_nothing_a_shop_sends_makes_a_feature_or_a_carry_infinite(events):
    encoder = an_encoder()
    carry, memory = encoder.initial_state(1)
    for columns in zip(*columns_of([events]), strict=True):
        for step in zip(*columns, strict=True):
            features, _, carry, memory = encoder(*(column.unsqueeze(0) for column in step), carry, memory)
            assert features.isfinite().all()
            # Number properties never given are NaN in the carry, the only NaN there is.
            assert carry[:, : encoder.carry_size - encoder.number_properties].isfinite().all()
            assert (memory[:, 2:] >= 0).all()
            assert (memory[:, 2:] < 2**31).all()


def test_a_cart_of_the_dearest_things_stays_finite_for_2_000_events():
    encoder = an_encoder()
    event = Event("add_to_cart", 0, item_id="SKU-1", price=1e300, quantity=1e300)
    features, _ = encoded(encoder, [event] * 2_000)
    assert features.isfinite().all()
    assert features[-1, encoder.feature_names.index("log_cart_value")] == pytest.approx(math.log(2e27), rel=1e-3)


def test_without_calendar_time_the_clock_is_not_looked_at():
    encoder = an_encoder(calendar=False)
    events = random_session(0, 10)
    moved = [
        Event(e.event_name, e.timestamp_ms + 12_345_678, e.item_id, e.item_category, e.price, e.quantity, e.properties)
        for e in events
    ]
    assert torch.equal(encoded(encoder, events)[0], encoded(encoder, moved)[0])


def test_a_shop_without_items_or_properties_in_its_log_has_an_encoder_too():
    encoder = Encoder(["page_view"], [], [], [], {}, calendar=False)
    _, indices = encoded(encoder, [Event("page_view", 0), Event("view_item", 1, item_id="SKU-1", item_category="hats")])
    assert indices.tolist() == [[2, 0, 0], [1, 1, 1]]
    with pytest.raises(ValueError, match="event_names: expected at least one name"):
        Encoder([], [], [], [], {}, calendar=False)


@given(st.sets(st.text(min_size=1, max_size=10), min_size=1, max_size=40))
@settings(max_examples=30, deadline=None)
def test_the_vocabulary_is_numbered_as_it_says_whatever_the_order_it_came_in(words):
    encoder = Encoder(sorted(words), [], [], [], {}, calendar=False)
    ordered = vocabulary_order(sorted(words, reverse=True))
    assert encoder.vocabularies["event_name"] == ordered
    _, indices = encoded(encoder, [Event(word, 0) for word in ordered])
    assert indices[:, 0].tolist() == list(range(2, 2 + len(ordered)))


def test_a_type_that_a_shop_calls_other_is_not_taken_for_the_types_without_a_name():
    encoder = Encoder(["other", "page_view"], [], [], [], {}, calendar=False)
    features, _ = encoded(encoder, [Event(name, 0) for name in ("unheard_of", "other", "other", "page_view")])
    first = encoder.feature_names.index("log_count[other]")
    by_slot = features[-1, first : first + 3].expm1().round().tolist()
    named = dict(zip(vocabulary_order(["other", "page_view"]), by_slot[1:], strict=True))
    assert by_slot[0] == 1
    assert named == {"other": 2, "page_view": 1}


def test_another_encoders_buffers_are_not_read_since_they_follow_from_its_vocabularies():
    encoder, other = an_encoder(), Encoder(["page_view"], [], [], [], {}, calendar=False)
    kept = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    encoder.load_state_dict({**other.state_dict(), "arange_items": torch.arange(16)})
    assert all(torch.equal(buffer, kept[name]) for name, buffer in encoder.named_buffers())


# --- bounded memory


def ring_reference(identifiers, slots):
    """Times seen before and distinct so far, when only the last `slots` newcomers are remembered."""
    ring: deque[int] = deque(maxlen=slots)
    counts: dict[int, int] = {}
    distinct = 0
    for identifier in identifiers:
        if identifier in ring:
            counts[identifier] += 1
        else:
            ring.append(identifier)
            counts[identifier] = 1
            distinct += 1
        yield counts[identifier] - 1, distinct


def with_ids(kind, numbers):
    """Views of numbered items, or of items of numbered categories."""
    ids = [f"x{number}" for number in numbers]
    if kind == "item":
        return [Event("view_item", 0, item_id=each) for each in ids]
    return [Event("view_item", 0, item_category=each) for each in ids]


KINDS = pytest.mark.parametrize(("kind", "slots"), [("item", ITEM_SLOTS), ("category", CATEGORY_SLOTS)])
PLURAL = {"item": "items", "category": "categories"}


@KINDS
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_past_its_slots_the_encoder_forgets_the_oldest_newcomer_and_counts_it_as_new_again(kind, slots, data):
    encoder = an_encoder()
    # More ids than slots come first, in any order, so that every example is past the ring's end.
    more = st.lists(st.integers(0, slots + 3), min_size=slots, max_size=3 * slots)
    numbers = [*data.draw(st.permutations(range(slots + 2))), *data.draw(more)]
    features, _ = encoded(encoder, with_ids(kind, numbers))
    names = [f"log_{kind}_times_seen", f"log_distinct_{PLURAL[kind]}"]
    actual = features[:, [encoder.feature_names.index(name) for name in names]].expm1().round().int().tolist()
    assert actual == [list(pair) for pair in ring_reference(numbers, slots)]


@KINDS
def test_one_more_than_the_slots_makes_the_first_a_stranger_and_leaves_the_second_known(kind, slots):
    encoder = an_encoder()
    seen = encoder.feature_names.index(f"log_{kind}_times_seen")

    def last_was_seen(numbers):
        features, _ = encoded(encoder, with_ids(kind, numbers))
        return bool(features[-1, seen])

    assert last_was_seen([*range(slots - 1), 0])
    assert last_was_seen([*range(slots), 0])
    assert not last_was_seen([*range(slots + 1), 0])
    assert last_was_seen([*range(slots + 1), 1])
    # The stranger takes the place of the second
    assert not last_was_seen([*range(slots + 1), 0, 1])


# --- scopes


def test_a_session_property_sticks_until_another_is_sent_and_an_event_property_does_not():
    encoder = an_encoder()
    sent: list[dict[str, PropertyValue]] = [
        {"device": "mobile", "visits": 3, "page": "mobile", "scroll": 0.5},
        {},
        {"device": "desktop", "visits": 4},
        {"device": "", "visits": "unreadable"},
    ]
    features, indices = encoded(encoder, [Event("page_view", 0, properties=properties) for properties in sent])
    mobile, desktop = (2 + vocabulary_order(VALUES).index(word) for word in ("mobile", "desktop"))
    column = {name: number for number, name in enumerate(encoder.index_names)}
    assert indices[:, column["property.device"]].tolist() == [mobile, mobile, desktop, desktop]
    assert indices[:, column["property.page"]].tolist() == [mobile, 0, 0, 0]
    value = {name: features[:, encoder.feature_names.index(name)].tolist() for name in encoder.feature_names}
    assert value["value[visits]"] == pytest.approx([math.asinh(number) for number in (3, 3, 4, 4)])
    assert value["given[visits]"] == [1, 1, 1, 1]
    assert value["value[scroll]"] == pytest.approx([math.asinh(0.5), 0, 0, 0])
    assert value["given[scroll]"] == [1, 0, 0, 0]


# --- the fold


def chained(encoder, columns):
    """Features, indices and the states after each of T steps."""
    carry, memory = encoder.initial_state(columns[0].size(0))
    for position in range(columns[0].size(1)):
        *out, carry, memory = encoder(*(column[:, position] for column in columns), carry, memory)
        yield [*out, carry, memory]


@pytest.mark.parametrize("calendar", [False, True])
def test_the_scripted_encoder_is_the_eager_one_over_chained_calls(calendar):
    model = random_model(properties=ALL_SCOPES, calendar=calendar)
    encoder, scripted = model.encoder, torch.jit.script(model).encoder
    columns = columns_of(random_sessions([30, 30, 30]))
    for eager_step, scripted_step in zip(chained(encoder, columns), chained(scripted, columns), strict=True):
        for eager_part, scripted_part in zip(eager_step, scripted_step, strict=True):
            assert eager_part.dtype == scripted_part.dtype
            torch.testing.assert_close(scripted_part, eager_part, rtol=1e-6, atol=1e-6, equal_nan=True)
    for eager_part, scripted_part in zip(encoder.sequence(*columns), scripted.sequence(*columns), strict=True):
        torch.testing.assert_close(scripted_part, eager_part, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("padding", [0, 7, 2**40])
def test_a_batch_of_8_is_8_batches_of_1_whatever_the_padding(padding):
    encoder = an_encoder()
    together = random_sessions([1, 30, 7, 12, 2, 30, 19, 5])
    features, indices = encoder.sequence(*columns_of(together, padding=padding))
    for row, events in enumerate(together):
        alone_features, alone_indices = encoded(encoder, events)
        torch.testing.assert_close(features[row, : len(events)], alone_features, rtol=1e-6, atol=1e-6)
        assert torch.equal(indices[row, : len(events)], alone_indices)


@settings(max_examples=40, deadline=None)
@given(prefix=sessions(max_size=8), one_future=sessions(max_size=8), another_future=sessions(max_size=8))
def test_no_feature_of_a_prefix_depends_on_what_comes_after_it(prefix, one_future, another_future):
    encoder = an_encoder()
    alone = encoded(encoder, prefix)
    for future in (one_future, another_future):
        for before, after in zip(alone, encoded(encoder, prefix + future), strict=True):
            assert torch.equal(after[: len(prefix)], before)


def test_sessions_in_one_batch_do_not_see_each_other():
    encoder = an_encoder()
    one, two, three = random_sessions([20, 20, 20])
    features, _ = encoder.sequence(*columns_of([one, two]))
    others, _ = encoder.sequence(*columns_of([one, three]))
    assert torch.equal(features[0], others[0])
    assert not torch.equal(features[1], others[1])


def test_the_inputs_are_left_as_they_were():
    encoder = an_encoder()
    columns = [column[:, 0] for column in columns_of(random_sessions([3, 3]))]
    state = list(encoder.initial_state(2))
    _, _, *state = encoder(*columns, *state)
    kept = [part.clone() for part in state]
    encoder(*columns, *state)
    for part, copy in zip(state, kept, strict=True):
        torch.testing.assert_close(part, copy, rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_the_encoder_on_a_gpu_is_the_encoder_on_the_cpu():
    encoder = an_encoder()
    columns = columns_of(random_sessions([30, 30, 30]))
    expected = encoder.sequence(*columns)
    actual = encoder.cuda().sequence(*(column.cuda() for column in columns))
    for there, here in zip(actual, expected, strict=True):
        torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-4)


def test_property_specs_of_a_kind_keep_their_order():
    specs = [PropertySpec("b", "number"), PropertySpec("x", "category"), PropertySpec("a", "number")]
    encoder = an_encoder(properties=specs)
    features, _ = encoded(encoder, [Event("page_view", 0, properties={"a": 1, "b": 2, "x": "mobile"})])
    value = dict(zip(encoder.feature_names, features[0].tolist(), strict=True))
    assert (value["value[a]"], value["value[b]"]) == pytest.approx((math.asinh(1), math.asinh(2)))
