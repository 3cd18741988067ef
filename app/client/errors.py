"""What a call to the service can come to other than an answer.

    ClientError
      NoAnswerError          no answer came back, as often as it was tried
      UnexpectedAnswerError  something answered, and not as willbuy does
      ProblemError           the service said no, and why: `code` is the stable name
        UnavailableError     it could not answer now (429, 502, 503, 504), as often as it was tried
      IncompleteBatchError   a batch broke off; it knows what was answered and what was not

After `NoAnswerError` and `UnavailableError` nobody knows whether the event was counted: send it again with the same
`event_id`, and it counts once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.schemas.events import FieldError, Problem, ScoreOut


class ClientError(Exception):
    """A call that brought no answer.

    Attributes:
        event_id: id of the event that was sent, also where the client made it; None for other calls.
    """

    event_id: str | None = None


class NoAnswerError(ClientError):
    """No answer came back; the cause is the last attempt's."""


class UnexpectedAnswerError(ClientError):
    """Something answered that is no willbuy service, or one of another kind.

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
        code: stable name of the error; `http_<status>` where something before the service answered.
        title: what the code means.
        detail: what was wrong this time.
        errors: the fields at fault, where there are some.
        retry_after_s: after how many seconds to try again, where the answer says so.
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
    """The service could not answer in time; the request was as it should be."""


@dataclass(frozen=True, slots=True)
class SentEvent:
    """What became of one event of a batch.

    Attributes:
        event_id: its id, also where the client made it.
        score: the answer, unless there was a problem.
        problem: what was wrong, unless there was an answer.
    """

    event_id: str
    score: ScoreOut | None
    problem: Problem | None


class IncompleteBatchError(ClientError):
    """A request of a batch brought no answer, and those after it were not sent; the cause says why.

    Attributes:
        results: what became of the events before, in order.
        unanswered: the events after them, each with its `event_id`: to be sent again as they are.
    """

    def __init__(
        self, cause: ClientError, results: Sequence[SentEvent], unanswered: Sequence[Mapping[str, Any]]
    ) -> None:
        super().__init__(f"{len(unanswered)} of {len(results) + len(unanswered)} events without an answer: {cause}")
        self.results = list(results)
        self.unanswered = list(unanswered)
