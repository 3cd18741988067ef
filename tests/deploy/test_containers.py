"""Dockerfile and compose file, as far as they can be tried without an engine; `make image-test` builds the image."""

import ast
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import httpx
import pytest
import redis
import typer
import yaml
from conftest import missing
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from redis.backoff import ConstantBackoff
from redis.retry import Retry
from support.deployment import PYPROJECT, ROOT, SETTINGS, environment_of_settings, seconds
from support.redis_servers import find_binary, free_port

from app.cli import _GRACE_S, cli  # private: no caller needs it
from app.kafka.options import read_properties
from app.settings import Settings
from model.artifact import read_manifest

DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE_FILE = ROOT / "docker-compose.yml"
COMPOSE = yaml.safe_load(COMPOSE_FILE.read_text())
SERVICES = COMPOSE["services"]
# What the compose file fills into itself, and what `willbuy demo` reads.
OF_COMPOSE = {"WILLBUY_API_KEY", "WILLBUY_PORT", "WILLBUY_VERSION"}


def tool(name):
    """A program that a Python package brings, or that the system has."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise missing(name)
    return found


def run(*command, **options):
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)


def stage(name):
    """The instructions of one stage of the Dockerfile, continued lines joined."""
    body = re.search(rf"^FROM \S+ AS {name}$(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert body is not None, name
    return body[1].replace("\\\n", " ")


def health_check():
    found = re.search(r"^HEALTHCHECK .*?CMD (\[.*\])$", stage("serve"), re.MULTILINE)
    assert found is not None
    return json.loads(found[1])


def test_hadolint_finds_nothing_in_the_dockerfile():
    checked = run(tool("hadolint"), "--failure-threshold", "style", ROOT / "Dockerfile")

    assert (checked.returncode, checked.stdout) == (0, "")


@pytest.mark.parametrize("name", ["serve", "train"])
def test_an_image_ends_as_a_user_that_is_a_number_and_not_root(name):
    # Kubernetes refuses a name under runAsNonRoot, as it may be anybody's.
    users = re.findall(r"^USER (.*)$", stage(name), re.MULTILINE)

    assert users[-1] == "10001:10001"


def test_the_dockerfile_copies_only_what_dockerignore_lets_through():
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    let_through = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]

    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(source == path or source.startswith(f"{path}/") for path in let_through), source


def test_the_serving_image_installs_the_services_dependencies_and_none_of_training():
    script = ROOT / "deploy/image/requirements.py"
    project, optional = PYPROJECT["project"], PYPROJECT["project"]["optional-dependencies"]
    serve, train = (
        run(sys.executable, script, ROOT / "pyproject.toml", "--extra", extra).stdout.splitlines()
        for extra in ("kafka", "train")
    )

    assert serve == [*project["dependencies"], *optional["kafka"]]
    assert train == [*project["dependencies"], *optional["train"]]
    assert "--extra kafka > serve.txt" in stage("requirements")
    assert "serve.txt" in stage("requirements").split("pip install")[-1]
    assert "train.txt" not in stage("serve-environment")


def with_what_they_need(lines):
    """The names of the packages that these requirements bring, those that they need in turn included."""
    names, waiting = set(), [Requirement(line) for line in lines]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = ["", *requirement.extras]
        if name not in names:
            names.add(name)
            needed = [Requirement(line) for line in requires(name) or []]
            waiting += [
                one
                for one in needed
                if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras)
            ]
    return names


def imported_by(package):
    """The top-level modules that a package's source imports, within functions too."""
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                yield str(node.module).partition(".")[0]


@pytest.mark.parametrize(
    ("packages", "extras"),
    [
        (("app", "model"), ("embedded", "kafka", "otel")),
        (("training", "model"), ("train", "loggers", "kafka", "embedded")),
    ],
    ids=["serve", "train"],
)
def test_what_the_source_imports_is_among_the_requirements(packages, extras):
    project = PYPROJECT["project"]
    optional = project.get("optional-dependencies", {})
    declared = [*project["dependencies"], *(line for extra in extras for line in optional.get(extra, []))]
    modules = {module for package in packages for module in imported_by(package)}
    foreign = modules - sys.stdlib_module_names - {"app", "model", "training"}
    providers = packages_distributions()
    names = with_what_they_need(declared)

    assert foreign
    unknown = {
        module for module in foreign if not {canonicalize_name(name) for name in providers.get(module, [])} & names
    }
    assert unknown == set()


