# ruff: noqa: INP001  # a program that run.sh starts, not a package
"""Build and test the image with a Docker engine: `make image-test`, where there is one.

The same checks as exercise.py: its user, no training packages, a read-only root, events, the health check, and SIGTERM.
The image's container shares the network of a Redis container, so nothing but a port of the loopback address is open.
"""

import json
import os
import re
import secrets
import shlex
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from exercise import check, wait_until
from typer.testing import CliRunner

from training.cli import cli

_ROOT: Final = Path(__file__).parents[2]
_IMAGE: Final = "willbuy:image-test"
_START_S: Final = 180.0
_WITHOUT_STEPS: Final = ["--no-lightgbm", "--set", "pretraining.epochs=0", "--set", "fit.teacher_weight=0"]


def docker(*words: str) -> str:
    """Run `docker` and return its output; end the program with the error where it fails."""
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False, cwd=_ROOT)  # noqa: S603, S607
    if done.returncode:
        raise SystemExit(f"FAILED: docker {shlex.join(words)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout.strip()


def main() -> None:
    """Run all steps; the first failing step ends the program with its reason."""
    print("== the image, from the Dockerfile")
    options = shlex.split(os.environ.get("BUILD_OPTIONS", ""))
    docker("buildx", "build", "--load", *options, "--target", "serve", "--tag", _IMAGE, ".")
    user = docker("inspect", "--format", "{{.Config.User}}", _IMAGE)
    check("the user is a number and not root", user.partition(":")[0].isdigit() and user[0] != "0")
    packages = docker("run", "--rm", "--entrypoint", "sh", _IMAGE, "-c", "ls /opt/willbuy/lib/python3*/site-packages")
    check("no training dependency is in the image", "polars" not in packages.split())
    with TemporaryDirectory(prefix="willbuy-image-test-") as folder, redis() as (name, port):
        print("== a model of a synthetic shop")
        shop, model = Path(folder) / "shop.parquet", Path(folder) / "model.pt"
        for words in (
            ["synthesize", "--out", str(shop), "--sessions", "1500"],
            ["train", str(shop), "--out", str(model), "--epochs", "1", *_WITHOUT_STEPS],
        ):
            done = CliRunner().invoke(cli, words)
            check(words[0], done.exit_code == 0, done.output)
        Path(folder).chmod(0o755)
        for event, expected in (("view_item", 1), ("add_to_cart", 2)):
            service(folder, name, port, event, expected)
    print("image-test passed")


def service(folder: str, redis_name: str, port: int, event: str, expected: int) -> None:
    """Post an event twice to a new container, then stop the container. The session continues in the next container."""
    words = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--network", f"container:{redis_name}"]  # noqa: S108
    words += ["--volume", f"{folder}:/artifacts:ro", "--env", "WILLBUY_OPEN_ACCESS=true"]
    container = docker("run", "--detach", *words, "--env", "WILLBUY_REDIS_URL=redis://127.0.0.1:6379/0", _IMAGE)
    try:
        wait_until(lambda: _status(port) == "ready", _START_S, "the service did not become ready")
        first, again = (post(port, event) for _ in range(2))
        check(f"event {expected} is counted", (first["events"], first["duplicate"]) == (expected, False))
        check("sent again, it is answered again", (again["events"], again["duplicate"]) == (expected, True))
        health = docker("inspect", "--format", '{{join .Config.Healthcheck.Test "\\n"}}', container).splitlines()
        docker("exec", container, *health[1:])
        docker("stop", "--time", "60", container)
        status = docker("inspect", "--format", "{{.State.ExitCode}}", container)
        check("its health check passes, and SIGTERM ends it with status 0", status == "0", status)
    finally:
        docker("rm", "--force", container)


@contextmanager
def redis() -> Iterator[tuple[str, int]]:
    """Run compose's Redis image; yields the container's name and the port of the loopback address for the service."""
    found = re.search(r"image: (valkey\S+)", (_ROOT / "docker-compose.yml").read_text())
    check("docker-compose.yml names a Redis image", found is not None)
    image = found[1] if found else ""
    name = f"willbuy-image-test-{secrets.token_hex(3)}"
    docker("run", "--detach", "--name", name, "--publish", "127.0.0.1:0:8000", image, "valkey-server")
    try:
        yield name, int(docker("port", name, "8000/tcp").rpartition(":")[2])
    finally:
        docker("rm", "--force", "--volumes", name)


def post(port: int, event_name: str) -> Any:  # noqa: ANN401 - JSON
    """Post an event and return the answer."""
    body = json.dumps({"session_id": "image-test", "event_id": event_name, "event_name": event_name}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/events", body, headers)
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - our own URL
        return json.load(answer)


def _status(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as answer:
            return str(json.load(answer)["status"])
    except OSError:  # refused, or an error's status
        time.sleep(0.2)
        return ""


if __name__ == "__main__":
    main()
