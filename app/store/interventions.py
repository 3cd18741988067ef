"""Decisions that were handed over: by shard, a stream of all that the commits of its sessions have made.

`commit.lua` appends a decision in the same step that stores its mark in the session's record, so a decision is in the
stream once, whatever crashes. The live stream and webhooks read it from there, each from its own place.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple, Protocol
from uuid import uuid4

import msgspec
from msgspec.structs import replace

from app.store.experiments import DAY_MS, FIRED_KEPT_MS, label_of
from app.store.history_codec import encode_decision
from app.store.keys import Keys, shard_of
from app.store.record_codec import VERSION_BYTES, Record, encode_record
from app.store.redis.scripts import ScriptRunner, load_script, unavailable
from app.store.redis.server import RespArg
from model.interventions.decide import Decision, Decisions, visitor_of

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


class IdlePage(NamedTuple):
    """Sessions of one shard that have fallen idle, the place after them, and whether there are further ones."""

    session_ids: Sequence[str]
    place: str
    is_more: bool


class IdleDecisions(NamedTuple):
    """Decisions on a session after idle time, the record that they were made from, and the idle time."""

    session_id: str
    record: Record
    decisions: tuple[Decision, ...]
    idle_ms: int


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

    async def find_idle(
        self, places: Mapping[int, str], *, idle_ms: int, look_back_ms: int, band: tuple[float, float], most: int
    ) -> dict[int, IdlePage]:
        """Return open sessions whose last event has become older than an idle time since the last look.

        Args:
            places: by shard, the place of the last page; empty: there was none.
            idle_ms: the idle time.
            look_back_ms: how far back to look where there was no page.
            band: smallest and largest probability.
            most: sessions of a shard to examine, approximate.

        Raises:
            StoreError: a shard cannot be read.
        """
        ...

    async def commit_idle(self, commits: Sequence[IdleDecisions]) -> list[bool]:
        """Store decisions after idle time, each if its session still has the record that was read and is still idle.

        Returns:
            For each whether it was stored.

        Raises:
            StoreError: one may not have been stored; sent again it counts once.
        """
        ...


class RedisDecisions:
    """Implements `DecisionStore` on Redis.

    Args:
        scripts: runs the Lua scripts.
        keys: the keys of this service.
        wait_replicas: replicas of Redis that must confirm decisions after idle time.
    """

    def __init__(self, scripts: ScriptRunner, *, keys: Keys, wait_replicas: int = 0) -> None:
        self._scripts = scripts
        self._wait_replicas = wait_replicas
        self._idle_script = load_script("idle.lua")
        self._decide_script = load_script("decide.lua")
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

    async def find_idle(
        self, places: Mapping[int, str], *, idle_ms: int, look_back_ms: int, band: tuple[float, float], most: int
    ) -> dict[int, IdlePage]:
        shards, size = list(places), self._scripts.max_shards_per_script
        groups = [shards[first : first + size] for first in range(0, len(shards), size)]
        calls: list[tuple[int, list[RespArg]]] = []
        for group in groups:
            keys = [key for shard in group for key in (self._keys.board(shard), self._keys.seen(shard))]
            limits: tuple[RespArg, ...] = (idle_ms, look_back_ms, repr(band[0]), repr(band[1]), most)
            calls.append((group[0], [len(keys), *keys, *limits, *(places[shard] for shard in group)]))
        pages: dict[int, IdlePage] = {}
        for group, reply in zip(groups, await self._scripts.run("idle", self._idle_script, calls), strict=True):
            if isinstance(reply, Exception):
                raise unavailable(reply)
            for shard, (place, is_more, *ids) in zip(group, reply, strict=True):
                pages[shard] = IdlePage([one.decode() for one in ids], place.decode(), bool(is_more))
        return pages

    async def commit_idle(self, commits: Sequence[IdleDecisions]) -> list[bool]:
        calls: list[tuple[int, list[RespArg]]] = []
        for session_id, record, decisions, idle_ms in commits:
            shard = shard_of(session_id)
            _, seen, _, record_key, history_key = self._keys.session(shard, session_id)
            day = decisions[0].decided_ms // DAY_MS
            entries = [encode_decision(decision) for decision in decisions]
            # Of a rule that repeats, the last decision is enough: no answer has the ones before.
            rules = {decision.rule for decision in decisions}
            kept = [one for one in record.decisions if not (one.idle and one.rule in rules)]
            following = replace(
                record,
                version=os.urandom(VERSION_BYTES),
                decisions=Decisions((*kept, *decisions)),
                history_bytes=record.history_bytes + sum(map(len, entries)),
            )
            keys: list[RespArg] = [
                seen,
                record_key,
                history_key,
                self._keys.decisions(shard),
                self._keys.fired(shard, day),
            ]
            arguments: list[RespArg] = [session_id, record.version, encode_record(following), idle_ms]
            arguments += (DECISIONS_KEPT, DECISIONS_KEPT_MS, FIRED_KEPT_MS)
            visitor_id = visitor_of(record.facts) if record.facts else None
            for decision, entry in zip(decisions, entries, strict=True):
                label = label_of(decision.rule, decision.group.word)
                arguments += (entry, handed_over(session_id, decision, visitor_id), label)
            calls.append((shard, [len(keys), *keys, *arguments]))
        stored: list[bool] = []
        for reply in await self._scripts.run("decide", self._decide_script, calls, wait_replicas=self._wait_replicas):
            if isinstance(reply, Exception):
                raise unavailable(reply)
            stored.append(reply == 1)
        return stored


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
