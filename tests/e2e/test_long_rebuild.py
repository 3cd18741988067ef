"""A session that is too long to be rebuilt within a request's deadline, against a real process."""

import httpx
from support.artifacts import write_artifact

EVENTS = 1500


def posted(client, session_id):
    return client.post("/v1/events", json={"session_id": session_id, "event_name": "view_item"})


def test_a_long_session_gets_through_after_a_reload_although_its_first_callers_left(service, valkey, tmp_path):
    settings = {"redis_url": valkey.url, "max_session_events": 10_000, "state_dtype": "float32"}
    before = service(**settings)
    with httpx.Client(base_url=before.base_url, timeout=60) as client:
        for first in range(0, EVENTS, 50):
            numbers = range(first, first + 50)
            events = [{"session_id": "long", "event_name": "view_item", "item_id": f"SKU-{n % 30}"} for n in numbers]
            answer = client.post("/v1/events/batch", json=events)
            assert answer.status_code == 200
            assert all("score" in result for result in answer.json()["results"])
    before.stop()
    # Given another model, and a deadline that is too short to fold so many events
    other = write_artifact(tmp_path / "other.pt", seed=1)
    after = service(**settings, artifact=other, request_timeout_s=0.05, redis_timeout_s=0.05)
    with httpx.Client(base_url=after.base_url, timeout=60) as client:
        answers = [posted(client, "long")]
        while answers[-1].status_code != 200:
            assert answers[-1].json()["code"] == "deadline_exceeded"
            answers.append(posted(client, "long"))
            # Another session is answered meanwhile, or has the same short deadline.
            assert posted(client, f"new-{len(answers)}").status_code in {200, 503}
        assert answers[0].status_code == 503
        assert answers[-1].json()["events"] == EVENTS + 1
        metrics = client.get("/metrics").text
    # One rebuild, whatever the number of events that waited for it
    assert "willbuy_rebuilds_total 1.0" in metrics
    assert f"willbuy_rebuilt_events_total {EVENTS}.0" in metrics
