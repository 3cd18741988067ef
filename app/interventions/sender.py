"""Sends decisions to webhooks, in the background of every replica: at least once, with retries, bounded.

    decisions of a shard --(the replica that leads)--> queue of each webhook --(any replica)--> the receiver

After a crash a step may happen twice, and none is left out: a place in the decisions is recorded after the messages are
in the queues, and a message leaves its queue after the receiver has accepted it. The id of a message depends on the
decision alone, so a receiver recognises one that it has.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from uuid import uuid4

import msgspec
from structlog.typing import FilteringBoundLogger

from app.errors import StoreError
from app.interventions.webhooks import AttemptError, Receiver, Webhook
from app.monitoring.metrics import Metrics
from app.runtime.periodic import Background, PeriodicTask
from app.store.interventions import START, DecisionEntry, DecisionStore
from app.store.webhooks import Claimed, WebhookStore, message_id
from model.clock import utc
from model.redis_keys import SHARDS

MOST_ATTEMPTS: Final = 10
"""Attempts of a message before it is dead: about fourteen hours."""
FIRST_WAIT_S: Final = 5.0
_WAIT_FACTOR: Final = 3.0
# Messages of one webhook that a replica sends at the same time.
_AT_ONCE: Final = 8
EVERY_S: Final = 0.5
"""Pause between two looks at the decisions, and at a queue, in seconds."""
# A leader that missed so long counts as dead.
_LEASE_S: Final = 5.0
# Where no place is known, decisions that are older than this are not sent: the webhooks are new.
_NEWEST_MS: Final = 60_000
_LOG_EVERY_S: Final = 60.0


class _Data(msgspec.Struct, frozen=True, omit_defaults=True):
    session_id: str
    rule: str
    group: str
    probability: float
    event: int
    idle: bool
    visitor_id: str | None = None


class _Message(msgspec.Struct, frozen=True):
    """The body of a message: the payload that Standard Webhooks recommends."""

    type: str
    timestamp: str
    data: _Data


_encode: Final = msgspec.json.Encoder().encode


def message_of(entry: DecisionEntry) -> tuple[str, str]:
    """Return id and body of a decision's message."""
    decision = entry.decision
    decided = utc(decision.decided_ms)
    data = _Data(
        decision.session_id,
        decision.rule,
        decision.group,
        decision.probability,
        decision.event,
        decision.idle,
        decision.visitor_id,
    )
    body = _Message("intervention.decided", decided.isoformat(timespec="milliseconds"), data)
    return message_id(decision.session_id, f"{entry.shard}:{entry.entry}"), _encode(body).decode()


def wait_s(
    attempt: int,
    *,
    first_s: float = FIRST_WAIT_S,
    asked_s: float = 0.0,
    chance: Callable[[], float] = random.random,
) -> float:
    """Return the seconds until the next attempt: exponential, with a jitter of a half to one and a half.

    Args:
        attempt: number of the attempt that failed, from 1.
        first_s: mean wait after the first attempt.
        asked_s: least wait, as the receiver asked.
        chance: a number from 0 to 1.
    """
    return max(asked_s, first_s * _WAIT_FACTOR ** (attempt - 1) * (0.5 + chance()))


class _Line:
    """One webhook's loop: takes due messages and sends them."""

    def __init__(
        self,
        webhook: Webhook,
        store: WebhookStore,
        *,
        first_wait_s: float,
        metrics: Metrics,
        logger: FilteringBoundLogger,
    ) -> None:
        self.webhook = webhook
        self._first_wait_s = first_wait_s
        self._receiver = Receiver(webhook)
        self._store = store
        self._metrics = metrics
        self._logger = logger
        self._quiet_until_s: dict[str, float] = {}
        self.task = PeriodicTask(
            self._run_once, name="webhook-line", every_s=EVERY_S, logger=logger, failed="webhook_line_failed"
        )

    async def close(self) -> None:
        await self.task.close()
        await self._receiver.close()

    async def _run_once(self) -> bool:
        try:
            claimed = await self._store.claim(self.webhook.name, _AT_ONCE)
            await asyncio.gather(*map(self._send, claimed))
        except StoreError as exc:
            # Messages whose result is not recorded are sent again after their lease.
            self._note("store", error=exc.code)
            return False
        return len(claimed) == _AT_ONCE

    async def _send(self, claimed: Claimed) -> None:
        name = self.webhook.name
        try:
            await self._receiver.post(claimed.message_id, claimed.body)
        except AttemptError as exc:
            self._metrics.webhook_attempts.labels(name, exc.cause).inc()
            is_last = exc.is_final or claimed.attempt >= MOST_ATTEMPTS
            self._note(exc.cause, message=claimed.message_id, attempt=claimed.attempt, dead=is_last)
            if not is_last:
                again_s = wait_s(claimed.attempt, first_s=self._first_wait_s, asked_s=exc.retry_after_s)
                await self._store.again(name, claimed, wait_s=again_s)
                return
            dropped = await self._store.die(name, claimed, exc.cause)
            self._metrics.webhook_dead.labels(name, exc.cause).inc()
            self._metrics.webhook_dropped.labels(name).inc(dropped)
            return
        self._metrics.webhook_attempts.labels(name, "sent").inc()
        await self._store.sent(name, claimed)

    def _note(self, cause: str, **facts: object) -> None:
        """Log a failure, at most once a minute for each cause."""
        if (now_s := time.monotonic()) >= self._quiet_until_s.get(cause, 0.0):
            self._quiet_until_s[cause] = now_s + _LOG_EVERY_S
            self._logger.warning("webhook_failed", webhook=self.webhook.name, cause=cause, **facts)


