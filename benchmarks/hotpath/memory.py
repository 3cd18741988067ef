"""What a live session of ten events takes in Redis, all its keys, and whether the service's memory grows with time.

In Redis it is measured twice: `used_memory` of INFO before and after so many sessions, and MEMORY USAGE of every key.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Final

from redis import Redis

from benchmarks.hotpath.fill import fill
from benchmarks.hotpath.redis_server import running_redis
from benchmarks.hotpath.results import markdown_table
from benchmarks.hotpath.servers import Contestant, running
from benchmarks.hotpath.traffic import new_prefix
from model.redis_keys import DEFAULT_KEY_PREFIX

EVENTS: Final = 10
_KEYS_AT_ONCE: Final = 2000
_SESSIONS_OF_LEAK: Final = 4_000
_EVENTS_OF_LEAK: Final = 5
# Warm-up of a process is no leak: pools, caches and the allocator's arenas fill.
_WARM_EVENTS: Final = 100_000
_MIB: Final = 2**20


@dataclass(frozen=True, slots=True)
class SessionMemory:
    """What live sessions take in Redis.

    Attributes:
        sessions: how many there were, of ten events each.
        used_bytes: by which `used_memory` grew, a session.
        key_bytes: MEMORY USAGE of all keys, a session.
        kinds: the same by kind of key.
        keys: how many keys there are.
    """

    sessions: int
    used_bytes: float
    key_bytes: float
    kinds: dict[str, float]
    keys: int


@dataclass(frozen=True, slots=True)
class Resident:
    """The service's resident memory after so many events."""

    events: int
    resident_bytes: int


def session_memory(contestant: Contestant, sessions: int, show: Callable[[str], None]) -> SessionMemory:
    """Return what so many sessions of ten events take, posted one event a session at a time."""
    with running_redis() as redis, running(contestant, redis) as server, redis.connect() as client:
        # Scripts, and what connections need, are no part of a session.
        fill(server, new_prefix(), range(1, 1001), 1)
        client.flushall()
        before_bytes = _used_bytes(client)
        fill(server, new_prefix(), range(1, sessions + 1), EVENTS, _counter(show, sessions * EVENTS))
        after_bytes = _used_bytes(client)
        kinds: dict[str, int] = defaultdict(int)
        keys = 0
        for key, size in _usage(client):
            keys += 1
            # wb:{<shard>}:<kind>, and for a session :<id>
            kinds[key.split(b":", 3)[2].decode()] += size
            if keys % (10 * _KEYS_AT_ONCE) == 0:
                show(f"MEMORY USAGE of {keys:,} keys")
    return SessionMemory(
        sessions,
        (after_bytes - before_bytes) / sessions,
        sum(kinds.values()) / sessions,
        {kind: size / sessions for kind, size in sorted(kinds.items(), key=lambda one: -one[1])},
        keys,
    )


def leak(contestant: Contestant, events: int, samples: int, show: Callable[[str], None]) -> list[Resident]:
    """Return the service's resident memory before and, so many times, while so many events come by the batch route."""
    with running_redis() as redis, running(contestant, redis) as server:
        told = _counter(show, _WARM_EVENTS + events)
        posted = 0

        def post(wanted: int) -> None:
            nonlocal posted
            while posted < wanted:
                # Sessions that begin, grow and are left, so that nothing may stay with them.
                posted += fill(server, new_prefix(), range(1, _SESSIONS_OF_LEAK + 1), _EVENTS_OF_LEAK, told)

        post(_WARM_EVENTS)
        warm = posted
        found = [Resident(0, server.resident_bytes())]
        for number in range(1, samples + 1):
            post(warm + events * number // samples)
            found.append(Resident(posted - warm, server.resident_bytes()))
    return found


def memory_table(found: SessionMemory) -> list[str]:
    """Return the figures as Markdown."""
    rows = [
        ["INFO used_memory, growth", f"{found.used_bytes:,.0f}"],
        ["MEMORY USAGE, all keys", f"{found.key_bytes:,.0f}"],
        *([f"of it: {kind}", f"{size:,.0f}"] for kind, size in found.kinds.items() if size >= 1),
    ]
    return markdown_table((f"{found.sessions:,} sessions of {EVENTS} events", "bytes a session"), rows)


def leak_table(found: Sequence[Resident]) -> list[str]:
    """Return the figures as Markdown."""
    rows = [[f"{one.events:,}", f"{one.resident_bytes / _MIB:.1f}"] for one in found]
    grown = (found[-1].resident_bytes - found[0].resident_bytes) / _MIB
    return [*markdown_table(("events", "resident memory, MiB"), rows), "", f"Growth: {grown:+.1f} MiB."]


def memory_figures(found: SessionMemory) -> dict[str, Any]:
    """Return what goes into the JSON file."""
    return asdict(found)


def leak_figures(found: Sequence[Resident]) -> dict[str, Any]:
    """Return what goes into the JSON file."""
    return {"samples": [asdict(one) for one in found]}


def _counter(show: Callable[[str], None], total: int) -> Callable[[int], None]:
    done = 0

    def told(events: int) -> None:
        nonlocal done
        done += events
        show(f"{done:,} of {total:,} events")

    return told


def _used_bytes(client: "Redis") -> int:
    client.memory_purge()
    return int(client.info("memory")["used_memory"])


def _usage(client: "Redis") -> Iterator[tuple[bytes, int]]:
    """Yield every key and the bytes it takes, all of a collection's elements counted."""
    keys = client.scan_iter(match=f"{DEFAULT_KEY_PREFIX}*", count=_KEYS_AT_ONCE)
    while chunk := list(islice(keys, _KEYS_AT_ONCE)):
        with client.pipeline(transaction=False) as pipeline:
            for key in chunk:
                pipeline.memory_usage(key, samples=0)
            sizes = pipeline.execute()
        # A key may have gone between the two.
        yield from ((key, size) for key, size in zip(chunk, sizes, strict=True) if size is not None)
