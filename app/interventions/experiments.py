"""Rules with what became of their sessions, and the switches of rules, for all replicas.

A replica reads the switches once a second in the background and builds what decides anew when they have changed, so a
switch costs an event nothing and holds everywhere within two seconds.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from structlog.typing import FilteringBoundLogger

from app.errors import RuleNotFoundError, StoreError
from app.interventions.statistics import Comparison, GroupCounts, compare
from app.monitoring.metrics import Metrics
from app.runtime.periodic import Background, PeriodicTask
from app.runtime.single_flight import SingleFlightCache
from app.store.experiments import DAY_MS, ExperimentStore, Revenue, Totals
from model.interventions.rules import Rule, RuleSet

SWITCHES_READ_EVERY_S: Final = 1.0
_TOTALS_KEPT_S: Final = 1.0
# The metrics are read by Prometheus every 15 s or so.
_TURNS_A_METRIC: Final = 10
GROUPS: Final = ("treatment", "control")


@dataclass(frozen=True, slots=True)
class RuleResult:
    """A rule and its experiment.

    Attributes:
        name: of the rule.
        rule: as the file has it; None: the file does not have it any more.
        switched_off_ms: when it was switched off, Redis' clock; None: it is on.
        fired_today: decisions since midnight, UTC, by group.
        groups: sums over ended sessions by group; their revenue is in `currency`.
        currency: the one of most purchases; other purchases count without revenue. Empty: not known.
        pending: sessions that ended too soon to count, by group.
        comparison: the difference between them.
    """

    name: str
    rule: Rule | None
    switched_off_ms: int | None
    fired_today: Mapping[str, int]
    groups: Mapping[str, GroupCounts]
    currency: str
    pending: Mapping[str, int]
    comparison: Comparison

    @property
    def is_on(self) -> bool:
        """Whether the rule may fire."""
        return self.rule is not None and self.switched_off_ms is None


def results_of(
    rules: Sequence[Rule], totals: Mapping[tuple[str, str], Totals], switched_off: Mapping[str, int], *, now_ms: int
) -> list[RuleResult]:
    """Return all rules of the file, in its order, then those that only have counts.

    Args:
        rules: of the file.
        totals: sums by rule and group.
        switched_off: when each rule that is off was switched off.
        now_ms: the server's clock.
    """
    named: dict[str, Rule | None] = {rule.name: rule for rule in rules}
    for name in sorted({name for name, _ in totals} - set(named)):
        named[name] = None
    day, into_day = divmod(now_ms, DAY_MS)
    found = []
    for name, rule in named.items():
        of_group = {group: totals.get((name, group), Totals()) for group in GROUPS}
        currency = _commonest_currency(of_group.values())
        groups = {group: _counts(one, currency) for group, one in of_group.items()}
        treatment, control = groups["treatment"], groups["control"]
        sessions = treatment.sessions + control.sessions
        # Of a rule that the file does not have any more, the share is not known: the one that was.
        share = rule.control if rule is not None else (control.sessions / sessions if sessions else 0.0)
        today = {group: one.fired.get(day, 0) for group, one in of_group.items()}
        yesterday = sum(one.fired.get(day - 1, 0) for one in of_group.values())
        found.append(
            RuleResult(
                name=name,
                rule=rule,
                switched_off_ms=switched_off.get(name),
                fired_today=today,
                groups=groups,
                currency=currency,
                pending={group: one.pending for group, one in of_group.items()},
                comparison=compare(
                    treatment,
                    control,
                    control_share=share,
                    sessions_a_day=daily_rate(sum(today.values()), yesterday, into_day / DAY_MS),
                ),
            )
        )
    return found


def _counts(totals: Totals, currency: str) -> GroupCounts:
    revenue = totals.revenue.get(currency, Revenue())
    # A difference of sums may be a rounding error below zero.
    return GroupCounts(totals.sessions, totals.buyers, max(0.0, revenue.sum), max(0.0, revenue.squares))


def _commonest_currency(groups: Iterable[Totals]) -> str:
    """Return the currency of most purchases that have a value; empty where none has a currency."""
    purchases: Counter[str] = Counter()
    for totals in groups:
        purchases.update({name: revenue.purchases for name, revenue in totals.revenue.items() if revenue.sum > 0})
    return max(sorted(purchases), key=purchases.__getitem__, default="")


def daily_rate(today: int, yesterday: int, elapsed: float) -> float:
    """Return decisions a day: of the last 24 hours, yesterday's taken as even; of today alone on a rule's first day.

    Args:
        today: decisions so far today.
        yesterday: decisions of yesterday.
        elapsed: share of today that has passed.
    """
    if yesterday:
        return today + (1.0 - elapsed) * yesterday
    return today / max(elapsed, 1.0 / 24.0)


class Experiments(Background):
    """The rules' results and switches in one replica.

    Args:
        store: counts and switches.
        rules: returns the file's rules as they are now.
        on_switched: called with the names of the rules that are off, whenever these change.
        metrics: where the counts are shown.
        logger: where failures are logged.
        now_ms: the server's clock.
    """

    def __init__(
        self,
        store: ExperimentStore,
        rules: Callable[[], RuleSet],
        *,
        on_switched: Callable[[frozenset[str]], None],
        metrics: Metrics,
        logger: FilteringBoundLogger,
        now_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._rules = rules
        self._on_switched = on_switched
        self._metrics = metrics
        self._now_ms = now_ms
        self._logger = logger
        self._switched_off: dict[str, int] = {}
        self._turn = 0
        self._totals: SingleFlightCache[None, dict[tuple[str, str], Totals]] = SingleFlightCache(
            lambda _: store.totals(now_ms()), kept_s=_TOTALS_KEPT_S
        )
        self._task = PeriodicTask(
            self._follow, name="rule-switches", every_s=SWITCHES_READ_EVERY_S, logger=logger, failed="switches_failed"
        )

    async def close(self) -> None:
        """Stop."""
        await super().close()
        await self._totals.close()

    async def results(self) -> list[RuleResult]:
        """Return all rules with their results, at most a second old; none without a file of rules.

        Raises:
            StoreError: Redis failed.
        """
        if not self._rules().source:
            return []
        totals = await self._totals.get(None)
        return results_of(self._rules().rules, totals, self._switched_off, now_ms=self._now_ms())

    async def switch(self, name: str, *, on: bool) -> None:
        """Switch a rule on or off, here at once and in the other replicas within two seconds.

        Raises:
            RuleNotFoundError: there is no such rule.
            StoreError: Redis failed.
        """
        if name not in self._rules().names:
            raise RuleNotFoundError(f"The file of rules has no rule {name!r}.")
        await self._store.switch(name, on=on)
        self._use(await self._store.switched_off())

    async def follow_once(self) -> None:
        """Read the switches; raise `StoreError` if Redis failed, and then nothing changes."""
        self._use(await self._store.switched_off())

    def _use(self, switched_off: dict[str, int]) -> None:
        if switched_off != self._switched_off:
            self._switched_off = switched_off
            self._logger.info("rules_switched", off=sorted(switched_off))
            self._on_switched(frozenset(switched_off))

    async def try_follow(self) -> None:
        """Read the switches, and log a failure."""
        try:
            await self.follow_once()
        except StoreError as exc:
            self._logger.warning("switches_failed", error=exc.code)

    async def _follow(self) -> None:
        await self.try_follow()
        try:
            if self._turn % _TURNS_A_METRIC == 0 and self._rules().rules:
                self.show(await self.results())
        except StoreError as exc:
            self._logger.warning("switches_failed", error=exc.code)
        self._turn += 1

    def show(self, results: Sequence[RuleResult]) -> None:
        """Set the metrics."""
        metrics = self._metrics
        for result in results:
            metrics.rule_on.labels(result.name).set(result.is_on)
            for group, counts in result.groups.items():
                metrics.experiment_sessions.labels(result.name, group).set(counts.sessions)
                metrics.experiment_buyers.labels(result.name, group).set(counts.buyers)
                metrics.experiment_revenue.labels(result.name, group).set(counts.revenue)
