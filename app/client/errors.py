"""Errors of a call to the service.

    ClientError
      NoAnswerError          no attempt had an answer
      UnexpectedAnswerError  the answer is not one of a willbuy service
      ProblemError           the service refused the request; `code` is the stable name of the reason
        UnavailableError     the service could not answer in any attempt (408, 429, 502, 503, 504)
      IncompleteBatchError   a batch ended early; the error has the results and the unanswered events

After `NoAnswerError` and `UnavailableError` it is unknown whether the event was counted. Send it again with the same
`event_id`, and it counts once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.schemas.events import ScoreOut
from app.schemas.problems import FieldError, Problem


class ClientError(Exception):
    """A call without the expected answer.

    Attributes:
        event_id: id of the event that was sent, even if the client made it; None for other calls.
    """

    event_id: str | None = None


class NoAnswerError(ClientError):
    """No attempt had an answer; the cause is the last attempt's."""


class UnexpectedAnswerError(ClientError):
    """The answer is not one of a willbuy service, or of one of another version.

    Attributes:
        status: HTTP status of the answer.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class ProblemError(ClientError):
    """The service refused the request.

    Attributes:
        status: HTTP status.
        code: stable name of the error; `http_<status>` where a proxy answered.
        title: what the code means.
        detail: the fault of this request.
        errors: the invalid fields, if any.
        retry_after_s: wait before the next attempt, in seconds, if the answer has one.
    """

    def __init__(self, problem: Problem, retry_after_s: float | None = None) -> None:
        super().__init__(f"{problem.code} ({problem.status}): {problem.detail}")
        self.status = problem.status
        self.code = problem.code
        self.title = problem.title
        self.detail = problem.detail
        self.errors: list[FieldError] = problem.errors or []
        self.retry_after_s = retry_after_s


class UnavailableError(ProblemError):
    """The service could not answer now; the request is valid."""


@dataclass(frozen=True, slots=True)
class SentEvent:
    """Result of one event of a batch.

    Attributes:
        event_id: its id, even if the client made it.
        score: the answer, unless there was a problem.
        problem: the problem, unless there was an answer.
    """

    event_id: str
    score: ScoreOut | None
    problem: Problem | None


class IncompleteBatchError(ClientError):
    """A request of a batch had no answer, and the later requests were not sent; the cause says why.

    Attributes:
        results: results of the events before, in order.
        unanswered: the other events, each with its `event_id`; send them again unchanged.
    """

    def __init__(
        self, cause: ClientError, results: Sequence[SentEvent], unanswered: Sequence[Mapping[str, Any]]
    ) -> None:
        super().__init__(f"{len(unanswered)} of {len(results) + len(unanswered)} events without an answer: {cause}")
        self.results = list(results)
        self.unanswered = list(unanswered)
