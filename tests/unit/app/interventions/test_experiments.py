"""Rules with their results, and the switches that a replica follows."""

import pytest
import structlog

from app.errors import RuleNotFoundError, StoreUnavailableError
from app.interventions.experiments import Experiments, daily_rate, results_of
from app.interventions.statistics import Finding
from app.monitoring.metrics import Metrics
from app.store.experiments import DAY_MS, Revenue, Totals
from model.interventions.rules import Rule, RuleSet

DAY = 20_000
NOON_MS = DAY * DAY_MS + DAY_MS // 2
RULES = RuleSet((Rule(name="voucher", control=0.5), Rule(name="chat")), "rules.toml")


class Store:
    """Counts and switches in memory."""

    def __init__(self) -> None:
        self.off: dict[str, int] = {}
        self.found: dict[tuple[str, str], Totals] = {}
        self.is_down = False

    async def totals(self, now_ms):
        assert now_ms == NOON_MS
        return self.found

    async def switched_off(self):
        if self.is_down:
            raise StoreUnavailableError("gone")
        return dict(self.off)

    async def switch(self, rule, *, on):
        if on:
            self.off.pop(rule, None)
        else:
            self.off.setdefault(rule, NOON_MS)


def experiments(store, seen, metrics=None):
    return Experiments(
        store,
        lambda: RULES,
        on_switched=seen.append,
        metrics=metrics or Metrics(),
        logger=structlog.get_logger(),
        now_ms=lambda: NOON_MS,
    )


def revenue(purchases, total, squares, currency=""):
    return {currency: Revenue(purchases, total, squares)}


def test_revenue_is_in_the_currency_of_most_purchases_and_others_are_never_added() -> None:
    treated = revenue(7, 70.0, 700.0, "EUR") | revenue(2, 90_000.0, 5e9, "JPY") | revenue(9, 0.0, 0.0)
    held = revenue(1, 12.0, 144.0, "EUR") | revenue(5, 500.0, 5e4, "JPY")
    totals = {("voucher", "treatment"): Totals(20, 18, treated), ("voucher", "control"): Totals(20, 6, held)}
    voucher = results_of(RULES.rules, totals, {}, now_ms=NOON_MS)[0]
    assert voucher.currency == "EUR"
    assert [voucher.groups[group].revenue for group in ("treatment", "control")] == [70.0, 12.0]
    assert [voucher.groups[group].buyers for group in ("treatment", "control")] == [18, 6]


def test_each_rule_of_the_file_has_a_result_and_so_have_removed_ones_with_counts() -> None:
    totals = {
        ("voucher", "treatment"): Totals(2_000, 270, revenue(270, 8_100.0, 300_000.0), fired={DAY: 300, DAY - 1: 400}),
        ("voucher", "control"): Totals(2_000, 240, revenue(240, 7_200.0, 270_000.0), fired={DAY: 200, DAY - 1: 600}),
        ("old", "treatment"): Totals(5, 1, revenue(1, 1.0, 1.0)),
    }
    voucher, chat, old = results_of(RULES.rules, totals, {"chat": 7}, now_ms=NOON_MS)
    assert (voucher.name, chat.name, old.name) == ("voucher", "chat", "old")
    assert voucher.fired_today == {"treatment": 300, "control": 200}
    assert voucher.groups["control"].buyers == 240
    assert voucher.comparison.difference == pytest.approx(0.015)
    # 500 so far today and half of yesterday's 1,000.
    assert voucher.comparison.verdict.text == "not yet known: about 15 more days"
    assert (voucher.is_on, chat.is_on, old.is_on) == (True, False, False)
    assert (chat.switched_off_ms, old.rule) == (7, None)
    assert chat.comparison.verdict.finding is Finding.NO_CONTROL


@pytest.mark.parametrize(
    ("today", "yesterday", "elapsed", "rate"),
    [(500, 1000, 0.5, 1000), (500, 1000, 0.75, 750), (0, 0, 0.5, 0), (10, 0, 0.5, 20), (10, 0, 0.0, 240)],
)
def test_the_rate_is_that_of_the_last_day(today, yesterday, elapsed, rate) -> None:
    assert daily_rate(today, yesterday, elapsed) == pytest.approx(rate)


@pytest.mark.anyio
async def test_a_switch_reaches_this_replica_at_once_and_another_at_its_next_look() -> None:
    here: list[frozenset[str]] = []
    there: list[frozenset[str]] = []
    store = Store()
    this, other = experiments(store, here), experiments(store, there)
    await this.switch("voucher", on=False)
    assert here == [frozenset({"voucher"})]
    await other.follow_once()
    await other.follow_once()
    assert there == [frozenset({"voucher"})]
    await other.switch("voucher", on=True)
    assert there[-1] == frozenset()


@pytest.mark.anyio
async def test_an_unknown_rule_has_no_switch_and_a_lost_redis_changes_none() -> None:
    seen: list[frozenset[str]] = []
    store = Store()
    experiment = experiments(store, seen)
    with pytest.raises(RuleNotFoundError, match="vouchr"):
        await experiment.switch("vouchr", on=False)
    await experiment.switch("voucher", on=False)
    store.is_down = True
    with pytest.raises(StoreUnavailableError):
        await experiment.follow_once()
    assert seen == [frozenset({"voucher"})]


@pytest.mark.anyio
async def test_the_counts_are_in_the_metrics() -> None:
    store, metrics = Store(), Metrics()
    store.found = {("voucher", "control"): Totals(9, 2, revenue(2, 30.0, 500.0, "EUR"), pending=3)}
    store.off = {"chat": 1}
    experiment = experiments(store, [], metrics)
    await experiment.follow_once()
    experiment.show(await experiment.results())
    labels = {"rule": "voucher", "group": "control"}
    for name, value in (("sessions", 9), ("buyers", 2), ("revenue", 30.0)):
        assert metrics.registry.get_sample_value(f"willbuy_experiment_{name}", labels) == value
    assert metrics.registry.get_sample_value("willbuy_rule_on", {"rule": "chat"}) == 0
    assert metrics.registry.get_sample_value("willbuy_rule_on", {"rule": "voucher"}) == 1
    await experiment.close()
