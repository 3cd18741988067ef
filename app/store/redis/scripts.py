"""Lua scripts by their hash: many calls in one round trip per server; the text only where a server lacks the script."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files

from redis.exceptions import NoScriptError

from app.errors import StoreError, StoreUnavailableError
from app.store.redis.causes import cause_of
from app.store.redis.connection import Command, RedisClient
from app.store.redis.server import Reply, RespArg

# Called after each round trip with the name of the store's operation and the seconds.
ObserveRoundTrip = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Script:
    """A script's text, and its SHA-1 for EVALSHA."""

    text: str
    digest: str


def load_script(*names: str) -> Script:
    """Return the script of a file in `app/store/lua`; several are joined, so that scripts can share functions."""
    text = "".join(files("app.store").joinpath("lua", name).read_text(encoding="utf-8") for name in names)
    # Redis identifies scripts by SHA-1; security does not depend on it.
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


class ScriptRunner:
    """Runs scripts.

    Args:
        client: sends the commands.
        observe: called after each round trip with the operation's name and its seconds.
    """

    def __init__(self, client: RedisClient, observe: ObserveRoundTrip = lambda _operation, _seconds: None) -> None:
        self._client = client
        self._observe = observe

    @property
    def max_shards_per_script(self) -> int:
        """How many shards one call may touch."""
        return self._client.max_shards_per_script

    @property
    def names_all_keys(self) -> bool:
        """Whether a call must name every key that its script may touch."""
        return self._client.names_all_keys

    async def run(
        self, operation: str, script: Script, calls: Sequence[tuple[int, Sequence[RespArg]]], *, wait_replicas: int = 0
    ) -> list[Reply]:
        """Make all calls in one round trip per server, and return their results in order, errors in their places.

        Args:
            operation: name for `observe`.
            script: must be safe to run twice with the same arguments.
            calls: shard of each, and the arguments of EVALSHA after the hash: number of keys, keys, arguments.
            wait_replicas: replicas that must confirm the writes.
        """
        commands = [Command(shard, ("EVALSHA", script.digest, *call)) for shard, call in calls]
        with self.timed(operation):
            replies = await self._client.execute(commands, wait_replicas=wait_replicas)
        unknown = [place for place, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            # A restarted or new server lacks the script; EVAL runs and caches it.
            texts = [
                Command(commands[place].shard, ("EVAL", script.text, *commands[place].arguments[2:]))
                for place in unknown
            ]
            with self.timed(operation):
                results = await self._client.execute(texts, wait_replicas=wait_replicas)
            for place, result in zip(unknown, results, strict=True):
                replies[place] = result
        return replies

    @contextmanager
    def timed(self, operation: str) -> Iterator[None]:
        """Report the duration of the block to `observe`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._observe(operation, time.perf_counter() - started)


def unavailable(error: Exception) -> StoreError:
    """Return an error of redis-py as a `StoreError` without its text, which may name hosts; logs have the cause."""
    if isinstance(error, StoreError):
        return error
    wrapped = StoreUnavailableError("Redis did not answer, or did not accept the write; nothing is lost: try again.")
    wrapped.__cause__ = error
    wrapped.cause = cause_of(error)
    return wrapped
