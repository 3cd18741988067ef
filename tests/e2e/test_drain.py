"""SIGTERM under load, with real processes: what was accepted is answered and stored, and the process ends with 0."""

import asyncio
import time

import httpx
import pytest

pytestmark = pytest.mark.anyio


class Load:
    """Callers that post events of their own sessions until they are told that the replica shuts down, or it is gone."""

    def __init__(self, base_url, callers=16):
        self.base_url = base_url
        self.callers = callers
        self.accepted = {}
        self.refused = []
        self.unexpected = []

    async def run(self):
        await asyncio.gather(*(self._call(f"s-{number}") for number in range(self.callers)))

    async def _call(self, session_id):
        async with httpx.AsyncClient(base_url=self.base_url, timeout=60) as client:
            for number in range(100_000):
                body = {"session_id": session_id, "event_name": "view_item", "event_id": f"{session_id}-{number}"}
                try:
                    response = await client.post("/v1/events", json=body)
                except httpx.ConnectError:
                    return  # nobody listens any more
                except httpx.TransportError as exc:
                    # An idle connection may be closed the moment a request is sent on it; anything else is a loss.
                    if not isinstance(exc, httpx.RemoteProtocolError | httpx.ReadError):
                        self.unexpected.append(exc)
                    continue
                if response.status_code == 200:
                    self.accepted[session_id] = response.json()["events"]
                elif response.json().get("code") == "shutting_down":
                    self.refused.append(response)
                    return
                else:
                    self.unexpected.append(response.text)


async def stopped_under_load(replica, *, meanwhile=None):
    load = Load(replica.base_url)
    running = asyncio.create_task(load.run())
    while len(load.accepted) < load.callers:  # noqa: ASYNC110 - what is waited for raises no event
        await asyncio.sleep(0.02)
    replica.terminate()
    if meanwhile is not None:
        await meanwhile(load)
    await asyncio.wait_for(running, 120)
    return load


async def assert_all_stored(load, successor):
    async with httpx.AsyncClient(base_url=successor.base_url) as client:
        for session_id, events in load.accepted.items():
            session = (await client.get(f"/v1/sessions/{session_id}")).json()
            # One event more at most: its answer may have met a connection that had just been closed.
            assert events <= session["events"] <= events + 1


@pytest.mark.parametrize("workers", [1, 2])
async def test_accepted_events_are_answered_and_stored_and_the_status_is_zero(service, valkey, workers):
    replica = service(redis_url=valkey.url, workers=workers)
    load = await stopped_under_load(replica)
    assert await asyncio.to_thread(replica.wait, 60) == 0
    assert load.unexpected == []
    for response in load.refused:
        assert response.status_code == 503
        assert response.headers["connection"] == "close"
        assert response.headers["retry-after"] == "1"
    assert replica.tracebacks() == []
    await assert_all_stored(load, service(redis_url=valkey.url))


async def test_during_the_delay_readiness_fails_while_events_are_taken(service, valkey):
    replica = service(redis_url=valkey.url, drain_delay_s=300)
    seen = []

    async def meanwhile(load):
        before = dict(load.accepted)
        async with httpx.AsyncClient(base_url=replica.base_url) as client:
            ready = await client.get("/readyz")
            while ready.status_code == 200:
                await asyncio.sleep(0.01)
                ready = await client.get("/readyz")
            assert ready.json()["checks"] == {"redis": "ok", "model": "ok", "replica": "shutting_down"}
            assert ready.headers["connection"] == "close"
            answer = await client.post("/v1/events", json={"session_id": "late", "event_name": "page_view"})
            assert answer.status_code == 200
            assert answer.headers["connection"] == "close"
            assert (await client.get("/healthz")).status_code == 200
        while any(load.accepted[session_id] == events for session_id, events in before.items()):  # noqa: ASYNC110 - same
            await asyncio.sleep(0.01)
        seen.append(before)
        # A second signal ends the delay
        replica.terminate()

    load = await stopped_under_load(replica, meanwhile=meanwhile)
    assert await asyncio.to_thread(replica.wait, 60) == 0
    assert load.unexpected == []
    assert all(load.accepted[session_id] > events for session_id, events in seen[0].items())
    await assert_all_stored(load, service(redis_url=valkey.url))


def test_a_second_signal_ends_the_delay(service, valkey):
    replica = service(redis_url=valkey.url, drain_delay_s=300)
    replica.terminate()
    deadline = time.monotonic() + 20
    while httpx.get(f"{replica.base_url}/readyz").status_code == 200:
        assert time.monotonic() < deadline
    replica.terminate()
    assert replica.wait(20) == 0
