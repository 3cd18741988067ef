"""The examples of docs/client.md and docs/connect-your-shop.md: each prints what a real service answered."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import missing
from support.doc_runner import find_node
from support.javascript_client import install
from support.service import Service

from app.client import Client

DOCS = Path(__file__).parents[2] / "docs"
ADDRESS = "http://127.0.0.1:8000"


def examples(language, page="client.md"):
    """The page's examples in a language, in order."""
    return re.findall(
        rf"^```{language}(?: title=\S+)?\n(.*?)^```$", (DOCS / page).read_text(), flags=re.MULTILINE | re.DOTALL
    )


def node():
    found = find_node()
    if found is None:
        raise missing("node")
    return found


def run(*command, cwd=None):
    # The service lets everybody in; some examples name a key all the same
    environment = os.environ | {"WILLBUY_API_KEY": "none"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment, cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A folder with the JavaScript client."""
    folder = tmp_path_factory.mktemp("shop")
    install(folder, folder)
    return folder


@pytest.fixture(scope="module")
def running(artifact, shared_valkey, tmp_path_factory):
    shared_valkey.flush()
    log = tmp_path_factory.mktemp("client-docs") / "service.log"
    started = Service(log, {"artifact": artifact, "redis_url": shared_valkey.url})
    try:
        started.start()
        yield started
    finally:
        started.stop()


def probability_of(running, session_id):
    with Client(running.base_url, deadline_s=30) as client:
        session = client.session(session_id)
    assert session.events == 1
    return session.probability


def test_the_example_with_curl(running):
    curl = shutil.which("curl")
    if curl is None:
        raise missing("curl")
    text, *_ = examples("bash", "connect-your-shop.md")
    output = run("sh", "-c", text.replace(ADDRESS, running.base_url))
    assert f'"probability":{probability_of(running, "s-81")}' in output


def patient(running, text):
    """Return an example for a machine that may be busy, with the address of the service."""
    return text.replace(f'"{ADDRESS}"', f'"{running.base_url}", deadline_s=30')


def test_the_example_with_python(running):
    text, _ = examples("python")
    assert text.replace("\n\n", "\n").count("\n") == 3
    output = run(sys.executable, "-c", patient(running, text))
    assert float(output) == probability_of(running, "s-82")


def test_the_example_with_javascript(running, shop):
    (text,) = examples("javascript", "connect-your-shop.md")
    text = text.replace("{ apiKey", "{ deadlineMs: 60_000, apiKey")
    output = run(node(), "--input-type=module", "-e", text.replace(ADDRESS, running.base_url), cwd=shop)
    assert float(output) == probability_of(running, "s-84")


def test_the_longer_example(running):
    _, text = examples("python")
    output = run(sys.executable, "-c", text.replace(ADDRESS, running.base_url).replace("=5)", "=30)"))
    *scores, last, error = output.splitlines()
    assert [len(score.split()) for score in scores] == [2, 2, 2]
    assert (last, error) == ("add_to_cart", "invalid_event price")


@pytest.mark.parametrize("language", ["python", "javascript", "php"])
def test_no_example_waits_long_for_a_service_that_has_stopped(service, valkey, shop, language):
    stopped = service(redis_url=valkey.url)
    os.kill(stopped.pid, signal.SIGSTOP)
    try:
        text = examples(language, "connect-your-shop.md")[0].replace(ADDRESS, stopped.base_url)
        call = '"session_id": "s", "event_name": "view_item"'
        if language == "python":
            text += f"began = time.monotonic()\nprint(probability_after({{{call}}}), time.monotonic() - began)\n"
            output = run(sys.executable, "-c", text)
        elif language == "javascript":
            text, _, _ = text.rpartition("console.log")
            text += f"const began = Date.now(); const got = await probabilityAfter({{{call}}});"
            text += "console.log(got, (Date.now() - began) / 1000);"
            output = run(node(), "--input-type=module", "-e", text, cwd=shop)
        else:
            php = shutil.which("php")
            if php is None:
                raise missing("php")
            text = text.partition("?php")[2].rpartition("$price")[0].rpartition("$price = ")[0]
            call = call.replace(": ", " => ")
            code = f"$began = microtime(true); $got = probability_after([{call}]); "
            output = run(php, "-r", text + code + 'echo $got ?? "null", " ", microtime(true) - $began;')
    finally:
        os.kill(stopped.pid, signal.SIGCONT)
    answer, seconds = output.split()
    assert answer in ("None", "null")
    # Half of what it took without a deadline of the whole; the rest is room for a busy machine
    assert 0.15 < float(seconds) < 8
