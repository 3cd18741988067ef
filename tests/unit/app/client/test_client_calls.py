"""The client's calls without a network: what is sent, what is tried again and when, and what it comes to."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.client import Client
from app.client.calls import Calls, session_path, with_event_id
from app.client.errors import (
    IncompleteBatchError,
    NoAnswerError,
    ProblemError,
    UnavailableError,
    UnexpectedAnswerError,
)
from app.client.retries import Answer, Attempt, Pause, Request, Retries, exchange, retry_after_s
from app.schemas.events import EVENT_EXAMPLE, EventIn

SCORE = {
    "session_id": "s-81",
    "probability": 0.25,
    "events": 1,
    "model": "m",
    "outcome": "open",
    "folded": True,
    "duplicate": False,
    "warnings": [],
}
EVENT = {"session_id": "s-81", "event_name": "page_view", "event_id": "e-1"}


class Clock:
    """A clock that only pauses move."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def calls_of(
    clock, *, draw=lambda _low, high: high, batch_events=1000, batch_bytes=10**6, session_events=64, **retries
):
    limits = Retries(clock=clock, draw=draw, **retries)
    return Calls(limits, batch_events, batch_bytes, session_events, limits)


def answer(status=200, body=SCORE, **headers):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(
        status,
        httpx.Headers([(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]),
        content,
    )


def problem(status, code="overloaded", **headers):
    body = {"type": "t", "title": "T", "status": status, "detail": "No.", "code": code}
    return answer(status, body, **headers)


def items(*statuses):
    told = [
        {"status": status, "score": SCORE}
        if status == 200
        else {"status": status, "problem": {"type": "t", "title": "T", "status": status, "detail": "d", "code": "c"}}
        for status in statuses
    ]
    return answer(body={"results": told})


class Conversation:
    """Drives a call: gives it what comes, one thing an attempt, and keeps what it wanted to do."""

    def __init__(self, call, came, clock):
        self.attempts: list[Attempt] = []
        self.pauses: list[float] = []
        rest = iter(came)
        given = None
        try:
            while True:
                step = call.send(given)
                if isinstance(step, Pause):
                    self.pauses.append(step.seconds)
                    clock.now += step.seconds
                    given = None
                else:
                    self.attempts.append(step)
                    given = next(rest)
        except StopIteration as done:
            self.result = done.value
        assert next(rest, None) is None, "not all that was to come was asked for"

    def bodies(self):
        return [json.loads(attempt.request.content or b"") for attempt in self.attempts]

    def lines(self):
        return [
            [json.loads(line) for line in (attempt.request.content or b"").split(b"\n")] for attempt in self.attempts
        ]


# --- one event


def test_an_event_is_sent_and_its_score_returned():
    clock = Clock()
    talk = Conversation(calls_of(clock).send(EVENT), [answer()], clock)
    (attempt,) = talk.attempts
    assert (attempt.request.method, attempt.request.path) == ("POST", "/v1/events")
    assert talk.bodies() == [EVENT]
    assert talk.result.probability == 0.25


def test_an_event_without_an_id_gets_one_and_keeps_it_over_retries():
    clock, event = Clock(), {"session_id": "s-81", "event_name": "page_view"}
    talk = Conversation(calls_of(clock).send(event), [problem(503), httpx.ReadTimeout("late"), answer()], clock)
    ids = {body["event_id"] for body in talk.bodies()}
    assert len(talk.bodies()) == 3
    assert len(ids) == 1
    assert len(ids.pop()) == 36
    # And the caller's own event stays as it was
    assert "event_id" not in event


def test_ids_that_the_client_makes_differ():
    assert len({with_event_id({"session_id": "s"})["event_id"] for _ in range(1000)}) == 1000


@pytest.mark.parametrize("given_id", [None, ""])
def test_an_empty_id_counts_as_none(given_id):
    assert len(with_event_id({"event_id": given_id})["event_id"]) == 36


def test_an_event_model_is_sent_as_a_mapping_would_be():
    clock = Clock()
    event = {**EVENT_EXAMPLE, "timestamp": "2026-11-22T10:15:00Z"}
    talk = Conversation(calls_of(clock).send(EventIn.model_validate(event)), [answer()], clock)
    stamp_ms = int(datetime(2026, 11, 22, 10, 15, tzinfo=UTC).timestamp() * 1000)
    assert talk.bodies() == [{**EVENT_EXAMPLE, "timestamp": stamp_ms}]


def test_a_datetime_is_sent_with_its_offset():
    clock, at = Clock(), datetime(2026, 11, 22, 12, 15, tzinfo=timezone(timedelta(hours=2)))
    talk = Conversation(calls_of(clock).send({**EVENT, "timestamp": at}), [answer()], clock)
    assert talk.bodies()[0]["timestamp"] == "2026-11-22T12:15:00+02:00"


@pytest.mark.parametrize(
    ("value", "error"),
    [(datetime(2026, 11, 22), ValueError), (float("nan"), ValueError), (object(), TypeError)],  # noqa: DTZ001  # no offset on purpose
)
def test_what_json_cannot_say_is_refused_before_anything_is_sent(value, error):
    with pytest.raises(error):
        next(calls_of(Clock()).send({**EVENT, "timestamp": value}))


# --- what is tried again


@pytest.mark.parametrize(
    "came",
    [
        *(problem(status) for status in (408, 429, 502, 503, 504)),
        answer(502, b"<html>Bad gateway</html>"),
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("cut"),
        httpx.PoolTimeout("full"),
    ],
    ids=str,
)
def test_what_may_pass_is_tried_again(came):
    clock = Clock()
    talk = Conversation(calls_of(clock).send(EVENT), [came, came, answer()], clock)
    assert talk.bodies() == [EVENT] * 3
    assert len(talk.pauses) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 415, 422, 500, 501])
