"""The synthetic shop: its log is a log, and its posterior is the best possible answer."""

import math
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice, pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from model.events import GA4_EVENT_NAMES, Event
from training.synthetic import PRESETS, ShopShape, generate, sessions, write
from training.synthetic.log import SyntheticLog
from training.synthetic.posterior import FACTORS, Factor, gap_probability, posterior
from training.synthetic.process import INTENTS, MAX_GAP_MS, VIEW_ITEM, Process
from training.synthetic.sample import DAY_MS, Traces, sample

TINY = ShopShape(items=9, categories=3, max_events=4, max_cart=2, late_items=0.5, days=1)
BEGIN_MS = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1_000)


@pytest.fixture(scope="module")
def log() -> SyntheticLog:
    return generate(PRESETS["default"], 20_000, seed=11)


@pytest.fixture(scope="module")
def joined(log: SyntheticLog) -> pl.DataFrame:
    """One row a prefix: its exact posterior and what the session really came to."""
    bought = log.events.group_by("session_id").agg(bought=(pl.col("event_name") == "purchase").any())
    return log.posterior.join(bought, on="session_id")


def log_loss(outcome: np.ndarray, probability: np.ndarray) -> float:
    return float(-np.mean(np.log(np.where(outcome, probability, 1.0 - probability))))


class BruteForce:
    """P(purchase | prefix) by enumerating every hidden path and every future, in plain Python floats."""

    def __init__(self, process: Process, traces: Traces, session: int) -> None:
        self.process, self.shape = process, process.shape
        self.properties = traces.device[session], traces.campaign[session], traces.visits[session]
        self.names = traces.name[session, : traces.length[session]].tolist()
        self.gaps = traces.gap_ms[session].tolist()
        self.items = traces.item[session].tolist()
        self.moment = traces.start_ms[session] / (self.shape.days * DAY_MS)
        self.contexts = [process.first_context]
        for name in self.names:
            self.contexts.append(int(process.next_context[self.contexts[-1], name]))

    def probability(self, prefix_length: int) -> float:
        joint_with_purchase = joint = 0.0
        for path in product(range(len(INTENTS)), repeat=prefix_length):
            likelihood = self.likelihood(path)
            joint += likelihood
            if likelihood > 0.0:
                joint_with_purchase += likelihood * self.buys_later(
                    prefix_length, path[-1], self.contexts[prefix_length]
                )
        return joint_with_purchase / joint

    def likelihood(self, path: tuple[int, ...]) -> float:
        likelihood = float(self.process.start[self.properties][path[0]])
        for n, intent in enumerate(path):
            before = self.contexts[n]
            if n > 0:
                ended = self.process.buys[path[n - 1], before] + self.process.leaves[path[n - 1], before]
                likelihood *= (1.0 - ended) * self.process.transition[path[n - 1], intent]
                likelihood *= self.gap(n, intent)
            likelihood *= self.process.emission[intent, before, self.names[n]] * self.item(n, intent)
        return float(likelihood)

    def gap(self, n: int, intent: int) -> float:
        def longer_than(gap_ms: int) -> float:
            if gap_ms == 0:
                return 1.0
            score = (math.log(gap_ms) - self.process.gap_mean[intent, self.contexts[n]]) / deviation
            return 0.5 * math.erfc(score / math.sqrt(2.0))

        deviation = self.process.gap_deviation[intent]
        if self.gaps[n] == MAX_GAP_MS:
            return longer_than(MAX_GAP_MS - 1)
        return longer_than(self.gaps[n] - 1) - longer_than(self.gaps[n])

    def item(self, n: int, intent: int) -> float:
        if self.names[n] != VIEW_ITEM:
            return 1.0
        catalogue = self.process.catalogue
        item, tier = self.items[n], catalogue.tier[self.items[n]]
        launch = np.concatenate(catalogue.launch)
        on_sale = [i for i in range(self.shape.items) if catalogue.tier[i] == tier and launch[i] <= self.moment]
        popularity = catalogue.weight[item] / sum(catalogue.weight[i] for i in on_sale)
        fresh = self.process.tier[intent, tier] * popularity
        seen = {self.items[m] for m in range(n) if self.names[m] == VIEW_ITEM}
        if not seen:
            return float(fresh)
        again = self.process.revisit[intent]
        return float(again * (item in seen) / len(seen) + (1.0 - again) * fresh)

    def buys_later(self, events: int, intent: int, context: int) -> float:
        now = float(self.process.buys[intent, context])
        if events == self.shape.max_events:
            return now
        later = sum(
            float(move * emit) * self.buys_later(events + 1, following, int(self.process.next_context[context, name]))
            for following, move in enumerate(self.process.transition[intent])
            if move > 0.0
            for name, emit in enumerate(self.process.emission[following, context])
            if emit > 0.0
        )
        return now + (1.0 - now - float(self.process.leaves[intent, context])) * later


