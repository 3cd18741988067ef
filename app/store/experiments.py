"""What became of the sessions in which rules decided, counted in Redis, and the switches of rules.

The script that publishes a closed session also counts it, in the same shard and step, so a session counts once,
however many replicas try and whichever of them die (`publish.lua`). The commit that makes a decision counts it.

    wb:{<shard>}:experiments           hash  by rule, group and quantity: sessions, buyers, revenue, its squares
    wb:{<shard>}:experiments:<bucket>  hash  the part of it that was decided in a time bucket
    wb:{<shard>}:fired:<day>           hash  decisions by rule and group on a day, UTC
    wb:{00}:switches                   hash  by rule that is switched off: when, ms, Redis' clock

A purchase ends a session at once, any other session ends after the idle time. So among the sessions that were decided
lately, those that have ended are nearly all buyers. A session counts once it has had time to end with either outcome:
the sums are those of all ended sessions less the parts that were decided too recently.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from app.store.keys import COUNTS_SHARD, Keys
from app.store.redis.connection import Command, RedisClient
from app.store.redis.scripts import ScriptRunner, load_script, unavailable
from app.store.redis.server import RespArg
from model.redis_keys import SHARDS

DAY_MS: Final = 86_400_000
FIRED_KEPT_MS: Final = 3 * DAY_MS
"""Lifetime of the decisions of a day: today's and yesterday's are read."""
EXPERIMENTS_KEPT_MS: Final = 365 * DAY_MS
"""Lifetime of a shard's counts after its last counted session."""


PENDING_IDLE_TIMES: Final = 1.5
"""Sessions count so many idle times after their decision: one for their end, and half of one for their length."""
_PARTS: Final = 3


