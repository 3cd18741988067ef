"""Lua scripts by their hash: one round trip a server for many calls, and the text only where a server lacks it."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files

from redis.exceptions import NoScriptError

from app.errors import StoreError, StoreUnavailableError
from app.store.redis.connection import Command, Link
from app.store.redis.server import Reply, Word

# One call a round trip, named by what the store was asked to do.
ObserveRoundTrip = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Script:
    """A script's text, and the hash that Redis knows it by."""

    text: str
    digest: str


def load_script(*names: str) -> Script:
    """Return the script of that file beside this module; of several, what stands in the first ones is shared."""
    text = "".join(files("app.store").joinpath("lua", name).read_text(encoding="utf-8") for name in names)
    # Redis names a script by this hash; it is no safeguard.
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


class ScriptRunner:
    """Runs scripts over a link.

    Args:
        link: where they go.
        observe: called after each round trip with the operation's name and its seconds.
    """

    def __init__(self, link: Link, observe: ObserveRoundTrip = lambda _operation, _seconds: None) -> None:
        self._link = link
        self._observe = observe

    @property
    def shards_a_script(self) -> int:
        """How many shards one call may touch."""
        return self._link.shards_a_script

    async def run(
        self, operation: str, script: Script, calls: Sequence[tuple[int, Sequence[Word]]], *, wait_replicas: int = 0
    ) -> list[Reply]:
        """Make all calls in one round trip a server; a reply is the script's, or an error.

        Args:
            operation: name of the round trip.
            script: safe to be run twice with the same arguments.
            calls: each its shard, and what follows the hash in EVALSHA: number of keys, keys, arguments.
            wait_replicas: replicas that must have what was written.
        """
        commands = [Command(shard, ("EVALSHA", script.digest, *call)) for shard, call in calls]
        with self.timed(operation):
            replies = await self._link.execute(commands, wait_replicas=wait_replicas)
        unknown = [place for place, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            # A server that was restarted, or that is new, has never seen the script; EVAL tells it for good.
            told = [
                Command(commands[place].shard, ("EVAL", script.text, *commands[place].words[2:])) for place in unknown
            ]
            with self.timed(operation):
                answers = await self._link.execute(told, wait_replicas=wait_replicas)
            for place, answer in zip(unknown, answers, strict=True):
                replies[place] = answer
        return replies

    @contextmanager
    def timed(self, operation: str) -> Iterator[None]:
        """Observe how long what is done inside takes."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._observe(operation, time.perf_counter() - started)


def unavailable(error: Exception) -> StoreError:
    """Wrap a driver's error; its text stays out, as it may name hosts and paths. The cause is kept for logs."""
    if isinstance(error, StoreError):
        return error
    wrapped = StoreUnavailableError("Redis did not answer, or did not accept the write; nothing is lost: try again.")
    wrapped.__cause__ = error
    return wrapped
