"""Sessions that ended, on their way from the live keys to whoever wants to know what became of them.

    record and history --(purchase: commit.lua; idle: close.lua)--> closed --(publish.lua)--> outcomes

Each arrow is one script in one shard: a session leaves one place and arrives in the next in the same moment, once,
however many replicas try. Between the two the entries of the history become JSON, which no script can do.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from app.errors import CorruptRecordError
from app.store.history_codec import Entry, decode_joined
from app.store.keys import (
    COUNTS_SHARD,
    SHARDS,
    board_key,
    closed_key,
    closer_key,
    counted_key,
    drift_key,
    history_key,
    outcomes_key,
    record_key,
    seen_key,
    trust_key,
)
from app.store.redis.scripts import ScriptRunner, load_script, unavailable
from app.store.redis.server import Word

# Closed sessions of a shard that may wait for a replica to take them on. One that lives takes them within seconds.
BACKLOG: Final = 4096
# Of one shard, in one call: a call's reply stays below some MB however long the sessions are.
_IDS_AT_ONCE: Final = 64
_CLOSED_AT_ONCE: Final = 16
# Shards that are asked together: one server does nothing else meanwhile.
_SHARDS_AT_ONCE: Final = 32
# Longer than a call may be on its way, its repetition included.
_MARKER_MS: Final = 600_000


@dataclass(frozen=True, slots=True)
class OutcomeLimits:
    """How many closed sessions are kept.

    Attributes:
        most: sessions over all shards, about; 0: none are written for collectors.
        kept_s: for how long one stays.
    """

    most: int = 50_000
    kept_s: int = 7 * 86400

    @property
    def most_a_shard(self) -> int:
        """Entries of one shard's stream."""
        return -(-self.most // SHARDS)

    @property
    def kept_ms(self) -> int:
        """The same lifetime in milliseconds."""
        return self.kept_s * 1000


@dataclass(frozen=True, slots=True)
class ClosedSession:
    """A session that ended, as it lay in Redis.

    Attributes:
        entry: id of its entry in `closed`; begins with the time in ms, by Redis' clock, when it was closed.
        session_id: the session.
        bought: whether it bought.
        closed_by: `event` (a purchase), `api` (the shop said so) or `idle`.
        outcome_ms: time of the purchase, or when the shop said that there is none; 0: it idled out.
        last_seen_ms: time of its last commit, by Redis' clock.
        entries: its folded events, oldest first, each with what it was answered and by which model.
    """

    entry: str
    session_id: str
    bought: bool
    closed_by: str
    outcome_ms: int
    last_seen_ms: int
    entries: Sequence[Entry]

    @property
    def closed_ms(self) -> int:
        """When it was closed, by Redis' clock."""
        return int(self.entry.partition("-")[0])


class Written(NamedTuple):
    """A closed session as it is to be published.

    Attributes:
        entry: id of its entry in `closed`.
        session_id: the session.
        json: what to write; empty: it cannot be read, and is only taken away.
    """

    entry: str
    session_id: str
    json: bytes


class Unreadable(NamedTuple):
    """An entry of `closed` that this release cannot read."""

    entry: str
    session_id: str


@dataclass(frozen=True, slots=True)
class Due:
    """What there is to do in one shard.

    Attributes:
        idle: sessions whose idle time has passed.
        closed: sessions that were closed.
        is_more: whether there was more of either than one call tells.
    """

    idle: Sequence[str] = ()
    closed: Sequence[ClosedSession | Unreadable] = ()
    is_more: bool = False


@dataclass(slots=True)
class ClosedCount:
    """What became of sessions whose idle time had passed: closed as not bought, or open and forgotten before that."""

    closed: int = 0
    lost: int = 0


@dataclass(frozen=True, slots=True)
class Counts:
    """What is to be added to the counts of one model in one time bucket; integers by field.

    Attributes:
        trust: of its answers.
        drift: of its inputs.
    """

    trust: Mapping[str, int] = field(default_factory=dict)
    drift: Mapping[str, int] = field(default_factory=dict)


# A model's fingerprint, and the number of a time bucket.
CountsOf = tuple[str, int]


class OutcomeStore(Protocol):
    """The way of closed sessions; all calls raise `StoreUnavailableError` when the store is gone."""

    async def due(self, replica: str, *, lease_s: float) -> dict[int, Due]:
        """Return what there is to do, by shard; only for shards that no other replica looks after."""
        ...

    async def close_idle(self, idle: Mapping[int, Sequence[str]]) -> ClosedCount:
        """Close those of these sessions whose idle time has passed, by shard."""
        ...

    async def publish(self, sessions: Mapping[int, Sequence[Written]]) -> dict[int, list[bool]]:
        """Move closed sessions to the outcomes, by shard, and say of each whether this call did it.

        A shard that could not be reached is left out; its sessions are moved, once, by this call or a later one.
        """
        ...

    async def count(self, token: str, counts: Mapping[CountsOf, Counts], *, lifetime_s: int) -> None:
        """Add counts, once for a token."""
        ...

    async def counts(self, keys: Sequence[CountsOf]) -> list[Counts]:
        """Return what was counted."""
        ...


class NoOutcomes:
    """An `OutcomeStore` in which nothing ever ends, beside stores that keep no outcomes."""

    async def due(self, replica: str, *, lease_s: float) -> dict[int, Due]:
        """See `OutcomeStore.due`."""
        del replica, lease_s
        return {}

    async def close_idle(self, idle: Mapping[int, Sequence[str]]) -> ClosedCount:
        """See `OutcomeStore.close_idle`."""
        del idle
        return ClosedCount()

    async def publish(self, sessions: Mapping[int, Sequence[Written]]) -> dict[int, list[bool]]:
        """See `OutcomeStore.publish`."""
        return {shard: [False] * len(some) for shard, some in sessions.items()}

    async def count(self, token: str, counts: Mapping[CountsOf, Counts], *, lifetime_s: int) -> None:
        """See `OutcomeStore.count`."""

    async def counts(self, keys: Sequence[CountsOf]) -> list[Counts]:
        """See `OutcomeStore.counts`."""
        return [Counts()] * len(keys)


class RedisOutcomes:
    """See `OutcomeStore`.

    Args:
        scripts: runs scripts.
        session_idle_s: idle time after which a session ends.
        limits: how many closed sessions are kept.
    """

    def __init__(self, scripts: ScriptRunner, *, session_idle_s: int, limits: OutcomeLimits) -> None:
        self._scripts = scripts
        self._idle_ms = session_idle_s * 1000
        self._limits = limits
        self._due_script = load_script("due.lua")
        self._close_script = load_script("closing.lua", "close.lua")
        self._publish_script = load_script("publish.lua")
        self._count_script = load_script("count.lua")
        self._counts_script = load_script("counts.lua")

    async def due(self, replica: str, *, lease_s: float) -> dict[int, Due]:
        """See `OutcomeStore.due`."""
        arguments: list[Word] = [replica, int(lease_s * 1000), self._idle_ms, _IDS_AT_ONCE, _CLOSED_AT_ONCE]
        found: dict[int, Due] = {}
        failure: Exception | None = None
        for first in range(0, SHARDS, _SHARDS_AT_ONCE):
            shards = range(first, min(first + _SHARDS_AT_ONCE, SHARDS))
            calls = [
                (shard, [3, closer_key(shard), seen_key(shard), closed_key(shard), *arguments]) for shard in shards
            ]
            replies = await self._scripts.run("due", self._due_script, calls)
            for shard, reply in zip(shards, replies, strict=True):
                if isinstance(reply, Exception):
                    failure = reply
                elif reply[0] or reply[1]:
                    found[shard] = _due(*reply)
                    # Reading long histories takes a while; events go first.
                    await asyncio.sleep(0)
        if failure is not None and not found:
            raise unavailable(failure)
        return found

    async def close_idle(self, idle: Mapping[int, Sequence[str]]) -> ClosedCount:
        """See `OutcomeStore.close_idle`."""
        calls: list[tuple[int, list[Word]]] = []
        for shard, session_ids in idle.items():
            keys: list[Word] = [board_key(shard), seen_key(shard), closed_key(shard)]
            for session_id in session_ids:
                keys += (record_key(session_id), history_key(session_id))
            calls.append((shard, [len(keys), *keys, self._idle_ms, BACKLOG, self._limits.kept_ms, *session_ids]))
        count = ClosedCount()
        for reply in await self._scripts.run("close", self._close_script, calls):
            if isinstance(reply, Exception):
                raise unavailable(reply)
            count.closed += reply.count(1)
            count.lost += reply.count(2)
        return count

    async def publish(self, sessions: Mapping[int, Sequence[Written]]) -> dict[int, list[bool]]:
        """See `OutcomeStore.publish`."""
        calls: list[tuple[int, list[Word]]] = []
        for shard, some in sessions.items():
            keys: list[Word] = [2, closed_key(shard), outcomes_key(shard)]
            words = [word for written in some for word in written]
            calls.append((shard, [*keys, self._limits.most_a_shard, self._limits.kept_ms, *words]))
        moved: dict[int, list[bool]] = {}
        for first in range(0, len(calls), _SHARDS_AT_ONCE):
            some_calls = calls[first : first + _SHARDS_AT_ONCE]
            replies = await self._scripts.run("publish", self._publish_script, some_calls)
            for (shard, _), reply in zip(some_calls, replies, strict=True):
                if not isinstance(reply, Exception):
                    moved[shard] = list(map(bool, reply))
        return moved

    async def count(self, token: str, counts: Mapping[CountsOf, Counts], *, lifetime_s: int) -> None:
        """See `OutcomeStore.count`."""
        keys: list[Word] = [counted_key(token)]
        arguments: list[Word] = [_MARKER_MS, lifetime_s * 1000]
        for (model, bucket), added in counts.items():
            for key, fields in ((trust_key(model, bucket), added.trust), (drift_key(model, bucket), added.drift)):
                if fields:
                    keys.append(key)
                    arguments.append(len(fields))
                    for name, number in fields.items():
                        arguments += (name, number)
        if len(keys) == 1:
            return
        call = [len(keys), *keys, *arguments]
        (reply,) = await self._scripts.run("count", self._count_script, [(COUNTS_SHARD, call)])
        if isinstance(reply, Exception):
            raise unavailable(reply)

    async def counts(self, keys: Sequence[CountsOf]) -> list[Counts]:
        """See `OutcomeStore.counts`."""
        calls: list[tuple[int, list[Word]]] = [(COUNTS_SHARD, [2, trust_key(*key), drift_key(*key)]) for key in keys]
        found = []
        for reply in await self._scripts.run("counts", self._counts_script, calls):
            if isinstance(reply, Exception):
                raise unavailable(reply)
            found.append(Counts(*map(_integers, reply)))
        return found


def _integers(pairs: Sequence[bytes]) -> dict[str, int]:
    return {name.decode(): int(number) for name, number in zip(pairs[::2], pairs[1::2], strict=True)}


def _due(ids: Sequence[bytes], entries: Sequence[Any]) -> Due:
    return Due(
        idle=[session_id.decode() for session_id in ids],
        closed=[_closed(entry.decode(), fields) for entry, fields in entries],
        is_more=len(ids) >= _IDS_AT_ONCE or len(entries) >= _CLOSED_AT_ONCE,
    )


class _Facts(msgspec.Struct, frozen=True):
    """What `closed` says of a session's end; `commit.lua` and `close.lua` write it."""

    outcome: str
    closed_by: str
    outcome_ms: int = 0


_facts: Final = msgspec.json.Decoder(_Facts)


def _closed(entry: str, fields: Sequence[bytes]) -> ClosedSession | Unreadable:
    values = dict(zip(fields[::2], fields[1::2], strict=False))
    session_id = values.get(b"id", b"").decode(errors="replace")
    try:
        facts = _facts.decode(values[b"facts"])
        return ClosedSession(
            entry=entry,
            session_id=session_id,
            bought=facts.outcome == "purchase",
            closed_by=facts.closed_by,
            outcome_ms=facts.outcome_ms,
            last_seen_ms=int(float(values[b"seen"])),
            entries=decode_joined(values[b"events"]),
        )
    except (KeyError, ValueError, msgspec.DecodeError, CorruptRecordError):
        return Unreadable(entry, session_id)