def test_posterior_equals_the_enumeration_of_all_hidden_paths_and_futures() -> None:
    process = Process.of(TINY)
    traces = sample(process, 20_000, np.random.default_rng(5))
    answer = posterior(process, traces)
    long = np.flatnonzero(traces.length == TINY.max_events)
    views = [traces.item[s, traces.name[s] == VIEW_ITEM].tolist() for s in long]
    # Futures of short prefixes are the slow part: all prefixes of a few sessions, long prefixes of many.
    viewed_twice = [s for s, items in zip(long, views, strict=True) if len(items) == 2 and len(set(items)) == 1]
    returned_before = [s for s, items in zip(long, views, strict=True) if len(items) >= 3 and items[0] == items[1]]
    cart_full = [s for s in long if traces.cart[s].max() == TINY.max_cart]
    assert viewed_twice
    assert returned_before
    assert cart_full
    cases = [(s, n) for s in long[:2] for n in (1, 2)]
    cases += [(s, n) for s in [*long[:25], *viewed_twice[:10], *returned_before[:5], *cart_full[:5]] for n in (3, 4)]

    for session, prefix_length in cases:
        expected = BruteForce(process, traces, session).probability(prefix_length)
        assert answer[session, prefix_length - 1] == pytest.approx(expected, rel=1e-7), (session, prefix_length)


def test_posterior_agrees_with_the_outcomes_at_every_prefix_length(joined: pl.DataFrame) -> None:
    # Given the posterior, purchases of different sessions are independent Bernoulli draws with that probability.
    for prefix_length in (1, 2, 3, 5, 8, 10, 15, 20, 30):
        rows = joined.filter(pl.col("prefix_length") == prefix_length)
        probability, bought = rows["probability"].to_numpy(), rows["bought"].to_numpy()
        for low, high in [(0.0, 0.02), (0.02, 0.1), (0.1, 0.3), (0.3, 1.0), (0.0, 1.0)]:
            inside = (probability >= low) & (probability <= high)
            error = np.sum(bought[inside] - probability[inside])
            deviation = math.sqrt(np.sum(probability[inside] * (1.0 - probability[inside])))
            # 45 comparisons: |z| > 4 in any of them has a chance of 0.3 %, and the seed is fixed.
            assert abs(error) <= 4.0 * deviation, (prefix_length, low, high)


def test_posterior_expects_itself_after_one_more_event(log: SyntheticLog) -> None:
    # A martingale: today's probability is the mean of tomorrow's, where a session that ended is at 1 or 0.
    bought = set(log.events.filter(pl.col("event_name") == "purchase")["session_id"])
    table = log.posterior.sort("session_id", "prefix_length").with_columns(
        following=pl.col("probability").shift(-1).over("session_id"),
        bought=pl.col("session_id").is_in(bought).cast(pl.Float64),
    )
    table = table.with_columns(following=pl.coalesce("following", "bought"))
    for low, high in [(0.0, 0.05), (0.05, 0.2), (0.2, 0.5), (0.5, 1.0)]:
        inside = table.filter(pl.col("probability").is_between(low, high))
        change = inside["following"].to_numpy() - inside["probability"].to_numpy()
        assert abs(change.mean()) <= 4.0 * change.std() / math.sqrt(len(change)), (low, high)


def test_gap_probabilities_are_a_distribution_up_to_the_longest_gap() -> None:
    process = Process.of(TINY)
    gap_ms = np.arange(1, MAX_GAP_MS + 1)

    # The context with the longest gaps, where the bound takes most.
    context = np.full(len(gap_ms), process.gap_mean[0].argmax())

    total = gap_probability(process, gap_ms, context).sum(axis=0)
    np.testing.assert_allclose(total, 1.0, atol=1e-9)


