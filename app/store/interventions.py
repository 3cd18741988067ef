"""Decisions that were handed over: by shard, a stream of all that the commits of its sessions have made.

`commit.lua` appends a decision in the same step that stores its mark in the session's record, so a decision is in the
stream once, whatever crashes. The live stream and webhooks read it from there, each from its own place.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal, Protocol
from uuid import uuid4

import msgspec

from app.store.keys import Keys, shard_of
from app.store.redis.scripts import ScriptRunner, load_script, unavailable
from app.store.redis.server import RespArg
from model.interventions.decide import Decision

# Most decisions of one shard that are kept for readers, approximate, and for how long.
DECISIONS_KEPT: Final = 4096
DECISIONS_KEPT_MS: Final = 86_400_000
START: Final = "0"
"""The place before the oldest decision of a shard."""
NOW: Final = "$"
"""The place after the newest decision of a shard."""
_MOST_AT_ONCE: Final = 256


class HandedOver(msgspec.Struct, frozen=True, omit_defaults=True):
    """A decision as readers get it.

    Attributes:
        session_id: the session.
        rule: name of the rule.
        group: what the session is to the rule's experiment.
        probability: of a purchase, at that moment.
        event: number of the session's events then; that of the event at which the rule fired.
        decided_ms: the server's clock.
        idle: whether the rule fired after idle time, and not at an event.
        told: whether callers receive it: treatment, or a control group that the rule tells.
        visitor_id: the visitor's id, where the session has one.
    """

    session_id: str
    rule: str
    group: Literal["treatment", "control"]
    probability: float
    event: int
    decided_ms: int
    idle: bool = False
    told: bool = True
    visitor_id: str | None = None


class DecisionEntry(msgspec.Struct, frozen=True):
    """A decision and its place in the stream of its shard.

    Attributes:
        shard: the shard.
        entry: id of the entry, unique in the shard and growing; begins with the time in ms, Redis' clock.
        decision: the decision.
    """

    shard: int
    entry: str
    decision: HandedOver


class DecisionPage(msgspec.Struct, frozen=True):
    """What one shard has after a place.

    Attributes:
        entries: the next decisions, oldest first; unreadable ones are left out.
        after: the place after them, from which to read on.
        is_more: whether there are further ones.
    """

    entries: Sequence[DecisionEntry]
    after: str
    is_more: bool


class DecisionStore(Protocol):
    """The decisions of all sessions, for their readers."""

    async def read(self, after: Mapping[int, str], *, most: int = _MOST_AT_ONCE) -> dict[int, DecisionPage]:
        """Return the next decisions of each of the given shards, in one round trip to each server.

        Args:
            after: by shard, the place after which to start: `START`, `NOW`, or the one of an earlier page.
            most: most decisions of a shard.

        Raises:
            StoreError: a shard cannot be read.
        """
        ...

    async def take(self, wanted: Mapping[str, tuple[int, int]]) -> dict[str, int]:
        """Take tokens of rules with a cap, and return how many of each rule the caller has.

        Within any hour no more tokens of a rule are given than its cap, to all callers together. Where the store fails,
        none is given.

        Args:
            wanted: number of tokens, and the cap, by rule.
        """
        ...


class RedisDecisions:
    """Implements `DecisionStore` on Redis.

    Args:
        scripts: runs the Lua scripts.
        keys: the keys of this service.
    """

    def __init__(self, scripts: ScriptRunner, *, keys: Keys) -> None:
        self._scripts = scripts
        self._keys = keys
        self._cap_script = load_script("cap.lua")
        self._read_script = load_script("handed_over.lua")

    async def read(self, after: Mapping[int, str], *, most: int = _MOST_AT_ONCE) -> dict[int, DecisionPage]:
        shards, size = list(after), self._scripts.max_shards_per_script
        groups = [shards[first : first + size] for first in range(0, len(shards), size)]
        calls: list[tuple[int, list[RespArg]]] = [
            (group[0], [len(group), *map(self._keys.decisions, group), most, *(after[shard] for shard in group)])
            for group in groups
        ]
        pages: dict[int, DecisionPage] = {}
        for group, reply in zip(groups, await self._scripts.run("decisions", self._read_script, calls), strict=True):
            if isinstance(reply, Exception):
                raise unavailable(reply)
            for shard, (newest, entries) in zip(group, reply, strict=True):
                pages[shard] = _page(shard, after[shard], newest.decode(), entries)
        return pages

    async def take(self, wanted: Mapping[str, tuple[int, int]]) -> dict[str, int]:
        call_name = uuid4().hex
        calls: list[tuple[int, list[RespArg]]] = [
            (shard_of(rule), [1, self._keys.cap(rule), cap, number, call_name])
            for rule, (number, cap) in wanted.items()
        ]
        replies = await self._scripts.run("cap", self._cap_script, calls)
        return {
            rule: 0 if isinstance(reply, Exception) else int(reply) for rule, reply in zip(wanted, replies, strict=True)
        }


def handed_over(session_id: str, decision: Decision, visitor_id: str | None) -> bytes:
    """Return the JSON of a decision in the stream."""
    return _encode(
        HandedOver(
            session_id,
            decision.rule,
            decision.group.word,
            decision.probability,
            decision.event,
            decision.decided_ms,
            decision.idle,
            decision.told,
            visitor_id,
        )
    )


_encode: Final = msgspec.json.Encoder().encode
_decoder: Final = msgspec.json.Decoder(HandedOver)


def _page(shard: int, after: str, newest: str, entries: Sequence[tuple[bytes, Sequence[bytes]]]) -> DecisionPage:
    if after == NOW or not entries:
        return DecisionPage((), newest if after in (NOW, START) else after, is_more=False)
    last = entries[-1][0].decode()
    found = [
        DecisionEntry(shard, entry.decode(), decision)
        for entry, fields in entries
        if (decision := _decoded(fields)) is not None
    ]
    return DecisionPage(found, last, is_more=last != newest)


def _decoded(fields: Sequence[bytes]) -> HandedOver | None:
    """Return the decision of an entry; None for one that this release cannot read."""
    try:
        return _decoder.decode(dict(zip(fields[::2], fields[1::2], strict=False))[b"decision"])
    except (KeyError, ValueError, msgspec.DecodeError):
        return None
