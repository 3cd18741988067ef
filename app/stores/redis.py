"""The store on Redis or Valkey: one server, a primary behind sentinels, or a cluster.

A batch costs two round trips: one MGET for its records, one pipeline of `commit.lua` calls, a call a shard; on a
cluster, two to each node, all nodes at once. There are no locks: what two replicas write at once, compare-and-set
decides.

Errors of the driver are wrapped here and nowhere else. A command may reach Redis twice (see `app.stores.server`); that
is safe, since a commit that is sent twice counts once (see `commit.lua`).
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError

from app.errors import CorruptRecordError, StoreError, StoreUnavailableError
from app.stores.base import Commit, whole_history
from app.stores.connection import Command, ConnectionOptions, open_link
from app.stores.history import decode_event, encode_event
from app.stores.keys import board_key, history_key, record_key, seen_key, shard_of
from app.stores.records import Outcome, Record, decode_record, encode_record
from app.stores.server import Reply, Word
from model.events import Event

# One call a round trip, named by what the store was asked to do.
ObserveRoundTrip = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class _Script:
    text: str
    digest: str


class RedisStore:
    """Sessions on Redis.

    Args:
        url: which Redis (see `app.stores.address`).
        session_idle_s: idle time after which a session vanishes.
        options: how it is talked to.
        wait_replicas: replicas that must have a commit before it counts as made.
        observe: called after each round trip with the operation's name and its seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        session_idle_s: int,
        options: ConnectionOptions | None = None,
        wait_replicas: int = 0,
        observe: ObserveRoundTrip = lambda _operation, _seconds: None,
    ) -> None:
        self._ttl_ms = session_idle_s * 1000
        self._observe = observe
        self._commit_script = _script("commit.lua")
        self._delete_script = _script("delete.lua")
        self._session_script = _script("session.lua")
        self._wait_replicas = wait_replicas
        self._link = open_link(url, options or ConnectionOptions())

    @property
    def confirms_by_writing(self) -> bool:
        """Whether replicas must confirm what is acknowledged.

        A commit that too few replicas confirmed is an error to its caller and stands on the primary all the same. The
        same event again finds it there; only a write makes the replicas' confirmation mean that they have it too.
        """
        return self._wait_replicas > 0

    async def load(self, session_ids: Sequence[str]) -> list[Record | StoreError | None]:
        """See `StateStore.load`."""
        keys = [(shard_of(session_id), record_key(session_id)) for session_id in session_ids]
        with self._timed("load"):
            values = await self._link.get(keys)
        return [_record(value) for value in values]

    async def load_histories(self, session_ids: Sequence[str]) -> list[list[Event] | StoreError]:
        """See `StateStore.load_histories`."""
        commands = [
            Command(shard_of(session_id), ("LRANGE", history_key(session_id), 0, -1)) for session_id in session_ids
        ]
        with self._timed("load_histories"):
            histories = await self._link.execute(commands)
        return [
            _unavailable(history) if isinstance(history, Exception) else _decoded(_decode_history, history)
            for history in histories
        ]

    async def load_session(self, session_id: str) -> tuple[Record, list[Event]] | None:
        """See `StateStore.load_session`."""
        keys: list[Word] = [record_key(session_id), history_key(session_id)]
        (reply,) = await self._run("load_session", self._session_script, {shard_of(session_id): [len(keys), *keys]})
        if isinstance(reply, Exception):
            raise _unavailable(reply)
        value, entries = reply
        if value is None:
            return None
        record = decode_record(value)
        return record, whole_history(record, _decode_history(entries))

    async def commit(self, commits: Sequence[Commit]) -> list[bool | StoreError]:
        """See `StateStore.commit`."""
        results: list[bool | StoreError] = [False] * len(commits)
        shards: dict[int, list[int]] = defaultdict(list)
        for index, commit in enumerate(commits):
            shards[shard_of(commit.session_id)].append(index)
        groups = list(shards.values())
        calls = {shard: self._call(shard, [commits[index] for index in group]) for shard, group in shards.items()}
        replies = await self._run("commit", self._commit_script, calls, wait_replicas=self._wait_replicas)
        for group, reply in zip(groups, replies, strict=True):
            for place, index in enumerate(group):
                results[index] = _unavailable(reply) if isinstance(reply, Exception) else bool(reply[place])
        return results

    async def delete(self, session_id: str) -> None:
        """See `StateStore.delete`."""
        shard = shard_of(session_id)
        keys: list[Word] = [board_key(shard), seen_key(shard), record_key(session_id), history_key(session_id)]
        call = [len(keys), *keys, session_id]
        (reply,) = await self._run("delete", self._delete_script, {shard: call}, wait_replicas=self._wait_replicas)
        if isinstance(reply, Exception):
            raise _unavailable(reply)

    async def ping(self) -> None:
        """See `StateStore.ping`."""
        with self._timed("ping"):
            failure = await self._link.ping()
        if failure is not None:
            raise _unavailable(failure) from failure

    async def close(self) -> None:
        """See `StateStore.close`."""
        await self._link.close()

    def _call(self, shard: int, commits: Sequence[Commit]) -> list[Word]:
        """Return the arguments of one EVALSHA after the hash: number of keys, keys, arguments (see `commit.lua`)."""
        keys: list[Word] = [board_key(shard), seen_key(shard)]
        arguments: list[Word] = [self._ttl_ms]
        for commit in commits:
            record = commit.record
            is_on_board = record.outcome is Outcome.OPEN and record.probability is not None
            entries = [encode_event(event) for event in commit.appended]
            keys += (record_key(commit.session_id), history_key(commit.session_id))
            arguments += (
                commit.session_id,
                commit.expected or b"",
                encode_record(record),
                repr(record.probability) if is_on_board else b"",
                len(entries),
                *entries,
            )
        return [len(keys), *keys, *arguments]

    async def _run(
        self, operation: str, script: _Script, calls: Mapping[int, list[Word]], *, wait_replicas: int = 0
    ) -> list[Reply]:
        """Run one script call a shard in one round trip a server; a reply is the script's, or an error.

        Args:
            operation: name of the round trip.
            script: safe to be run twice with the same arguments.
            calls: what follows the hash in EVALSHA, by shard.
            wait_replicas: replicas that must have what was written.
        """
        commands = [Command(shard, ("EVALSHA", script.digest, *call)) for shard, call in calls.items()]
        with self._timed(operation):
            replies = await self._link.execute(commands, wait_replicas=wait_replicas)
        unknown = [place for place, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            # A server that was restarted, or that is new, has never seen the script; EVAL tells it for good.
            told = [
                Command(commands[place].shard, ("EVAL", script.text, *commands[place].words[2:])) for place in unknown
            ]
            with self._timed(operation):
                answers = await self._link.execute(told, wait_replicas=wait_replicas)
            for place, answer in zip(unknown, answers, strict=True):
                replies[place] = answer
        return replies

    @contextmanager
    def _timed(self, operation: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._observe(operation, time.perf_counter() - started)


def _script(name: str) -> _Script:
    text = files("app.stores").joinpath(name).read_text(encoding="utf-8")
    # Redis names a script by this hash; it is no safeguard.
    return _Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


def _record(value: Reply) -> Record | StoreError | None:
    if isinstance(value, Exception):
        return _unavailable(value)
    record: Record | StoreError | None = None if value is None else _decoded(decode_record, value)
    return record


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
