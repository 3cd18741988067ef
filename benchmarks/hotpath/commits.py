"""What Redis alone does on the very commits that the service made: captured, then replayed from a C client.

The commits of a run from an empty Redis are recorded with MONITOR and replayed in their order, from empty again, by
`redis-cli --pipe`, which writes without waiting for answers. So each compare-and-set finds the version that it found in
the run and succeeds: same scripts, same sizes, same way through them. A replay must end with as many keys as the run.
"""

import re
import shutil
import socket
import subprocess
import threading
import time
from codecs import escape_decode
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from app.runtime.embedded_redis import find_server
from benchmarks.hotpath.fill import fill
from benchmarks.hotpath.processes import BenchmarkError
from benchmarks.hotpath.redis_server import RedisServer, running_redis
from benchmarks.hotpath.results import markdown_table, spread
from benchmarks.hotpath.servers import Contestant, running
from benchmarks.hotpath.traffic import new_prefix

_SESSIONS: Final = 3000
_EVENTS: Final = 10
_ARGUMENT: Final = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_SCRIPT_CALLS: Final = (b'"EVALSHA"', b'"FCALL"')
# Time, database and address stand before a command's name.
_HEAD_BYTES: Final = 100
_REPLIES: Final = re.compile(r"errors: (\d+), replies: (\d+)")
_CHUNK_BYTES: Final = 1 << 20
_QUIET_S: Final = 1.0
_NOISE_KEYS: Final = 64
_MICROSECONDS: Final = 1e6


@dataclass(frozen=True, slots=True)
class Replay:
    """One replay of the captured commits.

    Attributes:
        events_per_s: committed.
        redis_us: processor's time of Redis, an event.
    """

    events_per_s: float
    redis_us: float


@dataclass(frozen=True, slots=True)
class RedisAlone:
    """What Redis alone does.

    Attributes:
        events: committed in one replay.
        calls: of scripts in one replay.
        bytes_per_event: sent to Redis.
        replays: one after another.
    """

    events: int
    calls: int
    bytes_per_event: float
    replays: list[Replay]


def redis_alone(contestant: Contestant, replays: int) -> RedisAlone:
    """Return how quickly Redis makes the commits of 3,000 sessions of ten events, posted 200 a request."""
    with running_redis() as redis:
        with running(contestant, redis) as server:
            with redis.connect() as client:
                client.flushall()
            with recorded(redis) as chunks:
                events = fill(server, new_prefix(), range(1, _SESSIONS + 1), _EVENTS)
                time.sleep(_QUIET_S)  # what MONITOR has not told yet
            with redis.connect() as client:
                keys = client.dbsize()
        commands = commit_calls(b"".join(chunks))
        requests = b"".join(commands)
        found = [replay(redis, requests, len(commands), events, keys) for _ in range(replays)]
    return RedisAlone(events, len(commands), len(requests) / events, found)


def figures(found: RedisAlone) -> dict[str, Any]:
    """Return what goes into the JSON file."""
    return asdict(found)


def table(found: RedisAlone, batch_events_per_s: float) -> list[str]:
    """Return the figures as Markdown, beside what the service's batch route reached."""
    heads = ("Redis alone, the same commits", "events/s", "Redis CPU, µs/event", "bytes/event", "events/script call")
    share = batch_events_per_s / median(replay.events_per_s for replay in found.replays)
    row = [
        f"{len(found.replays)} replays of {found.events:,} events",
        spread([replay.events_per_s for replay in found.replays]),
        spread([replay.redis_us for replay in found.replays], ".1f"),
        f"{found.bytes_per_event:,.0f}",
        f"{found.events / found.calls:.1f}",
        f"{share:.2f}",
    ]
    return markdown_table((*heads, "batch route / this"), [row])


@contextmanager
def recorded(redis: RedisServer) -> Iterator[list[bytes]]:
    """Collect what MONITOR tells while the context lasts."""
    chunks: list[bytes] = []
    with socket.create_connection(("127.0.0.1", redis.port)) as connection:
        connection.sendall(b"MONITOR\r\n")

        def read() -> None:
            # Its owner ends it by shutting the connection.
            while chunk := connection.recv(_CHUNK_BYTES):
                chunks.append(chunk)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield chunks
        finally:
            connection.shutdown(socket.SHUT_RDWR)
            reader.join()


def commit_calls(monitored: bytes) -> list[bytes]:
    """Return the calls of the script that was called most, as clients send them, from what MONITOR told.

    That script is the one that commits; others look every few seconds whether there is something to do.
    """
    called = [
        # time [database address] "word" "word" ...
        [escape_decode(word)[0] for word in _ARGUMENT.findall(line)]
        for line in monitored.split(b"\r\n")
        if any(name in line[:_HEAD_BYTES] for name in _SCRIPT_CALLS)
    ]
    if not called:
        raise BenchmarkError("MONITOR told of no script call: were there no commits?")
    ((script, _),) = Counter(words[1] for words in called).most_common(1)
    return [_resp(words) for words in called if words[1] == script]


def _resp(words: list[bytes]) -> bytes:
    parts = [b"*%d\r\n" % len(words)]
    parts += [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
    return b"".join(parts)


def replay(redis: RedisServer, requests: bytes, calls: int, events: int, keys: int) -> Replay:
    """Send script calls from one client, without waiting for answers, to a Redis that is emptied before.

    Args:
        redis: knows the script.
        requests: the calls, as clients send them.
        calls: how many they are.
        events: how many events they commit.
        keys: how many keys there are afterwards if every commit is accepted.

    Raises:
        BenchmarkError: a call failed, or commits were refused.
    """
    with redis.connect() as client:
        client.flushall()
    before_s, began_s = redis.cpu_s(), time.perf_counter()
    told = subprocess.run(  # noqa: S603  # no part of the command comes from outside
        [_client(), "-p", str(redis.port), "--pipe"], input=requests, capture_output=True, check=False
    )
    elapsed_s, used_s = time.perf_counter() - began_s, redis.cpu_s() - before_s
    replies = _REPLIES.search(told.stdout.decode(errors="replace"))
    if replies is None or replies.groups() != ("0", str(calls)):
        raise BenchmarkError(f"Replaying {calls} script calls failed: {told.stdout[-500:]!r} {told.stderr[-500:]!r}")
    with redis.connect() as client:
        difference = abs(client.dbsize() - keys)
    # The service's own keys, such as its reports, may come and go; a session's would be thousands.
    if difference > _NOISE_KEYS:
        raise BenchmarkError(f"The replay left {difference:,} keys more or fewer than the run: commits were refused.")
    return Replay(events / elapsed_s, used_s / events * _MICROSECONDS)


def _client() -> str:
    beside = find_server().parent
    for found in (beside / "valkey-cli", beside / "redis-cli", shutil.which("valkey-cli"), shutil.which("redis-cli")):
        if found and Path(found).is_file():
            return str(found)
    raise BenchmarkError("There is no valkey-cli or redis-cli: `apt install redis-tools` on Debian and Ubuntu.")
