"""Batches, erasure and traces over HTTP against real processes and real servers, held against the offline model."""

import asyncio
import json
import time

import httpx
import pytest
from support.artifacts import write_artifact

from model.events import Event
from model.predictor import load_predictor

pytestmark = pytest.mark.anyio

# Two replicas compete for one session all the time.
PATIENT = {"app.scoring.scorer:Scorer": {"commit_attempts": 100}}

NAMES = ["page_view", "view_item_list", "view_item", "search", "add_to_cart", "view_cart", "of_the_shops_own"]


def shoppers(count, length):
    """Events of many sessions, one event of each in turn."""
    start_ms = int(time.time() * 1000) - 1000 * length
    return [
        {
            "event_id": f"{session}-{number}",
            "session_id": f"shopper-{session}",
            "event_name": NAMES[(number * 5 + session) % len(NAMES)],
            "timestamp": start_ms + 1000 * number,
            "item_id": f"SKU-{number % 3}",
            "price": 10.5 * number,
        }
        for number in range(length)
        for session in range(count)
    ]


def offline(artifact, bodies):
    """The offline model's probability after each event of each session."""
    sessions: dict[str, list[Event]] = {}
    for body in bodies:
        event = Event(body["event_name"], body["timestamp"], body["item_id"], None, body["price"])
        sessions.setdefault(body["session_id"], []).append(event)
    scores = load_predictor(artifact).score_sessions(list(sessions.values()))
    return dict(zip(sessions, scores, strict=True))


async def post_lines(client, replica, bodies):
    content = "\n".join(json.dumps(body) for body in bodies)
    headers = {"content-type": "application/x-ndjson"}
    response = await client.post(f"{replica.base_url}/v1/events/batch", content=content, headers=headers)
    assert response.status_code == 200
    return response.json()["results"]


async def test_batches_in_turn_on_two_replicas_answer_as_the_offline_model(service, artifact, valkey):
    replicas = [service(redis_url=valkey.url, state_dtype="float32") for _ in range(2)]
    bodies = shoppers(30, 20)
    expected = offline(artifact, bodies)
    async with httpx.AsyncClient(timeout=30) as client:
        results = []
        for turn, first in enumerate(range(0, len(bodies), 200)):
            results += await post_lines(client, replicas[turn % 2], bodies[first : first + 200])
        for body, result in zip(bodies, results, strict=True):
            score = result["score"]
            exact = expected[body["session_id"]][score["events"] - 1]
            assert score["probability"] == pytest.approx(exact, abs=1e-5)
        # And the traces are the same, also while others are computed
        paths = [f"{replicas[number % 2].base_url}/v1/sessions/shopper-{number}?trace=true" for number in range(10)]
        sessions = [response.json() for response in await asyncio.gather(*map(client.get, paths))]
    for session in sessions:
        trace = [point["probability"] for point in session["trace"]]
        assert trace == pytest.approx(expected[session["session_id"]], abs=1e-5)


async def test_a_batch_on_two_replicas_at_once_counts_once(service, artifact, valkey):
    replicas = [service(redis_url=valkey.url, state_dtype="float32", tuned=PATIENT) for _ in range(2)]
    bodies = shoppers(10, 30)
    expected = offline(artifact, bodies)
    async with httpx.AsyncClient(timeout=30) as client:
        first, second = await asyncio.gather(*(post_lines(client, replica, bodies) for replica in replicas))
    for body, one, other in zip(bodies, first, second, strict=True):
        scores = one["score"], other["score"]
        assert sorted(score.pop("duplicate") for score in scores) == [False, True]
        assert scores[0] == scores[1]
        exact = expected[body["session_id"]][scores[0]["events"] - 1]
        assert scores[0]["probability"] == pytest.approx(exact, abs=1e-5)


async def test_two_models_on_one_server_converge_with_every_batch(service, artifact, valkey, tmp_path):
    other = write_artifact(tmp_path / "other.pt", seed=1, hidden_size=16)
    chosen = {"redis_url": valkey.url, "state_dtype": "float32"}
    replicas = [(service(**chosen), artifact), (service(**chosen, artifact=other), other)]
    bodies = shoppers(20, 12)
    async with httpx.AsyncClient(timeout=30) as client:
        for turn in range(6):
            replica, used = replicas[turn % 2]
            results = await post_lines(client, replica, bodies[40 * turn : 40 * (turn + 1)])
            expected = offline(used, bodies)
            for body, result in zip(bodies[40 * turn :], results, strict=False):
                score = result["score"]
                exact = expected[body["session_id"]][score["events"] - 1]
                assert score["probability"] == pytest.approx(exact, abs=1e-5)
        metrics = (await client.get(f"{replicas[1][0].base_url}/metrics")).text
    counted = dict(line.split(" ") for line in metrics.splitlines() if not line.startswith("#"))
    assert float(counted["willbuy_rebuilds_total"]) == 60
    assert float(counted["willbuy_rebuild_failures_total"]) == 0


async def test_a_delete_amid_events_leaves_a_session_of_the_events_after_it(service, artifact, valkey):
    replicas = [service(redis_url=valkey.url, tuned=PATIENT) for _ in range(2)]
    url = "/v1/sessions/hot"
    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=100), timeout=30) as client:
        for turn in range(10):
            posts = [
                client.post(
                    f"{replicas[number % 2].base_url}/v1/events",
                    json={"session_id": "hot", "event_name": "view_item", "event_id": f"{turn}-{number}"},
                )
                for number in range(20)
            ]
            requests = [*posts[:10], client.delete(replicas[0].base_url + url), *posts[10:]]
            responses = await asyncio.gather(*requests)
            assert responses[10].status_code == 204
            counts = [response.json()["events"] for response in responses[:10] + responses[11:]]
            session = await client.get(replicas[1].base_url + url + "?trace=true")
            left = session.json()["events"] if session.status_code == 200 else 0
            # What is left is a whole session: its trace is as long, and each of its events was answered
            assert left == len(session.json().get("trace", []))
            assert set(range(1, left + 1)) <= set(counts)
            await client.delete(replicas[1].base_url + url)
            assert (await client.get(replicas[0].base_url + url)).status_code == 404
