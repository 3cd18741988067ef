"""Artifacts of every rung of the ladder, and of another base rate, served over HTTP on a real Valkey."""

import time

import httpx
import pytest
from support.artifacts import write_artifact
from support.event_strategies import random_session

from model.predictor import load_predictor
from training.commands.replay import ending_now, event_body

TOLERANCE = {"float16": 2e-3, "float32": 1e-5}


def a_session(seed, length=12):
    """A session that ends now, so that the service takes its times."""
    events = random_session(seed, length)
    # In order: a service takes no time that lies ahead of its clock.
    return ending_now(sorted(events, key=lambda event: event.timestamp_ms), int(time.time() * 1000) - 1000)


def answers_of(running, session_id, events):
    """The service's answer to each event, one request an event."""
    return [
        httpx.post(f"{running.base_url}/v1/events", json=event_body(session_id, f"{session_id}-{number}", event))
        .raise_for_status()
        .json()["probability"]
        for number, event in enumerate(events)
    ]


@pytest.mark.parametrize(
    ("cell", "aggregates", "state_dtype"), [("feed-forward", False, "float32"), ("gru", True, "float16")]
)
def test_a_service_answers_with_any_cell_as_offline(tmp_path, service, valkey, cell, aggregates, state_dtype):
    # Given a service with a network that remembers in another way, or not at all
    path = write_artifact(tmp_path / "model.pt", layers=2, cell=cell, aggregates=aggregates)
    running = service(artifact=path, redis_url=valkey.url, state_dtype=state_dtype)
    told = httpx.get(f"{running.base_url}/v1/model").json()
    assert told["manifest"]["sizes"]["cell"] == cell
    assert told["manifest"]["state"]["hidden"] == (0 if cell == "feed-forward" else 16)
    # When a session is posted event by event
    events = a_session(1)
    answers = answers_of(running, "s-1", events)
    # Then each answer is the offline model's
    (expected,) = load_predictor(path).score_sessions([events])
    assert answers == pytest.approx(expected, abs=TOLERANCE[state_dtype])
    assert max(answers) - min(answers) > 0.01


def test_a_session_goes_on_when_the_cell_changes_under_it(tmp_path, service, valkey):
    # Given a session that began with an LSTM
    paths = [write_artifact(tmp_path / f"{cell}.pt", cell=cell) for cell in ("lstm", "feed-forward", "gru")]
    replicas = [service(artifact=path, redis_url=valkey.url, state_dtype="float32") for path in paths]
    events = a_session(2, 9)
    offline = [load_predictor(path).score_sessions([events])[0] for path in paths]
    for number, event in enumerate(events):
        # When replicas of other cells take it over, one after another
        body = event_body("s-1", f"e-{number}", event)
        response = httpx.post(f"{replicas[number % 3].base_url}/v1/events", json=body)
        answer = response.raise_for_status().json()
        # Then each answers as if it had seen the session from the start
        assert answer["events"] == number + 1
        assert answer["probability"] == pytest.approx(offline[number % 3][number], abs=1e-5)


def test_a_service_at_another_base_rate_answers_as_offline_at_that_base_rate(tmp_path, service, valkey):
    # Given two services of one model, the one as trained and the other in a shop with fewer buyers
    path = write_artifact(tmp_path / "model.pt", data={"base_rate": 0.2})
    trained = service(artifact=path, redis_url=valkey.url, state_dtype="float32")
    live = service(artifact=path, redis_url=valkey.url, state_dtype="float32", base_rate=0.03)
    assert httpx.get(f"{trained.base_url}/v1/model").json()["base_rate"] is None
    assert httpx.get(f"{live.base_url}/v1/model").json()["base_rate"] == 0.03
    # When they take turns with a session
    events = a_session(3)
    bodies = [event_body("s-1", f"e-{number}", event) for number, event in enumerate(events)]
    answers = [
        httpx.post(f"{(trained, live)[number % 2].base_url}/v1/events", json=body).raise_for_status().json()
        for number, body in enumerate(bodies)
    ]
    # Then each answers as the offline model at its own base rate, from the one state that both keep
    (as_trained,) = load_predictor(path).score_sessions([events])
    (shifted,) = load_predictor(path, base_rate=0.03).score_sessions([events])
    expected = [(as_trained, shifted)[number % 2][number] for number in range(len(events))]
    assert [answer["probability"] for answer in answers] == pytest.approx(expected, abs=1e-5)
    assert max(abs(one - other) for one, other in zip(as_trained, shifted, strict=True)) > 0.05
    # And no state was rebuilt for it
    assert "willbuy_rebuilds_total 0.0" in httpx.get(f"{live.base_url}/metrics").text
