"""All errors that callers see, each with its HTTP status and a stable code.

By the part of the service that raises them:

    access  -> MalformedRequestError, UnknownPathError, HeadTooLargeError,
               UnauthorizedError, ForbiddenError, RateLimitedError
    request -> InvalidJsonError, UnsupportedMediaTypeError, UnsupportedEncodingError, BodyTooLargeError,
               TooManyEventsError, TooManySessionEventsError,
               BodyTimeoutError, InvalidEventError, InvalidRequestError
    batcher -> OverloadedError, ShuttingDownError, DeadlineExceededError
    scorer  -> SessionNotFoundError, SessionFullError, SessionTooLargeError, OutcomeConflictError, ConflictError,
               PredictionError
    board   -> BoardBusyError, TooManyStreamsError
    rules   -> RuleNotFoundError, WebhookNotFoundError
    model   -> ReloadDisabledError, ReloadInProgressError, ArtifactRefusedError
    store   -> StoreUnavailableError, CorruptRecordError, HistoryGoneError

`to_problem` converts each into a body of RFC 9457 (https://www.rfc-editor.org/rfc/rfc9457).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

from starlette.responses import Response

PROBLEM_JSON: Final = "application/problem+json"
MAX_FIELD_ERRORS: Final = 20
# Codes of errors that the framework raises, by status.
FRAMEWORK_CODES: Final[Mapping[int, str]] = {404: "not_found", 405: "method_not_allowed"}
OTHER_FRAMEWORK_CODE: Final = "http_error"
_MAX_ECHO_CHARS: Final = 64
UNKNOWN_FIELD: Final = "unknown field"
OWN_FACTS: Final = "unknown field; the shop's own facts belong into `properties`"


class WillbuyError(Exception):
    """An error that the caller sees.

    Attributes:
        status: HTTP status of the answer.
        code: stable, machine-readable name; part of the interface, never renamed.
        title: meaning of the code, the same for every occurrence.
        retry_after_s: value of the header `Retry-After`; None: no such header.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "The service failed on this request"
    retry_after_s: ClassVar[int | None] = None

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    @property
    def members(self) -> Mapping[str, Any]:
        """Members of the problem body in addition to the common ones."""
        return {}

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers of the answer: `Retry-After` if a retry can succeed."""
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


class HeadTooLargeError(WillbuyError):
    """The request target and headers exceed the limit of bytes or of headers."""

    status = 431
    code = "head_too_large"
    title = "The request's address and headers are too large"


class MalformedRequestError(WillbuyError):
    """The bytes are not an HTTP request."""

    status = 400
    code = "malformed_request"
    title = "The request is not valid HTTP"


class UnknownPathError(WillbuyError):
    """There is nothing under this path."""

    status = 404
    code = "not_found"
    title = "Not Found"

    def __init__(self, detail: str = "Not Found; /openapi.json lists what there is.") -> None:
        super().__init__(detail)


class UnauthorizedError(WillbuyError):
    """The request has no API key, or an unknown one.

    Args:
        detail: explains which of the two.
        came_with_key: whether the request has a key.
    """

    status = 401
    code = "unauthorized"
    title = "The API key is missing or unknown"

    def __init__(self, detail: str, *, came_with_key: bool = False) -> None:
        super().__init__(detail)
        self._came_with_key = came_with_key

    @property
    def headers(self) -> Mapping[str, str]:
        """The challenge of RFC 6750, section 3."""
        error = ', error="invalid_token"' if self._came_with_key else ""
        return {"WWW-Authenticate": f'Bearer realm="willbuy"{error}'}


class ForbiddenError(WillbuyError):
    """The API key does not allow this."""

    status = 403
    code = "forbidden"
    title = "The API key does not allow this"

    def __init__(self, detail: str, scope: str) -> None:
        super().__init__(detail)
        self._scope = scope

    @property
    def headers(self) -> Mapping[str, str]:
        """The challenge of RFC 6750, section 3.1."""
        return {"WWW-Authenticate": f'Bearer realm="willbuy", error="insufficient_scope", scope="{self._scope}"'}


class RateLimitedError(WillbuyError):
    """The API key has reached its rate limit."""

    status = 429
    code = "rate_limited"
    title = "The API key has sent too much in too little time"
    retry_after_s = 1


class InvalidJsonError(WillbuyError):
    """The body is not a JSON text."""

    status = 400
    code = "invalid_json"
    title = "The body is not valid JSON"


class UnsupportedMediaTypeError(WillbuyError):
    """The declared media type of the body is not JSON."""

    status = 415
    code = "unsupported_media_type"
    title = "Send the body as application/json"


class UnsupportedEncodingError(WillbuyError):
    """The body has another compression than gzip."""

    status = 415
    code = "unsupported_content_encoding"
    title = "Send the body uncompressed or as gzip"

    @property
    def headers(self) -> Mapping[str, str]:
        """The accepted encodings (RFC 9110, section 15.5.16)."""
        return {"Accept-Encoding": "gzip, identity"}


class BodyTooLargeError(WillbuyError):
    """The body has more bytes than the limit."""

    status = 413
    code = "body_too_large"
    title = "The body is too large"


class TooManyEventsError(WillbuyError):
    """One request has more events than the limit."""

    status = 413
    code = "too_many_events"
    title = "The request has too many events"


class TooManySessionEventsError(WillbuyError):
    """One request has more events of a session than its record remembers, so a retry would not be safe."""

    status = 422
    code = "too_many_session_events"
    title = "The request has too many events of one session"


class EventIdReusedError(WillbuyError):
    """An event id comes again with another body: not a retry, but another event."""

    status = 422
    code = "event_id_reused"
    title = "The event id was used before for another event"


class BodyTimeoutError(WillbuyError):
    """The body did not arrive within the request's deadline."""

    status = 408
    code = "body_timeout"
    title = "The body arrived too slowly"