def test_revisits_come_at_their_rate_and_to_all_items_viewed_before_alike() -> None:
    process = Process.of(ShopShape(items=100_000, zipf_exponent=0.0))
    traces = sample(replace(process, revisit=np.full(len(INTENTS), 0.5)), 20_000, np.random.default_rng(1))
    views = [items[items >= 0] for items in np.where(traces.name == VIEW_ITEM, traces.item, -1)]

    second = np.array([v[1] == v[0] for v in views if len(v) > 1])
    assert abs(second.mean() - 0.5) < 4.0 * 0.5 / math.sqrt(len(second))
    # Seen a, b, a: both are as likely to be seen again, though a was seen twice.
    fourth = [v[3] == v[0] for v in views if len(v) > 3 and v[0] == v[2] != v[1] and v[3] in v[:2]]
    assert abs(np.mean(fourth) - 0.5) < 4.0 * 0.5 / math.sqrt(len(fourth))


@pytest.mark.parametrize("factor", FACTORS)
def test_posterior_is_worse_without_any_one_observation(factor: Factor) -> None:
    process = Process.of(PRESETS["default"])
    traces = sample(process, 20_000, np.random.default_rng(3))
    full, part = posterior(process, traces), posterior(process, traces, ignore=[factor])
    known = ~np.isnan(full)
    outcome = np.broadcast_to(traces.purchased[:, None], full.shape)[known]

    assert log_loss(outcome, part[known]) > log_loss(outcome, full[known]) + 1e-4


def test_posterior_beats_what_the_last_event_and_the_prefix_length_tell(
    log: SyntheticLog, joined: pl.DataFrame
) -> None:
    keys = ["prefix_length", "event_name"]
    names = (
        log.events.filter(pl.col("event_name") != "purchase")
        .sort("session_id", "timestamp_ms")
        .with_columns(prefix_length=pl.int_range(1, pl.len() + 1, dtype=pl.UInt32).over("session_id"))
    )
    table = joined.join(names.select("session_id", *keys), on=["session_id", "prefix_length"])
    # In hindsight: even fitted to these very sessions, a model without memory is far behind.
    table = table.with_columns(memoryless=pl.col("bought").mean().over(keys))
    outcome = table["bought"].to_numpy()

    gain = log_loss(outcome, table["memoryless"].to_numpy().clip(1e-12, 1 - 1e-12)) - log_loss(
        outcome, table["probability"].to_numpy()
    )
    assert gain > 0.03


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_log(tmp_path: Path) -> None:
    shape = PRESETS["long-tail"]
    for name, seed in [("one", 4), ("two", 4), ("three", 5)]:
        write(generate(shape, 300, seed=seed), tmp_path / f"{name}.parquet")

    one, two, three = ((tmp_path / f"{name}.parquet").read_bytes() for name in ("one", "two", "three"))
    assert one == two
    assert one != three


def test_a_larger_log_begins_with_the_same_visitors() -> None:
    # Sessions are drawn in chunks of 4,096: whole chunks do not depend on what comes after.
    small, large = (generate(PRESETS["default"], n, seed=4).events for n in (4_096, 4_500))

    shared = large.filter(pl.col("session_id").is_in(small["session_id"].unique().to_list()))

    assert shared.drop("source_line").equals(small.drop("source_line"))


def test_a_log_drawn_in_several_chunks_is_one_log() -> None:
    log = generate(ShopShape(max_events=1_000), 1_700, seed=1)  # 1,600 sessions a chunk at this length

    assert log.events["session_id"].n_unique() == 1_700
    assert log.events["timestamp_ms"].is_sorted()
    last = log.events.filter(pl.col("session_id") == "syn-1-1699")["event_name"].to_list()
    posterior_rows = log.posterior.filter(pl.col("session_id") == "syn-1-1699")
    assert len(posterior_rows) == len([name for name in last if name != "purchase"])


