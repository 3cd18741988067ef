"""The wheel holds all that runs, and runs away from the source."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
from support.deployment import PYPROJECT, ROOT
from support.wheels import build_wheel

PACKAGES = ("app", "model", "training")
VERSION = PYPROJECT["project"]["version"]
# Asks the wheel's service one event; prints where its code lies and the answer.
ONE_EVENT = """
import json, sys
from fastapi.testclient import TestClient
import app.main, model.artifact, training.cli
from app.main import create_app
from app.settings import Settings

settings = Settings(artifact=sys.argv[1], redis_url=sys.argv[2], open_access=True)
with TestClient(create_app(settings)) as client:
    answer = client.post("/v1/events", json={"session_id": "away", "event_name": "view_item"})
    page = client.get("/dashboard/")
files = [module.__file__ for module in (app.main, model.artifact, training.cli)]
print(json.dumps({"files": files, "status": answer.status_code, "answer": answer.json(), "page": page.status_code}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def away(wheel, tmp_path_factory):
    """An environment that has the wheel, and finds its dependencies, but not the source, in this one."""
    folder = tmp_path_factory.mktemp("away")
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    [packages] = folder.glob("lib/python3*/site-packages")
    install = [sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "--quiet"]
    subprocess.run([*install, "--no-deps", "--no-index", wheel], check=True)
    # Plain paths: the editable install's own .pth file in there is not read, so the source is not found.
    dependencies = [path for path in sys.path if Path(path).name == "site-packages"]
    (packages / "dependencies.pth").write_text("".join(f"{path}\n" for path in dependencies))
    return folder


def run(away, *command, cwd):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "WILLBUY_"))}
    return subprocess.run(
        [away / "bin" / command[0], *command[1:]], capture_output=True, text=True, check=False, cwd=cwd, env=environment
    )


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_every_file_of_the_packages(wheel):
    in_source = {
        str(path.relative_to(ROOT)): path.read_bytes()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    in_wheel = {name: data for name, data in contents(wheel).items() if name.partition("/")[0] in PACKAGES}

    assert in_wheel == in_source
    for needed in ("app/store/lua/commit.lua", "app/api/static/index.html", "app/api/static/main.js"):
        assert needed in in_wheel
    vendored = [name for name in in_wheel if name.startswith("app/api/static/vendor/uplot")]
    assert any(Path(name).name.startswith("LICENSE") for name in vendored)


def test_the_wheel_holds_nothing_else(wheel):
    others = {name.partition("/")[0] for name in contents(wheel)} - set(PACKAGES)

    assert others == {f"willbuy-{VERSION}.dist-info"}


def test_there_is_one_place_for_the_version(wheel, away, tmp_path):
    metadata = HeaderParser().parsestr(contents(wheel)[f"willbuy-{VERSION}.dist-info/METADATA"].decode())

    assert metadata["Version"] == VERSION
    assert run(away, "willbuy", "--version", cwd=tmp_path).stdout.strip() == f"willbuy {VERSION}"
    asked = "import app, model, training; print([hasattr(m, '__version__') for m in (app, model, training)])"
    assert run(away, "python", "-c", asked, cwd=tmp_path).stdout.strip() == "[False, False, False]"


def test_the_wheels_command_knows_serving_and_training(away, tmp_path):
    told = run(away, "willbuy", "--help", cwd=tmp_path)

    assert told.returncode == 0, told.stderr
    assert {"serve", "train", "prepare", "demo"} <= set(told.stdout.split())


def test_the_wheels_service_answers_an_event_away_from_the_source(away, artifact, valkey, tmp_path):
    told = run(away, "python", "-W", "error::ResourceWarning", "-c", ONE_EVENT, artifact, valkey.url, cwd=tmp_path)

    assert told.returncode == 0, told.stderr[-2000:]
    said = json.loads(told.stdout.splitlines()[-1])
    assert [Path(file).is_relative_to(away) for file in said["files"]] == [True, True, True]
    assert (said["status"], said["answer"]["events"], said["page"]) == (200, 1, 200)
