"""Counts, switches and queues of rules in memory, for tests of services in which rules are not the subject."""

from collections.abc import Mapping, Sequence

from app.store.experiments import Totals
from app.store.webhooks import Added, Claimed, QueueState


class MemoryExperiments:
    """An `ExperimentStore` that counts nothing and has switches."""

    def __init__(self) -> None:
        self.off: dict[str, int] = {}

    async def totals(self, now_ms: int) -> dict[tuple[str, str], Totals]:
        del now_ms
        return {}

    async def switched_off(self) -> dict[str, int]:
        return dict(self.off)

    async def switch(self, rule: str, *, on: bool) -> None:
        if on:
            self.off.pop(rule, None)
        else:
            self.off.setdefault(rule, 1)


class NoWebhooks:
    """A `WebhookStore` whose queues are empty."""

    async def lead(self, replica: str, *, lease_s: float) -> dict[int, str] | None:
        del replica, lease_s
        return None

    async def moved(self, places: Mapping[int, str]) -> None:
        pass

    async def add(self, webhook: str, messages: Mapping[str, str]) -> Added:
        del webhook
        return Added(len(messages), 0, 0)

    async def claim(self, webhook: str, most: int) -> list[Claimed]:
        del webhook, most
        return []

    async def sent(self, webhook: str, claimed: Claimed) -> None:
        pass

    async def again(self, webhook: str, claimed: Claimed, *, wait_s: float) -> None:
        pass

    async def die(self, webhook: str, claimed: Claimed, cause: str) -> int:
        del webhook, claimed, cause
        return 0

    async def state(self, webhook: str, *, most_dead: int = 0) -> QueueState:
        del webhook, most_dead
        return QueueState()

    async def resend(self, webhook: str, message_ids: Sequence[str] = ()) -> int:
        del webhook, message_ids
        return 0

    async def forget(self, webhook: str, session_id: str) -> int:
        del webhook, session_id
        return 0
