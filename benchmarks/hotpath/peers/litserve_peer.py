"""Peer (d): LitServe with its batching, with the state in Redis.

HOTPATH_PORT=8000 python -m benchmarks.hotpath.peers.litserve_peer
"""

import os
from typing import Any

import litserve
from redis import Redis

from app.schemas.events import EventIn
from benchmarks.hotpath.peers.network import REDIS_URL, answers, load_advance

_LARGEST_BATCH = 64
_LONGEST_WAIT_S = 0.001


class Score(litserve.LitAPI):  # type: ignore[misc]  # LitServe is in the benchmark's environment alone
    """One batch: one MGET, one step, one pipeline of SETs."""

    def setup(self, device: str) -> None:
        """Build what a worker needs."""
        del device  # the model is small: CPU, as everywhere here
        self._advance = load_advance()
        self._redis = Redis.from_url(REDIS_URL)

    def decode_request(self, request: EventIn) -> EventIn:
        """Return the event of a request."""
        return request

    def batch(self, inputs: list[EventIn]) -> list[EventIn]:
        """Return the batch that `predict` takes."""
        return inputs

    def predict(self, x: list[EventIn]) -> list[dict[str, Any]]:
        """Return the answers to a batch."""
        return answers(self._advance, self._redis, x)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the answers one by one."""
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """Return the body of an answer."""
        return output


if __name__ == "__main__":
    api = Score(max_batch_size=_LARGEST_BATCH, batch_timeout=_LONGEST_WAIT_S, api_path="/v1/events")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1",
        port=int(os.environ["HOTPATH_PORT"]),
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
