"""The store on Redis or Valkey: one server, a primary behind sentinels, or a cluster.

A batch costs two round trips, or three: one MGET for its records, and a pipeline of `commit.lua` calls, each for some
shards, for all of it or for each half (see `app.scoring.scorer`); on a cluster, where a call is for one shard, as many
to each node, all at once. There are no locks: what two replicas write at once, compare-and-set decides.

Errors of the driver are wrapped here and nowhere else. A command may reach Redis twice (see `app.store.redis.server`);
that is safe, since a commit that is sent twice counts once (see `commit.lua`).
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import msgspec
from redis.exceptions import ResponseError

from app.errors import CorruptRecordError, StoreError
from app.store.board import RedisBoard
from app.store.history_codec import decode_events
from app.store.interface import Commit, whole_history
from app.store.keys import (
    board_key,
    closed_key,
    history_key,
    keys_of,
    outcomes_key,
    record_key,
    record_keys,
    seen_key,
    shard_of,
)
from app.store.outcomes import BACKLOG, OutcomeLimits, RedisOutcomes
from app.store.record_codec import Outcome, Record, decode_record, encode_record
from app.store.redis.connection import Command, ConnectionOptions, open_link
from app.store.redis.scripts import ObserveRoundTrip, ScriptRunner, load_script, unavailable
from app.store.redis.server import Reply, Word
from app.store.replicas import RedisReplicas
from model.events import Event

Stored = TypeVar("Stored")

# Several of the intervals that are allowed between two reports.
_REPORT_TTL_S: Final = 15.0
# The shortest text that gives back the same number, as `repr`, in an eighth of its time.
_number: Final = msgspec.json.Encoder().encode
# By name: a member looked up in its class takes 57 ns, a global 6.
_OPEN: Final = Outcome.OPEN


class RedisStore:
    """Sessions on Redis.

    Args:
        url: which Redis (see `app.store.redis.address`).
        session_idle_s: idle time after which a session ends.
        outcome_grace_s: for how much longer its history stays, so that it can be closed.
        outcomes: how many closed sessions are kept, and for how long.
        options: how it is talked to.
        wait_replicas: replicas that must have a commit before it counts as made.
        observe: called after each round trip with the operation's name and its seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        session_idle_s: int,
        outcome_grace_s: int = 3600,
        outcomes: OutcomeLimits | None = None,
        options: ConnectionOptions | None = None,
        wait_replicas: int = 0,
        observe: ObserveRoundTrip = lambda _operation, _seconds: None,
    ) -> None:
        self._idle_ms = session_idle_s * 1000
        self._grace_ms = outcome_grace_s * 1000
        self._limits = outcomes or OutcomeLimits()
        self._commit_script = load_script("closing.lua", "commit.lua")
        self._delete_script = load_script("delete.lua")
        self._session_script = load_script("session.lua")
        self._wait_replicas = wait_replicas
        self._link = open_link(url, options or ConnectionOptions())
        self._scripts = ScriptRunner(self._link, observe)
        self.board = RedisBoard(self._scripts, session_idle_s=session_idle_s)
        self.outcomes = RedisOutcomes(self._scripts, session_idle_s=session_idle_s, limits=self._limits)
        self.replicas = RedisReplicas(self._scripts, ttl_s=_REPORT_TTL_S)

    @property
    def confirms_by_writing(self) -> bool:
        """Whether replicas must confirm what is acknowledged.

        A commit that too few replicas confirmed is an error to its caller and stands on the primary all the same. The
        same event again finds it there; only a write makes the replicas' confirmation mean that they have it too.
        """
        return self._wait_replicas > 0

    async def load(self, session_ids: Sequence[str]) -> list[Record | StoreError | None]:
        """See `StateStore.load`."""
        shards = [shard_of(session_id) for session_id in session_ids]
        with self._scripts.timed("load"):
            values = await self._link.get(shards, record_keys(shards, session_ids))
        return [None if value is None else _decoded(decode_record, value) for value in values]

    async def load_histories(self, session_ids: Sequence[str]) -> list[list[Event] | StoreError]:
        """See `StateStore.load_histories`."""
        commands = [
            Command(shard_of(session_id), ("LRANGE", history_key(session_id), 0, -1)) for session_id in session_ids
        ]
        with self._scripts.timed("load_histories"):
            histories = await self._link.execute(commands)
        return [_decoded(decode_events, entries) for entries in histories]

    async def load_session(self, session_id: str) -> tuple[Record, list[Event]] | None:
        """See `StateStore.load_session`."""
        keys: list[Word] = [record_key(session_id), history_key(session_id)]
        (reply,) = await self._scripts.run(
            "load_session", self._session_script, [(shard_of(session_id), [len(keys), *keys])]
        )
        if isinstance(reply, Exception):
            raise unavailable(reply)
        value, entries = reply
        if value is None:
            return None
        record = decode_record(value)
        return record, whole_history(record, decode_events(entries))

    async def commit(self, commits: Sequence[Commit]) -> list[bool | StoreError]:
        """See `StateStore.commit`."""
        results: list[bool | StoreError] = [False] * len(commits)
        by_shard: dict[int, list[int]] = defaultdict(list)
        for place, commit in enumerate(commits):
            by_shard[shard_of(commit.session_id)].append(place)
        groups = _together(list(by_shard.items()), self._scripts.shards_a_script)
        while groups:
            calls = [(group[0][0], self._call(commits, group)) for group in groups]
            replies = await self._scripts.run("commit", self._commit_script, calls, wait_replicas=self._wait_replicas)
            alone: list[_Group] = []
            for group, reply in zip(groups, replies, strict=True):
                if isinstance(reply, ResponseError) and len(group) > 1:
                    # One session's keys are not what they should be; that must not touch the other shards' sessions.
                    alone += _together(group, 1)
                    continue
                places = [place for _, some in group for place in some]
                stored: Sequence[bool | StoreError] = (
                    [unavailable(reply)] * len(places) if isinstance(reply, Exception) else [one == 1 for one in reply]
                )
                for place, one in zip(places, stored, strict=True):
                    results[place] = one
            groups = alone
        return results

    async def delete(self, session_id: str) -> None:
        """See `StateStore.delete`."""
        shard = shard_of(session_id)
        keys: list[Word] = [board_key(shard), seen_key(shard), record_key(session_id), history_key(session_id)]
        keys += (closed_key(shard), outcomes_key(shard))
        call = [len(keys), *keys, session_id]
        (reply,) = await self._scripts.run(
            "delete", self._delete_script, [(shard, call)], wait_replicas=self._wait_replicas
        )
        if isinstance(reply, Exception):
            raise unavailable(reply)

    async def ping(self) -> None:
        """See `StateStore.ping`."""
        with self._scripts.timed("ping"):
            failure = await self._link.ping()
        if failure is not None:
            raise unavailable(failure) from failure

    async def close(self) -> None:
        """See `StateStore.close`."""
        await self._link.close()

    def _call(self, commits: Sequence[Commit], group: "_Group") -> list[Word]:
        """Return the arguments of one EVALSHA after the hash: number of keys, keys, arguments (see `commit.lua`)."""
        keys: list[Word] = []
        arguments: list[Word] = [self._idle_ms, self._grace_ms, BACKLOG, self._limits.kept_ms]
        for shard, places in group:
            for place in places:
                commit = commits[place]
                record, session_id = commit.record, commit.session_id
                is_open, probability = record.outcome is _OPEN, record.probability
                entries = commit.entries()
                keys += keys_of(shard, session_id)
                arguments += (
                    session_id,
                    commit.expected or b"",
                    encode_record(record),
                    b"" if probability is None or not is_open else _number(probability),
                    b"" if is_open else _closing(commit),
                    len(entries),
                    *entries,
                )
        return [len(keys), *keys, *arguments]


# Sessions whose commits are one call: shards, and the places of their sessions in the batch.
_Group = Sequence[tuple[int, list[int]]]


def _together(shards: _Group, most: int) -> list[_Group]:
    """Return groups of at most `most` shards."""
    return [shards[first : first + most] for first in range(0, len(shards), most)]


def _closing(commit: Commit) -> bytes:
    """Return what `commit.lua` is told of the end of a session that is closed."""
    record = commit.record
    if commit.closed_by is None:
        return b"closed"
    return msgspec.json.encode(
        {"outcome": record.outcome.word, "closed_by": commit.closed_by, "outcome_ms": record.outcome_ms}
    )


def _decoded(decode: Callable[[Any], Stored], reply: Reply) -> Stored | StoreError:
    """Return what is stored, or why it cannot be had."""
    if isinstance(reply, Exception):
        return unavailable(reply)
    try:
        return decode(reply)
    except CorruptRecordError as exc:
        return exc
