"""The client against the real service and a real server behind it, over connections that lose answers; and against what
is no service at all.
"""

import json
import os
import signal
import time

import httpx
import pytest
from support.lossy_proxy import lossy_proxy
from support.scripted_http import Reply, scripted_server
from support.service import Service

from app.client import (
    AsyncClient,
    Client,
    ClientError,
    IncompleteBatchError,
    NoAnswerError,
    ProblemError,
    UnavailableError,
    UnexpectedAnswerError,
)

pytestmark = pytest.mark.anyio

NAMES = ["page_view", "view_item_list", "view_item", "search", "add_to_cart", "view_cart"]
RULES = """
[[rules]]
name = "chat"
events = ["view_cart"]
control = 1.0
"""
STRANGE_IDS = ["a/b", "50%", "a?b#c", "..", "a b", "größe", "+", "%2F", "x/outcome", "'\"<&>"]


@pytest.fixture(scope="module")
def shared_service(artifact, shared_valkey, tmp_path_factory):
    folder = tmp_path_factory.mktemp("client")
    (folder / "rules.toml").write_text(RULES)
    settings = {
        "artifact": artifact,
        "redis_url": shared_valkey.url,
        "state_dtype": "float32",
        "interventions_file": folder / "rules.toml",
    }
    started = Service(folder / "service.log", settings)
    try:
        started.start()
        yield started
    finally:
        started.stop()


@pytest.fixture
def running(shared_service, valkey):
    """A service without a session."""
    return shared_service


@pytest.fixture
def client(running):
    with Client(running.base_url, deadline_s=30) as made:
        yield made


def visits(sessions, length, *, with_ids=True):
    """Events of many sessions, one event of each in turn."""
    start_ms = int(time.time() * 1000) - 1000 * length
    return [
        {
            "session_id": f"s-{session}",
            "event_name": NAMES[(number + session) % len(NAMES)],
            "timestamp": start_ms + 1000 * number,
            **({"event_id": f"{session}-{number}"} if with_ids else {}),
        }
        for number in range(length)
        for session in range(sessions)
    ]


def scores(results):
    """The scores of a batch of which every event has one."""
    assert [result.problem for result in results] == [None] * len(results)
    return [result.score for result in results]


def problem(status, code, **headers):
    body = {"type": "t", "title": "T", "status": status, "detail": "No.", "code": code}
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/problem+json", **names})


SCORE = {
    "session_id": "s-0",
    "probability": 0.25,
    "events": 1,
    "model": "m",
    "outcome": "open",
    "folded": True,
    "duplicate": False,
    "warnings": [],
}
SCORED = Reply(200, json.dumps(SCORE).encode(), {"Content-Type": "application/json"})
EVENT = {"session_id": "s-0", "event_name": "page_view"}


# --- the real service


def test_a_session_from_its_first_event_to_its_end(client):
    events = visits(1, 4)
    scores = [client.send(event) for event in events]
    assert [score.events for score in scores] == [1, 2, 3, 4]
    assert all(0 < score.probability < 1 for score in scores)

    session = client.session("s-0")
    assert (session.session_id, session.events, session.outcome) == ("s-0", 4, "open")
    traced = client.session("s-0", trace=True)
    assert [point.probability for point in traced.trace] == pytest.approx(
        [score.probability for score in scores], abs=1e-5
    )

    assert client.outcome("s-0", "purchase").outcome == "purchase"
    assert client.outcome("s-0", "purchase").outcome == "purchase"
    with pytest.raises(ProblemError) as refused:
        client.outcome("s-0", "none")
    assert (refused.value.status, refused.value.code) == (409, "outcome_conflict")

    client.delete("s-0")
    client.delete("s-0")
    with pytest.raises(ProblemError) as gone:
        client.session("s-0")
    assert (gone.value.status, gone.value.code) == (404, "session_not_found")


def test_a_batch_is_answered_event_by_event(client):
    events = [*visits(3, 5), {"session_id": "s-0", "event_name": "page_view", "price": "dear"}]
    *good, bad = client.send_batch(events)
    assert [result.event_id for result in good] == [event["event_id"] for event in events[:-1]]
    assert [score.events for score in scores(good)] == [n for n in range(1, 6) for _ in range(3)]
    assert bad.score is None
    assert (bad.problem.status, bad.problem.code, bad.problem.errors[0].field) == (422, "invalid_event", "price")


