# ruff: noqa: INP001  # a program that run.sh starts, not a package
"""Test the built image: start its command as its user, post events, and stop it.

Runs twice on one Valkey: with `buildah run --isolation chroot`, then on a read-only root file system. The second run
continues the session of the first. `run.sh` starts this program in a separate network namespace.
"""

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from app.runtime.embedded_redis import find_server

_URL: Final = "http://127.0.0.1:8000"
_REDIS_PORT: Final = 6379
_START_S: Final = 180.0
_STOP_S: Final = 60.0
# Folders that stay writable with a read-only root file system.
_WRITABLE: Final = ("/tmp", "/proc", "/sys", "/dev")  # noqa: S108 - the image's own, not this machine's
# Does the same as `docker run --read-only --tmpfs /tmp`. Arguments: root, artifacts, user, environment, command.
_ON_READ_ONLY_ROOT: Final = """set -e
root=$1 artifacts=$2 user=$3
shift 3
mount --bind "$root" "$root"
mount --bind "$artifacts" "$root/artifacts"
mount -o remount,bind,ro "$root/artifacts"
mount -t tmpfs tmpfs "$root"/tmp
mount -t proc proc "$root"/proc
mount --rbind /dev "$root"/dev
mount -o remount,bind,ro "$root"
exec chroot --userspec="$user" "$root" env --ignore-environment "$@"
"""


@dataclass(frozen=True)
class Image:
    """The image's configuration."""

    command: list[str]
    environment: list[str]
    health: list[str]
    user: str


def main() -> None:
    """Run all steps; the first failing step ends the program with its reason."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--container", required=True)
    arguments = parser.parse_args()
    scratch: Path = arguments.scratch
    buildah = ["buildah", "--root", str(scratch / "storage"), "--runroot", str(scratch / "run")]
    buildah += ["--storage-driver", "vfs"]
    image = read_image(buildah, arguments.container)
    root = Path(_output([*buildah, "mount", arguments.container]).strip())
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)  # noqa: S607 - the machine's own
    check("the user is a number and not root", image.user.partition(":")[0].isdigit() and image.user[0] != "0")
    check(
        "no training dependency is in the image", not list(root.glob("opt/willbuy/lib/python3*/site-packages/polars"))
    )
    password = secrets.token_hex(16)
    with valkey(scratch, password):
        settings = [
            f"WILLBUY_REDIS_URL=redis://:{password}@127.0.0.1:{_REDIS_PORT}/0",
            "WILLBUY_OPEN_ACCESS=true",
        ]
        started = time.time()
        with running(in_chroot(buildah, arguments.container, scratch, settings, image), scratch, "first") as process:
            first = post("view_item", "event-1")
            second = post("add_to_cart", "event-2")
            again = post("add_to_cart", "event-2")
            score = get("/v1/sessions/image-test")
            check("two events were folded", (first["events"], second["events"], score["events"]) == (1, 2, 2))
            check("an event that comes again is answered again", again["duplicate"] is True)
            check("the score is read", score["probability"] == second["probability"])
            server = served_by(process.pid)
            check("it runs as the image's user", _uid(server) == int(image.user.partition(":")[0]))
            health = [*buildah, "run", "--isolation", "chroot", arguments.container, "--", *image.health]
            check("its health check passes", subprocess.run(health, check=False).returncode == 0)  # noqa: S603
            check("SIGTERM ends it with status 0", stop(process, server) == 0)
        written = written_since(root, started)
        check("nothing was written outside of temporary folders", not written, str(written[:5]))
        with running(on_read_only_root(root, scratch, settings, image), scratch, "second") as process:
            third = post("begin_checkout", "event-3")
            check("on a read-only root the session goes on", third["events"] == 3)  # noqa: PLR2004 - the third
            check("SIGTERM ends it with status 0 again", stop(process, served_by(process.pid)) == 0)
    print("image-test passed")


def read_image(buildah: list[str], container: str) -> Image:
    """Return the configuration with which an engine would start the container."""
    found = json.loads(_output([*buildah, "inspect", container]))["Docker"]["config"]
    return Image(
        command=[*found["Entrypoint"], *found["Cmd"]],
        environment=found["Env"],
        health=found["Healthcheck"]["Test"][1:],  # the first word is CMD: no shell
        user=found["User"],
    )


def in_chroot(buildah: list[str], container: str, scratch: Path, settings: list[str], image: Image) -> list[str]:
    """Return the command line that runs the image's command in the container, with the image's user and environment."""
    options = [word for setting in settings for word in ("--env", setting)]
    options += ["--volume", f"{scratch / 'artifacts'}:/artifacts:ro"]
    return [*buildah, "run", "--isolation", "chroot", *options, container, "--", *image.command]


def on_read_only_root(root: Path, scratch: Path, settings: list[str], image: Image) -> list[str]:
    """Return the command line that runs the image's command with only a tmpfs at /tmp writable."""
    paths = [str(root), str(scratch / "artifacts"), image.user]
    words = [*image.environment, *settings, *image.command]
    return ["unshare", "--mount", "bash", "-c", _ON_READ_ONLY_ROOT, "bash", *paths, *words]


