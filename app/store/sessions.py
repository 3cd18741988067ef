"""The store on Redis or Valkey: one server, a primary behind sentinels, or a cluster.

A batch costs two round trips: one MGET of its records and one pipeline of `commit.lua` calls, each for several shards.
A large batch is committed in two halves (`app.scoring.scorer`) and costs three. On a cluster a call is for one shard,
and all nodes get their calls at the same time. There are no locks: compare-and-set decides between replicas.

Only this package wraps the driver's errors. A command may reach Redis twice (`app.store.redis.server`). That is safe,
because a commit that is sent twice counts once (`commit.lua`).
"""

import asyncio
import re
import struct
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar
from uuid import uuid4

import msgspec
from redis.exceptions import ResponseError

from app.errors import CorruptRecordError, StoreError
from app.monitoring import tracing
from app.store.board import RedisBoard
from app.store.experiments import DAY_MS, FIRED_KEPT_MS, RedisExperiments, label_of
from app.store.history_codec import Entry, decode_events, decode_history
from app.store.ingest import RedisIngest
from app.store.interface import Commit, whole_history
from app.store.interventions import DECISIONS_KEPT, DECISIONS_KEPT_MS, RedisDecisions, handed_over
from app.store.keys import Keys, shard_of
from app.store.outcomes import BACKLOG, OutcomeLimits, RedisOutcomes
from app.store.record_codec import Outcome, Record, decode_record, encode_record
from app.store.redis.connection import Command, ConnectionOptions, open_client
from app.store.redis.scripts import ObserveRoundTrip, ScriptRunner, load_script, unavailable
from app.store.redis.server import Reply, RespArg
from app.store.replicas import RedisReplicas
from app.store.webhooks import RedisWebhooks
from model.events import Event
from model.interventions.decide import visitor_of

Stored = TypeVar("Stored")

# For the sweeper and the counts of model quality, which no caller waits for.
_OUTCOMES_TIMEOUT_S: Final = 5.0
_OUTCOMES_CONNECTIONS: Final = 4
_PROBE_MS: Final = 10_000
# The argument `head` of `commit.lua` up to the probability.
_HEAD: Final = struct.Struct("<???H8s")
# What `commit.lua` takes after its keys and the length of their beginning, for one session closed by its first event.
_PROBE_LIMITS: Final[tuple[RespArg, ...]] = (
    *(_PROBE_MS, _PROBE_MS, BACKLOG, _PROBE_MS, 1, 1, _PROBE_MS, _PROBE_MS, 0),
)
_PROBE: Final[tuple[RespArg, ...]] = (
    _HEAD.pack(False, False, True, 1, b"") + b"0.5",
    *(b"\x00probe---", b'{"outcome":"none","closed_by":"idle"}', b"probe"),
)
_POLICY: Final = re.compile(r"maxmemory_policy:([\w-]+)")
_NO_POLICY: Final = ValueError("the server does not tell its maxmemory-policy")
# Several times the longest interval between two reports.
_REPORT_TTL_S: Final = 15.0
# The shortest text that parses to the same number, like `repr`, in an eighth of the time.
_number: Final = msgspec.json.Encoder().encode
# A module constant: a member lookup through its class takes 57 ns, a global 6.
_OPEN: Final = Outcome.OPEN


