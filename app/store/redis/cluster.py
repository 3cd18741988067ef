"""A Redis Cluster: each command goes to the node that has its shard's slot, all nodes of a batch at the same time.

Only the slots of our 256 shards are kept. What nodes say of moved slots is followed:

    MOVED       another node has the slot for good: asked there, and the map is read again
    ASK         the slot is on its way and this key is there already: asked there, this once
    TRYAGAIN    the slot is on its way and some of the keys are here, some there: asked again until the time is up

One node that is gone fails the commands of its own shards and no others. It is a client of its own because the
driver's closes the connections of all nodes when one of them fails, and fails the whole pipeline with it.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    RedisClusterException,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from app.store.keys import SHARDS
from app.store.redis.server import Reply, Server, Word
from model.redis_url import Endpoint

# A shard stands in braces in all of its keys (see `app.store.keys`), and what stands in braces makes the slot.
_SLOT_OF_SHARD: Final = tuple(key_slot(f"{{{shard:02x}}}".encode()) for shard in range(SHARDS))
_TRY_AGAIN_S: Final = 0.02
# However many nodes fail, the map is read no more often than this.
_REFRESH_GAP_S: Final = 0.25


class Command(NamedTuple):
    """Something to do within one shard."""

    shard: int
    words: Sequence[Word]


class Cluster:
    """A link to a cluster (see `app.store.redis.connection.Link`).

    Args:
        seeds: nodes to ask where the others are.
        open_server: makes the connections to one node.
        timeout_s: for how long moving slots are followed; a round trip has a bound of its own.
    """

    # Shards are in slots of their own.
    shards_a_script = 1

    def __init__(
        self, seeds: Sequence[Endpoint], open_server: Callable[[Endpoint], Server], *, timeout_s: float
    ) -> None:
        self._seeds = tuple(seeds)
        self._open_server = open_server
        self._timeout_s = timeout_s
        self._servers: dict[Endpoint, Server] = {}
        self._owners: list[Endpoint | None] = [None] * SHARDS
        self._stale = True
        self._refreshed_s = float("-inf")
        self._refreshing = asyncio.Lock()

    async def get(self, shards: Sequence[int], keys: Sequence[str]) -> list[Reply]:
        """See `Link.get`; one GET a key, as one of several keys could not be answered while their slot moves."""
        return await self.execute([Command(shard, ("GET", key)) for shard, key in zip(shards, keys, strict=True)])

    async def execute(self, commands: Sequence[Command], *, wait_replicas: int = 0) -> list[Reply]:
        """See `Link.execute`."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._timeout_s
        replies: list[Reply] = [RedisConnectionError("no node has this slot")] * len(commands)
        pending = list(range(len(commands)))
        asked_at: dict[int, Endpoint] = {}
        while True:
            await self._refresh_if_stale()
            tried = {index: asked_at.get(index) or self._owners[commands[index].shard] for index in pending}
            await self._round(commands, tried, frozenset(asked_at), replies, wait_replicas)
            again = [
                index for index in pending if await self._helps(commands[index].shard, tried[index], replies[index])
            ]
            if not again or loop.time() + _TRY_AGAIN_S >= deadline_s:
                return replies
            if any(isinstance(replies[index], TryAgainError) for index in again):
                await asyncio.sleep(_TRY_AGAIN_S)
            asked_at = {
                index: _redirected(reply, tried[index])
                for index in again
                if isinstance(reply := replies[index], AskError) and not isinstance(reply, MovedError)
            }
            pending = again

    async def _helps(self, shard: int, asked: Endpoint | None, reply: Reply) -> bool:
        """Draw from a reply where the shard is, and return whether asking again helps."""
        if isinstance(reply, MovedError):
            self._owners[shard] = _redirected(reply, asked)
            self._stale = True
            return True
        if isinstance(reply, AskError | TryAgainError):
            return True
        if isinstance(reply, RedisConnectionError | ClusterDownError):
            self._stale = True
            await self._refresh_if_stale()
            return self._owners[shard] not in {asked, None}
        if isinstance(reply, RedisTimeoutError | OSError):
            # Another wait would be too long; the next call looks who has the slot then.
            self._stale = True
        return False

    async def ping(self) -> Exception | None:
        """See `Link.ping`; a node may be gone, as the sessions of the others can still be served."""
        await self._refresh_if_stale()
        owners = {owner for owner in self._owners if owner is not None}
        if not owners:
            return RedisClusterException("no node answers, or the cluster has no slots")
        pongs = await asyncio.gather(*(self._server(owner).execute([("PING",)]) for owner in owners))
        failures = [pong[0] for pong in pongs if isinstance(pong[0], Exception)]
        if failures:
            self._stale = True
        return failures[0] if len(failures) == len(owners) else None

    async def close(self) -> None:
        """See `Link.close`."""
        await asyncio.gather(*(server.close() for server in self._servers.values()))

    async def _round(
        self,
        commands: Sequence[Command],
        tried: dict[int, Endpoint | None],
        asking: frozenset[int],
        replies: list[Reply],
        wait_replicas: int,
    ) -> None:
        """Send each command to its node, and put its reply into its place."""
        by_node: dict[Endpoint, list[int]] = defaultdict(list)
        for index, endpoint in tried.items():
            if endpoint is not None:
                by_node[endpoint].append(index)

        async def at(endpoint: Endpoint, indices: list[int]) -> None:
            words: list[Sequence[Word]] = []
            places: list[int] = []
            for index in indices:
                if index in asking:
                    words.append(("ASKING",))
                places.append(len(words))
                words.append(commands[index].words)
            found = await self._server(endpoint).execute(words, wait_replicas=wait_replicas)
            for index, place in zip(indices, places, strict=True):
                replies[index] = found[place]

        await asyncio.gather(*(at(endpoint, indices) for endpoint, indices in by_node.items()))

    def _server(self, endpoint: Endpoint) -> Server:
        if endpoint not in self._servers:
            self._servers[endpoint] = self._open_server(endpoint)
        return self._servers[endpoint]

    async def _refresh_if_stale(self) -> None:
        async with self._refreshing:
            now_s = asyncio.get_running_loop().time()
            if not self._stale or now_s - self._refreshed_s < _REFRESH_GAP_S:
                return
            self._refreshed_s = now_s
            # All at once, and the first good answer counts: one that hangs would take all the time there is.
            asked = [asyncio.create_task(self._slots(endpoint)) for endpoint in {*self._servers, *self._seeds}]
            try:
                for answer in asyncio.as_completed(asked):
                    endpoint, slots = await answer
                    if not isinstance(slots, Exception) and self._read(slots, endpoint):
                        self._stale = False
                        break
            finally:
                for task in asked:
                    task.cancel()
            await self._close_strangers()

    async def _slots(self, endpoint: Endpoint) -> tuple[Endpoint, Reply]:
        (slots,) = await self._server(endpoint).execute([("CLUSTER", "SLOTS")])
        return endpoint, slots

    def _read(self, slots: Any, asked: Endpoint) -> bool:  # noqa: ANN401 - the reply of CLUSTER SLOTS
        """Take over which node has which slot; return whether every shard has one."""
        owners: list[Endpoint | None] = [None] * SHARDS
        for first, last, primary, *_ in slots:
            # A node that does not know the address that others know it by leaves it out.
            host = (primary[0] or b"").decode() or asked[0]
            endpoint = (asked[0] if host == "?" else host, int(primary[1]))
            for shard, slot in enumerate(_SLOT_OF_SHARD):
                if first <= slot <= last:
                    owners[shard] = endpoint
        if None in owners:
            return False
        self._owners = owners
        return True

    async def _close_strangers(self) -> None:
        """Close connections to nodes that have left."""
        for endpoint in {*self._servers} - {*self._owners} - {*self._seeds}:
            await self._servers.pop(endpoint).close()


def _redirected(reply: MovedError | AskError, asked: Endpoint | None) -> Endpoint:
    """Return the node that a reply points at; a node that leaves the host out means its own."""
    return (reply.host or (asked[0] if asked else ""), reply.port)
