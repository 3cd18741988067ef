"""Reading the service's streams of ended sessions as a consumer group."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from redis.exceptions import ResponseError

from model.redis_keys import DEFAULT_KEY_PREFIX, SHARDS, check_key_prefix, outcomes_key
from training.collect.connection import Client
from training.collect.entries import EntryId
from training.collect.errors import CollectError

_NEW: Final = ">"
_FIRST: Final = "0"


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a stream; `session` is None where it was erased or trimmed after its delivery."""

    id: EntryId
    session: bytes | None


class Streams:
    """All shards' streams, for one consumer of one group.

    Methods raise `redis.exceptions.RedisError` when Redis is away.

    Args:
        client: Redis.
        group: the consumer group; each entry is delivered to one consumer of the group.
        consumer: name within the group; its unacknowledged entries stay with it.
        prefix: beginning of the service's keys.

    Raises:
        CollectError: no key may begin with the prefix.
    """

    def __init__(self, client: Client, *, group: str, consumer: str, prefix: str = DEFAULT_KEY_PREFIX) -> None:
        try:
            check_key_prefix(prefix)
        except ValueError as exc:
            raise CollectError(f"--redis-key-prefix: {exc}") from exc
        self._client = client
        self._keys = [outcomes_key(prefix, shard) for shard in range(SHARDS)]
        self._group = group
        self._consumer = consumer

    def unacknowledged(self, count: int) -> Iterator[Sequence[Entry]]:
        """Yield this consumer's delivered and unacknowledged entries, at most `count` a shard at a time."""
        after = dict.fromkeys(range(SHARDS), _FIRST)
        while after:
            found = self._read(after, count)
            yield [entry for entries in found.values() for entry in entries]
            after = {shard: entries[-1].id.entry for shard, entries in found.items() if entries}

    def new(self, count: int) -> Sequence[Entry]:
        """Return entries that the group has not received yet, at most `count` a shard."""
        found = self._read(dict.fromkeys(range(SHARDS), _NEW), count)
        return [entry for entries in found.values() for entry in entries]

    def acknowledge(self, entries: Iterable[EntryId]) -> None:
        """Acknowledge these entries, so that they are not delivered again; idempotent."""
        by_shard: dict[int, list[str]] = {}
        for entry in entries:
            by_shard.setdefault(entry.shard, []).append(entry.entry)
        with self._client.pipeline(transaction=False) as pipeline:
            for shard, ids in by_shard.items():
                pipeline.xack(self._keys[shard], self._group, *ids)
            pipeline.execute()

    def _read(self, after: dict[int, str], count: int) -> dict[int, list[Entry]]:
        replies = self._ask(after, count)
        # There is no such stream, or it lacks the group: a new group begins with the stream's first entry.
        without_group = [shard for shard, reply in replies.items() if _lacks_group(reply)]
        if without_group and (created := self._create_groups(without_group)):
            replies |= self._ask({shard: after[shard] for shard in created}, count)
        found: dict[int, list[Entry]] = {}
        for shard, reply in replies.items():
            if isinstance(reply, Exception):
                if _lacks_group(reply):
                    continue
                raise reply
            entries = _entries(shard, reply)
            if entries:
                found[shard] = entries
        return found

    def _ask(self, after: dict[int, str], count: int) -> dict[int, object]:
        with self._client.pipeline(transaction=False) as pipeline:
            for shard, entry in after.items():
                pipeline.xreadgroup(self._group, self._consumer, {self._keys[shard]: entry}, count=count)
            return dict(zip(after, pipeline.execute(raise_on_error=False), strict=True))

    def _create_groups(self, shards: Sequence[int]) -> list[int]:
        """Create the group on the shards whose stream exists; return those shards."""
        with self._client.pipeline(transaction=False) as pipeline:
            for shard in shards:
                pipeline.xgroup_create(self._keys[shard], self._group, id=_FIRST)
            replies = pipeline.execute(raise_on_error=False)
        # Another consumer of the group may have been quicker.
        return [
            shard
            for shard, reply in zip(shards, replies, strict=True)
            if not isinstance(reply, Exception) or "BUSYGROUP" in str(reply)
        ]


def _lacks_group(reply: object) -> bool:
    return isinstance(reply, ResponseError) and "NOGROUP" in f"{type(reply).__name__} {reply}"


def _entries(shard: int, reply: object) -> list[Entry]:
    """Return the entries of a reply to XREADGROUP, whose shape depends on the protocol version."""
    if not reply:
        return []
    streams = list(reply.values()) if isinstance(reply, dict) else [entries for _, entries in reply]  # type: ignore[attr-defined]  # redis-py does not say what it returns
    entries = streams[0][0] if streams and isinstance(reply, dict) and len(streams[0]) == 1 else streams[0]
    return [
        Entry(EntryId(shard, entry.decode()), fields.get(b"session") if fields else None) for entry, fields in entries
    ]