class RedisStore:
    """Sessions on Redis.

    Args:
        url: which Redis (see `model.redis_url`).
        session_idle_s: idle time after which a session ends.
        outcome_grace_s: how much longer the history of an open session stays, so that the session can be closed.
        keys: the keys of this service; None: those of the default prefix.
        outcomes: limits of closed sessions.
        options: connections, time-outs and credentials.
        wait_replicas: replicas that must confirm a commit before it is acknowledged.
        observe: called after each round trip with the operation's name and its seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        session_idle_s: int,
        outcome_grace_s: int = 3600,
        keys: Keys | None = None,
        outcomes: OutcomeLimits | None = None,
        options: ConnectionOptions | None = None,
        wait_replicas: int = 0,
        observe: ObserveRoundTrip = lambda _operation, _seconds: None,
    ) -> None:
        self._idle_ms = session_idle_s * 1000
        self._grace_ms = outcome_grace_s * 1000
        self._keys = keys = keys or Keys()
        self._limits = outcomes or OutcomeLimits()
        self._commit_script = load_script("closing.lua", "commit.lua")
        self._delete_script = load_script("delete.lua")
        self._session_script = load_script("session.lua")
        self._wait_replicas = wait_replicas
        self._client = open_client(url, options or ConnectionOptions())
        self._scripts = ScriptRunner(self._client, observe)
        self.board = RedisBoard(self._scripts, keys=keys, session_idle_s=session_idle_s)
        # With connections and circuit breakers of its own: large closed sessions take long, and must not stop events.
        self._outcomes_client = open_client(url, _patient(options or ConnectionOptions()))
        self.outcomes = RedisOutcomes(
            ScriptRunner(self._outcomes_client, observe),
            keys=keys,
            session_idle_s=session_idle_s,
            limits=self._limits,
        )
        self.decisions = RedisDecisions(self._scripts, keys=keys, wait_replicas=wait_replicas)
        self.experiments = RedisExperiments(self._client, self._scripts, keys=keys, session_idle_s=session_idle_s)
        self.webhooks = RedisWebhooks(self._scripts, keys)
        self.ingest = RedisIngest(
            self._client, self._scripts, keys=keys, idle_ms=self._idle_ms, kept_ms=self._idle_ms + self._grace_ms
        )
        self.replicas = RedisReplicas(self._scripts, keys=keys, ttl_s=_REPORT_TTL_S)

    @property
    def confirms_by_writing(self) -> bool:
        """Whether replicas must confirm a commit before it is acknowledged.

        A commit that too few replicas confirmed is an error for its caller, but is stored on the primary. A retry of
        the event finds the stored answer there. Only another write makes Redis confirm that the replicas have it too.
        """
        return self._wait_replicas > 0

    async def load(self, session_ids: Sequence[str]) -> list[Record | StoreError | None]:
        shards = [shard_of(session_id) for session_id in session_ids]
        with tracing.store_span("load", len(shards)), self._scripts.timed("load"):
            values = await self._client.get(shards, self._keys.records(shards, session_ids))
        return [None if value is None else _decoded(decode_record, value) for value in values]

    async def load_histories(self, session_ids: Sequence[str]) -> list[list[Event] | StoreError]:
        commands = [
            Command(shard_of(session_id), ("LRANGE", self._keys.history(session_id), 0, -1))
            for session_id in session_ids
        ]
        with tracing.store_span("load_histories", len(commands)), self._scripts.timed("load_histories"):
            histories = await self._client.execute(commands)
        return [_decoded(decode_events, entries) for entries in histories]

    async def load_session(self, session_id: str) -> tuple[Record, list[Event]] | None:
        (found,) = await self.load_sessions([session_id])
        if isinstance(found, Exception):
            raise found
        return found

    async def load_sessions(self, session_ids: Sequence[str]) -> list[tuple[Record, list[Event]] | StoreError | None]:
        calls: list[tuple[int, list[RespArg]]] = [
            (shard_of(session_id), [2, self._keys.record(session_id), self._keys.history(session_id)])
            for session_id in session_ids
        ]
        with tracing.store_span("load_sessions", len(calls)):
            replies = await self._scripts.run("load_sessions", self._session_script, calls)
        sessions: list[tuple[Record, list[Event]] | StoreError | None] = []
        for reply in replies:
            sessions.append(_decoded(_session, reply))
            # Decoding a long history takes a while; events go first.
            await asyncio.sleep(0)
        return sessions

    async def load_entries(self, session_id: str) -> tuple[Record, list[Entry]] | None:
        call: tuple[int, list[RespArg]] = (
            shard_of(session_id),
            [2, self._keys.record(session_id), self._keys.history(session_id)],
        )
        with tracing.store_span("load_sessions", 1):
            (reply,) = await self._scripts.run("load_sessions", self._session_script, [call])
        found = _decoded(_entries, reply)
        if isinstance(found, Exception):
            raise found
        return found

    async def commit(self, commits: Sequence[Commit]) -> list[bool | StoreError]:
        results: list[bool | StoreError] = [False] * len(commits)
        by_shard: dict[int, list[int]] = defaultdict(list)
        for place, commit in enumerate(commits):
            by_shard[shard_of(commit.session_id)].append(place)
        groups = _together(list(by_shard.items()), self._scripts.max_shards_per_script)
        while groups:
            calls = [(group[0][0], self._call(commits, group)) for group in groups]
            with tracing.store_span("commit", len(commits)):
                replies = await self._scripts.run(
                    "commit", self._commit_script, calls, wait_replicas=self._wait_replicas
                )
            alone: list[_Group] = []
            for group, reply in zip(groups, replies, strict=True):
                if isinstance(reply, ResponseError) and len(group) > 1:
                    # A key of one session has a wrong type; that must not affect the sessions of other shards.
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
        shard = shard_of(session_id)
        keys: list[RespArg] = [
            self._keys.board(shard),
            self._keys.seen(shard),
            self._keys.record(session_id),
            self._keys.history(session_id),
        ]
        keys += (self._keys.closed(shard), self._keys.outcomes(shard), self._keys.decisions(shard))
        call = (shard, [len(keys), *keys, session_id])
        with tracing.store_span("delete", 1):
            (reply,) = await self._scripts.run("delete", self._delete_script, [call], wait_replicas=self._wait_replicas)
        if isinstance(reply, Exception):
            raise unavailable(reply)

    async def ping(self) -> None:
        """Run a commit and a load on keys of their own; raise `StoreUnavailableError` if they fail on every server.

        The commit has all parts: history, board, closing. So it fails whatever an event's commit would fail with.
        """
        shards = await self._client.server_shards()
        if not shards and (failure := await self._client.ping()) is not None:
            raise unavailable(failure)
        token = uuid4().hex
        calls: list[tuple[int, list[RespArg]]] = []
        for shard in shards:
            start, *keys = self._keys.probe(shard, token)
            calls.append((shard, [len(keys), *keys, *_PROBE_LIMITS, len(start), *_PROBE]))
        replies = await self._scripts.run("ping", self._commit_script, calls, wait_replicas=self._wait_replicas)
        loaded = await self._client.get(shards, [self._keys.probe(shard, token)[1] for shard in shards])
        failures: list[Exception] = []
        for pair in zip(replies, loaded, strict=True):
            if not (failed := [one for one in pair if isinstance(one, Exception)]):
                return
            failures += failed
        if failures:
            raise unavailable(failures[0])

    async def eviction_policy(self) -> str:
        """Return the server's `maxmemory-policy`; of a cluster's, one that is not `noeviction` if there is one."""
        shards = await self._client.server_shards()
        replies = await self._client.execute(
            [Command(shard, ("CONFIG", "GET", "maxmemory-policy")) for shard in shards]
        )
        policies = [_text(reply[1]) for reply in replies if not isinstance(reply, Exception) and len(reply) > 1]
        if len(policies) < len(replies):
            # Managed servers and narrow users have no CONFIG.
            replies = await self._client.execute([Command(shard, ("INFO", "memory")) for shard in shards])
            texts = [_text(reply) for reply in replies if not isinstance(reply, Exception)]
            policies += [found[1] for text in texts if (found := _POLICY.search(text))]
        if not policies:
            raise unavailable(next((reply for reply in replies if isinstance(reply, Exception)), _NO_POLICY))
        return next((policy for policy in policies if policy != "noeviction"), "noeviction")

    async def close(self) -> None:
        await self._client.close()
        await self._outcomes_client.close()

    def _call(self, commits: Sequence[Commit], group: "_Group") -> list[RespArg]:
        """Return the arguments of one EVALSHA after the hash: number of keys, keys, arguments (see `commit.lua`)."""
        keys: list[RespArg] = []
        # Those that the script derives.
        others: list[RespArg] = []
        arguments: list[RespArg] = []
        decided: list[RespArg] = []
        names_all_keys = self._scripts.names_all_keys
        for shard, places in group:
            start = self._keys.start(shard)
            for place in places:
                commit = commits[place]
                record, session_id = commit.record, commit.session_id
                is_open, probability = record.outcome is _OPEN, record.probability
                entries, expected = commit.entries(), commit.expected
                keys.append(f"{start}s:{session_id}")
                if commit.decided:
                    visitor_id = visitor_of(record.facts) if record.facts else None
                    for decision in commit.decided:
                        day = decision.decided_ms // DAY_MS
                        label = label_of(decision.rule, decision.group.word)
                        decided += (len(keys), day, handed_over(session_id, decision, visitor_id), label)
                        others += (self._keys.decisions(shard), self._keys.fired(shard, day))
                if names_all_keys:
                    others += self._keys.session(shard, session_id)
                head = _HEAD.pack(expected is not None, commit.restarts, not is_open, len(entries), expected or b"")
                if is_open:
                    score = b"" if probability is None else _number(probability)
                    arguments += (head + score, encode_record(record), *entries)
                else:
                    arguments += (head, encode_record(record), _closing(commit), *entries)
        limits: tuple[RespArg, ...] = (self._idle_ms, self._grace_ms, BACKLOG, self._limits.kept_ms)
        limits += (len(keys), DECISIONS_KEPT, DECISIONS_KEPT_MS, FIRED_KEPT_MS, len(decided) // 4, len(start))
        if names_all_keys:
            keys += others
        return [len(keys), *keys, *limits, *decided, *arguments]


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _patient(options: ConnectionOptions) -> ConnectionOptions:
    return replace(
        options,
        timeout_s=max(options.timeout_s, _OUTCOMES_TIMEOUT_S),
        max_connections=_OUTCOMES_CONNECTIONS,
        on_breaker=lambda _opened: None,
    )


# The sessions of one call: shards, and the indices of their sessions in the batch.
_Group = Sequence[tuple[int, list[int]]]


def _together(shards: _Group, most: int) -> list[_Group]:
    """Return the shards in groups of at most `most`."""
    return [shards[first : first + most] for first in range(0, len(shards), most)]


def _closing(commit: Commit) -> bytes:
    """Return the argument `closing` of `commit.lua` for a closed session."""
    record = commit.record
    if commit.closed_by is None:
        return b"closed"
    return msgspec.json.encode(
        {
            "outcome": record.outcome.word,
            "closed_by": commit.closed_by,
            "outcome_ms": record.outcome_ms,
            "events": record.events,
            **({} if commit.value is None else {"value": commit.value}),
            **({} if commit.currency is None else {"currency": commit.currency}),
        }
    )


def _session(reply: Sequence[Any]) -> tuple[Record, list[Event]] | None:
    value, entries = reply
    if value is None:
        return None
    record = decode_record(value)
    if record.history_bytes != (size := sum(map(len, entries))):
        # Of an older release, which did not count it. A rebuild writes the record with the size.
        record = msgspec.structs.replace(record, history_bytes=size)
    return record, whole_history(record, decode_events(entries))


def _entries(reply: Sequence[Any]) -> tuple[Record, list[Entry]] | None:
    value, entries = reply
    if value is None:
        return None
    record = decode_record(value)
    return record, whole_history(record, decode_history(entries))


def _decoded(decode: Callable[[Any], Stored], reply: Reply) -> Stored | StoreError:
    """Return the decoded reply, or the error."""
    if isinstance(reply, Exception):
        return unavailable(reply)
    try:
        return decode(reply)
    except CorruptRecordError as exc:
        return exc
    except Exception as exc:  # noqa: BLE001 - whatever bytes raise, they are of this session only
        error = CorruptRecordError("The session's record or history cannot be decoded.")
        error.__cause__ = exc
        return error
