"""Reads the bodies of events and encodes the answers to them; shared by the calls for one event and for many."""

import msgspec
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from app.errors import BodyTimeoutError
from app.runtime.deadlines import Deadlines, Timeout
from app.scoring.session_update import Score

_encode = msgspec.json.Encoder().encode


async def read_body(receive: Receive) -> bytes:
    """Return the body of a request; raise `starlette.requests.ClientDisconnect` when its sender has left."""
    message = await receive()
    parts: list[bytes] = []
    while message["type"] == "http.request":
        body: bytes = message.get("body", b"")
        if not message.get("more_body", False):
            return b"".join((*parts, body)) if parts else body
        parts.append(body)
        message = await receive()
    raise ClientDisconnect


async def read_body_in_time(receive: Receive, timeout_s: float, deadlines: Deadlines) -> tuple[bytes, float]:
    """Return the body of a request, and by the event loop's clock when the request is to be answered.

    Raises:
        BodyTimeoutError: the body was not there by then.
        starlette.requests.ClientDisconnect: its sender has left.
    """
    try:
        with Timeout(deadlines, timeout_s) as timeout:
            return await read_body(receive), timeout.at
    except TimeoutError as exc:
        raise body_timeout(timeout_s) from exc


def body_timeout(timeout_s: float) -> BodyTimeoutError:
    """Return the error of a body that did not arrive in time."""
    return BodyTimeoutError(f"The body did not arrive within {timeout_s:g} s.")


def too_late(timeout_s: float) -> str:
    """Return the detail of the problem when an answer was not ready in time."""
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
