"""Reads the bodies of events and encodes the answers to them; shared by the calls for one event and for many."""

import asyncio
import zlib
from collections.abc import Collection
from typing import Final, NamedTuple, TypeVar
from urllib.parse import parse_qsl

import msgspec
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from app.auth.scopes import Scope
from app.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    DeadlineExceededError,
    ForbiddenError,
    InvalidJsonError,
    InvalidRequestError,
    UnsupportedEncodingError,
    UnsupportedMediaTypeError,
    WillbuyError,
)
from app.scoring.parsing import parse_object
from app.scoring.session_update import Score
from model.interventions.decide import Decision

Body = TypeVar("Body", bound=BaseModel)

NDJSON: Final = "application/x-ndjson"
# Names that senders use for lines of JSON; none is registered.
_LINES: Final = frozenset(
    {
        NDJSON,
        "application/ndjson",
        "application/jsonl",
        "application/x-jsonl",
        "application/jsonlines",
        "application/x-jsonlines",
        "application/json-lines",
    }
)
_GZIP: Final = frozenset({"gzip", "x-gzip"})
# RFC 1952 allows several members; each costs as much as some events.
_MOST_GZIP_MEMBERS: Final = 16
_WITH_GZIP_HEADER: Final = 31
# Bytes that are there reach the reader of a body within a few turns of the event loop.
_QUIET_TURNS: Final = 16
_CONTROL: Final = "control"
_NOT_BOOLEAN: Final = "expected true or false"
CONTROL_PARAMETER: Final = {
    "name": _CONTROL,
    "in": "query",
    "required": False,
    "description": "Whether the answer has decisions of control groups too; needs `sessions:read` as well.",
    "schema": {"type": "boolean", "default": False},
}
_encode = msgspec.json.Encoder().encode


class BodyForm(NamedTuple):
    """How a body is written: as lines of JSON or as one JSON text, compressed or not."""

    is_lines: bool = False
    is_gzip: bool = False


def check_headers(content_type: str | None, content_encoding: str | None, *, or_lines: bool = False) -> BodyForm:
    """Return the form of the body that the headers declare.

    Args:
        content_type: the header, None without one.
        content_encoding: the header, None without one.
        or_lines: whether lines of JSON are accepted too.

    Raises:
        UnsupportedMediaTypeError: the body is neither JSON nor lines that are accepted.
        UnsupportedEncodingError: the body has another compression than gzip.
    """
    media_type = (content_type or "").partition(";")[0].strip().lower()
    is_lines = or_lines and media_type in _LINES
    is_json = media_type == "application/json" or (
        media_type.startswith("application/") and media_type.endswith("+json")
    )
    if not is_lines and not is_json:
        accepted = f"application/json` or `{NDJSON}" if or_lines else "application/json"
        raise UnsupportedMediaTypeError(f"Expected the header `Content-Type: {accepted}`.")
    coding = (content_encoding or "").strip().lower()
    if coding not in {"", "identity", *_GZIP}:
        raise UnsupportedEncodingError("Expected `Content-Encoding: gzip`, or a body that is not compressed.")
    return BodyForm(is_lines, coding in _GZIP)


def gunzip(body: bytes, max_bytes: int) -> bytes:
    """Return a body without its compression, of at most `max_bytes`.

    Raises:
        InvalidJsonError: the body is not gzip.
        BodyTooLargeError: it has more bytes; no more than the limit was decompressed.
    """
    parts: list[bytes] = []
    size = 0
    for _ in range(_MOST_GZIP_MEMBERS):
        member = zlib.decompressobj(_WITH_GZIP_HEADER)
        try:
            parts.append(member.decompress(body, max_bytes - size + 1))
        except zlib.error as exc:
            raise InvalidJsonError("The body is not gzip, as its `Content-Encoding` says.") from exc
        size += len(parts[-1])
        if size > max_bytes:
            raise BodyTooLargeError(f"Expected a body of at most {max_bytes} bytes when decompressed.")
        if not member.eof:
            raise InvalidJsonError("The gzip body ends early.")
        body = member.unused_data
        if not body:
            return b"".join(parts)
    raise InvalidJsonError(f"The gzip body has more than {_MOST_GZIP_MEMBERS} members.")


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