def test_every_package_of_the_images_is_pinned():
    pinned = {
        canonicalize_name(line.split("==")[0])
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    project = PYPROJECT["project"]
    wanted = [
        *project["dependencies"],
        *(line for extra in ("train", "kafka") for line in project["optional-dependencies"][extra]),
        "hatchling",
    ]
    # The images are without installers, though torch asks for one; a CUDA build of torch pins its own libraries.
    unpinned = {
        name
        for name in with_what_they_need(wanted) - {"setuptools"} - pinned
        if not name.startswith(("cuda-", "nvidia-", "triton"))
    }
    assert unpinned == set()


def test_the_images_python_is_one_that_the_project_supports():
    version = re.search(r"^ARG PYTHON_IMAGE=python:(\d+)\.(\d+)\.\d+-slim-bookworm$", DOCKERFILE, re.MULTILINE)

    assert version is not None
    assert (int(version[1]), int(version[2])) == (3, 11)
    assert COMPOSE["x-build"]["args"]["PYTHON_IMAGE"].endswith(f":-{version[0].partition('=')[2]}}}")


def test_the_health_check_follows_the_service(service, valkey):
    started = service(redis_url=valkey.url)
    _, *arguments = health_check()
    command = [sys.executable, *(word.replace("8000", str(started.port)) for word in arguments)]

    assert run(*command).returncode == 0
    started.stop()
    assert run(*command).returncode != 0


def test_the_compose_file_keeps_to_the_compose_specification():
    checked = run(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE_FILE)

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_compose_mounts_only_files_that_are_there():
    binds = [
        volume.partition(":")[0]
        for container in SERVICES.values()
        for volume in container.get("volumes", [])
        if volume.startswith(".")
    ]

    assert binds
    assert [bind for bind in binds if not (ROOT / bind).is_file()] == []


def test_compose_and_its_example_name_only_settings_that_there_are():
    texts = COMPOSE_FILE.read_text() + (ROOT / "deploy/compose/env.example").read_text()

    assert environment_of_settings(texts) - OF_COMPOSE <= SETTINGS


def test_compose_publishes_on_the_loopback_address_alone():
    published = {port for container in SERVICES.values() for port in container.get("ports", [])}

    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    for name in ("serve", "redis", "train"):
        assert SERVICES[name]["networks"] == ["inside"]
        assert "ports" not in SERVICES[name]


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_container_has_a_read_only_root_and_gains_no_privileges(name):
    container = SERVICES[name]

    assert container["read_only"] is True
    assert container["security_opt"] == ["no-new-privileges:true"]
    if not container["image"].startswith("willbuy"):
        assert re.search(r":v?\d+\.\d+\.\d+", container["image"]), "pinned to a version"


def test_the_consumer_of_compose_is_the_service_with_another_command():
    serve, consume = SERVICES["serve"], SERVICES["consume"]

    assert consume["environment"] == serve["environment"] | {"WILLBUY_DRAIN_DELAY_S": "0"}
    assert consume["env_file"] == serve["env_file"]
    name, *options = consume["command"]
    filled = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", option) for option in options]
    given = typer.main.get_group(cli).commands[name].make_context(name, filled).params
    assert (given["host"], given["brokers"], given["topic"], given["scores"]) == (
        *("0.0.0.0", "kafka:9092", "events", "scores"),
    )
    mounted = {volume.split(":")[1]: ROOT / volume.split(":")[0] for volume in consume["volumes"] if volume[0] == "."}
    assert read_properties(mounted[str(given["properties"])]) == {}


def test_prometheus_asks_every_replica_and_has_the_alerts():
    configuration = yaml.safe_load((ROOT / "deploy/compose/prometheus.yml").read_text())
    [found] = configuration["scrape_configs"][0]["dns_sd_configs"]
    mounted = {volume.split(":")[1] for volume in SERVICES["prometheus"]["volumes"]}

    assert found["names"] == ["serve", "consume"]
    assert f"EXPOSE {found['port']}\n" in stage("serve")
    assert {f"/etc/prometheus/{rules}" for rules in configuration["rule_files"]} <= mounted


def test_compose_starts_things_when_what_they_need_is_there():
    assert SERVICES["serve"]["depends_on"] == {
        "redis": {"condition": "service_healthy"},
        "train": {"condition": "service_completed_successfully"},
    }
    assert SERVICES["gateway"]["depends_on"] == {"serve": {"condition": "service_healthy"}}


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_has_a_memory_limit_and_only_its_own_passwords(name):
    container = SERVICES[name]
    text = json.dumps(container)

    assert re.fullmatch(r"\d+[mg]", container["mem_limit"])
    assert ".env" not in [one["path"] for one in container.get("env_file", [])]
    assert ("REDIS_PASSWORD" in text) == (name in {"consume", "redis", "serve"})
    assert ("GRAFANA_PASSWORD" in text) == (name == "grafana")
    assert ('WILLBUY_API_KEY"' in text) == (name == "shoppers")
    assert "PASSWORD" not in json.dumps([container.get("command"), container.get("healthcheck")])


def test_redis_of_compose_takes_its_password_from_no_command_line(tmp_path):
    """A real server behind a stand-in for the image's entrypoint; its settings hold."""
    entrypoint = tmp_path / "docker-entrypoint.sh"
    port = free_port()
    server = find_binary("valkey-8.1")
    if server is None:
        raise missing("valkey-8.1")
    entrypoint.write_text(f'#!/bin/sh\nshift\nexec {server} "$@" --port {port} --bind 127.0.0.1 --dir {tmp_path}\n')
    entrypoint.chmod(0o755)
    command = [word.replace("$$", "$") for word in SERVICES["redis"]["command"]]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "REDISCLI_AUTH": "s3cret", "REDIS_APPENDFSYNC": "always"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        client = redis.Redis(port=port, password="s3cret", retry=Retry(ConstantBackoff(0.1), 100))
        found = client.config_get("appendfsync", "appendonly", "maxmemory", "maxmemory-policy")
        commands = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=port).ping()
    finally:
        process.terminate()
        process.wait(30)

    assert (found["appendfsync"], found["appendonly"], found["maxmemory-policy"]) == ("always", "yes", "noeviction")
    assert SERVICES["redis"]["mem_limit"] == "1g"
    assert int(str(found["maxmemory"])) < 0.75 * 2**30
    assert str(port).encode() in commands
    assert b"s3cret" not in commands


