"""A Redis or Valkey of its own for each run: empty, on TCP, gone afterwards."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Final

from redis import Redis
from redis.exceptions import RedisError

from app.runtime.embedded_redis import find_server
from app.store.keys import Keys
from benchmarks.hotpath.processes import CORES, BenchmarkError, free_port, pinned, start, stop
from model.redis_keys import SHARDS

_CLUSTER_TIMEOUT_S: Final = 10.0
_LAST_SLOT: Final = 16383
# Of the C library's allocator, and of the one that Redis and Valkey bring along.
_HUGE_PAGES: Final = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "JE_MALLOC_CONF": "thp:always"}


@dataclass(frozen=True, slots=True)
class RedisServer:
    """A running Redis; `is_cluster`: the only node of a cluster."""

    port: int
    pid: int
    is_cluster: bool = False

    @property
    def url(self) -> str:
        """Where it is; TCP, as it would be on another machine."""
        if self.is_cluster:
            return f"redis+cluster://127.0.0.1:{self.port}"
        return f"redis://127.0.0.1:{self.port}/0"

    def connect(self) -> "Redis":
        """Return a client."""
        return Redis(host="127.0.0.1", port=self.port, socket_timeout=60)

    def cpu_s(self) -> float:
        """Return the processor's seconds it has used, to the microsecond, which /proc does not tell."""
        with self.connect() as client:
            found = client.info("cpu")
        return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])

    def board_entries(self) -> float:
        """Return how many sessions a shard of willbuy's board has, on average."""
        keys = Keys()
        with self.connect() as client, client.pipeline(transaction=False) as pipeline:
            for shard in range(SHARDS):
                pipeline.zcard(keys.board(shard))
            return float(fmean(pipeline.execute()))


@contextmanager
def running_redis(*, as_cluster: bool = False, huge_pages: bool = False) -> Iterator[RedisServer]:
    """Run an empty Redis or Valkey of its own, which keeps nothing on disk.

    Args:
        as_cluster: as the only node of a cluster.
        huge_pages: its memory in pages of 2 MiB, if the kernel gives them to those who ask (`madvise`).
    """
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no"]
    if as_cluster:
        options += ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]

    environment = _HUGE_PAGES if huge_pages else {}

    def answers() -> bool:
        try:
            with Redis(host="127.0.0.1", port=port, socket_timeout=1) as client:
                return bool(client.ping())
        except RedisError:
            return False

    with tempfile.TemporaryDirectory(prefix="willbuy-") as folder:
        command = [*pinned(CORES.redis), str(find_server()), *options, "--dir", folder]
        process = start(command, environment, Path(folder) / "log", answers)
        try:
            if as_cluster:
                _take_all_slots(port)
            yield RedisServer(port, process.pid, as_cluster)
        finally:
            stop(process)


def _take_all_slots(port: int) -> None:
    """Make a node that was started in cluster mode a cluster of its own; return when it says that it is one."""
    with Redis(host="127.0.0.1", port=port, socket_timeout=10) as client:
        client.execute_command("CLUSTER ADDSLOTSRANGE", 0, _LAST_SLOT)
        deadline_s = time.monotonic() + _CLUSTER_TIMEOUT_S
        while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
            if time.monotonic() > deadline_s:
                raise BenchmarkError("The node does not become a cluster.")
            time.sleep(0.05)
