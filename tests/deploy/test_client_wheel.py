"""The Python client as a distribution of its own, and its bodies against the OpenAPI document."""

import json
import os
import re
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path
from typing import Literal

import pytest
from packaging.requirements import Requirement
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from support.deployment import PYPROJECT, ROOT
from support.wheels import build_wheel

from app.schemas.board import BoardOut, StatsOut
from app.schemas.events import BatchOut, EventIn, OutcomeIn, ScoreOut
from app.schemas.model import ModelOut
from app.schemas.problems import Problem
from app.schemas.sessions import SessionOut, TracedSessionOut
from docs.generate.api import document

# What each call of the client returns.
ANSWERS: dict[tuple[str, str], set[type[BaseModel]]] = {
    ("post", "/v1/events"): {ScoreOut},
    ("post", "/v1/events/batch"): {BatchOut},
    ("get", "/v1/sessions/{session_id}"): {SessionOut, TracedSessionOut},
    ("get", "/v1/sessions"): {BoardOut},
    ("get", "/v1/stats"): {StatsOut},
    ("get", "/v1/model"): {ModelOut},
    ("post", "/v1/sessions/{session_id}/outcome"): {SessionOut},
}
VALIDATION: Literal["validation"] = "validation"
# Sends one event with the installed package; prints what came, and which of the service's packages can be imported.
ONE_EVENT = """
import json, sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
import willbuy_client
from willbuy_client import Client
from willbuy_client.schemas.events import EventIn

with Client(sys.argv[1], deadline_s=30) as client:
    score = client.send(EventIn(session_id="from-the-wheel", event_name="page_view"))
    session = client.session("from-the-wheel")
folder = Path(willbuy_client.__file__).parent
found = [name for name in ("torch", "fastapi", "redis", "numpy", "app", "model") if find_spec(name)]
print(json.dumps([score.events, session.probability, version("willbuy-client"), found, (folder / "py.typed").exists()]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(ROOT / "clients/python", tmp_path_factory.mktemp("dist"))


def shared(schema):
    """What both say: the framework leaves out null as a default, and the document adds the codes of problems."""
    if isinstance(schema, list):
        return [shared(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    dropped = {"x-extensible-enum"} | ({"default"} if schema.get("default") is None else set())
    return {key: shared(one) for key, one in schema.items() if key not in dropped}


def link_with_dependencies(name, packages):
    """Link a distribution of this environment, and all that it requires, into another one."""
    found = distribution(name)
    for top in {Path(file).parts[0] for file in found.files or () if ".." not in Path(file).parts}:
        link = packages / top
        if not link.exists():
            link.symlink_to(found.locate_file(top))
    for text in found.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            link_with_dependencies(requirement.name, packages)


def test_the_wheel_sends_an_event_from_an_environment_with_its_dependencies_alone(wheel, service, valkey, tmp_path):
    # Given an environment with the wheel and what the wheel says that it needs
    away = tmp_path / "away"
    venv.EnvBuilder(with_pip=False, symlinks=True).create(away)
    [packages] = away.glob("lib/python3*/site-packages")
    install = [sys.executable, "-m", "pip", "--python", away / "bin/python", "install", "--quiet", "--no-deps"]
    subprocess.run([*install, "--no-index", wheel], check=True)
    [metadata] = packages.glob("willbuy_client-*.dist-info/METADATA")
    for text in re.findall(r"^Requires-Dist: (.+)$", metadata.read_text(), re.MULTILINE):
        link_with_dependencies(Requirement(text).name, packages)
    running = service(redis_url=valkey.url)
    # When it sends an event
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [away / "bin/python", "-c", ONE_EVENT, running.base_url]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    # Then the event counts, without any package of the service
    assert done.returncode == 0, done.stderr
    events, probability, version, found, typed = json.loads(done.stdout)
    assert events == 1
    assert 0 < probability < 1
    assert (version, found, typed) == (PYPROJECT["project"]["version"], [], True)


def test_its_dependencies_have_the_ranges_of_the_service():
    text = (ROOT / "clients/python/pyproject.toml").read_text()
    needed = re.findall(r'"([^"]+)"', text.partition("dependencies = ")[2].partition("\n")[0])
    assert set(needed) <= set(PYPROJECT["project"]["dependencies"])


def test_the_clients_bodies_are_those_of_the_openapi_document():
    openapi = document()
    for (method, path), expected in ANSWERS.items():
        schema = openapi["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"]
        assert set(re.findall(r"schemas/(\w+)", json.dumps(schema))) == {body.__name__ for body in expected}
    sent: list[type[BaseModel]] = [EventIn, OutcomeIn, Problem]
    answers = [body for expected in ANSWERS.values() for body in expected]
    bodies = [(body, VALIDATION) for body in dict.fromkeys([*answers, *sent])]
    _, own = models_json_schema(bodies, ref_template="#/components/schemas/{model}")
    schemas = openapi["components"]["schemas"]
    assert {name: shared(schemas[name]) for name in own["$defs"]} == {
        name: shared(one) for name, one in own["$defs"].items()
    }
