"""Sends session plans to the fleet, as browsers and shops' servers do, and records every attempt in the ledger."""

import asyncio
import time
from collections.abc import Collection, Sequence
from random import Random
from typing import Any, Final

from faults.client import HttpClient
from faults.ledger import HTTP_OK, Attempt, Ledger, Sent
from faults.workload import Posting, SessionPlan

# Statuses that are retried: conflict, slow body, and all temporary failures.
RETRIED: Final = frozenset({408, 409, 503})
_LONGEST_TRYING_S: Final = 60.0
_LARGEST_WAIT_S: Final = 0.5


class Driver:
    """Plays sessions.

    Args:
        clients: one for each replica; each request goes to a random one.
        ledger: gets the attempts.
        seed: seed of think times and of the choice of replicas.
        patience_s: how long a patient client waits for an answer.
        think_s: mean time between two steps of a session.
        most_in_flight: most requests at a time.
        retried: statuses after which an event is sent again.
    """

    def __init__(
        self,
        clients: Sequence[HttpClient],
        ledger: Ledger,
        *,
        seed: int,
        patience_s: float,
        think_s: float,
        most_in_flight: int,
        retried: Collection[int] = RETRIED,
    ) -> None:
        self._clients = clients
        self._ledger = ledger
        self._random = Random(seed)
        self._patience_s = patience_s
        self._think_s = think_s
        self._retried = retried
        self._in_flight = asyncio.Semaphore(most_in_flight)

    async def play(self, plan: SessionPlan) -> None:
        """Deliver a session; return once every event is acknowledged, except the abandoned ones."""
        for step in plan.steps:
            await asyncio.sleep(self._random.expovariate(1 / self._think_s))
            if plan.batched:
                await self._deliver_batch(plan.session_id, step)
            else:
                await asyncio.gather(*(self._deliver(plan.session_id, posting) for posting in step))

    async def _deliver(self, session_id: str, posting: Posting) -> None:
        sent = self._ledger.sent(session_id, posting)
        replicas = self._random.sample(range(len(self._clients)), min(posting.copies, len(self._clients)))
        if posting.manner == "abandoned":
            await self._attempt(sent, replicas[0], self._random.uniform(0.001, 0.04))
            return
        sent.wanted = True
        if posting.manner == "hasty":
            await self._attempt(sent, replicas[0], self._random.uniform(0.001, 0.04))
        await asyncio.gather(*(self._until_acknowledged(sent, replica) for replica in replicas))

    async def _deliver_batch(self, session_id: str, postings: Sequence[Posting]) -> None:
        """Send all in one request; events without acknowledgement follow one by one."""
        sent = [self._ledger.sent(session_id, posting) for posting in postings]
        replica = self._random.randrange(len(self._clients))
        body = b"[" + b",".join(posting.body for posting in postings) + b"]"
        async with self._in_flight:
            started_s = time.monotonic()
            for each in sent:
                each.wanted = True
                each.first_sent_s = min(each.first_sent_s, started_s)
            status, answer, gave_up_after_s = await self._request(replica, "/v1/events/batch", body, self._patience_s)
        ended_s = time.monotonic()
        for number, each in enumerate(sent):
            of_event, body_of_event = status, answer
            if status == HTTP_OK:
                result = answer["results"][number]
                of_event, body_of_event = result["status"], result.get("score") or result["problem"]
            attempt = Attempt(replica, started_s, ended_s, of_event, body_of_event, gave_up_after_s)
            each.attempts.append(attempt)
        for each in sent:
            if not each.answers:
                await self._until_acknowledged(each, self._random.randrange(len(self._clients)))

    async def _until_acknowledged(self, sent: Sent, replica: int) -> None:
        tried_until_s = time.monotonic() + _LONGEST_TRYING_S
        wait_s = 0.02
        while True:
            attempt = await self._attempt(sent, replica, self._patience_s)
            if attempt.acknowledged or time.monotonic() > tried_until_s:
                return
            if attempt.status is not None and attempt.status not in self._retried:
                return
            await asyncio.sleep(wait_s * self._random.uniform(0.5, 1.5))
            wait_s = min(_LARGEST_WAIT_S, 2 * wait_s)
            replica = self._random.randrange(len(self._clients))

    async def _attempt(self, sent: Sent, replica: int, patience_s: float) -> Attempt:
        async with self._in_flight:
            started_s = time.monotonic()
            sent.first_sent_s = min(sent.first_sent_s, started_s)
            status, body, gave_up_after_s = await self._request(replica, "/v1/events", sent.posting.body, patience_s)
        attempt = Attempt(replica, started_s, time.monotonic(), status, body, gave_up_after_s)
        sent.attempts.append(attempt)
        return attempt

    async def _request(
        self, replica: int, path: str, body: bytes, patience_s: float
    ) -> tuple[int | None, dict[str, Any], float | None]:
        """Return status and body of the answer, and how long the client waited if it gave up."""
        try:
            async with asyncio.timeout(patience_s):
                reply = await self._clients[replica].post(path, body)
        except TimeoutError:  # a subclass of OSError, so it comes first
            return None, {}, patience_s
        except (OSError, EOFError):
            return None, {}, None
        return reply.status, reply.body, None


def is_expected(attempt: Attempt) -> bool:
    """Whether a service under faults may give this answer."""
    return attempt.status in {None, HTTP_OK, *RETRIED}
