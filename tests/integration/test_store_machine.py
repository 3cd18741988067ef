"""The store on real servers against a dictionary: whatever is committed, deleted or expires, in whatever order."""

import asyncio
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from app.stores.base import Commit
from app.stores.connection import ConnectionOptions
from app.stores.keys import board_key, history_key, record_key, seen_key, shard_of
from app.stores.records import Answers, Outcome, Record
from app.stores.redis import RedisStore
from model.events import Event

IDLE_S = 600
# Few ids in few shards, so that commits meet; fewer of a shard than one commit sweeps.
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
        # Over, and not swept yet
        self.ended: set[str] = set()

    def teardown(self):
        self.runner.run(self.store.close())
        self.client.close()
        self.runner.close()

    def a_record(self, probability, outcome, events):
        return Record(
            version=next(self.versions).to_bytes(8, "big"),
            model="00" * 8,
            probability=probability,
            events=events,
            first_seen_ms=1,
            last_seen_ms=2,
            last_event_ms=3,
            outcome=outcome,
            outcome_ms=0,
            answers=Answers(),
            state=b"state",
        )

    def members(self, key):
        return {member.decode(): score for member, score in self.client.zrange(key, 0, -1, withscores=True)}

    @rule(
        batch=st.dictionaries(
            st.sampled_from(IDS),
            st.tuples(
                st.sampled_from(["current", "current", "none", "stale", "again"]),
                st.integers(0, 3),
                st.floats(0, 1),
                st.sampled_from([Outcome.OPEN, Outcome.OPEN, Outcome.PURCHASE]),
            ),
            min_size=1,
            max_size=6,
        )
    )
    def commit(self, batch):
        commits, expected = [], []
        for session_id, (basis, appended, probability, outcome) in batch.items():
            known = self.live.get(session_id)
            if basis == "again" and known and known.last:
                # The reply was lost, and the same is sent again
                commits.append(known.last)
                expected.append(True)
                continue
            current = known.record.version if known else None
            read = {"none": None, "stale": b"notfound"}.get(basis, current)
            events = [Event("page_view", number, item_id=str(probability)) for number in range(appended)]
            history = [*(known.history if known else []), *events]
            record = self.a_record(probability, outcome, len(history))
            made = Commit(session_id, read, record, events)
            commits.append(made)
            stands = read == current
            expected.append(stands)
            if stands:
                self.live[session_id] = Known(record, history, made)
                self.ended.discard(session_id)
        assert self.runner.run(self.store.commit(commits)) == expected
        swept = {shard_of(one.session_id) for one in commits}
        self.ended = {session_id for session_id in self.ended if shard_of(session_id) not in swept}

    @rule(session_id=st.sampled_from(IDS))
    def delete(self, session_id):
        self.runner.run(self.store.delete(session_id))
        self.live.pop(session_id, None)
        self.ended.discard(session_id)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def expire(self, data):
        """Let a session's idle time pass: Redis drops its keys, and its time in `seen` is that long ago."""
        session_id = data.draw(st.sampled_from(sorted(self.live)))
        self.client.delete(record_key(session_id), history_key(session_id))
        self.client.zincrby(seen_key(shard_of(session_id)), -(IDLE_S * 1000 + 1), session_id)
        del self.live[session_id]
        self.ended.add(session_id)

    @rule(session_id=st.sampled_from(IDS))
    def read_whole(self, session_id):
        known = self.live.get(session_id)
        expected = None if known is None else (known.record, known.history)
        assert self.runner.run(self.store.load_session(session_id)) == expected

    @invariant()
    def what_is_loaded_was_committed(self):
        known = [self.live.get(session_id) for session_id in IDS]
        assert self.runner.run(self.store.load(IDS)) == [one and one.record for one in known]
        assert self.runner.run(self.store.load_histories(IDS)) == [one.history if one else [] for one in known]

    @invariant()
    def the_board_is_the_open_sessions_and_what_is_not_swept_yet(self):
        board: dict[str, float] = {}
        seen: set[str] = set()
        for shard in SHARDS:
            board |= self.members(board_key(shard))
            seen |= self.members(seen_key(shard)).keys()
        open_ = {key: one.record.probability for key, one in self.live.items() if one.record.outcome is Outcome.OPEN}
        assert {key: score for key, score in board.items() if key not in self.ended} == open_
        assert seen == self.live.keys() | self.ended
        assert board.keys() <= self.live.keys() | self.ended


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