def test_what_does_not_pass_is_not_tried_again(status):
    clock = Clock()
    with pytest.raises(ProblemError) as refused:
        Conversation(calls_of(clock).send(EVENT), [problem(status, "the_code")], clock)
    assert (refused.value.status, refused.value.code, refused.value.detail) == (status, "the_code", "No.")
    assert not isinstance(refused.value, UnavailableError)
    assert refused.value.event_id == "e-1"


def test_a_failure_that_is_no_passing_one_is_not_tried_again():
    clock = Clock()
    with pytest.raises(NoAnswerError, match="tried once") as failed:
        Conversation(calls_of(clock).send(EVENT), [httpx.LocalProtocolError("illegal header")], clock)
    assert isinstance(failed.value.__cause__, httpx.LocalProtocolError)


def test_waits_double_up_to_a_bound_and_end_before_the_deadline():
    clock = Clock()
    calls = calls_of(clock, first_wait_s=0.1, longest_wait_s=1.0, deadline_s=5.0)
    with pytest.raises(UnavailableError) as failed:
        Conversation(calls.send(EVENT), [problem(503)] * 9, clock)
    assert failed.value.code == "overloaded"
    # The waits, and those that fit between 0 and 5 s: 0.1 0.2 0.4 0.8 1 1 1 sum to 4.5
    assert clock.now - 100.0 == pytest.approx(4.5)


def test_the_wait_is_drawn_between_zero_and_its_bound():
    clock, asked = Clock(), []

    def draw(low, high):
        asked.append((low, high))
        return 0.0

    calls = calls_of(clock, draw=draw, first_wait_s=0.5, longest_wait_s=1.5)
    Conversation(calls.send(EVENT), [problem(503)] * 3 + [answer()], clock)
    assert asked == [(0.0, 0.5), (0.0, 1.0), (0.0, 1.5)]


def test_retry_after_is_waited_for_and_jitter_comes_on_top():
    clock = Clock()
    calls = calls_of(clock, first_wait_s=0.25, deadline_s=10.0)
    talk = Conversation(
        calls.send(EVENT), [problem(503, retry_after="3"), problem(429, retry_after="1"), answer()], clock
    )
    assert talk.pauses == [3.25, 1.5]


def test_a_retry_after_beyond_the_deadline_ends_the_call_at_once():
    clock = Clock()
    with pytest.raises(UnavailableError) as failed:
        Conversation(calls_of(clock).send(EVENT), [problem(503, retry_after="60")], clock)
    assert failed.value.retry_after_s == 60.0
    assert clock.now == 100.0


