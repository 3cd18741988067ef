"""A running shop: the service, its Valkey, and simulated visitors that post events."""

import itertools
import os
import signal
import time
from collections.abc import Iterable
from typing import Any

import httpx
from support.redis_servers import RedisServer
from support.service import Service

from training.commands.replay import ending_now, event_body
from training.synthetic import PRESETS, sessions


class Shop:
    """The service under test. A test that kills `service` or `redis` starts it again.

    `headers` are sent with every request of a visitor.
    """

    def __init__(self, service: Service, redis: RedisServer, headers: dict[str, str] | None = None) -> None:
        self.service = service
        self.redis = redis
        self._client = httpx.Client(base_url=service.base_url, trust_env=False, timeout=30, headers=headers)

    @property
    def url(self) -> str:
        return f"{self.service.base_url}/dashboard/"

    def address(self, session_id: str) -> str:
        """Return the URL of a session's view in the encoding of the page."""
        return f"{self.url}#/session/{httpx.QueryParams(id=session_id)['id']}"

    def post(self, session_id: str, event_name: str = "view_item", **fields: object) -> dict[str, Any]:
        """Post one event and return the response body."""
        body = {"session_id": session_id, "event_name": event_name} | fields
        response = self._client.post("/v1/events", json=body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def visit(self, count: int) -> list[str]:
        """Post all events of `count` simulated visits and return their session ids."""
        found = [f"visit-{number}" for number in range(count)]
        for session_id, bodies in zip(found, simulated_visits(count), strict=True):
            self.post_all(body | {"session_id": session_id} for body in bodies)
        return found

    def post_all(self, bodies: Iterable[dict[str, Any]]) -> None:
        """Post events in order, in batches within the number of event ids that a session stores."""
        rest = iter(bodies)
        while part := list(itertools.islice(rest, 50)):
            response = self._client.post("/v1/events/batch", json=part)
            assert response.status_code == 200, response.text
            assert {result["status"] for result in response.json()["results"]} == {200}, response.text

    def end(self, session_id: str) -> None:
        """Report the outcome `none` for the session."""
        response = self._client.post(f"/v1/sessions/{session_id}/outcome", json={"outcome": "none"})
        assert response.status_code == 200, response.text

    def overtake(self, behind: str, ahead: str) -> None:
        """Post events of `behind` until its probability is above that of `ahead`."""
        (goal,) = (answer["probability"] for answer in [self.get(ahead)])
        names = itertools.cycle(["begin_checkout", "view_cart", "add_to_cart", "search", "page_view", "view_item"])
        for name in itertools.islice(names, 60):
            if self.post(behind, name)["probability"] > goal:
                return
        raise AssertionError("no series of events raised the probability")

    def get(self, session_id: str) -> dict[str, Any]:
        response = self._client.get(f"/v1/sessions/{session_id}")
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def kill_service(self) -> None:
        os.kill(self.service.pid, signal.SIGKILL)
        self.service.wait()

    def close(self) -> None:
        self._client.close()


def simulated_visits(count: int, *, seed: int = 1) -> list[list[dict[str, Any]]]:
    """Return the event bodies of `count` visits to the synthetic shop; each visit ends now."""
    now_ms = time.time_ns() // 1_000_000
    return [
        [event_body("", f"{seed}/{number}/{at}", event) for at, event in enumerate(ending_now(events, now_ms))]
        for number, events in enumerate(itertools.islice(sessions(PRESETS["default"], seed=seed), count))
    ]
