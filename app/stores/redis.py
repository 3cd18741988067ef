"""The store on one Redis or Valkey server.

A batch costs two round trips: one MGET for its records, one pipeline of `commit.lua` calls, a call a shard. There are
no locks: what two replicas write at once, compare-and-set decides.

Errors of the driver are wrapped here and nowhere else. A broken connection is tried once more on a new one; that is
safe, since a commit that is sent twice counts once (see `commit.lua`).
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from hashlib import sha1
from importlib.resources import files
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError

from app.errors import CorruptRecordError, StoreError, StoreUnavailableError
from app.stores.base import Commit
from app.stores.history import decode_event, encode_event
from app.stores.keys import history_key, record_key, shard_of
from app.stores.records import Record, decode_record, encode_record
from model.events import Event

# One call a pipeline, named by what the store was asked to do.
ObserveRoundTrip = Callable[[str, float], None]


class RedisStore:
    """Sessions on a Redis server.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
        session_idle_s: idle time after which a session vanishes.
        timeout_s: longest wait for a connection, and for one round trip.
        max_connections: most connections; further callers wait for a free one, at most `timeout_s`.
        observe: called after each round trip with the operation's name and its seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        session_idle_s: int,
        timeout_s: float,
        max_connections: int,
        observe: ObserveRoundTrip = lambda _operation, _seconds: None,
    ) -> None:
        self._ttl_ms = session_idle_s * 1000
        self._observe = observe
        self._script = files("app.stores").joinpath("commit.lua").read_text(encoding="utf-8")
        # Redis names a script by this hash; it is no safeguard.
        self._script_hash = sha1(self._script.encode(), usedforsecurity=False).hexdigest()
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=max_connections,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            # Once more, and only after a broken connection: a server that is slow gets no second wait.
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
            protocol=2,
        )
        self._redis = Redis.from_pool(pool)

    async def load(self, session_ids: Sequence[str]) -> list[Record | StoreError | None]:
        """See `StateStore.load`."""
        keys = [record_key(session_id) for session_id in session_ids]
        try:
            async with self._round_trip("load"):
                values = await self._redis.mget(keys)
        except StoreUnavailableError as exc:
            return [exc] * len(keys)
        return [_decoded(decode_record, value) if value is not None else None for value in values]

    async def load_histories(self, session_ids: Sequence[str]) -> list[list[Event] | StoreError]:
        """See `StateStore.load_histories`."""
        try:
            async with self._round_trip("load_histories"), self._redis.pipeline(transaction=False) as pipeline:
                for session_id in session_ids:
                    pipeline.lrange(history_key(session_id), 0, -1)
                histories = await pipeline.execute(raise_on_error=False)
        except StoreUnavailableError as exc:
            return [exc] * len(session_ids)
        return [
            _unavailable(history) if isinstance(history, Exception) else _decoded(_decode_history, history)
            for history in histories
        ]

    async def commit(self, commits: Sequence[Commit]) -> list[bool | StoreError]:
        """See `StateStore.commit`."""
        results: list[bool | StoreError] = [False] * len(commits)
        shards: dict[int, list[int]] = defaultdict(list)
        for index, commit in enumerate(commits):
            shards[shard_of(commit.session_id)].append(index)
        groups = list(shards.values())
        calls = [self._call(commits[index] for index in group) for group in groups]
        replies = await self._run(calls)
        if any(isinstance(reply, NoScriptError) for reply in replies):
            # The server was restarted, or is another one, and has never seen the script.
            replies = await self._run(calls, load_script=True)
        for group, reply in zip(groups, replies, strict=True):
            for place, index in enumerate(group):
                results[index] = _unavailable(reply) if isinstance(reply, Exception) else bool(reply[place])
        return results

    async def ping(self) -> None:
        """See `StateStore.ping`."""
        async with self._round_trip("ping"):
            await self._redis.ping()

    async def close(self) -> None:
        """See `StateStore.close`."""
        await self._redis.aclose()

    def _call(self, commits: Any) -> list[Any]:  # noqa: ANN401 - an iterable of Commit; arguments are str, bytes, int
        """Return the arguments of one EVALSHA after the hash: number of keys, keys, arguments (see `commit.lua`)."""
        keys: list[str] = []
        arguments: list[str | bytes | int] = [self._ttl_ms]
        for commit in commits:
            keys += (record_key(commit.session_id), history_key(commit.session_id))
            entries = [encode_event(event) for event in commit.appended]
            arguments += (commit.expected or b"", encode_record(commit.record), len(entries), *entries)
        return [len(keys), *keys, *arguments]

    async def _run(self, calls: Sequence[list[Any]], *, load_script: bool = False) -> list[Any]:
        """Run one script call a shard in one round trip; a reply is a list of 0 and 1, or an error."""
        try:
            async with self._round_trip("commit"), self._redis.pipeline(transaction=False) as pipeline:
                if load_script:
                    pipeline.script_load(self._script)
                for call in calls:
                    pipeline.execute_command("EVALSHA", self._script_hash, *call)
                replies = await pipeline.execute(raise_on_error=False)
        except StoreUnavailableError as exc:
            return [exc] * len(calls)
        return replies[1:] if load_script else replies

    @asynccontextmanager
    async def _round_trip(self, operation: str) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            yield
        except (RedisError, OSError, TimeoutError) as exc:
            raise _unavailable(exc) from exc
        finally:
            self._observe(operation, loop.time() - started)


def _decoded(decode: Callable[[Any], Any], value: object) -> Any:  # noqa: ANN401 - what `decode` returns
    try:
        return decode(value)
    except CorruptRecordError as exc:
        return exc


def _decode_history(entries: Sequence[bytes]) -> list[Event]:
    return [decode_event(entry) for entry in entries]


def _unavailable(error: Exception) -> StoreError:
    """Wrap a driver's error; its text stays out, as it may name hosts and paths. The cause is kept for logs."""
    if isinstance(error, StoreError):
        return error
    wrapped = StoreUnavailableError("Redis did not answer, or did not accept the write; nothing is lost: try again.")
    wrapped.__cause__ = error
    return wrapped
