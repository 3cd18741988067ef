"""Fixtures of all tests: real servers, real processes. What they start they stop, by process id."""

import os
from collections import Counter
from pathlib import Path

import pytest
from fuzz.cases import CASES
from hypothesis import Phase, settings
from support.artifacts import write_artifact
from support.authorities import share_authorities
from support.patience import be_patient
from support.redis_servers import BINARIES, RedisServer, find_binary
from support.service import Service
from support.tracing import untraced
from support.warm_commands import WarmCommands

# The same examples each time, so that only a change of the code fails a test; `make fuzz` tries others. No time limit:
# an example that a busy machine takes long for is no failure.
settings.register_profile("tests", max_examples=CASES or 100, derandomize=not CASES, deadline=None)
# `make quick` tries a quarter of the examples.
settings.register_profile("quick", settings.get_profile("tests"), max_examples=25)
# `make mutants` asks whether an example fails, and not for the smallest one.
settings.register_profile(
    "mutants",
    settings.get_profile("tests"),
    phases=(Phase.explicit, Phase.generate),
    report_multiple_bugs=False,
)
settings.load_profile("tests")
# Nothing fails because the machine is busy.
be_patient()
share_authorities()


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"


TESTS = Path(__file__).parent
# What a test marked as slow may take, and one of real processes or logs, where others have `timeout` of pyproject.toml:
# several times what it takes with coverage beside another load, so that a hang ends soon and a busy machine fails
# nothing.
SLOW_S = 120
LONGER_S = 60
LONGER = {"browser", "deploy", "docs", "e2e", "faults", "fuzz", "integration", "leaks", "sources", "unit/training"}
# The first test that asks for one of these trains a model meanwhile, or starts a browser.
SLOW_FIXTURES = {"trained", "month", "demo_model", "chromium"}
# Tests of what coverage does not count: measuring it would cost a third of their time.
UNMEASURED = [
    TESTS / name
    for name in (
        *("deploy", "docs", "leaks", "sources", "unit/training"),
        *("e2e/test_demo.py", "integration/test_distributed.py"),
    )
]
# Why a test may be skipped in CI too.
SKIPPED_IN_CI = ("torch sees no GPU", "no GPU", "no real logs", "only Linux", "processes are counted in /proc")


def pytest_xdist_auto_num_workers():
    """Two workers a processor: tests of processes, brokers and browsers wait for half of their time."""
    return 2 * len(os.sched_getaffinity(0))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Let files with slow tests begin first, then those with many, so that no worker is left alone with one.

    Slow tests get more time.
    """
    tests = Counter(item.path for item in items)
    slow: Counter[Path] = Counter()
    for item in items:
        is_slow = item.get_closest_marker("slow") is not None
        if is_slow:
            slow[item.path] += 1
        if item.get_closest_marker("timeout") is not None:
            continue
        if is_slow or not SLOW_FIXTURES.isdisjoint(item.fixturenames):
            item.add_marker(pytest.mark.timeout(SLOW_S))
        elif any(item.path.is_relative_to(TESTS / name) for name in LONGER):
            item.add_marker(pytest.mark.timeout(LONGER_S))
    items.sort(key=lambda item: (slow[item.path], tests[item.path]), reverse=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    if not any(item.path.is_relative_to(folder) for folder in UNMEASURED):
        return (yield)
    with untraced(), pytest.MonkeyPatch.context() as patch:
        # Nor the programs that the test starts
        patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """In CI a skip is a failure, since it would hide that nothing was tested."""
    report = yield
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        *_, reason = report.longrepr
        if not reason.removeprefix("Skipped: ").startswith(SKIPPED_IN_CI):
            report.outcome, report.longrepr = "failed", f"skipped in CI: {reason}"
    return report


def missing(what):
    """What to raise without a part: a skip, which is a failure in CI."""
    return pytest.skip.Exception(f"{what} is missing")


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


@pytest.fixture(scope="session")
def warm_commands(tmp_path_factory):
    """A folder for PATH with a `willbuy` that starts at once."""
    with WarmCommands(tmp_path_factory.mktemp("warm")) as commands:
        yield commands.folder


@pytest.fixture
def service(artifact, tmp_path):
    """Start services: `service(redis_url=..., dedupe_window=2)`; each argument is a setting, but `tuned`."""
    services: list[Service] = []

    def start(*, workers=1, tuned=None, **settings):
        log = tmp_path / f"service-{len(services)}.log"
        started = Service(log, {"artifact": artifact} | settings, workers=workers, tuned=tuned)
        services.append(started)
        started.start()
        return started

    yield start
    for started in services:
        started.stop()
