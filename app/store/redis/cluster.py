"""A Redis Cluster: each command goes to the node of its shard's slot, and all nodes of a batch work at the same time.

The slot map holds the slots of our 256 shards only. Redirections of the nodes are followed:

    MOVED       another node owns the slot: send the command there, and read the slot map again
    ASK         the slot is moving, and the key has moved already: send ASKING and the command there, this once
    TRYAGAIN    the slot is moving, and only some of the keys have moved: send again until the time limit

A node that fails takes only the commands of its own shards with it. redis-py's cluster client closes the connections
of all nodes when one of them fails, and fails the whole pipeline.
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

from app.store.redis.server import Reply, RespArg, Server
from model.redis_keys import SHARDS
from model.redis_url import Endpoint

# The shard is the hash tag of all its keys (see `app.store.keys`), and a hash tag alone decides the slot.
_SLOT_OF_SHARD: Final = tuple(key_slot(f"{{{shard:02x}}}".encode()) for shard in range(SHARDS))
_TRY_AGAIN_S: Final = 0.02
# Least time between two readings of the slot map, however many nodes fail.
_REFRESH_GAP_S: Final = 0.25


class Command(NamedTuple):
    """One command, whose keys are all of one shard."""

    shard: int
    arguments: Sequence[RespArg]


class ClusterClient:
    """Client of a cluster; implements `app.store.redis.connection.RedisClient`.

    Args:
        seeds: nodes that are asked for the slot map first.
        open_server: returns the connections to one node.
        timeout_s: for how long redirections are followed; `Server` bounds each round trip.
    """

    # A script's keys must be in one slot, and each shard has a slot of its own.
    max_shards_per_script = 1
    # A node that is moving one of them refuses the call. A script that fails half-way is not undone.
    names_all_keys = True

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
        # One GET per key: an MGET fails while the slot of one of its keys moves.
        return await self.execute([Command(shard, ("GET", key)) for shard, key in zip(shards, keys, strict=True)])

    async def execute(self, commands: Sequence[Command], *, wait_replicas: int = 0) -> list[Reply]:
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
                index for index in pending if await self._may_help(commands[index].shard, tried[index], replies[index])
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

    async def _may_help(self, shard: int, asked: Endpoint | None, reply: Reply) -> bool:
        """Update the slot map from a reply, and return whether sending the command again may help."""
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
            # A second wait would be too long; the next call reads the slot map.
            self._stale = True
        return False

    async def server_shards(self) -> list[int]:
        await self._refresh_if_stale()
        return list({owner: shard for shard, owner in enumerate(self._owners) if owner is not None}.values())

    async def ping(self) -> Exception | None:
        # Some nodes may be away: the others still serve their own sessions.
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
        await asyncio.gather(*(server.close() for server in self._servers.values()))

    async def _round(
        self,
        commands: Sequence[Command],
        tried: dict[int, Endpoint | None],
        asking: frozenset[int],
        replies: list[Reply],
        wait_replicas: int,
    ) -> None:
        """Send each command to its node, and store the replies by index."""
        by_node: dict[Endpoint, list[int]] = defaultdict(list)
        for index, endpoint in tried.items():
            if endpoint is not None:
                by_node[endpoint].append(index)

        async def at(endpoint: Endpoint, indices: list[int]) -> None:
            sent: list[Sequence[RespArg]] = []
            positions: list[int] = []
            for index in indices:
                if index in asking:
                    sent.append(("ASKING",))
                positions.append(len(sent))
                sent.append(commands[index].arguments)
            found = await self._server(endpoint).execute(sent, wait_replicas=wait_replicas)
            for index, position in zip(indices, positions, strict=True):
                replies[index] = found[position]

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
            # All nodes at once, and the first complete map counts: a node that hangs would use up the time limit.
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
            await self._close_removed()

    async def _slots(self, endpoint: Endpoint) -> tuple[Endpoint, Reply]:
        (slots,) = await self._server(endpoint).execute([("CLUSTER", "SLOTS")])
        return endpoint, slots

    def _read(self, slots: Any, asked: Endpoint) -> bool:  # noqa: ANN401 - the reply of CLUSTER SLOTS
        """Take over the slot map; return whether every shard has a node."""
        owners: list[Endpoint | None] = [None] * SHARDS
        for first, last, primary, *_ in slots:
            # A node that does not know its own host name leaves it empty.
            host = (primary[0] or b"").decode() or asked[0]
            endpoint = (asked[0] if host == "?" else host, int(primary[1]))
            for shard, slot in enumerate(_SLOT_OF_SHARD):
                if first <= slot <= last:
                    owners[shard] = endpoint
        if None in owners:
            return False
        self._owners = owners
        return True

    async def _close_removed(self) -> None:
        """Close connections to nodes that have left the cluster."""
        for endpoint in {*self._servers} - {*self._owners} - {*self._seeds}:
            await self._servers.pop(endpoint).close()


def _redirected(reply: MovedError | AskError, asked: Endpoint | None) -> Endpoint:
    """Return the node of a redirection; an empty host is the host of the node that replied."""
    return (reply.host or (asked[0] if asked else ""), reply.port)
