"""The faults: each is a coroutine that breaks a part of the fleet and repairs it."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final

from support.redis_topologies import RedisCluster, until

from faults.fleet import Fleet
from faults.ledger import HTTP_OK

Fault = Callable[[Fleet, Random], Awaitable[None]]

# In each direction, so a load or a commit takes twice that. Below `redis_timeout_s`, else no event would succeed.
_SLOW_S: Final = 0.15
# In each direction. Above `redis_timeout_s`, so that commits succeed and their replies are too late.
_TOO_SLOW_S: Final = 0.4
# In each direction: the delay of a replica in another building.
_LAG_S: Final = 0.05
# Longer than any client waits.
_STALLED_S: Final = 30.0
_MOVED_SLOTS: Final = 60
EVENTS_TOPIC, SCORES_TOPIC = "events", "scores"
# After so long without a heartbeat, the group gives a consumer's partitions to others.
SESSION_S: Final = 6.0
# A loop that takes most of a second: not every server has DEBUG SLEEP or a clock in scripts.
_BUSY_SCRIPT: Final = "local n = 0 for i = 1, 120000000 do n = n + i end return 1"


async def kill_replica(fleet: Fleet, random: Random) -> None:
    """kill -9 a replica during its requests, and restart it."""
    number = random.randrange(len(fleet.replicas))
    fleet.replicas[number].crash()
    await asyncio.sleep(0.3)
    await fleet.restart(number)


async def pause_replica(fleet: Fleet, random: Random) -> None:
    """SIGSTOP and SIGCONT a replica: it continues with records that others have changed meanwhile."""
    await fleet.pause(random.randrange(len(fleet.replicas)), 1.0)


async def kill_waiting_replica(fleet: Fleet, random: Random) -> None:
    """kill -9 a replica while its commits wait for Redis, and restart it."""
    fleet.proxy.delay_s = _SLOW_S
    await asyncio.sleep(0.8)
    number = random.randrange(len(fleet.replicas))
    fleet.replicas[number].crash()
    fleet.proxy.delay_s = 0.0
    await fleet.restart(number)


async def kill_committed_consumer(fleet: Fleet, random: Random) -> None:
    """kill -9 a consumer once it has committed more than it has answered, while Redis answers too late; restart it."""
    if fleet.kafka is None:
        raise ValueError("there is no broker")
    topics = fleet.kafka.topics
    fleet.proxy.delay_s = _TOO_SLOW_S
    while await asyncio.to_thread(topics.committed, EVENTS_TOPIC) <= await asyncio.to_thread(topics.end, SCORES_TOPIC):
        pass
    number = random.randrange(len(fleet.replicas))
    fleet.replicas[number].crash()
    fleet.proxy.delay_s = 0.0
    await fleet.restart(number)


async def stall_consumer(fleet: Fleet, random: Random) -> None:
    """SIGSTOP a consumer for longer than its session: it wakes up with events that others have by now."""
    await fleet.pause(random.randrange(len(fleet.replicas)), SESSION_S + 3.0)


async def pause_broker(fleet: Fleet, _random: Random) -> None:
    """SIGSTOP and SIGCONT the broker: commits and answers wait."""
    if fleet.kafka is None:
        raise ValueError("there is no broker")
    os.kill(fleet.kafka.pid, signal.SIGSTOP)
    await asyncio.sleep(1.0)
    os.kill(fleet.kafka.pid, signal.SIGCONT)


async def kill_redis(fleet: Fleet, _random: Random) -> None:
    """kill -9 Redis, and restart it with its append-only file."""
    await asyncio.to_thread(fleet.redis.kill)
    await asyncio.sleep(0.3)
    await asyncio.to_thread(fleet.redis.start)


async def pause_redis(fleet: Fleet, _random: Random) -> None:
    """SIGSTOP and SIGCONT Redis: it executes commands after their callers have timed out."""
    fleet.redis.pause()
    await asyncio.sleep(1.0)
    fleet.redis.resume()


async def cut_connections(fleet: Fleet, _random: Random) -> None:
    """Close all connections to Redis repeatedly, by CLIENT KILL and in the proxy."""
    for _ in range(4):
        await asyncio.to_thread(fleet.redis.command, "CLIENT", "KILL", "TYPE", "normal")
        await asyncio.sleep(0.1)
        fleet.proxy.cut()
        await asyncio.sleep(0.1)


async def slow_redis(fleet: Fleet, _random: Random) -> None:
    """Make Redis slow, then so slow that commits succeed and their replies are too late."""
    for delay_s, seconds in ((_SLOW_S, 1.0), (_TOO_SLOW_S, 1.2)):
        fleet.proxy.delay_s = delay_s
        await asyncio.sleep(seconds)
    fleet.proxy.delay_s = 0.0


async def block_redis(fleet: Fleet, _random: Random) -> None:
    """Block Redis with a command for longer than any client waits, like a slow script."""
    reply = await asyncio.to_thread(fleet.redis.command, "EVAL", _BUSY_SCRIPT, "0")
    if reply != b":1\r\n":
        raise RuntimeError(f"Redis did not run the script: {reply!r}")


async def roll_replica(fleet: Fleet, random: Random) -> None:
    """SIGTERM a replica while its requests wait for slow commits, and restart it."""
    number = random.randrange(len(fleet.replicas))
    fleet.proxy.delay_s = _SLOW_S
    await asyncio.sleep(0.8)
    await fleet.terminate(number)
    fleet.proxy.delay_s = 0.0
    await fleet.restart(number)


async def roll_fleet(fleet: Fleet, _random: Random) -> None:
    """Restart every replica, one after another."""
    for number in range(len(fleet.replicas)):
        await fleet.terminate(number)
        await fleet.restart(number)


async def canary(fleet: Fleet, random: Random) -> None:
    """Restart one replica with the other model, and roll it back."""
    number = random.randrange(len(fleet.replicas))
    for artifact in (fleet.artifacts[1], fleet.artifacts[0]):
        await fleet.terminate(number)
        fleet.put_model(number, artifact)
        await fleet.restart(number)
        await asyncio.sleep(1.0)


async def reload_models(fleet: Fleet, _random: Random) -> None:
    """Reload the other model in running replicas, and reload the first one."""
    for artifact in (fleet.artifacts[1], fleet.artifacts[0]):
        for number, client in enumerate(fleet.clients):
            fleet.put_model(number, artifact)
            reply = await client.post("/v1/model/reload", b"")
            if reply.status != HTTP_OK:
                raise RuntimeError(f"replica {number} did not reload: {reply}")
        await asyncio.sleep(0.5)


async def release(fleet: Fleet, _random: Random) -> None:
    """Release the other model replica by replica, and roll it back, killing a replica in between."""
    for artifact in (fleet.artifacts[1], fleet.artifacts[0]):
        for number in range(len(fleet.replicas)):
            await fleet.terminate(number)
            fleet.put_model(number, artifact)
            await fleet.restart(number)
        await asyncio.sleep(1.0)
        fleet.replicas[0].crash()
        await fleet.restart(0)


async def fail_over(fleet: Fleet, _random: Random) -> None:
    """Kill the primary while its standby lags, and continue with the standby."""
    fleet.link.delay_s = _LAG_S
    await asyncio.sleep(1.0)
    await _lose_primary(fleet)


async def fail_over_stalled(fleet: Fleet, _random: Random) -> None:
    """Kill the primary when its standby has got nothing for a second, as before many real fail-overs."""
    fleet.link.delay_s = _STALLED_S
    await asyncio.sleep(1.0)
    await _lose_primary(fleet)


async def _lose_primary(fleet: Fleet) -> None:
    await asyncio.to_thread(fleet.fail_over)
    await asyncio.sleep(2.0)


async def move_slots(fleet: Fleet, _random: Random) -> None:
    """Move slots with all their keys from node to node of the cluster."""
    cluster = _cluster_of(fleet)
    moved = set()
    for name in map(str, range(_MOVED_SLOTS)):
        slot, source = cluster.slot_of(name), cluster.owner_of(name)
        target = cluster.primaries[(cluster.primaries.index(source) + 1) % len(cluster.primaries)]
        if slot not in moved:
            moved.add(slot)
            await asyncio.to_thread(cluster.begin_to_move, slot, source, target)
            await asyncio.sleep(0.02)
            await asyncio.to_thread(cluster.move_keys, slot, source, target)
            await asyncio.to_thread(cluster.end_the_move, slot, target)


async def change_primary(fleet: Fleet, _random: Random) -> None:
    """Fail over from a live primary of the cluster to its replica, as before maintenance."""
    replica = _cluster_of(fleet).replicas[0]
    await asyncio.to_thread(replica.command, "CLUSTER", "FAILOVER")
    await asyncio.to_thread(until, lambda: b"role:master" in replica.command("INFO", "replication"))
    await asyncio.sleep(1.0)


def _cluster_of(fleet: Fleet) -> RedisCluster:
    if fleet.cluster is None:
        raise ValueError("there is no cluster")
    return fleet.cluster
