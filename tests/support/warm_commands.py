"""A program `willbuy` whose command is forked from a warm process, since importing what trains takes seconds.

The program hands its arguments, folder, environment and streams over, passes signals on, and ends as the command does.
`support.warm_process` does the same for services, which need no program.
"""

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Final, Self

# Nothing that looks at the environment when it is imported.
_IMPORTS: Final = (
    "app.main",
    "lightgbm",
    "matplotlib.backends.backend_svg",
    "torch._dynamo",
    "training.data.prepare",
    "training.fit.train",
    "training.report.page",
    "uvicorn.main",
)
_PROGRAM: Final = """#!{python} -IS
import json, os, signal, socket, sys

signals = {{signal.SIGINT, signal.SIGTERM, signal.SIGHUP}}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
said = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(connection, [len(said).to_bytes(4, "big")], [0, 1, 2])
connection.sendall(said)
pid = int(connection.recv(16))
for each in signals:
    signal.signal(each, lambda number, frame: os.kill(pid, number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
code = int(connection.recv(16) or 1)
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


class WarmCommands:
    """A warm process, and a folder for PATH with the program `willbuy` in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        address = folder / "socket"
        program = folder / "willbuy"
        program.write_text(_PROGRAM.format(python=sys.executable, address=str(address)))
        program.chmod(0o755)
        # Not measured, since little of what coverage counts runs here
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(address))
            listener.listen(64)
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(listener.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                env=environment,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        """End the warm process, and every command that still runs."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def _serve(listener: socket.socket) -> None:
    """Return only in a forked process that is to run the command."""
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _watch(connection)
            return
        connection.close()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    sys.exit()


def _watch(connection: socket.socket) -> None:
    """Fork the command and return in its process; here, tell its end, and end it with who asked for it."""
    size, streams, _, _ = socket.recv_fds(connection, 4, 3)
    with connection.makefile("rb") as said:
        arguments, folder, environment = json.loads(said.read(int.from_bytes(size, "big")))
    pid = os.fork()
    if pid == 0:
        connection.close()
        _become(arguments, folder, environment, streams)
        return
    for stream in streams:
        os.close(stream)
    connection.sendall(b"%d" % pid)
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if select.select([connection, sys.stdin], [], [], 0.01)[0]:
            # Neither the program nor the tests can wait for it any longer
            os.kill(pid, signal.SIGKILL)
            os._exit(1)
    connection.sendall(b"%d" % os.waitstatus_to_exitcode(ended[1]))
    os._exit(0)


def _become(arguments: list[str], folder: str, environment: dict[str, str], streams: list[int]) -> None:
    # A signal to the program's group reaches the command once, from the program.
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.argv = ["willbuy", *arguments]


if __name__ == "__main__":
    for module in _IMPORTS:
        import_module(module)
    # Without it the garbage collection at each command's exit examines all imported modules, which takes a second.
    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))
    import_module("app.cli").main()
