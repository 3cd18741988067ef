"""How the bodies of events come in and the answers to them go out; shared by the routes for one and for many."""

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from app.errors import BodyTimeoutError
from app.runtime.deadlines import Deadlines
from app.scoring.session_update import Score

_encode = msgspec.json.Encoder().encode


async def read_body_in_time(receive: Receive, timeout_s: float, deadlines: Deadlines) -> tuple[bytes, float]:
    """Return the body of a request, and by the event loop's clock when the request is to be answered.

    Raises:
        BodyTimeoutError: the body was not there by then.
        starlette.requests.ClientDisconnect: its sender has gone.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    reading = _Reading(asyncio.current_task())
    deadlines.add(reading, deadline)
    try:
        return await _read_body(receive), deadline
    except asyncio.CancelledError as exc:
        if not reading.was_ended():
            raise
        raise BodyTimeoutError(f"The body did not arrive within {timeout_s:g} s.") from exc
    finally:
        reading.is_over = True


@dataclass(slots=True)
class _Reading:
    """The wait for a body, as `Deadlines` ends it; the way of `asyncio.timeout`, which has a timer for each."""

    task: "asyncio.Task[Any] | None"
    is_over: bool = False
    is_ended: bool = False

    def end(self) -> None:
        if self.task is not None:
            self.is_ended = True
            self.task.cancel()

    def was_ended(self) -> bool:
        """Return whether the task's cancellation was this, and nobody else's; then it is taken back."""
        return self.is_ended and self.task is not None and not self.task.uncancel()


async def _read_body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def too_late(timeout_s: float) -> str:
    """Return what a caller is told whose answer was not ready in time."""
    return f"No answer within {timeout_s:g} s; send the event again with the same event_id."


class ScoreBody(msgspec.Struct):
    """The answer to one event: an `app.schemas.events.ScoreOut`, which a test holds it to."""

    session_id: str
    probability: float | None
    events: int
    model: str
    outcome: str
    folded: bool
    duplicate: bool
    warnings: tuple[str, ...]


def score_body(score: Score) -> ScoreBody:
    """Return what is answered with a score."""
    answer = score.answer
    return ScoreBody(
        session_id=score.session_id,
        probability=answer.probability,
        events=answer.events,
        model=answer.model,
        outcome=answer.outcome.word,
        folded=answer.folded,
        duplicate=score.duplicate,
        warnings=score.warnings,
    )


def score_json(score: Score) -> bytes:
    """Return the answer to one event as JSON."""
    return _encode(score_body(score))
