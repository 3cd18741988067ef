"""The queues of webhooks in Redis: messages that wait for an attempt, and dead ones that are not sent any more.

All replicas send from the same queue. A replica that takes a message has a lease on it; when the lease ends without a
result, because the replica died, the message is due again. So each message is sent at least once.

    wb:{00}:webhook:<name>:due     sorted set  message ids by time of the next attempt, ms
    wb:{00}:webhook:<name>:bodies  hash        body of each message, waiting or dead
    wb:{00}:webhook:<name>:tries   hash        number of attempts of each
    wb:{00}:webhook:<name>:dead    sorted set  ids of messages that are not sent any more, by time, ms
    wb:{00}:webhook:<name>:causes  hash        why each of those is dead

Everything is bounded, and expires when the webhook gets no message for a week.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, NamedTuple, Protocol

from app.store.keys import COUNTS_SHARD, Keys
from app.store.redis.scripts import Script, ScriptRunner, load_script, unavailable
from app.store.redis.server import RespArg

MOST_WAITING: Final = 10_000
MOST_DEAD: Final = 10_000
_KEPT_MS: Final = 7 * 86_400_000
# Longer than an attempt with its wait for a connection, so that no other replica sends a message meanwhile.
LEASE_MS: Final = 60_000
# Bounds one call of the script.
_RESENT_AT_ONCE: Final = 1_000


class Claimed(NamedTuple):
    """A message that the caller sends now; `attempt` counts from 1."""

    message_id: str
    body: str
    attempt: int


class Added(NamedTuple):
    """Numbers of messages: that now wait, that died because the queue is full, dead ones that were dropped for them."""

    waiting: int
    died: int
    dropped: int


@dataclass(frozen=True, slots=True)
class DeadMessage:
    """A message that is not sent any more.

    Attributes:
        message_id: the same in every attempt.
        body: JSON.
        attempts: how often it was sent.
        cause: why it is dead.
        died_ms: when, Redis' clock.
    """

    message_id: str
    body: str
    attempts: int
    cause: str
    died_ms: int


@dataclass(frozen=True, slots=True)
class QueueState:
    """A webhook's queue.

    Attributes:
        waiting: messages that wait for an attempt.
        next_ms: time of the next attempt, Redis' clock; None: nothing waits.
        dead: number of dead messages.
        messages: the last dead ones, latest first.
    """

    waiting: int = 0
    next_ms: int | None = None
    dead: int = 0
    messages: Sequence[DeadMessage] = ()


def message_prefix(session_id: str) -> str:
    """Return the beginning of the ids of a session's messages, by which they are found when it is erased."""
    return f"msg_{sha256(session_id.encode()).hexdigest()[:16]}"


def message_id(session_id: str, decision: str) -> str:
    """Return the id of a decision's message: the same whichever replica makes it, and in every attempt.

    Args:
        session_id: the session.
        decision: what tells this decision from all others of the session.
    """
    return f"{message_prefix(session_id)}{sha256(decision.encode()).hexdigest()[:16]}"


class WebhookStore(Protocol):
    """The queues of webhooks. Failed calls raise `StoreError`."""

    async def lead(self, replica: str, *, lease_s: float) -> dict[int, str] | None:
        """Make the caller the one that moves decisions to the queues; return up to where they are moved, by shard.

        None: another replica does it now.
        """
        ...

    async def moved(self, places: Mapping[int, str]) -> None:
        """Record up to where decisions are moved, by shard."""
        ...

    async def add(self, webhook: str, messages: Mapping[str, str]) -> Added:
        """Add messages, bodies by id; one that is there already is not added again."""
        ...

    async def claim(self, webhook: str, most: int) -> list[Claimed]:
        """Take messages whose attempt is due; each is the caller's for the time of a lease."""
        ...

    async def sent(self, webhook: str, claimed: Claimed) -> None:
        """Remove a message that the receiver has."""
        ...

    async def again(self, webhook: str, claimed: Claimed, *, wait_s: float) -> None:
        """Let a message wait for its next attempt."""
        ...

    async def die(self, webhook: str, claimed: Claimed, cause: str) -> int:
        """Send a message no more; return how many older dead messages were dropped for it."""
        ...

    async def state(self, webhook: str, *, most_dead: int = 0) -> QueueState:
        """Return the queue's sizes and its last dead messages."""
        ...

    async def resend(self, webhook: str, message_ids: Sequence[str] = ()) -> int:
        """Move dead messages back to the queue, all of them if no ids are given; return how many.

        A second call with the same ids moves nothing.
        """
        ...

    async def forget(self, webhook: str, session_id: str) -> int:
        """Erase a session's messages; return how many."""
        ...


