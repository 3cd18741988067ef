"""How the bodies of events come in and the answers to them go out; shared by the routes for one and for many."""

import asyncio

from fastapi import Request

from app.errors import BodyTimeoutError
from app.schemas import ScoreOut
from app.services import services_of
from app.task import Score


async def read_body(request: Request) -> tuple[bytes, float]:
    """Return the body, and by the event loop's clock when the request is to be answered.

    Raises:
        BodyTimeoutError: the body was not there by then.
    """
    timeout_s = services_of(request).settings.request_timeout_s
    deadline = asyncio.get_running_loop().time() + timeout_s
    try:
        async with asyncio.timeout_at(deadline):
            return await request.body(), deadline
    except TimeoutError as exc:
        raise BodyTimeoutError(f"The body did not arrive within {timeout_s:g} s.") from exc


def too_late(timeout_s: float) -> str:
    """Return what a caller is told whose answer was not ready in time."""
    return f"No answer within {timeout_s:g} s; send the event again with the same event_id."


def score_json(score: Score) -> bytes:
    """Return the answer to one event as JSON."""
    answer = score.answer
    return (
        ScoreOut(
            session_id=score.session_id,
            probability=answer.probability,
            events=answer.events,
            model=answer.model,
            outcome=answer.outcome.word,
            folded=answer.folded,
            duplicate=score.duplicate,
            warnings=list(score.warnings),
        )
        .model_dump_json()
        .encode()
    )
