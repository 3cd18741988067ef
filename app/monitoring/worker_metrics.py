"""One answer to `GET /metrics` for all worker processes of a service, by prometheus-client's multiprocess mode.

Each worker keeps its values in files that it maps into memory, in a directory that all of them share; whichever is
asked reads everybody's. The library looks for `PROMETHEUS_MULTIPROC_DIR` when it is imported, so the directory has to
stand in the environment before the workers start. Without it a process counts for itself alone.

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
# In memory where there is such a place: the kernel writes pages of a file on a disk back now and then, and an increment
# would wait for that.
_IN_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - mkdtemp makes a directory in it for this user alone  # nosec B108


@contextmanager
def metrics_of_workers() -> Iterator[None]:
    """Give the worker processes that start within this block a directory of their own, and remove it at the end.

    A directory that the environment names already is left as it is: it is the operator's, and has to be empty.
    """
    if _VARIABLE in os.environ:
        yield
        return
    parent = _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK) else None
    # A worker that had to be killed may still write when it is removed.
    with tempfile.TemporaryDirectory(prefix="willbuy-metrics-", dir=parent, ignore_cleanup_errors=True) as directory:
        os.environ[_VARIABLE] = directory
        try:
            yield
        finally:
            del os.environ[_VARIABLE]


def shared_directory() -> Path | None:
    """Return the directory that this process shares with other workers; None where it counts for itself.

    Raises:
        ValueError: the environment names something that is no directory.
    """
    named = os.environ.get(_VARIABLE)
    if named is None:
        return None
    if not Path(named).is_dir():
        raise ValueError(f"{_VARIABLE}: expected an existing, empty directory, got {named!r}")
    return Path(named)


def merged_exposition(directory: Path) -> bytes:
    """Return the metrics of all workers in Prometheus' text format.

    Counters of workers that have ended stay, or they would fall; their gauges go.
    """
    for pid in {int(file.stem.rpartition("_")[2]) for file in directory.glob("gauge_live*_*.db")}:
        if not _is_running(pid):
            mark_process_dead(pid, str(directory))  # type: ignore[no-untyped-call]  # shipped untyped
    registry = CollectorRegistry()
    collector = MultiProcessCollector(None, str(directory))  # type: ignore[no-untyped-call]  # shipped untyped
    registry.register(_WithoutRetired(collector))
    return generate_latest(registry)


class _WithoutRetired:
    """Leaves out the series of `_info` gauges that are no longer 1 (see `Metrics.retire`)."""

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
