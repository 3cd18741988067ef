"""Fixtures of all tests: real servers, real processes. What they start they stop, by process id."""

import os

import pytest
from support.artifacts import write_artifact
from support.redis_servers import BINARIES, RedisServer, find_binary
from support.service import Service


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"


def missing(what):
    """What to raise without a part: a skip, but in CI a failure, since a skip would hide that nothing was tested."""
    outcome = pytest.fail.Exception if os.environ.get("CI") else pytest.skip.Exception
    return outcome(f"{what} is missing")


@pytest.fixture(scope="session")
def start_redis(tmp_path_factory):
    """Start servers of one's own: `start_redis("valkey-8.1", appendonly=True)`."""
    servers: list[RedisServer] = []

    def start(name="valkey-8.1", **options):
        binary = find_binary(name)
        if binary is None:
            raise missing(name)
        server = RedisServer(binary, tmp_path_factory.mktemp(name), **options)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session", params=sorted(BINARIES))
def shared_redis(request, start_redis):
    return start_redis(request.param)


@pytest.fixture
def redis_server(shared_redis):
    """Each of the oldest Redis and the newest Valkey, empty. Not to be killed: it is for the whole run."""
    shared_redis.flush()
    return shared_redis


@pytest.fixture(scope="session")
def shared_valkey(start_redis):
    return start_redis("valkey-8.1")


@pytest.fixture
def valkey(shared_valkey):
    """One server, empty, where the kind does not matter. Not to be killed either."""
    shared_valkey.flush()
    return shared_valkey


@pytest.fixture(scope="session")
def artifact(tmp_path_factory):
    """A small artifact of random weights."""
    return write_artifact(tmp_path_factory.mktemp("artifact") / "model.pt")


@pytest.fixture
def service(artifact, tmp_path):
    """Start services: `service(redis_url=..., dedupe_window=2)`; each argument is a setting, but `tuned`."""
    services: list[Service] = []

    def start(*, workers=1, tuned=None, **settings):
        log = tmp_path / f"service-{len(services)}.log"
        started = Service(log, {"artifact": artifact, "log_format": "console"} | settings, workers=workers, tuned=tuned)
        services.append(started)
        started.start()
        return started

    yield start
    for started in services:
        started.stop()