def test_a_batch_larger_than_a_request_is_taken_in_order(service, valkey):
    # Given a service that takes few events at a time, and a client that knows
    running = service(redis_url=valkey.url, max_batch_events=5, dedupe_window=8)
    events = visits(7, 40, with_ids=False)
    with Client(running.base_url, deadline_s=30, batch_events=5, batch_bytes=5000, session_events=8) as client:
        results = client.send_batch(events)
        assert [score.events for score in scores(results)] == [n for n in range(1, 41) for _ in range(7)]
    # And one that does not know is told
    with Client(running.base_url, deadline_s=30) as client, pytest.raises(IncompleteBatchError) as refused:
        client.send_batch(events)
    assert isinstance(refused.value.__cause__, ProblemError)
    assert refused.value.__cause__.code == "too_many_events"
    assert (len(refused.value.results), len(refused.value.unanswered)) == (0, 280)


def test_board_and_stats_and_model_are_read(client, running):
    client.send_batch(visits(12, 3))
    deadline = time.monotonic() + 30
    while (first := client.sessions(limit=5, recent=3)).live_sessions != 12:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    rest, cursor = [], first.next_cursor
    while cursor is not None:
        page = client.sessions(limit=5, cursor=cursor, limits={"timeout_s": 3.0})
        rest += page.sessions
        cursor = page.next_cursor
    assert {session.session_id for session in [*first.sessions, *rest]} == {f"s-{number}" for number in range(12)}
    assert all(len(session.recent_probabilities) == 3 for session in first.sessions)
    assert client.sessions(min_events=4).sessions == []

    model = client.model()
    assert model.fingerprint == first.sessions[0].model
    assert model.manifest["event_names"]
    while client.stats().live_sessions != 12:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_decisions_of_control_groups_are_told_on_request(client):
    viewed = {"session_id": "s-0", "event_name": "view_cart", "event_id": "e-0"}
    assert client.send(viewed).interventions == []
    assert [one.group for one in client.send(viewed, control=True).interventions] == ["control"]
    (told,) = client.send_batch([viewed], control=True)
    assert [one.name for one in told.score.interventions] == ["chat"]


def test_reasons_history_and_rules_are_read(client):
    for event in visits(1, 3):
        score = client.send(event)
    explained = client.session("s-0", why=True)
    assert explained.why is not None
    assert explained.why.after == pytest.approx(score.probability, abs=1e-5)
    assert (explained.trace, len(client.session("s-0", why=True, trace=True).trace)) == ([], 3)
    assert client.history(hours=1).as_of
    assert [rule.name for rule in client.interventions().rules] == ["chat"]
    with pytest.raises(ProblemError, match="hours"):
        client.history(hours=0)


def test_a_token_reads_one_session(client, running):
    client.send({**EVENT, "session_id": "s-0"})
    made = client.token("s-0", lifetime_s=60)
    assert (made.session_id, made.lifetime_s) == ("s-0", 60)
    assert httpx.get(f"{running.base_url}/v1/sessions/s-0", params={"token": made.token}).status_code == 200
    assert client.token().session_id is None


@pytest.mark.parametrize("session_id", STRANGE_IDS)
def test_every_session_id_is_found_again(client, session_id):
    client.send({**EVENT, "session_id": session_id})
    assert client.session(session_id).session_id == session_id
    client.delete(session_id)
    with pytest.raises(ProblemError, match="session_not_found"):
        client.session(session_id)


