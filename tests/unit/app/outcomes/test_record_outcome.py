"""Outcomes that the shop records by a call: what is committed, whole, and what is counted."""

from typing import Any

import pytest
from msgspec.structs import replace
from support.memory_store import MemoryStore

from app.errors import ConflictError, OutcomeConflictError, SessionNotFoundError, StoreUnavailableError
from app.monitoring.metrics import Metrics
from app.outcomes.record_outcome import record_outcome
from app.store.interface import Commit
from app.store.record_codec import Answers, Outcome, Record
from model.events import Event

pytestmark = pytest.mark.anyio

FIELDS: dict[str, Any] = {
    "version": b"version1",
    "model": "00" * 8,
    "probability": 0.5,
    "events": 1,
    "first_seen_ms": 1000,
    "last_seen_ms": 2000,
    "last_event_ms": 9000,
    "outcome": Outcome.OPEN,
    "outcome_ms": 0,
    "answers": Answers(),
    "state": b"state",
}
OPEN = Record(**FIELDS)


class WatchedStore(MemoryStore):
    """Keeps the commits; the first `conflicts` of them come too late."""

    def __init__(self, *, confirms=False, conflicts=0):
        super().__init__(session_idle_s=1800, now_ms=lambda: 0)
        self.commits: list[Commit] = []
        self._confirms, self._conflicts = confirms, conflicts

    @property
    def confirms_by_writing(self):
        return self._confirms

    async def begin(self):
        await super().commit([Commit("s", None, OPEN, [Event("page_view", 1)])])
        return self

    async def commit(self, commits):
        self.commits += commits
        if len(self.commits) <= self._conflicts:
            return [False]
        return await super().commit(commits)


class Shop:
    def __init__(self, store):
        self.store, self.metrics = store, Metrics()

    async def record(self, outcome, at_ms=5000, session_id="s", **options):
        return await record_outcome(self.store, session_id, outcome, outcome_ms=at_ms, metrics=self.metrics, **options)

    def counted(self, name):
        return self.metrics.registry.get_sample_value(f"willbuy_{name}_total")


@pytest.mark.parametrize(("outcome", "purchases"), [(Outcome.PURCHASE, 1), (Outcome.NONE, 0)])
async def test_an_outcome_is_one_commit_that_closes_the_session_and_changes_nothing_else(outcome, purchases):
    shop = Shop(await WatchedStore().begin())
    closed = await shop.record(outcome)
    assert shop.store.commits == [Commit("s", OPEN.version, closed, closed_by="api")]
    assert closed.version != OPEN.version
    assert closed == replace(OPEN, version=closed.version, outcome=outcome, outcome_ms=5000)
    assert (shop.counted("purchases"), shop.counted("conflicts")) == (purchases, 0)
    # The same again, later, is nothing new
    assert await shop.record(outcome, at_ms=6000) == closed
    assert len(shop.store.commits) == 1
    assert shop.counted("purchases") == purchases


async def test_where_replicas_confirm_it_is_written_again_as_it_was_and_closes_nothing():
    shop = Shop(await WatchedStore(confirms=True).begin())
    closed = await shop.record(Outcome.PURCHASE)
    assert await shop.record(Outcome.PURCHASE, at_ms=6000) == closed
    assert shop.store.commits[1:] == [Commit("s", closed.version, closed)]
    assert shop.counted("purchases") == 1


async def test_the_other_outcome_is_refused_and_nothing_written():
    shop = Shop(await WatchedStore().begin())
    await shop.record(Outcome.NONE)
    with pytest.raises(OutcomeConflictError, match="'none'"):
        await shop.record(Outcome.PURCHASE)
    assert len(shop.store.commits) == 1


@pytest.mark.parametrize(("conflicts", "attempts", "is_stored"), [(2, 3, True), (3, 3, False), (0, 1, True)])
async def test_each_attempt_is_one_commit_and_the_last_conflict_an_error(conflicts, attempts, is_stored):
    shop = Shop(await WatchedStore(conflicts=conflicts).begin())
    if is_stored:
        assert (await shop.record(Outcome.PURCHASE, attempts=attempts)).outcome is Outcome.PURCHASE
    else:
        with pytest.raises(ConflictError, match=f"each of {attempts} attempts"):
            await shop.record(Outcome.PURCHASE, attempts=attempts)
    assert len(shop.store.commits) == conflicts + is_stored
    assert (shop.counted("conflicts"), shop.counted("purchases")) == (conflicts, int(is_stored))


async def test_a_session_that_is_not_there_is_not_found():
    with pytest.raises(SessionNotFoundError):
        await Shop(await WatchedStore().begin()).record(Outcome.NONE, session_id="t")


@pytest.mark.parametrize("call", ["load", "commit"])
async def test_a_store_that_is_gone_is_said(call, monkeypatch):
    async def gone(some):
        return [StoreUnavailableError("gone")]

    shop = Shop(await WatchedStore().begin())
    monkeypatch.setattr(shop.store, call, gone)
    with pytest.raises(StoreUnavailableError):
        await shop.record(Outcome.PURCHASE)
    assert shop.counted("purchases") == 0
