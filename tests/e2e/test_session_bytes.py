"""The bound on a session's bytes over HTTP, against a real process and a real server."""

import httpx
import redis
from support.artifacts import write_artifact
from support.redis_keys import history_key, record_key

from app.store.record_codec import decode_record

MOST_BYTES = 4096


def an_event(number=0):
    # About 1,100 bytes as they are stored
    properties = {"where": "\N{SHOPPING TROLLEY}" * 255 + str(number % 10)}
    return {"session_id": "s", "event_name": "view_item", "item_id": f"SKU-{number}", "properties": properties}


def stored_and_counted(client):
    record = decode_record(client.get(record_key("s")))
    return sum(map(len, client.lrange(history_key("s"), 0, -1))), record.history_bytes


def in_version_2(data):
    """The bytes of a compact record as the release before this one wrote them."""
    assert data[0] == 3
    assert data[17] == 0
    return b"\x02" + data[1:47] + data[51:]


def test_an_event_beyond_the_bound_is_refused_alone_and_in_a_batch(service, valkey):
    server = service(redis_url=valkey.url, max_session_bytes=MOST_BYTES)
    with httpx.Client(base_url=server.base_url, timeout=30) as client, redis.Redis.from_url(valkey.url) as stored:
        answers = [client.post("/v1/events", json=an_event(number)) for number in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 409]
        assert answers[-1].json()["code"] == "session_too_large"
        assert "may have 4096" in answers[-1].json()["detail"]

        small = {"session_id": "s", "event_name": "page_view", "properties": {}}
        other = an_event() | {"session_id": "other"}
        batch = client.post("/v1/events/batch", json=[an_event(5), small, other])
        refused, *scored = batch.json()["results"]
        assert refused["problem"]["code"] == "session_too_large"
        assert all("score" in result for result in scored)

        size, counted = stored_and_counted(stored)
        assert size == counted <= MOST_BYTES


def test_a_session_of_the_release_before_is_sized_by_its_rebuild(service, valkey, tmp_path):
    settings = {"redis_url": valkey.url, "max_session_bytes": MOST_BYTES, "state_dtype": "float32"}
    before = service(**settings)
    with httpx.Client(base_url=before.base_url, timeout=30) as client, redis.Redis.from_url(valkey.url) as stored:
        for number in range(3):
            assert client.post("/v1/events", json=an_event(number)).status_code == 200
        size, _ = stored_and_counted(stored)
        stored.set(record_key("s"), in_version_2(stored.get(record_key("s"))), keepttl=True)
        assert stored_and_counted(stored) == (size, 0)
    before.stop()
    after = service(**settings, artifact=write_artifact(tmp_path / "other.pt", seed=1))
    with httpx.Client(base_url=after.base_url, timeout=30) as client, redis.Redis.from_url(valkey.url) as stored:
        assert client.post("/v1/events", json=an_event(4)).json()["code"] == "session_too_large"
        assert stored_and_counted(stored) == (size, size)
