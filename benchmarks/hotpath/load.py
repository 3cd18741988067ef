"""wrk as the load generator: C, one thread, so that on two cores it takes little from whom it loads."""

import json
import os
import resource
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.hotpath.processes import CORES, BenchmarkError, pinned
from benchmarks.hotpath.traffic import Traffic

_SCRIPT: Final = Path(__file__).with_name("wrk.lua")
_MARK: Final = "HOTPATH "
_HOW_TO_INSTALL: Final = "wrk is not installed: `apt install wrk` on Debian and Ubuntu, `brew install wrk` on macOS."


@dataclass(frozen=True, slots=True)
class Load:
    """What came of one run of wrk.

    Attributes:
        requests: answered.
        seconds: how long it lasted.
        refused: answered with another status than 2xx or 3xx.
        broken: not answered: connecting, reading, writing or time-out.
        refused_events: refused inside the answer to a batch.
        mean_ms, p50_ms, p90_ms, p99_ms, p999_ms, max_ms: latency, as wrk corrects it for coordinated omission.
        generator_s: processor's seconds that wrk took itself.
    """

    requests: int
    seconds: float
    refused: int
    broken: int
    refused_events: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    generator_s: float

    @property
    def requests_per_s(self) -> float:
        """Answered requests a second."""
        return self.requests / self.seconds

    @property
    def failed(self) -> int:
        """Requests that were refused or not answered, and events that were refused inside an answer."""
        return self.refused + self.broken + self.refused_events


def wrk_version() -> str:
    """Return wrk's version; raise `BenchmarkError` where there is none."""
    # `wrk --version` ends with status 1.
    found = subprocess.run([_wrk(), "--version"], capture_output=True, text=True, check=False)  # noqa: S603
    return found.stdout.split("[")[0].strip().removeprefix("wrk ").removeprefix("debian/")


def load(
    port: int,
    path: str,
    traffic: Traffic,
    *,
    seconds: float,
    connections: int = 64,
    headers: dict[str, str] | None = None,
) -> Load:
    """Post traffic to a server on this machine from so many connections, and return what came of it.

    Raises:
        BenchmarkError: wrk is missing, failed, or got no answer at all.
    """
    with tempfile.TemporaryDirectory(prefix="willbuy-") as folder:
        file = Path(folder) / "traffic.lua"
        file.write_text(traffic.lua(path, headers or {}), encoding="utf-8")
        command = [*pinned(CORES.generator), _wrk(), "--threads", "1", "--connections", str(connections)]
        command += [
            "--duration",
            f"{round(seconds)}s",
            "--latency",
            "--script",
            str(_SCRIPT),
            f"http://127.0.0.1:{port}{path}",
        ]
        before_s = _children_s()
        told = subprocess.run(  # noqa: S603  # no part of the command comes from outside
            command, env=os.environ | {"HOTPATH_TRAFFIC": str(file)}, capture_output=True, text=True, check=False
        )
        generator_s = _children_s() - before_s
    line = next((line for line in told.stdout.splitlines() if line.startswith(_MARK)), None)
    if told.returncode or line is None:
        raise BenchmarkError(f"wrk failed: {told.stderr[-1000:]}{told.stdout[-1000:]}")
    found = json.loads(line.removeprefix(_MARK))
    if not found["requests"]:
        raise BenchmarkError(f"No request to port {port} was answered.")
    latency = {name.replace("_us", "_ms"): found[name] / 1000 for name in found if name.endswith("_us")}
    return Load(
        found["requests"],
        latency.pop("duration_ms") / 1000,
        found["refused"],
        found["broken"],
        found["refused_events"],
        **latency,
        generator_s=generator_s,
    )


def _wrk() -> str:
    found = shutil.which("wrk")
    if found is None:
        raise BenchmarkError(_HOW_TO_INSTALL)
    return found


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