async def read_object(request: Request, kind: type[Body], max_bytes: int) -> Body:
    """Return the object in the JSON body of a request, for calls that take no events.

    A body of another media type is refused, so that no form of another site can send it.

    Args:
        request: the request.
        kind: of the object.
        max_bytes: largest size of the decompressed body.

    Raises:
        WillbuyError: the body is not such an object; the message names every field at fault.
    """
    form = check_headers(request.headers.get("content-type"), request.headers.get("content-encoding"))
    body = await read_body(request.receive)
    return parse_object(gunzip(body, max_bytes) if form.is_gzip else body, kind)


async def out_of_time(receive: Receive, timeout_s: float) -> WillbuyError:
    """Return the error of a request whose deadline passed before its body was read.

    The body may lie in the socket, where the process was stopped meanwhile; then the sender was not slow.
    """
    received = 0

    async def receive_counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        return message

    reading = asyncio.create_task(read_body(receive_counted))
    try:
        before, quiet_turns = 0, 0
        while quiet_turns < _QUIET_TURNS and not reading.done():
            # The event loop reads sockets once in each turn.
            await asyncio.sleep(0)
            quiet_turns = quiet_turns + 1 if received == before else 0
            before = received
        if not reading.done() or not received:
            return BodyTimeoutError(f"The body did not arrive within {timeout_s:g} s.")
        reading.result()  # raises when the sender has left, or the body is too large
        return DeadlineExceededError(too_late(timeout_s))
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


def too_late(timeout_s: float) -> str:
    """Return the detail of the problem when an answer was not ready in time."""
    return f"No answer within {timeout_s:g} s; send the event again with the same event_id."


class InterventionBody(msgspec.Struct):
    """A rule that fired: an `app.schemas.events.InterventionOut`."""

    name: str
    group: str
    probability: float


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
    interventions: tuple[InterventionBody, ...]


def asks_control(query: bytes, scopes: Collection[Scope] | None) -> bool:
    """Return whether a caller asks for decisions of control groups too: `?control=true`.

    Args:
        query: the query string; other parameters are ignored.
        scopes: of the caller's key; None: open access.

    Raises:
        InvalidRequestError: the value is neither true nor false.
        ForbiddenError: the key may not read sessions, which have these decisions as well.
    """
    asked = [value for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True) if name == _CONTROL]
    if set(asked) - {"true", "false"}:
        raise InvalidRequestError(
            f"{_CONTROL}: {_NOT_BOOLEAN}", [{"field": _CONTROL, "message": _NOT_BOOLEAN, "code": "bool_parsing"}]
        )
    if "true" not in asked:
        return False
    if scopes is not None and Scope.SESSIONS_READ not in scopes:
        raise ForbiddenError(f"`control=true` needs a key with the scope `{Scope.SESSIONS_READ}`.", Scope.SESSIONS_READ)
    return True


def score_body(score: Score, *, with_control: bool = False) -> ScoreBody:
    """Return what is answered with a score; decisions of control groups only where they are asked for."""
    answer = score.answer
    return ScoreBody(
        session_id=score.session_id,
        probability=None if answer.outcome else answer.probability,
        events=answer.events,
        model=answer.model,
        outcome=answer.outcome.word,
        folded=answer.folded,
        duplicate=score.duplicate,
        warnings=score.warnings,
        interventions=_told(score.decisions, with_control=with_control) if score.decisions else (),
    )


def _told(decisions: tuple[Decision, ...], *, with_control: bool) -> tuple[InterventionBody, ...]:
    return tuple(
        InterventionBody(one.rule, one.group.word, one.probability) for one in decisions if one.told or with_control
    )


def score_json(score: Score, *, with_control: bool = False) -> bytes:
    """Return the answer to one event as JSON; see `score_body`."""
    return _encode(score_body(score, with_control=with_control))