class RedisWebhooks:
    """Implements `WebhookStore` on Redis.

    Args:
        scripts: runs the Lua scripts.
        keys: the keys of the queues.
        lease_ms: how long a claimed message is the caller's.
    """

    def __init__(self, scripts: ScriptRunner, keys: Keys, *, lease_ms: int = LEASE_MS) -> None:
        self._lease_ms = lease_ms
        self._scripts = scripts
        self._keys = keys
        names = ("add", "claim", "settle", "dead", "resend", "forget")
        self._lead_script, self._place_script = load_script("webhook_lead.lua"), load_script("webhook_place.lua")
        self._texts = {name: load_script("webhook.lua", f"webhook_{name}.lua") for name in names}

    async def lead(self, replica: str, *, lease_s: float) -> dict[int, str] | None:
        call: tuple[int, list[RespArg]] = (
            COUNTS_SHARD,
            [2, *self._keys.moved_decisions(), replica, round(lease_s * 1000)],
        )
        (reply,) = await self._scripts.run("webhook_lead", self._lead_script, [call])
        if isinstance(reply, Exception):
            raise unavailable(reply)
        if reply is None:
            return None
        return {int(shard): place.decode() for shard, place in zip(reply[::2], reply[1::2], strict=True)}

    async def moved(self, places: Mapping[int, str]) -> None:
        words = [str(word) for pair in places.items() for word in pair]
        call: tuple[int, list[RespArg]] = (COUNTS_SHARD, [1, self._keys.moved_decisions()[1], _KEPT_MS, *words])
        (reply,) = await self._scripts.run("webhook_place", self._place_script, [call])
        if isinstance(reply, Exception):
            raise unavailable(reply)

    async def add(self, webhook: str, messages: Mapping[str, str]) -> Added:
        words = [word for pair in messages.items() for word in pair]
        return Added(*await self._run("add", webhook, MOST_WAITING, MOST_DEAD, _KEPT_MS, *words))

    async def claim(self, webhook: str, most: int) -> list[Claimed]:
        reply = await self._run("claim", webhook, most, self._lease_ms)
        return [Claimed(one.decode(), body.decode(), attempt) for one, body, attempt in reply]

    async def sent(self, webhook: str, claimed: Claimed) -> None:
        await self._settle(webhook, claimed, "sent")

    async def again(self, webhook: str, claimed: Claimed, *, wait_s: float) -> None:
        await self._settle(webhook, claimed, "again", wait_ms=round(wait_s * 1000))

    async def die(self, webhook: str, claimed: Claimed, cause: str) -> int:
        return await self._settle(webhook, claimed, "dead", cause=cause)

    async def state(self, webhook: str, *, most_dead: int = 0) -> QueueState:
        waiting, next_ms, dead, *messages = await self._run("dead", webhook, most_dead)
        return QueueState(
            waiting=waiting,
            next_ms=int(float(next_ms)) if next_ms else None,
            dead=dead,
            messages=[
                DeadMessage(one.decode(), body.decode(), int(attempts), cause.decode(), int(float(died_ms)))
                for one, body, attempts, cause, died_ms in messages
            ],
        )

    async def resend(self, webhook: str, message_ids: Sequence[str] = ()) -> int:
        if message_ids:
            return int(await self._run("resend", webhook, 0, _KEPT_MS, *message_ids))
        total = 0
        while moved := int(await self._run("resend", webhook, _RESENT_AT_ONCE, _KEPT_MS)):
            total += moved
            if moved < _RESENT_AT_ONCE:
                break
        return total

    async def forget(self, webhook: str, session_id: str) -> int:
        return int(await self._run("forget", webhook, message_prefix(session_id)))

    async def _settle(self, webhook: str, claimed: Claimed, result: str, *, wait_ms: int = 0, cause: str = "") -> int:
        words: tuple[RespArg, ...] = (claimed.message_id, claimed.attempt, result, wait_ms, cause, MOST_DEAD, _KEPT_MS)
        return int(await self._run("settle", webhook, *words))

    async def _run(self, name: str, webhook: str, *words: RespArg) -> Any:  # noqa: ANN401 - whatever the script returns
        keys = self._keys.webhook(webhook)
        script: Script = self._texts[name]
        (reply,) = await self._scripts.run(f"webhook_{name}", script, [(COUNTS_SHARD, [len(keys), *keys, *words])])
        if isinstance(reply, Exception):
            raise unavailable(reply)
        return reply