async def test_the_async_client_does_the_same(running):
    async with AsyncClient(running.base_url, deadline_s=20) as client:
        results = await client.send_batch(visits(2, 3))
        assert [score.events for score in scores(results)] == [1, 1, 2, 2, 3, 3]
        assert (await client.send({**EVENT, "event_id": "more"})).events == 4
        assert len((await client.session("s-0", trace=True)).trace) == 4
        assert (await client.session("s-1")).events == 3
        explained = await client.session("s-1", why=True)
        assert explained.why is not None
        assert explained.why.event == 3
        assert (await client.send({**EVENT, "event_name": "view_cart"}, control=True)).interventions[0].name == "chat"
        assert (await client.history(hours=1)).as_of
        assert len((await client.interventions()).rules) == 1
        assert (await client.token("s-0")).lifetime_s == 300
        assert len((await client.sessions(order="last_seen")).sessions) == 2
        assert (await client.stats()).replicas == 1
        assert (await client.model()).state_dtype == "float32"
        assert (await client.outcome("s-0", "none")).outcome == "none"
        await client.delete("s-0")
        with pytest.raises(ProblemError, match="session_not_found"):
            await client.session("s-0", timeout_s=3.0)


# --- lost answers


@pytest.mark.parametrize("passed_bytes", [0, 40], ids=["whole", "in part"])
def test_an_event_whose_answer_is_lost_counts_once(running, passed_bytes):
    with (
        lossy_proxy(running.port) as proxy,
        Client(proxy.url, deadline_s=120, batch_deadline_s=120) as client,
        Client(running.base_url, deadline_s=30) as direct,
    ):
        expected = [direct.send({**event, "session_id": "undisturbed"}) for event in visits(1, 4)]
        answers = []
        for event in visits(1, 4, with_ids=False):
            proxy.to_lose, proxy.passed_bytes = 2, passed_bytes
            answers.append(client.send(event))
        # Then each was sent three times, and the answer is the one that was lost
        assert proxy.lost == 8
        assert [answer.duplicate for answer in answers] == [True] * 4
        assert [answer.events for answer in answers] == [1, 2, 3, 4]
        # (Times of day are no inputs of this model, and gaps are the same.)
        assert [answer.probability for answer in answers] == pytest.approx(
            [answer.probability for answer in expected], abs=1e-6
        )
        assert direct.session("s-0").events == 4


def test_a_batch_whose_answers_are_lost_counts_once(running):
    with (
        lossy_proxy(running.port) as proxy,
        Client(proxy.url, deadline_s=120, batch_deadline_s=120, batch_events=10) as client,
    ):
        proxy.to_lose = 3
        results = client.send_batch(visits(5, 6, with_ids=False))
        assert proxy.lost == 3
        assert [score.events for score in scores(results)] == [n for n in range(1, 7) for _ in range(5)]
        assert {client.session(f"s-{number}").events for number in range(5)} == {6}


async def test_the_async_client_loses_nothing_either(running):
    async with AsyncClient(running.base_url, deadline_s=30) as direct:
        with lossy_proxy(running.port) as proxy:
            async with AsyncClient(proxy.url, deadline_s=120, batch_deadline_s=120) as client:
                proxy.to_lose = 2
                assert (await client.send(EVENT)).duplicate
                proxy.to_lose = 1
                assert [score.duplicate for score in scores(await client.send_batch(visits(2, 1)))] == [True, True]
                assert proxy.lost == 3
        assert (await direct.session("s-0")).events == 2


@pytest.mark.slow
def test_events_are_taken_when_the_service_comes_back(service, running):
    # Given a service without its Redis, which refuses at once and says so
    port_of_nobody = 1
    without = service(redis_url=f"redis://127.0.0.1:{port_of_nobody}/0")
    with Client(without.base_url) as client:
        with pytest.raises(UnavailableError) as failed:
            client.send(EVENT, deadline_s=3)
        assert (failed.value.code, failed.value.status) == ("store_unavailable", 503)
        (result,) = client.send_batch([EVENT], deadline_s=3)
        assert result.problem is not None
        assert result.problem.code == "store_unavailable"
    # When the same address leads to a service that has one, the same id may be sent again
    with Client(running.base_url, deadline_s=30) as client:
        assert client.send({**EVENT, "event_id": failed.value.event_id}).events == 1


# --- what is no service


def test_an_overload_is_waited_out_with_the_same_event_id():
    with scripted_server(problem(503, "overloaded", Retry_After="0"), problem(429, "too_many"), SCORED) as script:
        with Client(script.url, deadline_s=30) as client:
            assert client.send(EVENT).probability == 0.25
        ids = {json.loads(request.body)["event_id"] for request in script.received}
        assert (len(script.received), len(ids)) == (3, 1)


