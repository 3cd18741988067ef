"""Requests on one connection, one after another, each timed: what a lone caller sees of a server."""

import gc
import http.client
import time
from collections.abc import Sequence
from typing import Final, Self

from benchmarks.hotpath.processes import BenchmarkError
from benchmarks.hotpath.redis_server import RedisServer
from benchmarks.hotpath.servers import Server

_OK: Final = 200


class OneByOne:
    """One connection to a server, opened with the first request."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def post(self, path: str, bodies: Sequence[bytes]) -> list[float]:
        """Post the bodies and return the seconds to each answer; raise `BenchmarkError` when one is refused."""
        headers = {"Content-Type": "application/json"} | self.server.headers
        seconds = []
        gc.disable()  # the client's own pauses are not what is asked
        try:
            for body in bodies:
                began_s = time.perf_counter()
                self._connection.request("POST", path, body, headers)
                answer = self._connection.getresponse()
                content = answer.read()
                seconds.append(time.perf_counter() - began_s)
                if answer.status != _OK:
                    raise BenchmarkError(f"A request was refused with {answer.status}: {content[:500]!r}")
        finally:
            gc.enable()
        return seconds


def timed(
    client: OneByOne, path: str, bodies: Sequence[bytes], latencies_us: list[float], redis: RedisServer
) -> tuple[float, float]:
    """Post bodies, note the latencies, and return the processor's seconds of the service and of Redis."""
    server_s, redis_s = client.server.fine_cpu_s(), redis.cpu_s()
    latencies_us += [one_s * 1e6 for one_s in client.post(path, bodies)]
    return client.server.fine_cpu_s() - server_s, redis.cpu_s() - redis_s