class _FieldsError(WillbuyError):
    """Some fields are invalid; `errors` names each."""

    status = 422

    def __init__(self, detail: str, errors: Sequence[Mapping[str, str]]) -> None:
        super().__init__(detail)
        self.errors = [dict(error) for error in errors]

    @property
    def members(self) -> Mapping[str, Any]:
        return {"errors": self.errors}


class InvalidEventError(_FieldsError):
    """The body is JSON, but not a valid event."""

    code = "invalid_event"
    title = "The event has fields that cannot be accepted"


class InvalidRequestError(_FieldsError):
    """A path or query parameter is invalid."""

    code = "invalid_request"
    title = "The request has parameters that cannot be accepted"


class OverloadedError(WillbuyError):
    """The queue of events is full."""

    status = 503
    code = "overloaded"
    title = "Too many events are waiting"
    retry_after_s = 1


class ShuttingDownError(WillbuyError):
    """The service is draining and accepts no new events."""

    status = 503
    code = "shutting_down"
    title = "This replica is shutting down"
    retry_after_s = 1


class DeadlineExceededError(WillbuyError):
    """The answer was not ready within the request's deadline."""

    status = 503
    code = "deadline_exceeded"
    title = "The answer was not ready in time"
    retry_after_s = 1


class SessionNotFoundError(WillbuyError):
    """There is no record of the session: it never existed, has expired, or was erased."""

    status = 404
    code = "session_not_found"
    title = "There is no such session"


class RuleNotFoundError(WillbuyError):
    """The file of rules has no rule of this name."""

    status = 404
    code = "rule_not_found"
    title = "There is no such rule"


class WebhookNotFoundError(WillbuyError):
    """The file of rules has no webhook of this name."""

    status = 404
    code = "webhook_not_found"
    title = "There is no such webhook"


class SessionFullError(WillbuyError):
    """The session has the largest allowed number of events; the limit keeps rebuilds exact and bounded."""

    status = 409
    code = "session_full"
    title = "The session has reached its largest number of events"


class SessionTooLargeError(WillbuyError):
    """With the event, the session's history would be larger than allowed; a smaller event may still fit."""

    status = 409
    code = "session_too_large"
    title = "The session's events have reached their largest size"


class OutcomeConflictError(WillbuyError):
    """The session was closed before with another outcome."""

    status = 409
    code = "outcome_conflict"
    title = "The session was closed with another outcome"


class ConflictError(WillbuyError):
    """Other replicas committed to the session in each of the allowed attempts."""

    status = 409
    code = "conflict"
    title = "Another request changed the session at the same time"
    retry_after_s = 1


class PredictionError(WillbuyError):
    """The model failed on this event."""

    code = "prediction_failed"
    title = "The model could not score this event"


