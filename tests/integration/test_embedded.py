import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from app.runtime import embedded_redis as embedded
from app.runtime.embedded_redis import EmbeddedRedis, EmbeddedServerError, find_server

ROOT = Path(__file__).parents[2]


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie still has its id.
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_it_answers_inside_the_context_and_leaves_nothing_behind():
    with EmbeddedRedis() as server:
        pid, directory = server.pid, Path(server.url.removeprefix("unix://")).parent
        with redis.Redis.from_url(server.url) as client:
            client.set("key", "value")
            assert client.get("key") == b"value"
            assert client.config_get("port") == {"port": "0"}
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert not is_running(pid)
    assert not directory.exists()


def test_two_do_not_meet():
    with EmbeddedRedis() as one, EmbeddedRedis() as other:
        with redis.Redis.from_url(one.url) as client:
            client.set("key", "value")
        with redis.Redis.from_url(other.url) as client:
            assert client.get("key") is None


def test_it_stops_when_the_owner_fails():
    server = EmbeddedRedis()
    pids = []

    def use():
        with server:
            pids.append(server.pid)
            raise KeyError

    with pytest.raises(KeyError):
        use()
    assert not is_running(pids[0])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_it_ends_with_an_owner_that_is_killed():
    program = (
        "import time; from app.runtime.embedded_redis import EmbeddedRedis\n"
        "with EmbeddedRedis() as server: print(server.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert is_running(pid)
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        deadline = time.monotonic() + 10
        while is_running(pid) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert not is_running(pid)


def test_without_any_server_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EmbeddedServerError, match=r"\.\[embedded\].*WILLBUY_REDIS_URL"):
        find_server()


def test_a_server_on_the_path_does_as_well(monkeypatch, tmp_path):
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    binary = tmp_path / "redis-server"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == binary


@pytest.mark.parametrize("content", ["#!/bin/sh\nexit 1\n", "no program"])
def test_a_server_that_does_not_start_is_an_error(tmp_path, content):
    binary = tmp_path / "broken"
    binary.write_text(content)
    binary.chmod(0o755)
    with pytest.raises(EmbeddedServerError), EmbeddedRedis(binary):
        pass


def test_a_long_temporary_path_does_not_matter(monkeypatch, tmp_path):
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        assert client.ping()
    assert list(deep.iterdir()) == []


def test_outside_the_context_there_is_no_address():
    with pytest.raises(EmbeddedServerError):
        _ = EmbeddedRedis().url
