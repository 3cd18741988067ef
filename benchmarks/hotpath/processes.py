"""What a server and all its processes use, read from /proc; and starting and ending one."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_STOP_TIMEOUT_S: Final = 15.0
_KIB: Final = 1024
# Two workers, Redis and the generator.
_CORES_FOR_ALL: Final = 4


class BenchmarkError(RuntimeError):
    """A part of the benchmark is missing or failed; the message says which, and what to do."""


@dataclass(frozen=True, slots=True)
class _Process:
    parent: int
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Cores:
    """Which cores of a machine each part of a measurement runs on, so that none takes another's.

    With two cores, Redis and the generator share one; with three, they do too, and two workers have the others.

    Attributes:
        machine: all cores of the machine that this program may use.
    """

    machine: tuple[int, ...]

    def server(self, workers: int = 1) -> tuple[int, ...]:
        """Return the server's cores, one for each worker if there are so many."""
        return self.machine[:workers]

    @property
    def redis(self) -> tuple[int, ...]:
        """Redis' core."""
        return self.machine[-2:-1] if len(self.machine) >= _CORES_FOR_ALL else self.generator

    @property
    def generator(self) -> tuple[int, ...]:
        """The load generator's core."""
        return self.machine[-1:]

    def parts(self) -> dict[str, tuple[int, ...]]:
        """Return the cores of each part, by its name."""
        servers = {"server": self.server(), "server of two workers": self.server(2)}
        return {**servers, "Redis": self.redis, "generator": self.generator}


CORES: Final = Cores(tuple(sorted(os.sched_getaffinity(0))))


def pinned(cores: Sequence[int]) -> list[str]:
    """Return what precedes a command so that it and its children run on these cores only."""
    return ["taskset", "--cpu-list", ",".join(map(str, cores))]


def free_port() -> int:
    """Return a loopback port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def tree(root: int) -> list[int]:
    """Return the process ids of a process and of all that descend from it."""
    return sorted(_tree(root, _processes()))


def cpu_s(root: int) -> float:
    """Return the processor's seconds, user and system, of a process and all that descend from it, ended ones too."""
    found = _processes()
    return sum(found[pid].cpu_s for pid in _tree(root, found))


def fine_cpu_s(root: int) -> float:
    """Return the same to the nanosecond, of the threads that live; as coarse as before where Linux does not tell."""
    total_ns = 0
    for pid in tree(root):
        for schedule in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            try:
                total_ns += int(schedule.read_text(encoding="ascii").split()[0])
            except (FileNotFoundError, ProcessLookupError):
                continue
    return total_ns / 1e9 or cpu_s(root)


def resident_bytes(root: int) -> int:
    """Return the resident memory of a process and its descendants; other programs do not change it.

    Anonymous memory is the proportional set size. Memory-mapped files count once: the largest process' share of them.
    """
    own, files = 0, 0
    for pid in tree(root):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
        except (FileNotFoundError, ProcessLookupError):
            continue
        kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        own += kib["Pss_Anon"]
        files = max(files, kib["Rss"] - kib["Anonymous"])
    return (own + files) * _KIB


def start(
    command: Sequence[str],
    environment: dict[str, str],
    log: Path,
    is_ready: Callable[[], bool],
    timeout_s: float = 90.0,
) -> "subprocess.Popen[bytes]":
    """Start a program in a process group of its own and return when it is ready.

    Raises:
        BenchmarkError: it ended, or was not ready in time; the message has the end of its output.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603  # no part of the command comes from outside
            command,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline_s = time.monotonic() + timeout_s
    try:
        while not (ready := is_ready()) and process.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.05)
    except BaseException:
        stop(process)
        raise
    if not ready:
        stop(process)
        told = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise BenchmarkError(f"{' '.join(command)} did not start:\n{told}")
    return process


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Ask a program that `start` started to end; kill its group where it does not, or leaves a part behind."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tree(root: int, found: dict[int, _Process]) -> set[int]:
    if root not in found:
        raise BenchmarkError(f"The server's process {root} has ended.")
    members = {root}
    grown = True
    while grown:
        more = {pid for pid, process in found.items() if process.parent in members} - members
        members |= more
        grown = bool(more)
    return members


def _processes() -> dict[int, _Process]:
    found: dict[int, _Process] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended just now
        # proc(5): ppid is the second field after the name; utime, stime, cutime, cstime the 12th to the 15th.
        found[int(entry.name)] = _Process(int(fields[1]), sum(map(int, fields[11:15])) / _TICKS_PER_S)
    return found