@dataclass(frozen=True, slots=True)
class Pending:
    """When sessions count.

    Attributes:
        pending_ms: time from a session's decision on.
        bucket_ms: length of the time buckets into which recent decisions are sorted.
    """

    pending_ms: int
    bucket_ms: int

    @classmethod
    def of(cls, session_idle_s: float) -> "Pending":
        """Return it for an idle time."""
        pending_ms = round(PENDING_IDLE_TIMES * session_idle_s * 1000)
        return cls(pending_ms, max(1, pending_ms // _PARTS))

    @property
    def kept_ms(self) -> int:
        """Lifetime of a bucket: longer than its sessions are pending."""
        return 2 * self.pending_ms + self.bucket_ms + DAY_MS // 24

    def buckets(self, now_ms: int) -> range:
        """Return the buckets whose sessions do not count yet; the next one too, as clocks differ a little."""
        return range((now_ms - self.pending_ms) // self.bucket_ms, now_ms // self.bucket_ms + 2)


@dataclass(slots=True)
class Revenue:
    """Values of purchases in one currency: their number, their sum, and the sum of the squares of each session's."""

    purchases: int = 0
    sum: float = 0.0
    squares: float = 0.0


@dataclass(slots=True)
class Totals:
    """Sums over the ended sessions of one group of a rule.

    Attributes:
        sessions: that ended with a known outcome, and have had time for either.
        buyers: of these.
        revenue: of their purchases, by currency; empty: not known.
        pending: sessions that ended and do not count yet.
        fired: decisions by day, in days since the epoch, UTC; of today and yesterday.
    """

    sessions: int = 0
    buyers: int = 0
    revenue: dict[str, Revenue] = field(default_factory=dict)
    pending: int = 0
    fired: dict[int, int] = field(default_factory=dict)


def label_of(rule: str, group: str) -> str:
    """Return the name of a rule's group in the counts."""
    return f"{rule}:{group}"


class ExperimentStore(Protocol):
    """Counts and switches of rules. Failed calls raise `StoreError`."""

    async def totals(self, now_ms: int) -> dict[tuple[str, str], Totals]:
        """Return the sums by rule and group over all shards, as of the server's clock."""
        ...

    async def switched_off(self) -> dict[str, int]:
        """Return when each rule that is off was switched off, ms, Redis' clock."""
        ...

    async def switch(self, rule: str, *, on: bool) -> None:
        """Switch a rule on or off in all replicas; the same again changes nothing."""
        ...


class RedisExperiments:
    """Implements `ExperimentStore` on Redis.

    Args:
        client: sends single commands.
        scripts: runs the Lua scripts.
        keys: the keys of this service.
        session_idle_s: idle time after which a session ends.
    """

    def __init__(self, client: RedisClient, scripts: ScriptRunner, *, keys: Keys, session_idle_s: float) -> None:
        self._pending = Pending.of(session_idle_s)
        self._client = client
        self._scripts = scripts
        self._keys = keys
        self._read_script = load_script("experiments.lua")
        self._switch_script = load_script("switch.lua")

    async def totals(self, now_ms: int) -> dict[tuple[str, str], Totals]:
        day, pending = now_ms // DAY_MS, self._pending.buckets(now_ms)
        size = self._scripts.max_shards_per_script
        groups = [range(first, min(first + size, SHARDS)) for first in range(0, SHARDS, size)]
        calls: list[tuple[int, list[RespArg]]] = []
        for group in groups:
            keys: list[RespArg] = []
            for shard in group:
                keys += (self._keys.experiments(shard), self._keys.fired(shard, day - 1), self._keys.fired(shard, day))
                keys += (self._keys.experiments_of(shard, bucket) for bucket in pending)
            calls.append((group[0], [len(keys), *keys, 3 + len(pending)]))
        found: dict[tuple[str, str], Totals] = {}
        for reply in await self._scripts.run("experiments", self._read_script, calls):
            if isinstance(reply, Exception):
                raise unavailable(reply)
            sums, yesterday, today, *parts = reply
            _add(found, sums)
            _add_fired(found, yesterday, day - 1)
            _add_fired(found, today, day)
            for part in parts:
                _add(found, part, sign=-1)
        return found

    async def switched_off(self) -> dict[str, int]:
        (reply,) = await self._client.execute([Command(COUNTS_SHARD, ("HGETALL", self._keys.switches()))])
        if isinstance(reply, Exception):
            raise unavailable(reply)
        return {name.decode(): int(when) for name, when in _pairs(reply)}

    async def switch(self, rule: str, *, on: bool) -> None:
        call: tuple[int, list[RespArg]] = (COUNTS_SHARD, [1, self._keys.switches(), rule, "on" if on else "off"])
        (reply,) = await self._scripts.run("switch", self._switch_script, [call])
        if isinstance(reply, Exception):
            raise unavailable(reply)


def _pairs(reply: Sequence[Any]) -> Sequence[tuple[bytes, bytes]]:
    return list(zip(reply[::2], reply[1::2], strict=True))


def _add(found: dict[tuple[str, str], Totals], reply: Sequence[Any], *, sign: int = 1) -> None:
    """Add a hash of sums to the totals; with the sign -1, its sessions are pending."""
    for name, number in _pairs(reply):
        rule, group, quantity = name.decode().split(":")
        totals = found.setdefault((rule, group), Totals())
        if quantity == "n":
            totals.sessions += sign * int(number)
            totals.pending += int(number) if sign < 0 else 0
        elif quantity == "b":
            totals.buyers += sign * int(number)
        else:
            # A letter, and the currency where it is known: `rEUR`.
            revenue = totals.revenue.setdefault(quantity[1:], Revenue())
            if quantity[0] == "v":
                revenue.purchases += sign * int(number)
            elif quantity[0] == "r":
                revenue.sum += sign * float(number)
            else:
                revenue.squares += sign * float(number)


def _add_fired(found: dict[tuple[str, str], Totals], reply: Sequence[Any], day: int) -> None:
    for name, number in _pairs(reply):
        rule, group = name.decode().split(":")
        fired = found.setdefault((rule, group), Totals()).fired
        fired[day] = fired.get(day, 0) + int(number)


def counted(groups: Mapping[str, str], value: float | None, currency: str | None, part: int) -> list[RespArg]:
    """Return what `publish.lua` counts of a session: value, square, currency, part, number of its rules, their labels.

    Args:
        groups: the session's group in each rule that decided.
        value: of its purchase; None: it has not bought.
        currency: of the value; None: not known.
        part: number of the key of the sums of the time bucket; 0: none.
    """
    value_text = "" if value is None else repr(float(value))
    square = "" if value is None else repr(float(value) ** 2)
    return [
        value_text,
        square,
        currency or "",
        part,
        len(groups),
        *(label_of(rule, group) for rule, group in groups.items()),
    ]
