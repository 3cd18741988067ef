"""Another artifact in place of the loaded one, under load, with real processes; and a candidate in the shadow."""

import asyncio
import re
import shutil
import time

import httpx
import pytest
from support.artifacts import write_artifact
from support.keys import make_key, write_keys

from model.artifact import read_manifest
from model.events import Event
from model.predictor import load_predictor

pytestmark = pytest.mark.anyio

# Without keys, a reload by request is refused.
KEY = make_key("events:write", "sessions:read", "model:admin")
NAMES = ("page_view", "view_item", "search", "add_to_cart")


def put_in_place(source, path):
    """As a release does: beside it, then renamed over it."""
    shutil.copy(source, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


@pytest.fixture
def other(tmp_path):
    """A model of another size, so that a state of one is none of the other's."""
    return write_artifact(tmp_path / "other.pt", seed=1, hidden_size=16)


@pytest.fixture
def live(artifact, tmp_path):
    path = tmp_path / "live.pt"
    shutil.copy(artifact, path)
    return path


@pytest.fixture
def keys(tmp_path):
    return write_keys(tmp_path / "keys.toml", KEY)


class Shoppers:
    """Callers of one session each; every answer is kept with what had been posted until then."""

    def __init__(self, base_url, count=8):
        self.base_url = base_url
        self.count = count
        self.ended = asyncio.Event()
        self.histories = {}
        self.answers = []
        self.failed = []

    async def run(self):
        await asyncio.gather(*(self._shop(f"shopper-{number}") for number in range(self.count)))

    async def _shop(self, session_id):
        start_ms = int(time.time() * 1000) - 3_600_000
        history = self.histories[session_id] = []
        async with httpx.AsyncClient(base_url=self.base_url, timeout=10, headers=KEY.headers) as client:
            while not self.ended.is_set():
                number = len(history)
                event = Event(NAMES[(number * 7 + number // 3) % 4], start_ms + 1000 * number, f"SKU-{number % 3}")
                body = {"session_id": session_id, "event_name": event.event_name, "timestamp": event.timestamp_ms}
                response = await client.post("/v1/events", json=body | {"item_id": event.item_id})
                if response.status_code != 200:
                    self.failed.append(response.text)
                    return
                history.append(event)
                self.answers.append((session_id, number, response.json()))
                # A session is so short that every answer can be checked.
                await asyncio.sleep(0.02)

    def assert_equal_to_offline(self, *artifacts):
        scores = {}
        for artifact in artifacts:
            predictor = load_predictor(artifact)
            lines = predictor.score_sessions(list(self.histories.values()))
            scores[predictor.fingerprint] = dict(zip(self.histories, lines, strict=True))
        for session_id, number, answer in self.answers:
            expected = scores[answer["model"]][session_id][number]
            assert answer["events"] == number + 1
            assert answer["probability"] == pytest.approx(expected, abs=1e-5)
        return {answer["model"] for _, _, answer in self.answers}


async def test_twenty_swaps_under_load_fail_no_request_and_every_answer_is_a_live_models(
    service, valkey, artifact, other, live, keys
):
    replica = service(redis_url=valkey.url, artifact=live, api_keys_file=keys, state_dtype="float32")
    shoppers = Shoppers(replica.base_url)
    running = asyncio.create_task(shoppers.run())
    swaps = []
    async with httpx.AsyncClient(base_url=replica.base_url, timeout=60, headers=KEY.headers) as client:
        for number in range(20):
            source = artifact if number % 2 else other
            put_in_place(source, live)
            began = len(shoppers.answers)
            body = (await client.post("/v1/model/reload")).json()
            assert body == {"result": "swapped", "fingerprint": read_manifest(source).fingerprint}
            swaps.append((began, len(shoppers.answers), body["fingerprint"]))
            described = (await client.get("/v1/model")).json()
            assert described["fingerprint"] == body["fingerprint"]
            await asyncio.sleep(0.05)
        metrics = (await client.get("/metrics")).text
    shoppers.ended.set()
    await running
    assert shoppers.failed == []
    assert shoppers.assert_equal_to_offline(artifact, other) == {fingerprint for *_, fingerprint in swaps}
    # After the answer to a reload no batch begins with the old model; each shopper may have one under way
    for (_, ended, fingerprint), following in zip(swaps, [*swaps[1:], (len(shoppers.answers), 0, "")], strict=True):
        between = shoppers.answers[ended + shoppers.count : following[0]]
        assert {answer["model"] for _, _, answer in between} <= {fingerprint}
    assert 'willbuy_model_reloads_total{result="swapped"} 20.0' in metrics
    assert metrics.count("willbuy_model_info{") == 1


def test_a_bad_artifact_is_refused_and_the_old_model_goes_on(service, valkey, artifact, live, other, keys):
    replica = service(redis_url=valkey.url, artifact=live, api_keys_file=keys)
    body = {"session_id": "s-1", "event_name": "page_view"}
    fingerprint = read_manifest(artifact).fingerprint
    whole = other.read_bytes()
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 0xFF
    with httpx.Client(base_url=replica.base_url, headers=KEY.headers, timeout=30) as client:
        for content in (b"", b"no artifact", whole[: len(whole) // 2], bytes(damaged)):
            live.write_bytes(content)
            response = client.post("/v1/model/reload")
            assert response.status_code == 422
            assert response.json()["code"] == "artifact_refused"
            assert client.post("/v1/events", json=body).json()["model"] == fingerprint
        live.unlink()
        assert client.post("/v1/model/reload").status_code == 422
        put_in_place(artifact, live)
        response = client.post("/v1/model/reload")
        assert response.json() == {"result": "unchanged", "fingerprint": fingerprint}


def test_with_open_access_a_reload_by_request_is_refused(service, valkey):
    replica = service(redis_url=valkey.url)
    response = httpx.post(f"{replica.base_url}/v1/model/reload")
    assert response.status_code == 403
    assert response.json()["code"] == "reload_disabled"


async def test_the_watch_loads_a_file_once_it_is_whole(service, valkey, artifact, other, live):
    replica = service(redis_url=valkey.url, artifact=live, watch_artifact_s=0.1, state_dtype="float32")
    shoppers = Shoppers(replica.base_url, count=4)
    running = asyncio.create_task(shoppers.run())
    whole = other.read_bytes()
    async with httpx.AsyncClient(base_url=replica.base_url, timeout=30) as client:
        # Given a release that is copied straight over the file, slowly: all but its end is no model
        part = len(whole) // 5
        with live.open("wb") as stream:
            for start in range(0, 4 * part, part):
                stream.write(whole[start : start + part])
                stream.flush()
                await asyncio.sleep(0.15)
                assert (await client.get("/v1/model")).json()["fingerprint"] == read_manifest(artifact).fingerprint
            stream.write(whole[4 * part :])
        await until_model(client, other)
        put_in_place(artifact, live)
        await until_model(client, artifact)
    shoppers.ended.set()
    await running
    assert shoppers.failed == []
    assert len(shoppers.assert_equal_to_offline(artifact, other)) == 2


async def until_model(client, artifact):
    deadline = time.monotonic() + 30
    while (await client.get("/v1/model")).json()["fingerprint"] != read_manifest(artifact).fingerprint:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


def value_of(metrics, name):
    found = re.search(rf"^{re.escape(name)} (\S+)$", metrics, flags=re.MULTILINE)
    return float(found[1]) if found else 0.0


async def test_a_shadow_is_compared_and_touches_no_answer(service, valkey, artifact, other):
    replica = service(
        redis_url=valkey.url, shadow_artifact=other, shadow_share=1, state_dtype="float32", session_idle_s=4
    )
    shoppers = Shoppers(replica.base_url, count=4)
    running = asyncio.create_task(shoppers.run())
    while not running.done() and len(shoppers.answers) < 100:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.02)
    shoppers.ended.set()
    await running
    # Two of the sessions buy, before they fall idle as the others do
    async with httpx.AsyncClient(base_url=replica.base_url) as client:
        for session_id in ("shopper-0", "shopper-1"):
            await client.post("/v1/events", json={"session_id": session_id, "event_name": "purchase"})
        assert shoppers.failed == []
        assert shoppers.assert_equal_to_offline(artifact) == {read_manifest(artifact).fingerprint}
        deadline = time.monotonic() + 30
        while True:
            metrics = (await client.get("/metrics")).text
            if value_of(metrics, 'willbuy_shadow_outcomes_total{outcome="none"}') == 2:
                break
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
    assert value_of(metrics, 'willbuy_shadow_outcomes_total{outcome="purchase"}') == 2
    assert value_of(metrics, "willbuy_shadow_difference_sum") > 0
    assert value_of(metrics, 'willbuy_shadow_log_loss_count{model="candidate"}') == 4
    assert value_of(metrics, "willbuy_shadow_failures_total") == 0


def test_a_shadow_that_cannot_be_loaded_keeps_nobody_from_their_answer(service, valkey, tmp_path):
    replica = service(redis_url=valkey.url, shadow_artifact=tmp_path / "missing.pt")
    body = {"session_id": "s-1", "event_name": "page_view"}
    assert httpx.post(f"{replica.base_url}/v1/events", json=body).status_code == 200
    assert "shadow_refused" in replica.output()