def test_the_log_is_a_canonical_event_table_in_time_order(log: SyntheticLog) -> None:
    events = log.events
    assert dict(events.schema) == {
        "session_id": pl.String,
        "timestamp_ms": pl.Int64,
        "event_name": pl.String,
        "item_id": pl.String,
        "item_category": pl.String,
        "price": pl.Float64,
        "quantity": pl.Float64,
        "outcome": pl.Boolean,
        "source_line": pl.Int64,
        "property.device": pl.String,
        "property.campaign": pl.String,
        "property.visits": pl.Float64,
    }
    assert events["timestamp_ms"].is_sorted()
    assert events["source_line"].to_list() == list(range(1, len(events) + 1))
    assert events["outcome"].null_count() == len(events)
    assert set(events["event_name"]) <= GA4_EVENT_NAMES
    assert (events.drop_nulls("item_id")["price"] >= 5.0).all()
    per_item = events.drop_nulls("item_id").group_by("item_id").agg(pl.n_unique("price", "item_category"))
    assert per_item["price"].max() == 1
    assert per_item["item_category"].max() == 1


def test_a_purchase_is_the_last_row_of_its_session_and_has_no_posterior(log: SyntheticLog) -> None:
    rows = log.events.with_columns(is_last=pl.col("timestamp_ms") == pl.col("timestamp_ms").max().over("session_id"))
    purchases = rows.filter(pl.col("event_name") == "purchase")

    assert purchases["is_last"].all()
    assert purchases["session_id"].is_unique().all()
    assert len(log.posterior) == len(rows) - len(purchases)
    assert log.posterior["probability"].is_between(0.0, 1.0).all()


def test_sessions_make_sense_to_a_shopkeeper(log: SyntheticLog) -> None:
    events = log.events.sort("session_id", "timestamp_ms").with_columns(
        before=pl.col("event_name").shift(1).over("session_id"),
        item_before=pl.col("item_id").shift(1).over("session_id"),
        gap_ms=pl.col("timestamp_ms").diff().over("session_id"),
        cart=(pl.col("event_name") == "add_to_cart").cast(pl.Int64).cum_sum().over("session_id")
        - (pl.col("event_name") == "remove_from_cart").cast(pl.Int64).cum_sum().over("session_id"),
    )
    added = events.filter(pl.col("event_name") == "add_to_cart")

    assert (added["before"] == "view_item").all()
    assert (added["item_id"] == added["item_before"]).all()
    assert set(events["cart"]) == set(range(7))
    needs_items = ["begin_checkout", "add_shipping_info", "add_payment_info", "purchase"]
    assert (events.filter(pl.col("event_name").is_in(needs_items))["cart"] >= 1).all()
    assert (events["gap_ms"].drop_nulls() >= 1).all()
    assert (events.filter(pl.col("event_name") != "purchase")["gap_ms"].drop_nulls() <= MAX_GAP_MS).all()


@pytest.mark.parametrize(
    ("preset", "base_rate", "median_length"),
    [
        ("default", (0.12, 0.15), (7, 9)),
        ("low-base-rate", (0.016, 0.026), (3, 5)),
        ("long-sessions", (0.15, 0.22), (35, 55)),
        ("long-tail", (0.12, 0.15), (7, 9)),
    ],
)
def test_presets_keep_to_their_stated_base_rate_and_length(
    preset: str, base_rate: tuple[float, float], median_length: tuple[int, int]
) -> None:
    shape = PRESETS[preset]
    traces = sample(Process.of(shape), 6_000, np.random.default_rng(8))

    assert base_rate[0] <= traces.purchased.mean() <= base_rate[1]
    assert median_length[0] <= np.median(traces.length) <= median_length[1]
    assert traces.length.max() <= shape.max_events


def test_the_mean_of_the_first_posterior_is_the_purchase_rate() -> None:
    for preset in PRESETS.values():
        process = Process.of(preset)
        traces = sample(process, 6_000, np.random.default_rng(21))
        first = posterior(process, traces)[:, 0]
        deviation = math.sqrt(np.sum(first * (1.0 - first))) / len(first)
        assert abs(first.mean() - traces.purchased.mean()) <= 4.0 * deviation


def test_late_items_appear_only_after_their_launch() -> None:
    log = generate(PRESETS["long-tail"], 8_000, seed=2)
    catalogue = Process.of(PRESETS["long-tail"]).catalogue
    launch = np.concatenate(catalogue.launch)
    viewed = log.events.drop_nulls("item_id")
    item = viewed["item_id"].str.strip_prefix("SKU-").cast(pl.Int64).to_numpy()
    moment = (viewed["timestamp_ms"].to_numpy() - BEGIN_MS) / (28 * DAY_MS)

    assert np.all(launch[item] <= moment)
    half = int(len(item) * 0.7)
    unseen = ~np.isin(item[half:], item[:half])
    # A split by time must face items that training never saw; without launches the Zipf tail alone gives fewer.
    assert unseen.mean() > 0.1


