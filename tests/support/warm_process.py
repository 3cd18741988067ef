"""Processes forked from one that has loaded the service: importing torch and the app is most of a service's start.

A forked process has its own environment, folder and output, and ends like any other. Only its imports are not its own.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from multiprocessing import forkserver
from pathlib import Path

from uvicorn import _subprocess  # private: uvicorn has no public way to fork its workers
from uvicorn.supervisors import multiprocess

_forkserver = multiprocessing.get_context("forkserver")
# One server for each process of pytest; it ends with that process.
_forkserver.set_forkserver_preload(["pytest", "uvicorn.main", "app.main"])
# Whichever test is the first to start that server, its processes are measured.
_COVERAGE = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
# Modules whose `main` is the program.
_PROGRAMS = {
    "uvicorn": "uvicorn.main",
    "willbuy": "app.cli",
    "broken": "faults.broken",
    "demo": "support.trained_demo",
}


class WarmProcess:
    """`PROGRAM ARGUMENTS` from a warm process; its methods are those of `subprocess.Popen`."""

    def __init__(self, program: str, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path) -> None:
        # A daemon: should a test leave it behind, it is ended with pytest instead of keeping pytest from ending.
        self._process = _forkserver.Process(
            target=_run, args=([program, *arguments], str(cwd), dict(env), str(log)), daemon=True
        )
        _ensure_server()
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout_s: float | None = None) -> int:
        self._process.join(timeout_s)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout_s or 0.0)
        return code

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def _ensure_server() -> None:
    absent = _COVERAGE.keys() - os.environ.keys()
    os.environ.update(_COVERAGE)
    forkserver.ensure_running()
    for name in absent:
        os.environ.pop(name, None)


def _run(command: list[str], cwd: str, env: dict[str, str], log: str) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    # Tests of the service send SIGINT too; a shell may have had pytest ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path[:0] = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.argv = command
    _fork_workers()
    import_module(_PROGRAMS[command[0]]).main()


def _fork_workers() -> None:
    """Let uvicorn fork its workers, which then have the imports too, instead of spawning them."""
    # Only a process that is no daemon may have processes.
    multiprocessing.current_process().daemon = False
    _subprocess.spawn = multiprocessing.get_context("fork")  # type: ignore[assignment]  # has the same methods
    # A spawned worker does not have the handlers of its parent, either.
    handlers = {number: signal.getsignal(number) for number in multiprocess.SIGNALS}

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    os.register_at_fork(after_in_child=restore)