def test_a_refusal_is_raised_at_once_with_its_code():
    with (
        scripted_server(problem(401, "unauthorized")) as script,
        Client(script.url, api_key="k-1", deadline_s=30) as client,
    ):
        with pytest.raises(ProblemError) as refused:
            client.send(EVENT)
        assert (refused.value.code, len(script.received)) == ("unauthorized", 1)
        assert script.received[0].headers["authorization"] == "Bearer k-1"


async def test_the_async_client_sends_the_key_too():
    with scripted_server(SCORED) as script:
        async with AsyncClient(script.url, api_key="k-1", deadline_s=30) as client:
            await client.send(EVENT)
        async with AsyncClient(script.url, deadline_s=30) as client:
            await client.send(EVENT)
        assert [request.headers.get("authorization") for request in script.received] == ["Bearer k-1", None]


def test_a_key_is_not_carried_to_where_a_redirect_leads():
    with scripted_server(SCORED) as other, scripted_server(Reply(307, b"", {"Location": other.url})) as script:
        with Client(script.url, api_key="k-1", deadline_s=30) as client, pytest.raises(UnexpectedAnswerError) as failed:
            client.send(EVENT)
        assert failed.value.status == 307
        assert other.received == []


def test_a_service_behind_a_path_is_reached_there():
    with scripted_server(SCORED) as script, Client(f"{script.url}/shop/willbuy/") as client:
        client.send(EVENT)
        assert script.received[0].path == "/shop/willbuy/v1/events"


def test_a_client_of_ones_own_is_used_and_left_open():
    with scripted_server(SCORED) as script, httpx.Client(headers={"x-shop": "1"}) as own:
        with Client(script.url, http=own, deadline_s=30) as client:
            client.send(EVENT)
        assert script.received[0].headers["x-shop"] == "1"
        assert not own.is_closed


@pytest.mark.parametrize("reply", [Reply(silent=True), Reply(drops=True)], ids=["silent", "drop by drop"])
async def test_what_never_answers_ends_with_the_deadline(reply):
    with scripted_server(reply) as script:
        with Client(script.url, timeout_s=0.3, deadline_s=0.8) as client, pytest.raises(NoAnswerError) as failed:
            client.send(EVENT)
        assert failed.value.event_id == json.loads(script.received[0].body)["event_id"]
        assert isinstance(failed.value, ClientError)
        async with AsyncClient(script.url, timeout_s=0.3, deadline_s=0.8) as client:
            with pytest.raises(NoAnswerError):
                await client.send(EVENT)


async def test_by_default_no_call_waits_long_for_a_service_that_has_stopped(service, valkey):
    stopped = service(redis_url=valkey.url)
    with Client(stopped.base_url, deadline_s=30) as client:
        # The connection is there, as in a shop
        client.send(EVENT)
        fresh, kept = Client(stopped.base_url), Client(stopped.base_url, http=client._http)  # noqa: SLF001 - its connections
        os.kill(stopped.pid, signal.SIGSTOP)
        try:
            for calls in (fresh, kept):
                began = time.monotonic()
                with pytest.raises(NoAnswerError):
                    calls.send(EVENT)
                # It was 10 s without a deadline; the rest is room for a busy machine
                assert 0.15 < time.monotonic() - began < 8
            async with AsyncClient(stopped.base_url) as asking:
                began = time.monotonic()
                with pytest.raises(NoAnswerError):
                    await asking.send(EVENT)
                assert 0.15 < time.monotonic() - began < 8
        finally:
            os.kill(stopped.pid, signal.SIGCONT)
        fresh.close()


def test_nobody_at_the_address_is_an_error_of_the_client():
    with Client("http://127.0.0.1:1", deadline_s=0.3) as client, pytest.raises(NoAnswerError, match="ConnectError"):
        client.stats()


def test_an_answer_of_another_program_is_told_apart():
    said = pytest.raises(UnexpectedAnswerError, match="not an answer of willbuy: <html>hello")
    with (
        scripted_server(Reply(200, b"<html>hello</html>")) as script,
        Client(script.url, deadline_s=30) as client,
        said,
    ):
        client.send(EVENT)
