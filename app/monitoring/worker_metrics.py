"""One answer to `GET /metrics` for all worker processes of a service, by prometheus-client's multiprocess mode.

Each worker keeps its values in memory-mapped files, in a directory that all workers share; any worker reads the files
of all. The library reads `PROMETHEUS_MULTIPROC_DIR` when it is imported, so the variable must be set before the workers
start. Without it, a process counts for itself.

See https://prometheus.github.io/client_python/multiprocess/
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
# In memory where possible: on a disk, an increment may wait while the kernel writes the page back.
_IN_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - mkdtemp makes a directory in it for this user alone  # nosec B108


@contextmanager
def metrics_of_workers() -> Iterator[None]:
    """Set a new metrics directory for the worker processes that start within this block, and remove it at the end.

    A directory that the environment already names belongs to the operator: it must be empty and is not removed.
    """
    if _VARIABLE in os.environ:
        yield
        return
    parent = _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK) else None
    # A killed worker may still write while the directory is removed.
    with tempfile.TemporaryDirectory(prefix="willbuy-metrics-", dir=parent, ignore_cleanup_errors=True) as directory:
        os.environ[_VARIABLE] = directory
        try:
            yield
        finally:
            del os.environ[_VARIABLE]


def shared_directory() -> Path | None:
    """Return the directory that this process shares with other workers; None if it counts for itself.

    Raises:
        ValueError: the environment names a path that is not a directory.
    """
    named = os.environ.get(_VARIABLE)
    if named is None:
        return None
    if not Path(named).is_dir():
        raise ValueError(f"{_VARIABLE}: expected an existing, empty directory, got {named!r}")
    return Path(named)


def merged_exposition(directory: Path) -> bytes:
    """Return the metrics of all workers in Prometheus' text format.

    Counters of ended workers stay, because a counter must not decrease; their gauges are removed.
    """
    for pid in {int(file.stem.rpartition("_")[2]) for file in directory.glob("gauge_live*_*.db")}:
        if not _is_running(pid):
            mark_process_dead(pid, str(directory))  # type: ignore[no-untyped-call]  # shipped untyped
    registry = CollectorRegistry()
    collector = MultiProcessCollector(None, str(directory))  # type: ignore[no-untyped-call]  # shipped untyped
    registry.register(_WithoutRetired(collector))
    return generate_latest(registry)


class _WithoutRetired:
    """Collector without the series of `_info` gauges that are no longer 1 (`Metrics.retire`)."""

    def __init__(self, collector: MultiProcessCollector) -> None:
        self._collector = collector

    def collect(self) -> Iterator[Metric]:
        for metric in self._collector.collect():  # type: ignore[no-untyped-call]  # shipped untyped
            if metric.name.endswith("_info"):
                metric.samples = [sample for sample in metric.samples if sample.value]
            yield metric


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
