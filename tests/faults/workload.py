"""The visitors' events: sessions of the synthetic shop with late, repeated and concurrent requests; seeded."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Final, Literal

from msgspec import structs

from model.events import PURCHASE, Event
from training.commands.replay import event_body
from training.synthetic import PRESETS, sessions

# patient: sent until acknowledged. hasty: the client gives up after some milliseconds, then sends again until
# acknowledged. abandoned: the client gives up and does not send again.
Manner = Literal["patient", "hasty", "abandoned"]

DUPLICATE_SHARE: Final = 0.10
LATE_SHARE: Final = 0.05
HASTY_SHARE: Final = 0.05
ABANDONED_SHARE: Final = 0.02
BURST_SHARE: Final = 0.05
BATCHED_SHARE: Final = 0.10
LARGEST_BATCH: Final = 8
# Below the default of `dedupe_window`, because an event id beyond the window may be folded again, as documented.
MOST_EVENTS: Final = 30


@dataclass(frozen=True, slots=True)
class Posting:
    """One event on its way to the service.

    Attributes:
        event_id: unique in the whole run.
        event: the event. Its time is unique within its session, so that a history entry identifies its event.
        body: the request's bytes.
        manner: behaviour of the client.
        copies: number of replicas that get the event at the same time.
    """

    event_id: str
    event: Event
    body: bytes
    manner: Manner = "patient"
    copies: int = 1

    @property
    def is_purchase(self) -> bool:
        """Whether the event closes its session."""
        return self.event.event_name == PURCHASE


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """A session's postings, step by step; those of one step are sent at the same time, or in one batch if `batched`."""

    session_id: str
    steps: tuple[tuple[Posting, ...], ...]
    batched: bool = False


def session_plans(seed: int, end_ms: int) -> Iterator[SessionPlan]:
    """Yield plans without end.

    Args:
        seed: seed of visitors and of the behaviour of their clients.
        end_ms: time of the last event of each session; must not be in the future.
    """
    random = Random(seed)
    for number, events in enumerate(sessions(PRESETS["default"], seed)):
        session_id = f"f{seed}-{number}"
        kept = events[:MOST_EVENTS]
        shift_ms = end_ms - kept[-1].timestamp_ms
        postings = [
            _posting(session_id, position, structs.replace(event, timestamp_ms=event.timestamp_ms + shift_ms), random)
            for position, event in enumerate(kept)
        ]
        if random.random() < BATCHED_SHARE:
            yield SessionPlan(session_id, _batches(postings, random), batched=True)
        else:
            yield SessionPlan(session_id, _steps(postings, random))


def _posting(session_id: str, position: int, event: Event, random: Random) -> Posting:
    event_id = f"{session_id}-{position}"
    fate = random.random()
    manner: Manner = "patient"
    if fate < HASTY_SHARE:
        manner = "hasty"
    elif fate < HASTY_SHARE + ABANDONED_SHARE:
        manner = "abandoned"
    body = json.dumps(event_body(session_id, event_id, event)).encode()
    return Posting(event_id, event, body, manner)


def _steps(postings: list[Posting], random: Random) -> tuple[tuple[Posting, ...], ...]:
    """Return the postings in the order in which they are sent: some late, some twice, in some sessions all at once."""
    order = list(postings)
    for position in range(len(order)):
        if random.random() < LATE_SHARE:
            other = min(len(order) - 1, position + random.randint(1, 3))
            order[position], order[other] = order[other], order[position]
    steps: list[list[Posting]] = []
    again: list[tuple[int, Posting]] = []
    for position, posting in enumerate(order):
        sent = posting
        if posting.manner != "abandoned" and random.random() < DUPLICATE_SHARE:
            if random.random() < 0.5:
                sent = replace(posting, copies=2)
            else:
                again.append((position + random.randint(0, 8), replace(posting, manner="patient")))
        steps.append([sent])
    if random.random() < BURST_SHARE:
        return (tuple(posting for step in steps for posting in step), *((posting,) for _, posting in again))
    for position, posting in again:
        if position < len(steps):
            steps[position].append(posting)
        else:
            steps.append([posting])
    return tuple(map(tuple, steps))


def _batches(postings: list[Posting], random: Random) -> tuple[tuple[Posting, ...], ...]:
    """Return the postings in order, several in each step; some batches overlap the one before."""
    batches = []
    first = 0
    while first < len(postings):
        size = random.randint(2, LARGEST_BATCH)
        overlap = int(random.random() < DUPLICATE_SHARE and first > 0)
        batches.append(tuple(postings[first - overlap : first + size]))
        first += size
    return tuple(batches)
