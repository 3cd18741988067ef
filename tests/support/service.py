"""The service as a real uvicorn process on a free loopback port; stopped by its process id."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import httpx

from support.patience import service_environment
from support.redis_servers import free_port
from support.warm_process import WarmProcess

ROOT = Path(__file__).parents[2]


class Service:
    """One `uvicorn --factory app.main:create_app`.

    It is forked from a process with the same imports, see `support.warm_process`.
    `settings` become `WILLBUY_` variables; nothing else of that name is passed on from the tests' own environment.
    Access is open unless they say who may ask, and time-outs are long unless they say how long, see
    `support.patience`. `tuned` has other constants, see `support.tuned_app`.
    """

    def __init__(
        self,
        log: Path,
        settings: dict[str, object],
        *,
        workers: int = 1,
        tuned: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        self.log = log
        self.workers = workers
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self._environment = service_environment()
        if not settings.keys() & {"api_keys_file", "open_access"}:
            self._environment["WILLBUY_OPEN_ACCESS"] = "true"
        self._environment |= {f"WILLBUY_{name.upper()}": str(value) for name, value in settings.items()}
        self._factory = "app.main:create_app"
        if tuned:
            self._factory = "support.tuned_app:create_app"
            self._environment |= {"TUNED": json.dumps(tuned), "PYTHONPATH": str(ROOT / "tests")}
        self._process: subprocess.Popen[bytes] | WarmProcess | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start and wait until the service answers; Redis need not be available."""
        self.launch()
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(self.output()[-4000:])
            time.sleep(0.05)

    def launch(self) -> None:
        arguments = ["--factory", self._factory]
        # Connections as `willbuy serve` has them.
        arguments += ["--http", "app.runtime.http_protocol:BoundedHttp", "--no-proxy-headers"]
        arguments += ["--host", "127.0.0.1", "--port", str(self.port), "--no-access-log"]
        arguments += ["--workers", str(self.workers), "--timeout-graceful-shutdown", "10"]
        self._process = WarmProcess("uvicorn", arguments, cwd=ROOT, env=self._environment, log=self.log)

    def wait(self, timeout_s: float = 60) -> int:
        """Wait for the process to end without a signal, and return its exit status."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def output(self) -> str:
        return self.log.read_text()

    def tracebacks(self) -> list[str]:
        """Return the lines of the log that have one, in the service's form or in the server's."""
        return [line for line in self.output().splitlines() if '"exception": ' in line or "Traceback" in line]

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL, and wait for the end."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def stop(self) -> int:
        """Send SIGTERM, wait, and return the exit status."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.terminate()
        try:
            return self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.base_url}/healthz", timeout=2).status_code == 200
        except httpx.TransportError:
            return False