@contextmanager
def running(command: list[str], scratch: Path, name: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Start the service and yield its process once it is ready; print its log if a step fails."""
    log = scratch / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)  # noqa: S603
    try:
        wait_until(lambda: _is_ready(process), _START_S, f"the {name} start did not become ready")
        yield process
    except BaseException:
        print(log.read_text("utf-8", "replace")[-4000:], file=sys.stderr)
        raise
    finally:
        for pid in reversed(descendants(process.pid)):
            _kill(pid)
        process.wait()


@contextmanager
def valkey(scratch: Path, password: str) -> Iterator[None]:
    """Run a Valkey server with a password inside the context."""
    options = ["--port", str(_REDIS_PORT), "--bind", "127.0.0.1", "--requirepass", password]
    options += ["--appendonly", "yes", "--dir", str(scratch)]
    process = subprocess.Popen([str(find_server()), *options], stdout=subprocess.DEVNULL)  # noqa: S603
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def post(event_name: str, event_id: str) -> Any:  # noqa: ANN401 - JSON
    """Post one event and return the answer."""
    body = {"session_id": "image-test", "event_id": event_id, "event_name": event_name, "item_id": "SKU-1"}
    return _json(
        urllib.request.Request(  # noqa: S310 - our own URL
            f"{_URL}/v1/events", data=json.dumps(body).encode(), headers={"content-type": "application/json"}
        )
    )


def get(path: str) -> Any:  # noqa: ANN401 - JSON
    """Return the answer to a path."""
    return _json(urllib.request.Request(f"{_URL}{path}"))  # noqa: S310 - our own URL


def served_by(pid: int) -> int:
    """Return the service's process below `pid`: the innermost one; the others only wait."""
    return descendants(pid)[-1]


def stop(process: "subprocess.Popen[bytes]", server: int) -> int:
    """Send SIGTERM to the service and return the exit status of the container."""
    os.kill(server, signal.SIGTERM)
    return process.wait(_STOP_S)


def descendants(pid: int) -> list[int]:
    """Return a process and all below it, parents before children."""
    found = [pid]
    for parent in found:
        tasks = Path(f"/proc/{parent}/task").glob("*/children")
        found += [int(child) for task in tasks for child in task.read_text().split()]
    return found


def written_since(root: Path, timestamp_s: float) -> list[str]:
    """Return files newer than `timestamp_s` outside the writable folders."""
    skipped = tuple(str(root) + path for path in _WRITABLE)
    paths = [path for path in root.rglob("*") if not str(path).startswith(skipped)]
    return [str(path) for path in paths if path.lstat().st_mtime > timestamp_s and path.is_file()]


def wait_until(condition: Callable[[], bool], timeout_s: float, message: str) -> None:
    """Return once the condition holds; end the program if it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"FAILED: {message} within {timeout_s:g} s")
        time.sleep(0.1)


def check(what: str, holds: bool, detail: str = "") -> None:
    """Print a step that succeeded; end the program at a failed one."""
    if not holds:
        raise SystemExit(f"FAILED: {what} {detail}")
    print(f"   {what}")


def _is_ready(process: "subprocess.Popen[bytes]") -> bool:
    if process.poll() is not None:
        raise SystemExit(f"FAILED: the service ended with status {process.returncode} instead of starting")
    try:
        return bool(get("/readyz")["status"] == "ready")
    except OSError:  # refused or an error status: urllib raises both as OSError
        return False


def _json(request: urllib.request.Request) -> Any:  # noqa: ANN401 - JSON
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 - our own URL
        return json.load(response)


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - our own


def _uid(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    main()