def test_when_a_session_starts_says_nothing_about_its_outcome(log: SyntheticLog) -> None:
    starts = log.events.group_by("session_id").agg(
        pl.col("timestamp_ms").min(), bought=(pl.col("event_name") == "purchase").any()
    )
    start_ms, bought = starts["timestamp_ms"].to_numpy(), starts["bought"].to_numpy()
    for unit_ms, parts in [(DAY_MS, 24), (28 * DAY_MS, 28)]:
        part = (start_ms - BEGIN_MS) % unit_ms * parts // unit_ms
        sessions_in, buyers_in = np.bincount(part, minlength=parts), np.bincount(part, bought, minlength=parts)
        expected = sessions_in * bought.mean()
        chi_square = np.sum((buyers_in - expected) ** 2 / (expected * (1.0 - bought.mean())))
        # Mean `parts` and variance twice that, under independence.
        assert chi_square < parts + 4.0 * math.sqrt(2 * parts)


def test_write_keeps_the_truth_in_a_file_of_its_own(tmp_path: Path, log: SyntheticLog) -> None:
    out = tmp_path / "new" / "shop.parquet"

    truth = write(log, out)

    assert truth == tmp_path / "new" / "shop.posterior.parquet"
    assert pl.read_parquet(out).equals(log.events)
    assert pl.read_parquet(truth).equals(log.posterior)
    assert pl.read_parquet_metadata(out)["willbuy.clock"] == "calendar"
    assert "probability" not in pl.read_parquet_schema(out)


def test_the_stream_yields_sessions_of_the_same_shop_without_end() -> None:
    stream = list(islice(sessions(PRESETS["default"], seed=1), 600))
    again = list(islice(sessions(PRESETS["default"], seed=1), 600))

    assert stream == again
    assert all(isinstance(event, Event) for session in stream for event in session)
    assert all(a.timestamp_ms < b.timestamp_ms for session in stream for a, b in pairwise(session))
    assert 0.08 < np.mean([session[-1].event_name == "purchase" for session in stream]) < 0.18
    assert all(set(event.properties) == {"device", "campaign", "visits"} for event in stream[0])
    assert len({id(session) for session in stream}) == 600
    assert stream[0] != stream[256]  # the next chunk is drawn anew


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("items", 3),
        ("items", 10.0),
        ("categories", 0),
        ("zipf_exponent", -0.1),
        ("late_items", 1.0),
        ("days", 0),
        ("max_events", 0),
        ("max_events", True),
        ("max_cart", 0),
        ("intent", math.nan),
        ("purchase_scale", 1.3),
        ("leave_scale", -1.0),
        ("pace", math.inf),
        ("pace", "fast"),
    ],
)
def test_a_bad_parameter_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{field}: "):
        replace(ShopShape(), **{field: value})


def test_bad_arguments_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^sessions: "):
        generate(ShopShape(), 0, seed=1)
    with pytest.raises(ValueError, match=r"^seed: "):
        generate(ShopShape(), 1, seed=-1)
    with pytest.raises(ValueError, match=r"^seed: "):
        sessions(ShopShape(), seed=-1)
    with pytest.raises(ValueError, match=r"^start: "):
        generate(ShopShape(), 1, seed=1, start=datetime(2026, 1, 1))  # noqa: DTZ001 - the mistake under test


@pytest.mark.parametrize("extreme", [{"purchase_scale": 1.2, "leave_scale": 2.0, "pace": 2.0}, {"max_events": 1}])
def test_extreme_shapes_are_still_distributions(extreme: dict[str, Any]) -> None:
    process = Process.of(replace(ShopShape(), **extreme))

    for table in (process.start, process.transition, process.emission, process.tier):
        assert np.all(table >= 0.0)
        np.testing.assert_allclose(table.sum(axis=-1), 1.0, atol=1e-12)
    assert np.all(process.buys + process.leaves <= 1.0)
    traces = sample(process, 200, np.random.default_rng(0))
    assert np.isfinite(posterior(process, traces)[traces.name >= 0]).all()
