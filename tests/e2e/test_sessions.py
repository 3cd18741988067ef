"""Sessions over HTTP against real processes: once, in order, and the same answer as offline, whatever comes between."""

import asyncio
import time

import httpx
import pytest
from support.artifacts import write_artifact

from model.events import Event
from model.predictor import load_predictor

pytestmark = pytest.mark.anyio

# Two replicas compete for one session all the time.
MANY_ATTEMPTS = {"app.scoring.scorer:Scorer": {"commit_attempts": 100}}


def shopper(session_id, length=8):
    """Events of a session, a second apart, ending now."""
    names = ["page_view", "view_item_list", "view_item", "search", "add_to_cart", "view_cart", "of_the_shops_own"]
    start_ms = int(time.time() * 1000) - 1000 * length
    return [
        {
            "event_id": f"{session_id}-{number}",
            "session_id": session_id,
            "event_name": names[(number * 5 + len(session_id)) % len(names)],
            "timestamp": start_ms + 1000 * number,
            "item_id": f"SKU-{number % 3}",
            "price": 10.5 * number,
        }
        for number in range(length)
    ]


def as_event(body):
    return Event(body["event_name"], body["timestamp"], body["item_id"], None, body["price"])


def offline(artifact, bodies):
    """The offline model's probability after each event."""
    (scores,) = load_predictor(artifact).score_sessions([[as_event(body) for body in bodies]])
    return scores


def test_answers_equal_the_offline_model_also_after_restarts_and_on_another_replica(service, artifact, valkey):
    first, second = (service(redis_url=valkey.url, state_dtype="float32") for _ in range(2))
    bodies = shopper("s-1", 12)
    answers = []
    for number, body in enumerate(bodies):
        # Given a replica that is stopped in the middle of the session
        if number == 6:
            first.stop()
        replica = second if number % 2 or number >= 6 else first
        answers.append(httpx.post(f"{replica.base_url}/v1/events", json=body).json()["probability"])
    assert answers == pytest.approx(offline(artifact, bodies), abs=1e-5)


def test_another_model_or_state_type_takes_over_a_live_session(service, artifact, valkey, tmp_path):
    other = write_artifact(tmp_path / "other.pt", seed=1, hidden_size=16)
    replicas = [
        (service(redis_url=valkey.url, state_dtype="float32"), artifact, 1e-5),
        (service(redis_url=valkey.url, state_dtype="float16"), artifact, 2e-3),
        (service(redis_url=valkey.url, state_dtype="float32", artifact=other), other, 1e-5),
    ]
    bodies = shopper("s-1", 9)
    models = set()
    for number, body in enumerate(bodies):
        replica, used, tolerance = replicas[number % 3]
        answer = httpx.post(f"{replica.base_url}/v1/events", json=body).json()
        assert answer["probability"] == pytest.approx(offline(used, bodies)[number], abs=tolerance)
        models.add(answer["model"])
    assert len(models) == 2


async def test_concurrent_duplicates_on_two_replicas_are_folded_once(service, valkey):
    replicas = [service(redis_url=valkey.url) for _ in range(2)]
    bodies = [{"session_id": f"s-{i}", "event_name": "page_view", "event_id": "e"} for i in range(20)]
    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=100)) as client:
        responses = await asyncio.gather(
            *(
                client.post(f"{replicas[copy % 2].base_url}/v1/events", json=body)
                for copy in range(6)
                for body in bodies
            )
        )
        answers = [response.json() for response in responses]
        for number in range(20):
            same = answers[number::20]
            assert {(answer["probability"], answer["events"]) for answer in same} == {(same[0]["probability"], 1)}
            assert sum(not answer["duplicate"] for answer in same) == 1
            session = (await client.get(f"{replicas[0].base_url}/v1/sessions/s-{number}")).json()
            assert session["events"] == 1


async def test_events_of_one_session_at_the_same_moment_are_all_folded_one_after_another(service, valkey):
    replicas = [service(redis_url=valkey.url, tuned=MANY_ATTEMPTS) for _ in range(2)]
    body = {"session_id": "hot", "event_name": "view_item"}
    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=100)) as client:
        responses = await asyncio.gather(
            *(
                client.post(f"{replicas[number % 2].base_url}/v1/events", json=body | {"event_id": str(number)})
                for number in range(60)
            )
        )
    assert sorted(response.json()["events"] for response in responses) == list(range(1, 61))


async def test_a_stop_in_the_middle_answers_every_event_that_was_accepted(service, valkey):
    replica = service(redis_url=valkey.url)
    body = {"session_id": "drained", "event_name": "view_item"}
    accepted, enough = [], asyncio.Event()

    async def post(client, number):
        while True:
            try:
                response = await client.post(f"{replica.base_url}/v1/events", json=body | {"event_id": str(number)})
            except httpx.TransportError:
                return
            if response.status_code == 200:
                accepted.append(response.json()["events"])
            if len(accepted) > 20:
                enough.set()
            number += 1000

    async with httpx.AsyncClient() as client:
        posting = asyncio.gather(*(post(client, number) for number in range(20)))
        await enough.wait()
        replica.terminate()
        await posting
        replica.stop()
        assert replica.tracebacks() == []
        # Then what was acknowledged is stored, and another replica finds it
        successor = service(redis_url=valkey.url)
        session = (await client.get(f"{successor.base_url}/v1/sessions/drained")).json()
    assert len(accepted) == len(set(accepted)) > 20
    assert session["events"] >= max(accepted)


def test_an_idle_session_ends_and_its_id_begins_anew(service, valkey):
    replica = service(redis_url=valkey.url, session_idle_s=3)
    body = {"session_id": "s-1", "event_name": "view_item"}
    assert [httpx.post(f"{replica.base_url}/v1/events", json=body).json()["events"] for _ in range(2)] == [1, 2]
    deadline = time.monotonic() + 20
    while httpx.get(f"{replica.base_url}/v1/sessions/s-1").status_code != 404:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert httpx.post(f"{replica.base_url}/v1/events", json=body).json()["events"] == 1