def test_no_attempt_waits_beyond_the_deadline():
    clock = Clock()
    calls = calls_of(clock, timeout_s=5.0, deadline_s=6.0, first_wait_s=3.0, longest_wait_s=3.0)
    talk = Conversation(calls.send(EVENT), [problem(503), answer()], clock)
    # By the clock as it is after the last attempt
    assert [attempt.left_s() for attempt in talk.attempts] == [3.0, 3.0]
    assert {attempt.give_up_at for attempt in talk.attempts} == {106.0}


def test_a_failure_tells_how_often_it_was_tried_and_which_event_it_was():
    clock = Clock()
    calls = calls_of(clock, first_wait_s=1.0, longest_wait_s=1.0, deadline_s=2.5)
    with pytest.raises(NoAnswerError, match=r"POST /v1/events: no answer, tried 3 times: ConnectError") as failed:
        Conversation(calls.send({"session_id": "s"}), [httpx.ConnectError("refused")] * 3, clock)
    assert len(str(failed.value.event_id)) == 36


@pytest.mark.parametrize(
    ("value", "expected"),
    [("0", 0.0), ("7", 7.0), ("", None), ("soon", None), ("-1", None), ("1.5", None), ("\xb2", None)],
)
def test_retry_after_in_seconds_is_understood_and_nonsense_left_alone(value, expected):
    assert retry_after_s(answer(503, retry_after=value)) == expected


def test_retry_after_as_a_date_is_understood():
    now = datetime.now(UTC)
    ahead = retry_after_s(answer(503, retry_after=format_datetime(now + timedelta(seconds=100), usegmt=True)))
    assert ahead is not None
    assert 0 < ahead <= 100
    assert retry_after_s(answer(503, retry_after=format_datetime(now - timedelta(days=1), usegmt=True))) == 0.0
    # Without a zone it is of UTC
    unzoned = format_datetime((now + timedelta(seconds=100)).replace(tzinfo=None))
    assert unzoned.endswith("-0000")
    ahead = retry_after_s(answer(503, retry_after=unzoned))
    assert ahead is not None
    assert 0 < ahead <= 100


def test_a_session_whose_id_is_spelt_in_two_ways_has_one_count():
    events = [{"session_id": given, "event_id": given} for given in ("s", " s ", "t", "s")]
    requests = [lines for _, lines in calls_of(Clock(), session_events=2)._requests(events)]  # noqa: SLF001 - same
    assert [len(lines) for lines in requests] == [3, 1]


def test_no_step_of_an_attempt_may_take_longer_than_the_call():
    allowed: list[float] = []

    def handler(request):
        # As httpx asks, when a step begins
        allowed.extend(request.extensions["timeout"].get(step) for step in ("connect", "read"))
        return httpx.Response(200, json=SCORE)

    transport = httpx.MockTransport(handler)
    for timeout_s, deadline_s, longest_s in ((30.0, 0.5, 0.5), (0.5, 30.0, 0.5)):
        with Client("http://shop", http=httpx.Client(transport=transport)) as client:
            client.send(EVENT, timeout_s=timeout_s, deadline_s=deadline_s)
        assert all(0 < step <= longest_s for step in allowed)
        allowed.clear()


def test_a_call_that_shares_a_deadline_ends_with_it():
    clock = Clock()
    talk = Conversation(exchange(Request("GET", "/"), Retries(clock=clock), 100.0), [problem(503)], clock)
    assert talk.result.status == 503


# --- answers that are none


def test_a_gateways_error_is_a_problem_with_a_code_of_its_status():
    clock = Clock()
    with pytest.raises(ProblemError) as refused:
        Conversation(calls_of(clock).send(EVENT), [answer(403, b"<html>Forbidden</html>")], clock)
    assert (refused.value.code, refused.value.detail) == ("http_403", "<html>Forbidden</html>")


@pytest.mark.parametrize("came", [answer(200, b"<html>"), answer(200, {}), answer(204, b""), answer(302, b"")], ids=str)
def test_an_answer_that_is_not_willbuys_is_told_apart(came):
    clock = Clock()
    with pytest.raises(UnexpectedAnswerError) as failed:
        Conversation(calls_of(clock).send(EVENT), [came], clock)
    assert failed.value.status == came.status


