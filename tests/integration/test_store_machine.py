"""The store on real servers against a dictionary: whatever is committed, deleted, expires or is closed, in any order.

Each session that ends is told of once, with its events and what became of it.
"""

import asyncio
import json
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from msgspec.structs import replace
from support.redis_keys import board_key, closed_key, history_key, outcomes_key, record_key, seen_key

from app.store.history_codec import decode_joined, properties_code
from app.store.interface import Commit
from app.store.keys import shard_of
from app.store.outcomes import Written
from app.store.record_codec import Answers, Outcome, Record
from app.store.redis.connection import ConnectionOptions
from app.store.sessions import RedisStore
from model.events import Event

IDLE_S = 600
# Few ids in few shards, so that commits meet.
IDS = sorted((str(number) for number in range(1200)), key=shard_of)[:10]
SHARDS = sorted({shard_of(session_id) for session_id in IDS})


@dataclass
class Known:
    """What a session must be, by what was told to the store."""

    record: Record
    history: list[Event] = field(default_factory=list)
    last: Commit | None = None


class StoreMachine(RuleBasedStateMachine):
    def __init__(self, server):
        super().__init__()
        server.flush()
        self.runner = asyncio.Runner()
        # Replies depend on how a client was made, which its types do not say.
        self.client: Any = redis.Redis.from_url(server.url)
        self.store = RedisStore(server.url, session_idle_s=IDLE_S, options=ConnectionOptions(timeout_s=5.0))
        self.versions = count(1)
        self.live: dict[str, Known] = {}
        # Over, and not closed yet: the history, if there is one to be written down
        self.ended: dict[str, list[Event] | None] = {}
        # Open and forgotten before anybody came
        self.lost: set[str] = set()
        # What is to be told of those that are closed
        self.told: list[tuple[str, str, list[str]]] = []

    def teardown(self):
        self.runner.run(self.store.close())
        self.client.close()
        self.runner.close()

    def a_record(self, probability, outcome, history):
        return Record(
            version=next(self.versions).to_bytes(8, "big"),
            model="00" * 8,
            probability=probability,
            events=len(history),
            first_seen_ms=1,
            last_seen_ms=2,
            last_event_ms=max([0, *(event.timestamp_ms for event in history)]),
            outcome=outcome,
            outcome_ms=0,
            answers=Answers(),
            state=b"state",
            properties_code=properties_code(history[-1].properties) if history else 0,
        )

    def tell(self, session_id, outcome, history):
        self.told.append((session_id, outcome, [str(event.item_id) for event in history]))

    def begin_anew(self, session_id):
        """A session takes the place of one that ended under its id."""
        history = self.ended.pop(session_id, None)
        self.lost.discard(session_id)
        if history:
            self.tell(session_id, "none", history)

    def found(self):
        """What both streams of all shards tell."""
        told = []
        for shard in SHARDS:
            for _, fields in self.client.xrange(closed_key(shard)):
                events = [str(entry.event.item_id) for entry in decode_joined(fields[b"events"])]
                told.append((fields[b"id"].decode(), json.loads(fields[b"facts"])["outcome"], events))
            told += [tuple(json.loads(fields[b"session"])) for _, fields in self.client.xrange(outcomes_key(shard))]
        return sorted((session_id, outcome, list(events)) for session_id, outcome, events in told)

    def members(self, key):
        return {member.decode(): score for member, score in self.client.zrange(key, 0, -1, withscores=True)}

    @rule(
        batch=st.dictionaries(
            st.sampled_from(IDS),
            st.tuples(
                st.sampled_from(["current", "current", "unknown", "none", "stale", "again"]),
                st.lists(st.tuples(st.integers(-1, 9), st.sampled_from(["mobile", "desktop", ""])), max_size=3),
                st.floats(0, 1),
                st.sampled_from([Outcome.OPEN, Outcome.OPEN, Outcome.PURCHASE, Outcome.NONE]),
            ),
            min_size=1,
            max_size=6,
        )
    )
    def commit(self, batch):
        commits, expected = [], []
        for session_id, (basis, appended, probability, wanted) in batch.items():
            known = self.live.get(session_id)
            if basis == "again" and known and known.last:
                # The reply was lost, and the same is sent again
                commits.append(known.last)
                expected.append(True)
                continue
            current = known.record.version if known else None
            read = {"none": None, "stale": b"notfound"}.get(basis, current)
            events = [
                Event("page_view", time_ms, item_id=str(probability), properties={"device": device} if device else {})
                for time_ms, device in appended
            ]
            history = [*(known.history if known else []), *events]
            was = known.record.outcome if known else Outcome.OPEN
            outcome = wanted if was is Outcome.OPEN else was
            closed_by: Literal["event"] | None = (
                "event" if was is Outcome.OPEN and outcome is not Outcome.OPEN else None
            )
            record = self.a_record(probability, outcome, history)
            # A history is continued where the record that was read is told, else its entries stand alone.
            previous = known.record if known and basis == "current" else None
            made = Commit(session_id, read, record, events, closed_by=closed_by, previous=previous)
            commits.append(made)
            stands = read == current
            expected.append(stands)
            if stands:
                self.live[session_id] = Known(record, history, made)
                self.begin_anew(session_id)
                if closed_by:
                    self.tell(session_id, outcome.word, history)
        assert self.runner.run(self.store.commit(commits)) == expected

    @rule(session_id=st.sampled_from(IDS))
    def delete(self, session_id):
        self.runner.run(self.store.delete(session_id))
        self.live.pop(session_id, None)
        self.ended.pop(session_id, None)
        self.lost.discard(session_id)
        self.told = [one for one in self.told if one[0] != session_id]

    @precondition(lambda self: self.live)
    @rule(data=st.data(), is_grace_over=st.booleans())
    def expire(self, data, is_grace_over):
        """Let a session's idle time pass: Redis drops its record, and its time in `seen` is that long ago.

        The history goes with the record where the session was closed, else once the grace time is over too.
        """
        session_id = data.draw(st.sampled_from(sorted(self.live)))
        known = self.live.pop(session_id)
        self.client.delete(record_key(session_id))
        is_history_gone = is_grace_over or not known.history or known.record.outcome is not Outcome.OPEN
        if is_history_gone:
            self.client.delete(history_key(session_id))
        self.client.zincrby(seen_key(shard_of(session_id)), -(IDLE_S * 1000 + 1), session_id)
        self.ended[session_id] = None if is_history_gone else known.history
        if known.record.outcome is Outcome.OPEN and (is_grace_over or not known.history):
            self.lost.add(session_id)

    @rule(replicas=st.integers(1, 3))
    def close(self, replicas):
        """Several replicas close what ended, at the same time and by the same list."""

        async def close():
            due = await self.store.outcomes.due("replica", lease_s=60)
            idle = {shard: one.idle for shard, one in due.items()}
            assert sorted(session_id for ids in idle.values() for session_id in ids) == sorted(self.ended)
            return await asyncio.gather(*(self.store.outcomes.close_idle(idle) for _ in range(replicas)))

        counts = self.runner.run(close())
        assert sum(count.closed for count in counts) == sum(bool(history) for history in self.ended.values())
        assert sum(count.lost for count in counts) == len(self.lost & self.ended.keys())
        for session_id in list(self.ended):
            self.begin_anew(session_id)
        self.lost.clear()

    @rule(replicas=st.integers(1, 3))
    def publish(self, replicas):
        """Several replicas take on what was closed, at the same time and by the same list."""

        async def publish():
            due = await self.store.outcomes.due("replica", lease_s=60)
            written = {shard: [self.written(one) for one in found.closed] for shard, found in due.items()}
            waiting = sum(self.client.xlen(closed_key(shard)) for shard in SHARDS)
            moved = await asyncio.gather(*(self.store.outcomes.publish(written) for _ in range(replicas)))
            assert sum(one for some in moved for flags in some.values() for one in flags) == min(
                waiting, sum(map(len, written.values()))
            )

        self.runner.run(publish())

    def written(self, session):
        events = [str(entry.event.item_id) for entry in session.entries]
        told = [session.session_id, "purchase" if session.bought else "none", events]
        return Written(session.entry, session.session_id, json.dumps(told).encode())

    @rule(session_id=st.sampled_from(IDS))
    def read_whole(self, session_id):
        known = self.live.get(session_id)
        found = self.runner.run(self.store.load_session(session_id))
        assert (found is None) is (known is None)
        if known is not None:
            # The size is what the list has, whatever the record says
            stored = sum(map(len, self.client.lrange(history_key(session_id), 0, -1)))
            assert found == (replace(known.record, history_bytes=stored), known.history)

    @invariant()
    def what_is_loaded_was_committed(self):
        known = [self.live.get(session_id) for session_id in IDS]
        assert self.runner.run(self.store.load(IDS)) == [one and one.record for one in known]
        # A session that ended has its events until it is closed
        kept = [one.history if one else self.ended.get(key) or [] for key, one in zip(IDS, known, strict=True)]
        assert self.runner.run(self.store.load_histories(IDS)) == kept

    @invariant()
    def each_session_that_ended_is_told_of_once(self):
        assert self.found() == sorted(self.told)

    @invariant()
    def the_board_is_the_open_sessions_and_what_is_not_closed_yet(self):
        board: dict[str, float] = {}
        seen: set[str] = set()
        for shard in SHARDS:
            board |= self.members(board_key(shard))
            seen |= self.members(seen_key(shard)).keys()
        open_ = {key: one.record.probability for key, one in self.live.items() if one.record.outcome is Outcome.OPEN}
        assert {key: score for key, score in board.items() if key not in self.ended} == open_
        assert seen == self.live.keys() | self.ended.keys()
        assert board.keys() <= self.live.keys() | self.ended.keys()


@pytest.mark.parametrize("name", ["redis-6.2", "valkey-8.1"])
def test_the_store_is_what_a_dictionary_would_be(name, start_redis):
    server = start_redis(name)

    class OnServer(StoreMachine):
        def __init__(self):
            super().__init__(server)

    run_state_machine_as_test(
        OnServer,
        settings=settings(
            max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