def test_compose_gives_a_replica_the_time_to_drain():
    environment = SERVICES["serve"]["environment"]
    delay_s = float(environment["WILLBUY_DRAIN_DELAY_S"].removeprefix("${WILLBUY_DRAIN_DELAY_S:-").removesuffix("}"))
    request_s = Settings.model_fields["request_timeout_s"].default

    assert seconds(SERVICES["serve"]["stop_grace_period"]) > delay_s + request_s + _GRACE_S


@pytest.fixture(scope="module")
def demo_model(warm_commands, tmp_path_factory):
    """What the trainer of the compose file leaves in its volume."""
    volume = tmp_path_factory.mktemp("artifacts")
    path = f"{warm_commands}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "DEMO_SESSIONS": "600", "DEMO_EPOCHS": "1"}

    def train():
        return run("sh", ROOT / "deploy/compose/train-demo.sh", volume, env=environment)

    first = train()
    assert first.returncode == 0, first.stderr[-2000:]
    return volume / "model.pt", train


@pytest.mark.slow
def test_the_demo_trainer_makes_a_model_once(demo_model):
    artifact, train = demo_model
    before = read_manifest(artifact).fingerprint

    again = train()

    assert (again.returncode, again.stdout) == (0, f"{artifact} exists; nothing to train\n")
    assert read_manifest(artifact).fingerprint == before