def test_fields_that_a_later_service_adds_are_passed_over():
    clock = Clock()
    assert Conversation(calls_of(clock).send(EVENT), [answer(body={**SCORE, "new": 1})], clock).result.events == 1


def test_fields_at_fault_are_told():
    clock = Clock()
    body = {"type": "t", "title": "T", "status": 422, "detail": "d", "code": "invalid_event"}
    errors = [{"field": "price", "message": "expected a number", "code": "float_type"}]
    with pytest.raises(ProblemError, match=r"invalid_event \(422\): d") as refused:
        Conversation(calls_of(clock).send(EVENT), [answer(422, {**body, "errors": errors})], clock)
    assert refused.value.errors[0].field == "price"


# --- batches


def visit(count, sessions=100):
    return [{"session_id": f"s-{number % sessions}", "event_name": "page_view"} for number in range(count)]


def test_no_events_are_no_request():
    clock = Clock()
    talk = Conversation(calls_of(clock).send_batch([]), [], clock)
    assert (talk.result, talk.attempts) == ([], [])


def test_a_batch_is_split_at_the_most_events_and_keeps_its_order():
    clock, events = Clock(), visit(7)
    talk = Conversation(
        calls_of(clock, batch_events=3).send_batch(events), [items(*[200] * n) for n in (3, 3, 1)], clock
    )
    assert [len(lines) for lines in talk.lines()] == [3, 3, 1]
    sent = [body for lines in talk.lines() for body in lines]
    assert [body["session_id"] for body in sent] == [event["session_id"] for event in events]
    assert [result.event_id for result in talk.result] == [body["event_id"] for body in sent]
    assert {attempt.request.content_type for attempt in talk.attempts} == {"application/x-ndjson"}


@given(
    st.lists(st.integers(0, 3), max_size=40),
    st.integers(1, 9),
    st.integers(1, 400),
    st.integers(1, 4),
)
def test_no_request_is_larger_than_any_bound_unless_one_event_alone_is(sessions, most, most_bytes, of_session):
    events = [{"session_id": f"s-{number}", "event_id": f"e-{at}"} for at, number in enumerate(sessions)]
    calls = calls_of(Clock(), batch_events=most, batch_bytes=most_bytes, session_events=of_session)
    requests = [lines for _, lines in calls._requests(events)]  # noqa: SLF001 - requests before any is sent
    assert [json.loads(line) for lines in requests for line in lines] == events
    for lines in requests:
        ids = [json.loads(line)["session_id"] for line in lines]
        assert len(lines) <= most
        assert len(b"\n".join(lines)) <= most_bytes or len(lines) == 1
        assert max(map(ids.count, ids)) <= of_session


def test_an_event_of_a_batch_that_was_not_taken_is_sent_again_and_one_that_was_refused_is_not():
    clock, events = Clock(), visit(4)
    talk = Conversation(
        calls_of(clock).send_batch(events), [items(200, 503, 422, 429), items(429, 200), items(200)], clock
    )
    ids = [[body["event_id"] for body in lines] for lines in talk.lines()]
    assert ids[1] == [ids[0][1], ids[0][3]]
    assert ids[2] == [ids[0][1]]
    assert [result.score is not None for result in talk.result] == [True, True, False, True]
    assert [result.event_id for result in talk.result] == ids[0]
    assert talk.result[2].problem.status == 422
    assert len(talk.pauses) == 2


def test_events_that_are_never_taken_keep_their_problem():
    clock = Clock()
    calls = calls_of(clock, first_wait_s=1.0, longest_wait_s=1.0, deadline_s=2.5)
    talk = Conversation(calls.send_batch(visit(2)), [items(200, 503), items(503), items(503)], clock)
    assert [result.problem and result.problem.status for result in talk.result] == [None, 503]


