"""What the figures were measured on."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from benchmarks.hotpath.load import wrk_version
from benchmarks.hotpath.processes import CORES
from benchmarks.hotpath.redis_server import running_redis
from model.predictor import load_predictor

_PACKAGES: Final = ("torch", "fastapi", "pydantic", "uvicorn", "uvloop", "redis", "hiredis", "mosec", "litserve")


def machine() -> dict[str, str]:
    """Return date, processor, memory and versions."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": f"{os.cpu_count()} cores, {_processor()}",
        "memory": f"{memory_bytes / 2**30:.0f} GiB",
        "system": f"Linux {platform.release().split('-')[0]}, Python {platform.python_version()}",
        "cores": ", ".join(f"{part} {'+'.join(map(str, cores))}" for part, cores in CORES.parts().items()),
        "packages": ", ".join(f"{name} {number}" for name in _PACKAGES if (number := _version(name))),
    }


def machine_of_servers(artifact: Path) -> dict[str, str]:
    """Return the same with what the servers were loaded from, their Redis, and what runs the artifact's step here."""
    with running_redis() as redis, redis.connect() as client:
        found = client.info("server")
    server = f"Valkey {found['valkey_version']}" if "valkey_version" in found else f"Redis {found['redis_version']}"
    engine = load_predictor(artifact).engine
    return machine() | {"server": server, "generator": f"wrk {wrk_version()}", "step": engine}


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()} ({platform.machine()})"
    return platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
