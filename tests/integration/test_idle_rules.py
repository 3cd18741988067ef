"""Rules after idle time: once over all replicas, in time, with bounded work, and the session gets no younger."""

import asyncio
import io
import time

import pytest
import redis
from support.fakes import FakeModel

from app.errors import StoreUnavailableError
from app.interventions.idle import IdleRules
from app.monitoring.logging import build_logger
from app.monitoring.metrics import Metrics
from app.scoring.events import QueuedEvent
from app.scoring.scorer import Scorer
from app.store.interventions import START
from app.store.keys import Keys, shard_of
from app.store.redis.connection import ConnectionOptions
from app.store.sessions import RedisStore
from model.events import Event, canonical_event_name
from model.interventions.decide import Decider
from model.interventions.rules import parse_rules

pytestmark = pytest.mark.anyio
KEYS = Keys()
NOW_MS = time.time_ns() // 1_000_000
CART = {"name": "cart", "idle_seconds": 90, "cart_value_at_least": 10}


class Vocabulary:
    canonical_name = staticmethod(canonical_event_name)

    def knows(self, _event_name):
        return True


def decider_of(rules):
    return Decider(parse_rules({"rules": list(rules)}, Vocabulary(), source="rules.toml"))


class Shop:
    """Some replicas on one Redis, and a clock: sessions become idle by moving their places in `seen` back."""

    def __init__(self, server, *rules, replicas=2):
        self.redis = redis.Redis.from_url(server.url)
        self.store = RedisStore(server.url, session_idle_s=1800, options=ConnectionOptions(timeout_s=5.0))
        logger = build_logger(log_level="error", stream=io.StringIO())
        self.decider = decider_of(rules)
        self._new_replica = lambda: IdleRules(
            self.store, lambda: self.decider, now_ms=lambda: NOW_MS, metrics=Metrics(), logger=logger
        )
        self.replicas = [self._new_replica() for _ in range(replicas)]
        self.scorer = Scorer(
            self.store,
            FakeModel(),
            metrics=Metrics(),
            logger=logger,
            max_session_events=100,
            max_session_bytes=2**22,
            dedupe_window=8,
            decider=self.decider,
        )
        self._codes = 0

    async def event(self, session_id="s", name="add_to_cart", price=20.0):
        self._codes += 1
        event = Event(name, NOW_MS + self._codes, price=price)
        (score,) = await self.scorer.score([QueuedEvent(session_id, event, self._codes, True, NOW_MS)])
        return score

    def idle_for(self, session_id, seconds):
        self.redis.zincrby(KEYS.seen(shard_of(session_id)), -1000 * seconds, session_id)

    def restart(self):
        """All replicas, which then look back a minute."""
        self.replicas = [self._new_replica() for _ in self.replicas]

    async def look(self):
        """All replicas at once."""
        await asyncio.gather(*[replica.run_once() for replica in self.replicas])

    async def decisions(self, session_id="s"):
        pages = await self.store.decisions.read({shard_of(session_id): START})
        return [entry.decision for page in pages.values() for entry in page.entries]


@pytest.fixture(params=["redis-6.2", "valkey-8.1"], scope="module")
def server(request, start_redis):
    return start_redis(request.param)


@pytest.fixture
async def shop_of(server):
    server.flush()
    opened = []

    def open_shop(*rules, **options):
        opened.append(Shop(server, *rules, **options))
        return opened[-1]

    yield open_shop
    for shop in opened:
        await shop.store.close()
        shop.redis.close()


async def test_a_rule_fires_once_over_all_replicas_and_only_after_its_time(shop_of):
    shop = shop_of(CART | {"idle_seconds": 1}, replicas=4)
    score = await shop.event()
    began_s = time.monotonic()
    while not await shop.decisions():
        await shop.look()
    assert 0.9 < time.monotonic() - began_s < 20
    for _ in range(3):
        await shop.look()
    (decision,) = await shop.decisions()
    assert (decision.rule, decision.event, decision.idle) == ("cart", 1, True)
    assert decision.probability == score.answer.probability
    # Nor does another replica that starts now, or a later idle time
    await shop.event()
    shop.idle_for("s", 5)
    shop.restart()
    await shop.look()
    assert len(await shop.decisions()) == 1
    # It stands in the record and in the history behind its event, and in no answer
    record, entries = await shop.store.load_entries("s")
    assert [len(entry.decisions) for entry in entries] == [1, 0]
    assert record.history_bytes == sum(map(len, shop.redis.lrange(KEYS.history("s"), 0, -1)))
    assert record.decisions_at(1) == ()