class WebhookSender(Background):
    """Moves decisions to the queues of webhooks, and sends them.

    Args:
        store: the queues.
        decisions: of all sessions.
        metrics: where attempts are counted.
        logger: where failures are logged.
        now_ms: the clock of decisions.
        first_wait_s: mean wait after a message's first attempt.
    """

    def __init__(
        self,
        store: WebhookStore,
        decisions: DecisionStore,
        *,
        metrics: Metrics,
        logger: FilteringBoundLogger,
        now_ms: Callable[[], int],
        first_wait_s: float = FIRST_WAIT_S,
    ) -> None:
        self._store = store
        self._first_wait_s = first_wait_s
        self._decisions = decisions
        self._metrics = metrics
        self._logger = logger
        self._now_ms = now_ms
        self._replica = uuid4().hex
        self._lines: dict[str, _Line] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._task = PeriodicTask(self._move, name="webhooks", every_s=EVERY_S, logger=logger, failed="webhooks_failed")

    @property
    def webhooks(self) -> list[Webhook]:
        """The webhooks in use."""
        return [line.webhook for line in self._lines.values()]

    def use(self, webhooks: Sequence[Webhook]) -> None:
        """Use these webhooks from now on; call inside the event loop."""
        wanted = {webhook.name: webhook for webhook in webhooks}
        for name, line in list(self._lines.items()):
            if wanted.get(name) != line.webhook:
                closing = asyncio.create_task(self._lines.pop(name).close())
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
        for name, webhook in wanted.items():
            if name not in self._lines:
                line = self._lines[name] = _Line(
                    webhook,
                    self._store,
                    first_wait_s=self._first_wait_s,
                    metrics=self._metrics,
                    logger=self._logger,
                )
                line.task.start()

    async def close(self) -> None:
        """Stop; messages whose attempt is cut off are sent again after their lease."""
        await super().close()
        await asyncio.gather(*(line.close() for line in self._lines.values()), *self._closing)

    async def move_once(self) -> bool:
        """Move decisions to the queues if this replica leads; return whether there are more.

        Raises:
            StoreError: Redis failed; what was not recorded is moved again.
        """
        places = await self._store.lead(self._replica, lease_s=_LEASE_S)
        if places is None:
            return False
        pages = await self._decisions.read({shard: places.get(shard, START) for shard in range(SHARDS)})
        oldest_ms = self._now_ms() - _NEWEST_MS
        entries = [
            entry
            for shard, page in pages.items()
            for entry in page.entries
            if shard in places or entry.decision.decided_ms >= oldest_ms
        ]
        for line in list(self._lines.values()):
            wants = line.webhook.wants
            messages = dict(message_of(one) for one in entries if wants(one.decision.rule, one.decision.group))
            if messages:
                added = await self._store.add(line.webhook.name, messages)
                self._metrics.webhook_dead.labels(line.webhook.name, "queue_full").inc(added.died)
                self._metrics.webhook_dropped.labels(line.webhook.name).inc(added.dropped)
                line.task.wake()
        moved: Mapping[int, str] = {
            shard: page.after for shard, page in pages.items() if page.after != places.get(shard)
        }
        if moved:
            await self._store.moved(moved)
        return any(page.is_more for page in pages.values())

    async def _move(self) -> bool:
        if not self._lines:
            return False
        try:
            return await self.move_once()
        except StoreError as exc:
            self._logger.warning("webhooks_failed", error=exc.code)
            return False
