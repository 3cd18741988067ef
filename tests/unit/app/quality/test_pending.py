"""The figures of a shop's first two hours, and of those after a release: right, or not yet known."""

import io
from datetime import UTC, datetime
from functools import partial
from typing import cast

import numpy as np
import pytest
from support.memory_counts import MemoryCounts

from app.monitoring.logging import build_logger
from app.monitoring.metrics import Metrics
from app.quality.model_quality import ModelQuality
from app.store.history_codec import Entry
from app.store.outcomes import ClosedSession
from model.events import Event
from model.interface import Model

OLD, NEW = "0011223344556677", "9f86d081884c7d65"
MINUTE_MS = 60_000
IDLE_MINUTES = 30
BEGIN_MS = 20_000 * 24 * 60 * MINUTE_MS + 7 * MINUTE_MS
PURCHASE_RATE = 0.2
SESSIONS_A_MINUTE = 20
# Of buyers and of others; some visits last long.
MEAN_MINUTES = {True: 9.0, False: 5.0}

pytestmark = pytest.mark.anyio


class Named:
    """A model of which only the name matters."""

    summary = None

    def __init__(self, fingerprint):
        self.fingerprint = fingerprint


def shop_sessions(first_minute, last_minute, released_minute):
    """Sessions by the minute in which they are closed: at once with a purchase, else after the idle time."""
    random = np.random.default_rng(5)
    closed: dict[int, list[ClosedSession]] = {}
    for minute in range(first_minute, last_minute):
        for _ in range(SESSIONS_A_MINUTE):
            bought = bool(random.random() < PURCHASE_RATE)
            length = random.exponential(MEAN_MINUTES[bought])
            began_ms = BEGIN_MS + minute * MINUTE_MS + int(random.integers(MINUTE_MS))
            ended_ms = began_ms + int(length * MINUTE_MS)
            times = [began_ms, (began_ms + ended_ms) // 2, ended_ms]
            entries = [
                Entry(
                    Event("view_item", at_ms),
                    PURCHASE_RATE,
                    NEW if at_ms >= released_minute * MINUTE_MS + BEGIN_MS else OLD,
                )
                for at_ms in times
            ]
            closed_ms = ended_ms + (0 if bought else IDLE_MINUTES * MINUTE_MS)
            session = ClosedSession(
                f"{closed_ms}-0", "s", bought, "event" if bought else "idle", ended_ms * bought, ended_ms, entries
            )
            closed.setdefault((closed_ms - BEGIN_MS) // MINUTE_MS, []).append(session)
    return closed


async def figures_by_minute(closed, minutes):
    """What the page shows in each of these minutes: purchase rate of sessions, of the model's answers, and pending."""
    store, shown = MemoryCounts(), {}
    for minute in range(min(closed), minutes.stop):
        quality = quality_at(store, minute)
        if minute in closed:
            await quality.count(closed[minute])
        if minute in minutes and minute % 5 == 0:
            outcomes, summary = await quality.outcomes(), await quality.summary()
            ended = outcomes.purchase + outcomes.none
            shown[minute] = (outcomes.purchase / ended if ended else None, summary.overall.base_rate, outcomes.pending)
        await quality.close()
    return shown


async def test_in_the_first_two_hours_the_purchase_rate_is_right_or_not_yet_known():
    # Given a shop that opens, and a fifth of whose sessions buy
    closed = shop_sessions(0, 150, released_minute=0)
    # When its page is looked at every five minutes
    shown = await figures_by_minute(closed, range(150))
    # Then nothing is said in the first idle time, though sessions have ended, all of them with a purchase
    rates = {minute: rate for minute, (rate, _, _) in shown.items() if rate is not None}
    assert min(rates) >= 1.5 * IDLE_MINUTES
    assert min(rates) <= 80
    assert all(shown[minute] == (None, None, shown[minute][2]) for minute in shown if minute < min(rates))
    assert shown[30][2] > 50
    # And what is said then is right, of sessions and of answers, from the first figure on
    assert all(abs(rate - PURCHASE_RATE) < 0.1 * PURCHASE_RATE for rate in rates.values()), rates
    of_answers = {minute: rate for minute, (_, rate, _) in shown.items() if rate is not None}
    assert list(of_answers) == list(rates)
    assert all(abs(rate - PURCHASE_RATE) < 0.1 * PURCHASE_RATE for rate in of_answers.values()), of_answers


async def test_the_history_has_each_hours_sessions_once_whichever_replica_counted_them_and_after_a_restart():
    # Given three hours of a shop, whose sessions two replicas publish in turns
    store, closed = MemoryCounts(), shop_sessions(0, 180, released_minute=0)
    for minute, sessions in sorted(closed.items()):
        for replica in range(2):
            await quality_at(store, minute).count(sessions[replica::2])
    # When another one is asked, after it has started
    last = max(closed)
    history = await quality_at(store, last).history(24)
    # Then every session is in the hour in which it began, or no more than a half idle time before its end
    assert sum(hour.sessions for hour in history.hours) == sum(map(len, closed.values()))
    assert sum(hour.events for hour in history.hours) == 3 * sum(map(len, closed.values()))
    starts = [hour.start for hour in history.hours]
    assert starts == sorted(starts)
    assert starts[0] <= datetime.fromtimestamp(BEGIN_MS / 1000, UTC)
    # And only hours whose sessions have had time to end have a conversion
    assert [hour.complete for hour in history.hours] == sorted((hour.complete for hour in history.hours), reverse=True)
    assert all((hour.conversion is None) != (hour.complete and hour.sessions > 0) for hour in history.hours)
    counting = [hour for hour in history.hours if hour.complete]
    assert sum(hour.purchases for hour in counting) / sum(hour.sessions for hour in counting) == pytest.approx(
        PURCHASE_RATE, abs=0.02
    )
    assert all(hour.predicted == pytest.approx(PURCHASE_RATE) for hour in counting)
    # And a shorter time has the last hours alone
    (only,) = (await quality_at(store, last).history(1)).hours
    assert only == history.hours[-1]
    # And the table stays bounded: an hour's counts expire after a week
    hours = {key: lifetime_s for key, lifetime_s in store.lifetimes_s.items() if key[0] == "hours"}
    assert len(hours) <= 6
    assert all(7 * 86400 < lifetime_s < 8 * 86400 for lifetime_s in hours.values())


def quality_at(store, minute):
    return ModelQuality(
        store,
        lambda: cast("Model", Named(NEW)),
        window_s=24 * 3600,
        idle_s=IDLE_MINUTES * 60,
        now_ms=partial(int, BEGIN_MS + minute * MINUTE_MS),
        metrics=Metrics(),
        logger=build_logger(log_level="info", stream=io.StringIO()),
    )


async def test_after_a_release_the_new_models_figures_are_right_or_not_yet_known():
    # Given a shop that has been open for two hours when another model is released
    closed = shop_sessions(-120, 120, released_minute=0)
    # When its page is looked at
    shown = await figures_by_minute(closed, range(120))
    # Then the shop's own rate is known all the time
    assert all(abs(rate - PURCHASE_RATE) < 0.1 * PURCHASE_RATE for rate, _, _ in shown.values()), shown
    # And the new model's is not, until sessions that it began have had the time to end
    of_new = {minute: rate for minute, (_, rate, _) in shown.items() if rate is not None}
    assert 1.5 * IDLE_MINUTES <= min(of_new) <= 80
    assert all(abs(rate - PURCHASE_RATE) < 0.1 * PURCHASE_RATE for rate in of_new.values()), of_new