async def test_it_makes_no_session_younger(shop_of):
    shop = shop_of(CART)
    await shop.event()
    shop.idle_for("s", 91)
    shop.redis.pexpire(KEYS.record("s"), 1_000_000)
    before = shop.redis.zscore(KEYS.seen(shard_of("s")), "s")
    await shop.look()
    assert len(await shop.decisions()) == 1
    assert shop.redis.zscore(KEYS.seen(shard_of("s")), "s") == before
    assert 0 < shop.redis.pttl(KEYS.record("s")) <= 1_000_000


@pytest.mark.parametrize("what", ["event", "purchase", "expiry", "history"])
async def test_what_comes_between_look_and_commit_wins(shop_of, what):
    shop = shop_of(CART, replicas=1)
    await shop.event()
    shop.idle_for("s", 91)
    commit = shop.store.decisions.commit_idle

    async def overtaken(commits):
        if what == "expiry":
            shop.redis.delete(KEYS.record("s"))
        elif what == "history":
            # As Redis does without memory
            shop.redis.delete(KEYS.history("s"))
        else:
            await shop.event(name="page_view" if what == "event" else "purchase")
        return await commit(commits)

    shop.store.decisions.commit_idle = overtaken
    await shop.look()
    assert await shop.decisions() == []
    assert shop.redis.llen(KEYS.history("s")) == {"event": 2, "history": 0}.get(what, 1)


@pytest.mark.parametrize("what", ["purchase", "expiry"])
async def test_what_comes_between_look_and_load_wins(shop_of, monkeypatch, what):
    shop = shop_of(CART, replicas=1)
    await shop.event()
    shop.idle_for("s", 91)
    load = shop.store.load

    async def overtaken(session_ids):
        monkeypatch.undo()
        if what == "expiry":
            shop.redis.delete(KEYS.record("s"))
        else:
            await shop.event(name="purchase")
            # As if there had been no event since
            shop.idle_for("s", 91)
        return await load(session_ids)

    monkeypatch.setattr(shop.store, "load", overtaken)
    await shop.look()
    assert await shop.decisions() == []


@pytest.mark.parametrize("call", ["load", "load_sessions"])
async def test_sessions_that_redis_did_not_return_are_examined_again(shop_of, monkeypatch, call):
    shop = shop_of(CART, replicas=1)
    if call == "load_sessions":
        # Then facts come from the history
        shop.scorer._decider = None  # noqa: SLF001 - private: it began before there were rules
    await shop.event()
    shop.idle_for("s", 91)
    read, results = getattr(shop.store, call), [[StoreUnavailableError("Redis does not answer.")]]

    async def failing_once(session_ids):
        return results.pop() if results else await read(session_ids)

    monkeypatch.setattr(shop.store, call, failing_once)
    with pytest.raises(StoreUnavailableError):
        await shop.look()
    await shop.look()
    assert len(await shop.decisions()) == 1


async def test_a_commit_that_is_sent_twice_counts_once(shop_of):
    shop = shop_of(CART, replicas=1)
    await shop.event()
    shop.idle_for("s", 91)
    run = shop.store.decisions._scripts.run  # noqa: SLF001 - a lost answer

    replies = []

    async def twice(operation, script, calls, **options):
        replies.extend([await run(operation, script, calls, **options) for _ in range(2 * (operation == "decide"))])
        return replies[-1] if operation == "decide" else await run(operation, script, calls, **options)

    shop.store.decisions._scripts.run = twice  # noqa: SLF001 - same
    await shop.look()
    # Stored by the first, as the second tells
    assert replies[:2] == [[1], [1]]
    shop.store.decisions._scripts.run = run  # noqa: SLF001 - same
    assert len(await shop.decisions()) == 1


