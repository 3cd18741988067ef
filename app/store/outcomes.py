"""Sessions that ended: from the live keys through the stream `closed` to the stream `outcomes`.

    record and history --(purchase: commit.lua; idle: close.lua)--> closed --(publish.lua)--> outcomes

Each arrow is one script in one shard, which moves a session atomically and once, even if several replicas try. Between
the two scripts a replica converts the history entries to JSON, because a script cannot decode them.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, Protocol

import msgspec

from app.errors import CorruptRecordError, StoreError
from app.store.experiments import EXPERIMENTS_KEPT_MS, Pending, counted
from app.store.history_codec import Entry, decode_joined
from app.store.keys import COUNTS_SHARD, Keys
from app.store.redis.scripts import ScriptRunner, load_script, unavailable
from app.store.redis.server import RespArg
from model.interventions.decide import Decision
from model.redis_keys import SHARDS

# Most closed sessions of a shard that wait to be published. A running replica publishes them within seconds.
BACKLOG: Final = 4096
# Most entries of one shard in one call.
_IDS_AT_ONCE: Final = 64
_CLOSED_AT_ONCE: Final = 16
# Bytes of histories after which a call for one shard takes no other session: 2 MB a round trip, and one more session.
_BYTES_AT_ONCE: Final = 65_536
# Shards in one round trip; a server does nothing else meanwhile.
SHARDS_AT_ONCE: Final = 32
# Longer than any call takes, including its retry.
_MARKER_MS: Final = 600_000


@dataclass(frozen=True, slots=True)
class OutcomeLimits:
    """Limits of closed sessions.

    Attributes:
        most: most sessions over all shards, approximate; 0: none are written for collectors.
        kept_s: lifetime of one.
    """

    most: int = 50_000
    kept_s: int = 7 * 86400

    @property
    def most_a_shard(self) -> int:
        """Most entries of one shard's stream."""
        return -(-self.most // SHARDS)

    @property
    def kept_ms(self) -> int:
        """The lifetime in milliseconds."""
        return self.kept_s * 1000


@dataclass(frozen=True, slots=True)
class ClosedSession:
    """A session that ended, in its stored form.

    Attributes:
        entry: id of its entry in `closed`; starts with the time in ms, Redis' clock, when it was closed.
        session_id: the session.
        bought: whether it bought.
        closed_by: `event` (a purchase), `api` (a call of the shop), `idle` or `eviction`.
        outcome_ms: time of the purchase, or of the shop's call; 0: closed by idle time.
        last_seen_ms: time of the last commit, Redis' clock.
        entries: the folded events, oldest first, each with its probability and its model.
        value: of its purchase; None: not known, or no purchase.
        sent_currency: the currency that came with that value, if one did.
        is_known: whether the outcome is known and the events are complete; False where the server has evicted keys.
    """

    entry: str
    session_id: str
    bought: bool
    closed_by: str
    outcome_ms: int
    last_seen_ms: int
    entries: Sequence[Entry]
    value: float | None = None
    sent_currency: str | None = None
    is_known: bool = True

    @property
    def outcome(self) -> Literal["purchase", "none", "unknown"]:
        """The outcome's name."""
        if not self.is_known:
            return "unknown"
        return "purchase" if self.bought else "none"

    @property
    def currency(self) -> str | None:
        """Currency of the value: as it came with it, else the one that an event of the session had last."""
        of_events = (entry.event.currency for entry in reversed(self.entries) if entry.event.currency)
        return self.sent_currency or next(of_events, None)

    @property
    def began_ms(self) -> int:
        """Time when the session began, Redis' clock: its last commit less the time between its events."""
        if not self.entries:
            return self.last_seen_ms
        last_ms = max(self.entries[-1].event.timestamp_ms, self.outcome_ms)
        return self.last_seen_ms - max(0, last_ms - self.entries[0].event.timestamp_ms)

    @property
    def decisions(self) -> Iterator[Decision]:
        """The decisions of rules, in the order in which they were made."""
        return (decision for entry in self.entries for decision in entry.decisions)

    @property
    def closed_ms(self) -> int:
        """Time when the session was closed, Redis' clock."""
        return int(self.entry.partition("-")[0])


class Written(NamedTuple):
    """A closed session in its published form.

    Attributes:
        entry: id of its entry in `closed`.
        session_id: the session.
        json: the session as JSON; empty: the entry is unreadable and is only removed.
        groups: the session's group in each rule that decided; it is counted there.
        value: of its purchase; None: it has not bought.
        decided_ms: time of the first decision.
        currency: of the value; None: not known.
    """

    entry: str
    session_id: str
    json: bytes
    groups: Mapping[str, str] = MappingProxyType({})
    value: float | None = None
    decided_ms: int = 0
    currency: str | None = None


class Unreadable(NamedTuple):
    """An entry of `closed` that this release cannot decode."""

    entry: str
    session_id: str


@dataclass(frozen=True, slots=True)
class Due:
    """The sweeper's work in one shard.

    Attributes:
        idle: sessions whose idle time has passed.
        closed: closed sessions that are not published yet.
        is_more: whether there is more of either than one call returns.
        failure: why the shard could not be asked, if so, while others could.
    """

    idle: Sequence[str] = ()
    closed: Sequence[ClosedSession | Unreadable] = ()
    is_more: bool = False
    failure: StoreError | None = None


@dataclass(slots=True)
class ClosedCount:
    """Numbers of idle sessions: closed as not bought; lost, their history had expired; left for a later call."""

    closed: int = 0
    lost: int = 0
    left: int = 0


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of one model in one time bucket: integers by field.

    Attributes:
        answers: counts of its answers; stored under `Keys.trust`.
        inputs: counts of its inputs; stored under `Keys.drift`.
    """

    answers: Mapping[str, int] = field(default_factory=dict)
    inputs: Mapping[str, int] = field(default_factory=dict)


# A model's fingerprint, and the number of a time bucket.
CountsOf = tuple[str, int]


class OutcomeStore(Protocol):
    """The closed sessions and their counts; all calls raise `StoreUnavailableError` if the store is unavailable."""

    async def due(
        self, replica: str, *, lease_s: float, shards: Sequence[int] = range(SHARDS), one: bool = False
    ) -> dict[int, Due]:
        """Return the sweeper's work by shard, without those that have none or that another replica owns.

        Args:
            replica: name of the caller.
            lease_s: for how long the caller owns a shard with work.
            shards: those to look at.
            one: at most one session to close and one to publish in each shard.

        Raises:
            StoreUnavailableError: no shard could be asked.
        """
        ...

    async def close_idle(self, idle: Mapping[int, Sequence[str]]) -> ClosedCount:
        """Close the given sessions, by shard, if their idle time has passed, as many as have a bounded size."""
        ...

    async def publish(self, sessions: Mapping[int, Sequence[Written]]) -> dict[int, list[bool]]:
        """Move closed sessions to `outcomes`, by shard; return for each whether this call moved it.

        An unreachable shard is left out of the result; its sessions are moved once, by this call or a later one.
        """
        ...

    async def count(self, token: str, counts: Mapping[CountsOf, Counts], *, lifetime_s: int) -> None:
        """Add counts, once for each token."""
        ...

    async def counts(self, keys: Sequence[CountsOf]) -> list[Counts]:
        """Return the counts of each key."""
        ...


class RedisOutcomes:
    """Implements `OutcomeStore` on Redis.

    Args:
        scripts: runs the Lua scripts.
        keys: the keys of this service.
        session_idle_s: idle time after which a session ends.
        limits: limits of closed sessions.
    """

    def __init__(self, scripts: ScriptRunner, *, keys: Keys, session_idle_s: int, limits: OutcomeLimits) -> None:
        self._scripts = scripts
        self._keys = keys
        self._idle_ms = session_idle_s * 1000
        self._pending = Pending.of(session_idle_s)
        self._limits = limits
        self._due_script = load_script("due.lua")
        self._close_script = load_script("closing.lua", "close.lua")
        self._publish_script = load_script("publish.lua")
        self._count_script = load_script("count.lua")
        self._counts_script = load_script("counts.lua")

    async def due(
        self, replica: str, *, lease_s: float, shards: Sequence[int] = range(SHARDS), one: bool = False
    ) -> dict[int, Due]:
        most = (1, 1, 1) if one else (_IDS_AT_ONCE, _CLOSED_AT_ONCE, _BYTES_AT_ONCE)
        arguments: list[RespArg] = [replica, int(lease_s * 1000), self._idle_ms, *most]
        found: dict[int, Due] = {}
        failures: dict[int, Due] = {}
        for first in range(0, len(shards), SHARDS_AT_ONCE):
            some = shards[first : first + SHARDS_AT_ONCE]
            calls = [
                (shard, [3, self._keys.closer(shard), self._keys.seen(shard), self._keys.closed(shard), *arguments])
                for shard in some
            ]
            replies = await self._scripts.run("due", self._due_script, calls)
            for shard, reply in zip(some, replies, strict=True):
                if isinstance(reply, Exception):
                    failures[shard] = Due(failure=unavailable(reply))
                elif reply[0] or reply[1]:
                    found[shard] = _due(*reply)
                    # Decoding long histories takes long; let the event loop serve events.
                    await asyncio.sleep(0)
        if len(failures) == len(shards) and (failure := next(iter(failures.values())).failure) is not None:
            raise failure
        return found | failures

    async def close_idle(self, idle: Mapping[int, Sequence[str]]) -> ClosedCount:
        calls: list[tuple[int, list[RespArg]]] = []
        for shard, session_ids in idle.items():
            keys: list[RespArg] = [self._keys.board(shard), self._keys.seen(shard), self._keys.closed(shard)]
            for session_id in session_ids:
                keys += (self._keys.record(session_id), self._keys.history(session_id))
            limits = (self._idle_ms, BACKLOG, self._limits.kept_ms, _BYTES_AT_ONCE)
            calls.append((shard, [len(keys), *keys, *limits, *session_ids]))
        count = ClosedCount()
        for reply in await self._scripts.run("close", self._close_script, calls):
            if isinstance(reply, Exception):
                raise unavailable(reply)
            count.closed += reply.count(1)
            count.lost += reply.count(2)
            count.left += reply.count(4)
        return count

    async def publish(self, sessions: Mapping[int, Sequence[Written]]) -> dict[int, list[bool]]:
        calls: list[tuple[int, list[RespArg]]] = []
        for shard, some in sessions.items():
            keys: list[RespArg] = [self._keys.closed(shard), self._keys.outcomes(shard), self._keys.experiments(shard)]
            words: list[RespArg] = []
            parts: dict[int, int] = {}
            for written in some:
                part = 0
                if written.groups:
                    bucket = written.decided_ms // self._pending.bucket_ms
                    if bucket not in parts:
                        keys.append(self._keys.experiments_of(shard, bucket))
                        parts[bucket] = len(keys)
                    part = parts[bucket]
                words += (
                    written.entry,
                    written.session_id,
                    written.json,
                    *counted(written.groups, written.value, written.currency, part),
                )
            limits = (self._limits.most_a_shard, self._limits.kept_ms, EXPERIMENTS_KEPT_MS, self._pending.kept_ms)
            calls.append((shard, [len(keys), *keys, *limits, *words]))
        moved: dict[int, list[bool]] = {}
        for first in range(0, len(calls), SHARDS_AT_ONCE):
            some_calls = calls[first : first + SHARDS_AT_ONCE]
            replies = await self._scripts.run("publish", self._publish_script, some_calls)
            for (shard, _), reply in zip(some_calls, replies, strict=True):
                if not isinstance(reply, Exception):
                    moved[shard] = list(map(bool, reply))
        return moved

    async def count(self, token: str, counts: Mapping[CountsOf, Counts], *, lifetime_s: int) -> None:
        keys: list[RespArg] = [self._keys.counted(token)]
        arguments: list[RespArg] = [_MARKER_MS, lifetime_s * 1000]
        for (model, bucket), added in counts.items():
            for key, fields in (
                (self._keys.trust(model, bucket), added.answers),
                (self._keys.drift(model, bucket), added.inputs),
            ):
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
        calls: list[tuple[int, list[RespArg]]] = [
            (COUNTS_SHARD, [2, self._keys.trust(*key), self._keys.drift(*key)]) for key in keys
        ]
        found = []
        for reply in await self._scripts.run("counts", self._counts_script, calls):
            if isinstance(reply, Exception):
                raise unavailable(reply)
            found.append(Counts(*map(_integers, reply)))
        return found


def _integers(pairs: Sequence[bytes]) -> dict[str, int]:
    return {name.decode(): int(number) for name, number in zip(pairs[::2], pairs[1::2], strict=True)}


def _due(ids: Sequence[bytes], entries: Sequence[Any], is_more: int) -> Due:
    return Due(
        idle=[session_id.decode() for session_id in ids],
        closed=[_closed(entry.decode(), fields) for entry, fields in entries],
        is_more=bool(is_more),
    )


class _Facts(msgspec.Struct, frozen=True):
    """The field `facts` of an entry of `closed`, written by `commit.lua` and `close.lua`."""

    outcome: str
    closed_by: str
    outcome_ms: int = 0
    # Number of the record's events, where there was a record.
    events: int = 0
    value: float | None = None
    currency: str | None = None


_facts: Final = msgspec.json.Decoder(_Facts)


def _closed(entry: str, fields: Sequence[bytes]) -> ClosedSession | Unreadable:
    values = dict(zip(fields[::2], fields[1::2], strict=False))
    session_id = values.get(b"id", b"").decode(errors="replace")
    try:
        facts = _facts.decode(values[b"facts"])
        entries = decode_joined(values[b"events"])
        return ClosedSession(
            entry=entry,
            session_id=session_id,
            bought=facts.outcome == "purchase",
            is_known=facts.outcome != "unknown" and len(entries) >= facts.events,
            closed_by=facts.closed_by,
            value=facts.value,
            sent_currency=facts.currency,
            outcome_ms=facts.outcome_ms,
            last_seen_ms=int(float(values[b"seen"])),
            entries=entries,
        )
    except (KeyError, ValueError, msgspec.DecodeError, CorruptRecordError):
        return Unreadable(entry, session_id)
