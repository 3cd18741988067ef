"""What became of the sessions in which rules decided, counted in Redis, and the switches of rules.

The script that publishes a closed session also counts it, in the same shard and step, so a session counts once,
however many replicas try and whichever of them die (`publish.lua`). The commit that makes a decision counts it.

    wb:{<shard>}:experiments  hash  by rule, group and quantity: sessions, buyers, revenue, squares of the revenue
    wb:{<shard>}:fired:<day>  hash  decisions by rule and group on a day, UTC
    wb:{00}:switches          hash  by rule that is switched off: when, ms, Redis' clock
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


@dataclass(slots=True)
class Totals:
    """Sums over the ended sessions of one group of a rule.

    Attributes:
        sessions: that ended with a known outcome.
        buyers: of these.
        revenue: sum of the values of their purchases.
        revenue_squares: sum of the squares of each session's value.
        fired: decisions by day, in days since the epoch, UTC; of today and yesterday.
    """

    sessions: int = 0
    buyers: int = 0
    revenue: float = 0.0
    revenue_squares: float = 0.0
    fired: dict[int, int] = field(default_factory=dict)


def label_of(rule: str, group: str) -> str:
    """Return the name of a rule's group in the counts."""
    return f"{rule}:{group}"


class ExperimentStore(Protocol):
    """Counts and switches of rules. Failed calls raise `StoreError`."""

    async def totals(self, *, day: int) -> dict[tuple[str, str], Totals]:
        """Return the sums by rule and group over all shards.

        Args:
            day: today, in days since the epoch, UTC.
        """
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
    """

    def __init__(self, client: RedisClient, scripts: ScriptRunner, *, keys: Keys) -> None:
        self._client = client
        self._scripts = scripts
        self._keys = keys
        self._read_script = load_script("experiments.lua")
        self._switch_script = load_script("switch.lua")

    async def totals(self, *, day: int) -> dict[tuple[str, str], Totals]:
        size = self._scripts.max_shards_per_script
        groups = [range(first, min(first + size, SHARDS)) for first in range(0, SHARDS, size)]
        calls: list[tuple[int, list[RespArg]]] = []
        for group in groups:
            keys: list[RespArg] = []
            for shard in group:
                keys += (self._keys.experiments(shard), self._keys.fired(shard, day - 1), self._keys.fired(shard, day))
            calls.append((group[0], [len(keys), *keys]))
        found: dict[tuple[str, str], Totals] = {}
        for reply in await self._scripts.run("experiments", self._read_script, calls):
            if isinstance(reply, Exception):
                raise unavailable(reply)
            for place in range(0, len(reply), 3):
                _add(found, reply[place], day=None)
                _add(found, reply[place + 1], day=day - 1)
                _add(found, reply[place + 2], day=day)
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


def _add(found: dict[tuple[str, str], Totals], reply: Sequence[Any], *, day: int | None) -> None:
    for name, number in _pairs(reply):
        rule, group, *quantity = name.decode().split(":")
        totals = found.setdefault((rule, group), Totals())
        if day is not None:
            totals.fired[day] = totals.fired.get(day, 0) + int(number)
        elif quantity == ["n"]:
            totals.sessions += int(number)
        elif quantity == ["b"]:
            totals.buyers += int(number)
        elif quantity == ["r"]:
            totals.revenue += float(number)
        elif quantity == ["q"]:
            totals.revenue_squares += float(number)


def counted(groups: Mapping[str, str], value: float | None) -> list[RespArg]:
    """Return what `publish.lua` counts of a session: its value, the number of its rules, and their labels.

    Args:
        groups: the session's group in each rule that decided.
        value: of its purchase; None: it has not bought.
    """
    value_text = "" if value is None else repr(float(value))
    square = "" if value is None else repr(float(value) ** 2)
    return [value_text, square, len(groups), *(label_of(rule, group) for rule, group in groups.items())]