@pytest.mark.slow
def test_shoppers_play_at_a_service_that_is_there(service, valkey, tmp_path):
    started = service(redis_url=valkey.url)
    command = [sys.executable, "-m", "training", "demo", "--url", started.base_url, "--shoppers", "4"]
    log = tmp_path / "shoppers.log"
    with log.open("wb") as output:
        shoppers = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT)
    try:
        deadline = time.monotonic() + 60
        while not httpx.get(f"{started.base_url}/v1/sessions").json()["sessions"]:
            assert shoppers.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        # When the service is away for longer than one event is tried
        started.stop()
        with socket.create_server(("127.0.0.1", started.port)) as silent:
            silent.settimeout(60)
            for _ in range(4 * 9):
                silent.accept()[0].close()
        valkey.flush()
        started.start()
        # Then they go on when it is back
        while not httpx.get(f"{started.base_url}/v1/sessions").json()["sessions"]:
            assert shoppers.poll() is None, log.read_text()
            assert time.monotonic() < deadline + 60
            time.sleep(0.2)
        shoppers.send_signal(signal.SIGTERM)
        assert shoppers.wait(60) == 0
    finally:
        shoppers.kill()
        shoppers.wait()


class Gateway:
    """The compose file's HAProxy before services on this machine."""

    def __init__(self, directory, ports):
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        text = (ROOT / "deploy/compose/haproxy.cfg").read_text()
        # No engine, so no name server: the replicas by address, the rest as it is.
        text = re.sub(r"^resolvers engine\n(?:    .*\n)+", "", text, flags=re.MULTILINE)
        text = text.replace(" resolvers engine resolve-prefer ipv4 init-addr none", "")
        servers = "".join(f"    server replica{port} 127.0.0.1:{port}\n" for port in ports)
        text = text.replace("    server-template replica 16 serve:8000\n", servers)
        text = text.replace("bind :8000", f"bind 127.0.0.1:{self.port}")
        assert servers in text
        assert "resolvers engine" not in text
        self.configuration = directory / "haproxy.cfg"
        self.configuration.write_text(text)
        self.log = directory / "haproxy.log"

    def __enter__(self):
        with self.log.open("wb") as log:
            self._process = subprocess.Popen([haproxy(), "-db", "-f", self.configuration], stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while not self.ready():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait(30)

    def ready(self):
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.base_url}/readyz", timeout=5).status_code == 200
        return False


def haproxy():
    # Debian puts it where only root's PATH leads.
    found = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise missing("haproxy")
    return found


def test_the_gateways_configuration_is_valid_as_it_stands():
    checked = run(haproxy(), "-c", "-f", ROOT / "deploy/compose/haproxy.cfg")

    assert checked.returncode == 0, checked.stderr


@pytest.mark.slow
def test_no_request_through_the_gateway_fails_while_a_replica_is_stopped(service, valkey, tmp_path):
    """Given two replicas, when one is stopped under load, then the other takes over and nobody notices."""
    replicas = [service(redis_url=valkey.url, drain_delay_s=8) for _ in range(2)]
    statuses, stopped = [], threading.Event()

    def shop(number, url):
        with httpx.Client(base_url=url, timeout=20) as client:
            events = 0
            while not stopped.is_set():
                events += 1
                body = {"session_id": f"s-{number}-{events // 20}", "event_name": "page_view"}
                statuses.append(client.post("/v1/events", json=body).status_code)
                time.sleep(0.1)

    with Gateway(tmp_path, [replica.port for replica in replicas]) as gateway:
        threads = [threading.Thread(target=shop, args=(number, gateway.base_url)) for number in range(4)]
        for thread in threads:
            thread.start()
        try:
            while len(statuses) < 40:
                time.sleep(0.05)
            assert replicas[0].stop() == 0
            gone_at = len(statuses)
            while len(statuses) < gone_at + 40:
                time.sleep(0.05)
        finally:
            stopped.set()
            for thread in threads:
                thread.join()

        assert set(statuses) == {200}
        assert httpx.get(f"{gateway.base_url}/metrics").status_code == 404
        assert httpx.get(f"{gateway.base_url}/dashboard/").status_code == 200