def test_a_batch_that_breaks_off_tells_what_was_answered_and_what_was_not():
    clock, events = Clock(), visit(5)
    call = calls_of(clock, batch_events=2).send_batch(events)
    with pytest.raises(IncompleteBatchError, match="3 of 5 events without an answer: forbidden") as broken:
        Conversation(call, [items(200, 422), problem(403, "forbidden")], clock)
    assert [result.problem and result.problem.status for result in broken.value.results] == [None, 422]
    unanswered = broken.value.unanswered
    assert [event["session_id"] for event in unanswered] == ["s-2", "s-3", "s-4"]
    assert all(event["event_id"] for event in unanswered)
    assert isinstance(broken.value.__cause__, ProblemError)


def test_an_answer_with_too_few_results_is_none():
    clock = Clock()
    with pytest.raises(IncompleteBatchError, match="1 results for 2 events"):
        Conversation(calls_of(clock).send_batch(visit(2)), [items(200)], clock)


# --- other calls


@pytest.mark.parametrize(
    ("session_id", "path"),
    [
        ("s-81", "/v1/sessions/s-81"),
        ("a/b?c#d%20 é", "/v1/sessions/a%2Fb%3Fc%23d%2520%20%C3%A9"),
        ("..", "/v1/sessions/%2E%2E"),
    ],
)
def test_a_session_id_is_escaped_in_the_path(session_id, path):
    assert session_path(session_id) == path


def test_an_empty_session_id_is_refused():
    with pytest.raises(ValueError, match="session_id: expected at least one character"):
        next(calls_of(Clock()).delete(""))


def test_filters_of_the_board_are_sent_where_they_are_given():
    clock = Clock()
    board = answer(body={"sessions": [], "next_cursor": None, "live_sessions": 0})
    query = {
        "order": "last_seen",
        "min_probability": None,
        "seen_since": datetime(2026, 11, 22, tzinfo=UTC),
        "limit": 5,
        "active_s": 300,
        "id_prefix": "s-",
        "rule": "voucher",
    }
    talk = Conversation(calls_of(clock).sessions(query), [board], clock)
    assert talk.attempts[0].request.params == {
        "order": "last_seen",
        "seen_since": "2026-11-22T00:00:00+00:00",
        "limit": "5",
        "active_s": "300",
        "id_prefix": "s-",
        "rule": "voucher",
    }


def test_an_erasure_that_is_refused_is_an_error():
    clock = Clock()
    with pytest.raises(ProblemError, match="invalid_request"):
        Conversation(calls_of(clock).delete("s"), [problem(422, "invalid_request")], clock)
    assert Conversation(calls_of(clock).delete("s"), [answer(204, b"")], clock).result is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout_s": 0}, "timeout_s: expected a number of seconds above 0"),
        ({"deadline_s": float("inf")}, "deadline_s: expected a number of seconds above 0"),
        ({"batch_events": 0}, "batch_events: expected a whole number from 1 up"),
        ({"session_events": -1}, "session_events: expected a whole number from 1 up"),
        ({"api_key": "line\nbreak"}, "api_key: expected printable ASCII"),
        ({"api_key": "schlüssel"}, "api_key: expected printable ASCII"),
    ],
)
def test_options_that_are_none_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Client("http://127.0.0.1", **options)


def test_an_address_without_a_scheme_is_refused():
    with pytest.raises(ValueError, match=r"url: expected http:// or https://, not '127\.0\.0\.1:8000'"):
        Client("127.0.0.1:8000")


def test_by_default_a_call_has_200_ms_and_a_batch_10_s():
    assert Calls().retries.deadline_s == 0.2
    assert Calls().batch_retries.deadline_s == 10.0
    assert Calls().within({"deadline_s": 1.0}).batch_retries.deadline_s == 1.0


def test_limits_of_one_call_do_not_outlast_it():
    calls = calls_of(Clock(), timeout_s=5.0)
    assert calls.within({"timeout_s": 0.5}).retries.timeout_s == 0.5
    assert calls.within({}) is calls
    with pytest.raises(ValueError, match="deadline_s"):
        calls.within({"deadline_s": -1})


def test_the_client_loads_neither_torch_nor_the_service():
    heavy = "('torch', 'fastapi', 'starlette', 'uvicorn', 'redis', 'numpy', 'polars')"
    code = f"import sys, app.client; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
