"""Where `willbuy serve` listens: ports, both families of addresses, a Unix socket, below a proxy's path."""

import errno
import json
import socket
import subprocess
import sys
import time

import httpx
import pytest
from support.paths import ROOT
from support.patience import service_environment
from support.warm_process import WarmProcess

EVENT = {"session_id": "s-1", "event_name": "view_item"}


class Served:
    """One `willbuy serve` with the given options, whose log is JSON."""

    def __init__(self, log, options, environment, *, cold=False):
        self.log = log
        log.touch()
        arguments = ["serve", *map(str, options)]
        self.process: WarmProcess | subprocess.Popen[bytes]
        if not cold:
            self.process = WarmProcess("willbuy", arguments, cwd=ROOT, env=environment, log=log)
            return
        command = [sys.executable, "-m", "app", *arguments]
        with log.open("ab") as output:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)

    def lines(self):
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def address(self):
        """Wait until it says where it listens, and return the place."""
        deadline = time.monotonic() + 50
        while not (said := [line["detail"] for line in self.lines() if line["event"] == "listening"]):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        return said[0].removeprefix("listening on ").partition(";")[0]

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(30)


@pytest.fixture
def serve(artifact, valkey, tmp_path):
    started: list[Served] = []
    environment = service_environment() | {
        "WILLBUY_ARTIFACT": str(artifact),
        "WILLBUY_REDIS_URL": valkey.url,
        "WILLBUY_OPEN_ACCESS": "true",
    }

    def start(*options, cold=False):
        started.append(Served(tmp_path / f"serve-{len(started)}.log", options, environment, cold=cold))
        return started[-1]

    yield start
    for one in started:
        one.stop()


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as listener:
            listener.bind(("::1", 0))
    except OSError:
        return False
    return True


def score(client):
    answer = client.post("/v1/events", json=EVENT)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("workers", [(), ("--workers", 2)], ids=["one", "two"])
def test_the_address_is_said_once_it_takes_connections_and_port_0_is_a_free_one(serve, workers):
    # Workers that are spawned, as users have them, are handed the socket
    running = serve("--port", 0, *workers, cold=bool(workers))
    url = running.address()
    host, port = url.removeprefix("http://").split(":")
    assert host == "127.0.0.1"
    # No other attempt: who reads the line may connect
    with socket.create_connection((host, int(port)), timeout=10), httpx.Client(base_url=url, timeout=30) as client:
        assert score(client)["events"] == 1
    assert running.stop() == 0


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize(
    ("host", "shown", "reached"),
    [
        ("::", "[::]", ("127.0.0.1", "[::1]")),
        ("[::]", "[::]", ("127.0.0.1", "[::1]")),
        ("[::1]", "[::1]", ("[::1]",)),
        ("::1", "[::1]", ("[::1]",)),
        ("0.0.0.0", "0.0.0.0", ("127.0.0.1",)),
    ],
)
def test_hosts_of_both_families(serve, host, shown, reached):
    where = serve("--host", host, "--port", 0).address()
    start, _, port = where.rpartition(":")
    assert start == f"http://{shown}"
    for name in reached:
        assert httpx.get(f"http://{name}:{port}/healthz", timeout=30).status_code == 200


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
def test_a_host_of_one_family_is_not_reached_by_the_other(serve):
    # Another program may have the same port of the other family, so three ports are tried.
    ports = (int(serve("--host", "::1", "--port", 0).address().rpartition(":")[2]) for _ in range(3))
    assert any(is_refused(port) for port in ports)


def is_refused(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


@pytest.mark.parametrize("workers", [(), ("--workers", 2)], ids=["one", "two"])
def test_a_unix_socket(serve, tmp_path, workers):
    path = tmp_path / "s"
    # Of a process that was killed
    with socket.socket(socket.AF_UNIX) as left:
        if not workers:
            left.bind(str(path))
    running = serve("--uds", path, *workers)
    assert running.address() == f"the Unix socket {path}"
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://shop", timeout=30) as client:
        assert score(client)["events"] == 1
        assert client.get("/dashboard/").status_code == 200
    assert running.stop() == 0
    assert not path.exists()


def test_below_the_path_of_a_proxy(serve):
    """A proxy removes the prefix, as nginx with `proxy_pass http://host/`."""
    url = serve("--port", 0, "--root-path", "/shop/").address()
    with httpx.Client(base_url=url, timeout=30) as client:
        assert score(client)["events"] == 1
        assert client.post("/v1/events/batch", json=[EVENT]).json()["results"][0]["score"]["events"] == 2
        assert client.get("/v1/sessions/s-1").json()["events"] == 2
        assert client.get("/v1/stats").status_code == 200
        page = client.get("/dashboard/")
        assert page.status_code == 200
        # What the page loads and where it is found is relative, so that it works below any path
        assert 'src="/' not in page.text
        assert 'href="/' not in page.text
        assert client.get("/dashboard/main.js").status_code == 200
        assert client.get("/dashboard").headers["location"] == "dashboard/"
        assert client.get("/").headers["location"] == "dashboard/"
        assert client.get("/openapi.json").json()["servers"][0]["url"] == "/shop"
        assert client.delete("/v1/sessions/s-1").status_code == 204
