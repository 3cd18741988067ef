"""Rules that fire after idle time: found in the order in which sessions fell idle, decided by compare-and-set.

`seen` has all sessions by the time of their last event, so the sessions whose idle time has just reached that of a rule
stand between two places. At an interval each replica examines only these, in a bounded number. All replicas examine the
same sessions, since a place in one replica's memory is lost with that replica. The commit and the mark in the record
make one decision of it.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from msgspec.structs import replace
from structlog.typing import FilteringBoundLogger

from app.errors import StoreError, StoreUnavailableError
from app.monitoring.metrics import Metrics
from app.runtime.periodic import Background, PeriodicTask
from app.store.interface import StateStore
from app.store.interventions import IdleDecisions
from app.store.record_codec import Outcome, Record
from model.interventions.decide import NO_FACTS, Decider, Decision, facts_of
from model.interventions.rules import Rule
from model.redis_keys import SHARDS

EVERY_S: Final = 1.0
"""Interval of the looks; a rule fires at most so late, and the time of one look."""
# A replica that starts finds what fell idle while none ran, for example during a restart.
_LOOK_BACK_MS: Final = 60_000
_SHARDS_AT_ONCE: Final = 32
_SESSIONS_AT_ONCE: Final = 64


class IdleRules(Background):
    """One replica's watch over idle sessions.

    Args:
        store: the sessions.
        decider: returns what decides now; None: there are no rules.
        now_ms: the server's clock.
        metrics: where failures are counted.
        logger: where failures are logged.
    """

    def __init__(
        self,
        store: StateStore,
        decider: Callable[[], Decider | None],
        *,
        now_ms: Callable[[], int],
        metrics: Metrics,
        logger: FilteringBoundLogger,
    ) -> None:
        self._store = store
        self._decider = decider
        self._now_ms = now_ms
        self._places: defaultdict[int, dict[int, str]] = defaultdict(lambda: dict.fromkeys(range(SHARDS), ""))
        self._task = PeriodicTask(
            self._turn,
            name="idle-rules",
            every_s=EVERY_S,
            logger=logger,
            failed="idle_rules_failed",
            on_failure=lambda _failure: metrics.closer_failures.inc(),
        )

    async def run_once(self) -> bool:
        """Look once; return whether there is more to examine.

        Raises:
            StoreError: a shard could not be read; the next look starts at the same place.
        """
        decider = self._decider()
        rules: dict[int, list[Rule]] = defaultdict(list)
        for rule in () if decider is None else decider.idle:
            rules[round((rule.idle_seconds or 0) * 1000)].append(rule)
        # A rule that comes back does not fire for what fell idle while it was gone.
        for idle_ms in self._places.keys() - rules.keys():
            del self._places[idle_ms]
        if decider is None:
            return False
        is_more = False
        for idle_ms, some in rules.items():
            for first in range(0, SHARDS, _SHARDS_AT_ONCE):
                is_more |= await self._look(decider, idle_ms, some, range(first, first + _SHARDS_AT_ONCE))
        return is_more

    async def _turn(self) -> bool:
        try:
            return await self.run_once()
        except StoreError:
            # The breaker and the health check tell; the places stay.
            return False

    async def _look(self, decider: Decider, idle_ms: int, rules: Sequence[Rule], shards: Sequence[int]) -> bool:
        places = self._places[idle_ms]
        bands = [rule.band for rule in rules]
        found = await self._store.decisions.find_idle(
            {shard: places[shard] for shard in shards},
            idle_ms=idle_ms,
            look_back_ms=_LOOK_BACK_MS,
            band=(min(low for low, _ in bands), max(high for _, high in bands)),
            most=_SESSIONS_AT_ONCE,
        )
        ids = [session_id for page in found.values() for session_id in page.session_ids]
        for first in range(0, len(ids), _SESSIONS_AT_ONCE):
            await self._decide(decider, idle_ms, rules, ids[first : first + _SESSIONS_AT_ONCE])
            # Events go first.
            await asyncio.sleep(0)
        # Only now: after a failure above, the same sessions are examined again.
        for shard, page in found.items():
            places[shard] = page.place
        return any(page.is_more for page in found.values())

    async def _decide(self, decider: Decider, idle_ms: int, rules: Sequence[Rule], session_ids: Sequence[str]) -> None:
        loaded = await self._store.load(session_ids)
        _raise_unavailable(loaded)
        records = {
            session_id: record
            for session_id, record in zip(session_ids, loaded, strict=True)
            if isinstance(record, Record) and record.outcome is Outcome.OPEN and record.events
        }
        if decider.asks_facts:
            await self._add_facts(records)
        now_ms = self._now_ms()
        commits: list[IdleDecisions] = []
        for session_id, record in records.items():
            decisions: list[Decision] = []
            for rule in rules:
                decision = decider.after_idle_time(
                    rule,
                    session_id,
                    number=record.events,
                    probability=record.probability or 0.0,
                    facts=record.facts or NO_FACTS,
                    decided=(*record.decisions, *decisions),
                    now_ms=now_ms,
                )
                if decision is not None and await self._has_token(decider, decision):
                    decisions.append(decision)
            if decisions:
                commits.append(IdleDecisions(session_id, record, tuple(decisions), idle_ms))
        if commits:
            await self._store.decisions.commit_idle(commits)

    async def _add_facts(self, records: dict[str, Record]) -> None:
        """Compute facts that records do not have, from the histories; drop the sessions where that is impossible."""
        missing = [session_id for session_id, record in records.items() if not record.facts]
        if not missing:
            return
        sessions = await self._store.load_sessions(missing)
        _raise_unavailable(sessions)
        for session_id, found in zip(missing, sessions, strict=True):
            if found is None or isinstance(found, Exception) or found[0].version != records[session_id].version:
                del records[session_id]
            else:
                record, history = found
                records[session_id] = replace(record, facts=facts_of(history))

    async def _has_token(self, decider: Decider, decision: Decision) -> bool:
        cap = decider.caps.get(decision.rule)
        if cap is None:
            return True
        taken: Mapping[str, int] = await self._store.decisions.take({decision.rule: (1, cap)})
        return taken[decision.rule] > 0


def _raise_unavailable(results: Iterable[object]) -> None:
    """Raise the first failure of Redis among results, so that the same sessions are examined again."""
    for result in results:
        if isinstance(result, StoreUnavailableError):
            raise result