async def test_closed_sessions_and_other_conditions_do_not_fire(shop_of):
    shop = shop_of(
        CART | {"without_events": ["begin_checkout"]}, CART | {"name": "never", "probability_between": [0, 0]}
    )
    await shop.event("bought")
    await shop.event("bought", "purchase")
    await shop.event("empty", "page_view")
    await shop.event("checkout")
    await shop.event("checkout", "begin_checkout")
    await shop.event("right")
    for session_id in ("bought", "empty", "checkout", "right"):
        shop.idle_for(session_id, 91)
    await shop.look()
    found = [one for name in ("bought", "empty", "checkout", "right") for one in await shop.decisions(name)]
    assert {(one.session_id, one.rule) for one in found} == {("right", "cart")}


async def test_a_repeated_rule_fires_once_in_each_idle_time(shop_of):
    shop = shop_of(CART | {"repeat": True})
    for number in range(1, 4):
        await shop.event()
        shop.idle_for("s", 91)
        shop.restart()
        await shop.look()
        await shop.look()
        assert len(await shop.decisions()) == number
    ((record,),) = [await shop.store.load(["s"])]
    assert [one.event for one in record.decisions] == [3]


async def test_a_cap_holds(shop_of):
    shop = shop_of(CART | {"cap_per_hour": 3})
    for number in range(8):
        await shop.event(f"s{number}")
        shop.idle_for(f"s{number}", 91)
    await shop.look()
    found = {one.session_id for number in range(8) for one in await shop.decisions(f"s{number}")}
    assert 1 <= len(found) <= 3


async def test_a_session_without_facts_gets_them_from_its_history(shop_of):
    shop = shop_of(CART)
    shop.scorer._decider = None  # noqa: SLF001 - it began before there were rules
    await shop.event()
    shop.idle_for("s", 91)
    await shop.look()
    assert len(await shop.decisions()) == 1


async def test_more_sessions_than_one_look_takes_and_many_in_one_millisecond(shop_of):
    shop = shop_of(CART, replicas=1)
    names = [name for name in map(str, range(60_000)) if shard_of(name) == 5][:150]
    for name in names:
        await shop.event(name)
    due = time.time_ns() // 1_000_000 - 91_000
    # Two lumps of equal times, each larger than a look
    for place, name in enumerate(names):
        shop.redis.zadd(KEYS.seen(5), {name: due if place < 70 else due + 5})
    looks = 1
    while await shop.replicas[0].run_once():
        looks += 1
    assert looks > 1
    assert sorted(one.session_id for one in await shop.decisions(names[0])) == sorted(names)


async def test_after_the_clock_has_gone_back_nothing_is_missed_and_nothing_doubled(shop_of):
    shop = shop_of(CART)
    await shop.event("first")
    shop.idle_for("first", 91)
    await shop.look()
    for replica in shop.replicas:
        # As if the places were of a time that has not come yet
        for places in replica._places.values():  # noqa: SLF001 - Redis' clock cannot be set
            places.update(dict.fromkeys(places, str(time.time_ns() // 1_000_000 + 600_000)))
    await shop.look()
    await shop.event("second")
    shop.idle_for("second", 89.9)
    while not await shop.decisions("second"):
        await shop.look()
    assert len(await shop.decisions("first")) == len(await shop.decisions("second")) == 1


async def test_rules_of_one_idle_time_have_their_own_bands(shop_of):
    shop = shop_of(CART | {"name": "unlikely", "probability_between": [0, 0]}, CART)
    await shop.event()
    shop.idle_for("s", 91)
    await shop.look()
    assert [one.rule for one in await shop.decisions()] == ["cart"]


@pytest.mark.parametrize("others", [[], [CART | {"name": "other", "idle_seconds": 1200}], None])
async def test_a_rule_that_comes_back_does_not_fire_for_what_fell_idle_while_it_was_gone(shop_of, others):
    shop = shop_of(CART, replicas=1)
    with_rule = shop.decider
    await shop.look()
    (replica,) = shop.replicas
    for places in replica._places.values():  # noqa: SLF001 - as if ten minutes had passed since
        places.update({shard: str(int(place) - 600_000) for shard, place in places.items()})
    shop.decider = (
        None if others is None else Decider(parse_rules({"rules": others}, Vocabulary(), source="rules.toml"))
    )
    await shop.look()
    for session_id, seconds in (("long ago", 300), ("just now", 91)):
        await shop.event(session_id)
        shop.idle_for(session_id, seconds)
    shop.decider = with_rule
    await shop.look()
    assert await shop.decisions("long ago") == []
    assert len(await shop.decisions("just now")) == 1