class BoardBusyError(WillbuyError):
    """Too many different queries about the sessions are in progress."""

    status = 503
    code = "board_busy"
    title = "Too many different queries are waiting"
    retry_after_s = 1


class TooManyStreamsError(WillbuyError):
    """The replica has the largest allowed number of open streams."""

    status = 503
    code = "too_many_streams"
    title = "Too many streams are open"
    retry_after_s = 5


class ReloadDisabledError(WillbuyError):
    """Loading another artifact by request is switched off."""

    status = 403
    code = "reload_disabled"
    title = "Reloading by request is switched off"


class ReloadInProgressError(WillbuyError):
    """Another artifact is being loaded."""

    status = 409
    code = "reload_in_progress"
    title = "Another reload is running"
    retry_after_s = 5


class ArtifactRefusedError(WillbuyError):
    """The artifact cannot be used; the loaded model stays."""

    status = 422
    code = "artifact_refused"
    title = "The artifact cannot be used"


class StoreError(WillbuyError):
    """The store cannot read or write a session."""


class StoreUnavailableError(StoreError):
    """Redis does not answer, or does not accept writes.

    Attributes:
        cause: the server's error word or another word for the cause; empty: not known. Not for callers of events.
    """

    status = 503
    code = "store_unavailable"
    title = "The session store is not available"
    retry_after_s = 1
    cause: str = ""


class CorruptRecordError(StoreError):
    """The stored record or history of a session cannot be decoded by this release."""

    code = "record_corrupt"
    title = "The session's record cannot be read"


class HistoryGoneError(CorruptRecordError):
    """Redis has evicted events of the session, so neither a trace nor another model's state can be computed."""

    status = 410
    code = "history_gone"
    title = "The session's events are gone"


def error_types(kind: type[WillbuyError] = WillbuyError) -> Iterator[type[WillbuyError]]:
    """Yield the subclasses of `kind` that have a title of their own; the others only group."""
    for below in kind.__subclasses__():
        if "title" in vars(below):
            yield below
        yield from error_types(below)


def problem_codes() -> list[str]:
    """Return all codes of problems, sorted."""
    raised = {error.code for error in error_types()}
    return sorted({*raised, WillbuyError.code, *FRAMEWORK_CODES.values(), OTHER_FRAMEWORK_CODE})


def problem(status: int, code: str, title: str, detail: str, **members: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """Return a problem body; `type` is a URN, so that no client depends on a web page."""
    return {
        "type": f"urn:willbuy:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        **members,
    }


def without_traceback(error: Exception) -> Exception:
    """Return an error that a list is to keep, without the tracebacks of an expected one and of its causes.

    A traceback keeps the frames of all callers, so also the list and the request's body. Such a cycle stays until a
    garbage collection, which is rare (`app.runtime.gc`). An unexpected error keeps its traceback for the log.
    """
    if isinstance(error, WillbuyError):
        cause: BaseException | None = error
        while cause is not None:
            cause.__traceback__ = None
            cause = cause.__cause__ or cause.__context__
    return error


def to_problem(error: WillbuyError) -> dict[str, Any]:
    """Return the problem body of an error."""
    return problem(error.status, error.code, error.title, error.detail, **error.members)


def problem_response(body: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    """Return a problem as a response; ASCII only, so that it can quote any input of the caller."""
    content = json.dumps(body, ensure_ascii=True, allow_nan=False).encode()
    return Response(content, status_code=body["status"], headers=headers, media_type=PROBLEM_JSON)


def error_response(error: WillbuyError) -> Response:
    """Return an error as a problem response, with the error's headers."""
    return problem_response(to_problem(error), dict(error.headers))


def field_errors(errors: Sequence[Mapping[str, Any]], unknown: str = UNKNOWN_FIELD) -> list[dict[str, str]]:
    """Return pydantic's errors as field, message and code; of the input only shortened field names are echoed.

    Args:
        errors: pydantic's.
        unknown: the message of a field that there is not.
    """
    return [
        {
            "field": shortened(".".join(str(part) for part in error["loc"] if part != "[key]")) or "body",
            "message": unknown if error["type"] == "extra_forbidden" else error["msg"],
            "code": error["type"],
        }
        for error in errors[:MAX_FIELD_ERRORS]
    ]


def shortened(text: str) -> str:
    """Return a text cut to a bounded length, with surrogates escaped, for an error message."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _MAX_ECHO_CHARS else text[:_MAX_ECHO_CHARS] + "…"
