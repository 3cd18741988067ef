"""Peer (c): mosec, a front in Rust that forms batches for Python workers, with the state in Redis.

MOSEC_PORT=8000 python -m benchmarks.hotpath.peers.mosec_peer
"""

from typing import Any

import msgspec
from mosec import Server, ValidationError, Worker
from redis import Redis

from benchmarks.hotpath.peers.body import EventBody
from benchmarks.hotpath.peers.network import REDIS_URL, answers, load_advance

_LARGEST_BATCH = 64
# Milliseconds. The least that it takes; its own default is 10.
_LONGEST_WAIT = 1


class Score(Worker):  # type: ignore[misc]  # mosec is in the benchmark's environment alone
    """One batch: one MGET, one step, one pipeline of SETs."""

    def __init__(self) -> None:
        super().__init__()
        self._advance = load_advance()
        self._redis = Redis.from_url(REDIS_URL)
        self._decoder = msgspec.json.Decoder(EventBody)

    def deserialize(self, data: bytes) -> EventBody:
        """Return the event of a body."""
        try:
            return self._decoder.decode(data)
        except msgspec.DecodeError as exc:
            raise ValidationError(str(exc)) from exc

    def serialize(self, data: dict[str, Any]) -> bytes:
        """Return the body of an answer."""
        return msgspec.json.encode(data)

    def forward(self, data: list[EventBody]) -> list[dict[str, Any]]:
        """Return the answers to a batch."""
        return answers(self._advance, self._redis, data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Score, num=1, max_batch_size=_LARGEST_BATCH, max_wait_time=_LONGEST_WAIT, route="/v1/events")
    server.run()
