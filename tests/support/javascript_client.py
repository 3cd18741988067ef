"""The JavaScript client as it is published: packed by deno, and unpacked as npm would install it."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Final

import pytest

from support.deployment import PYPROJECT, ROOT

SOURCE: Final = ROOT / "clients/js"


def deno(cache: Path, *arguments: object, cwd: Path = SOURCE) -> None:
    """Run deno, which checks and packs the client; it needs no network."""
    found = shutil.which("deno", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        raise pytest.skip.Exception("deno is missing")
    environment = os.environ | {"DENO_DIR": str(cache), "NO_COLOR": "1"}
    command = [found, *map(str, arguments), "--quiet"]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def install(folder: Path, cache: Path) -> Path:
    """Pack the client, install it into the folder, and return its place there."""
    packed = cache / "client.tgz"
    version = PYPROJECT["project"]["version"]
    deno(cache, "pack", "--no-source-maps", "--allow-dirty", "--set-version", version, "--output", packed)
    scope = folder / "node_modules/@willbuy"
    with tarfile.open(packed) as archive:
        archive.extractall(scope, filter="data")
    return (scope / "package").rename(scope / "client")
