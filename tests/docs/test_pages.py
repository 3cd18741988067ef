"""Every command and every snippet of the documentation, run as its reader would run it."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import polars as pl
import pytest
from conftest import missing
from support.doc_blocks import COMMANDS, PageError, read_page
from support.doc_runner import SMALLER, Reader, environment, find_node, tools
from support.javascript_client import install
from support.keys import make_key, write_keys
from support.log_exports import export_ga4, export_pages, export_segment
from support.paths import ROOT
from support.patience import service_environment
from support.redis_servers import RedisServer, find_binary, free_port
from support.service import Service
from typer.testing import CliRunner

from app.auth.scopes import Scope
from app.client import Client
from training.cli import cli
from training.data.prepare import prepare
from training.synthetic import PRESETS, generate, write

DOCS = Path(__file__).parents[2] / "docs"
# Generated pages have no blocks to run.
PAGES = sorted(
    str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if not path.read_text().startswith("<!-- Generated")
)
# Pages that tests of their own run, since they look at what comes of it more closely.
ELSEWHERE = {
    "client.md": "tests/integration/test_client_docs.py",
    "training.md": "tests/unit/training/test_training_docs.py",
}
# Pages that look at the report's HTML; elsewhere it is left out, as it takes longer than these small trainings.
WITH_REPORTS = ("start.md", "train-your-log.md", "read-the-scores.md")
EXPORTS = {"ga4-export": export_ga4, "segment-tables": export_segment, "pages.csv": export_pages}
# One key with every scope, for the services that pages find running.
KEY = make_key(*Scope, name="reader")


def absent(name: str) -> BaseException:
    outcome: BaseException = missing(name)
    return outcome


def on_path(name: str) -> Path | None:
    found = shutil.which(name)
    return Path(found) if found else None


@pytest.fixture(scope="module")
def programs(warm_commands: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what pages call: Node, PHP, Redis under its own name, and a `willbuy` that starts at once."""
    valkey = find_binary("valkey-8.1")
    found = {
        "curl": on_path("curl"),
        "php": on_path("php"),
        "node": find_node(),
        "willbuy": warm_commands / "willbuy",
        "redis-server": valkey,
        "redis-cli": valkey and valkey.with_name("valkey-cli"),
    }
    for name, path in found.items():
        if path is None:
            raise absent(name)
    return tools(tmp_path_factory.mktemp("programs") / "bin", {name: path for name, path in found.items() if path})


@pytest.fixture(scope="module")
def running(
    artifact: Path, start_redis: Callable[[], RedisServer], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, RedisServer]]:
    """A service that asks for keys, and its Redis, for all pages that find one running."""
    redis = start_redis()
    folder = tmp_path_factory.mktemp("running")
    settings = {"artifact": artifact, "redis_url": redis.url, "api_keys_file": write_keys(folder / "keys.toml", KEY)}
    service = Service(folder / "service.log", settings)
    try:
        service.start()
        yield service, redis
    finally:
        service.stop()


@pytest.fixture(scope="module")
def month(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A month of a synthetic shop: its log in `log.parquet`, prepared in `sessions`, a model of it in `model.pt`."""
    folder = tmp_path_factory.mktemp("month")
    write(generate(PRESETS["default"], 700, seed=3), folder / "log.parquet")
    prepare(folder / "log.parquet", folder / "sessions")
    command = f"{SMALLER['willbuy train ']} {folder / 'sessions'} --out {folder / 'model.pt'}"
    assert CliRunner().invoke(cli, command.split()[1:]).exit_code == 0
    return folder


def export(log: Path, out: Path) -> None:
    """Write a log as the shop of train-your-log.md would: in its own columns, words and times."""
    names = {"view_item": "Product Viewed", "purchase": "Order Completed", "add_to_cart": "put", "page_view": "start"}
    events = pl.read_parquet(log)
    times = [datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S") for ms in events["timestamp_ms"]]
    pl.DataFrame(
        {
            "when": times,
            "visit": events["session_id"],
            "what": events["event_name"].replace(names),
            "sku": events["item_id"],
            "cat": events["item_category"],
            "eur": events["price"],
            "device": events["property.device"],
        }
    ).write_csv(out, separator=";")


def post_visitors(port: int) -> None:
    """Let some sessions, s-81 among them, look around in the shop."""
    with Client(f"http://127.0.0.1:{port}", api_key=KEY.key, deadline_s=30) as client:
        for number in range(80, 84):
            for name in ("page_view", "search", "view_item", "add_to_cart"):
                client.send({"session_id": f"s-{number}", "event_name": name, "item_id": "SKU-1"})


def test_the_keys_of_a_runs_record_are_the_documented_ones(month: Path) -> None:
    _, _, table = (DOCS / "reference/files.md").read_text().partition("## The record of a run")
    documented = {
        key for cell in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE) for key in re.findall(r"`(\w+)`", cell)
    }
    assert documented == set(json.loads((month / "model.run.json").read_text()))


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_page_that_is_run_elsewhere_is_named_there(name: str) -> None:
    assert f'"{name}"' in (DOCS.parent / ELSEWHERE[name]).read_text()


class Shelf:
    """What pages may take for granted, brought into the reader's folder by the names under which pages need it."""

    def __init__(self, request: pytest.FixtureRequest, folder: Path) -> None:
        self._request = request
        self._folder = folder
        self.port = free_port()
        self.redis_port = free_port()
        self.variables = {"WILLBUY_API_KEY": KEY.key}

    def bring(self, need: str) -> None:
        if need == "redis":
            self._find_redis(self._request.getfixturevalue("shared_valkey"))
        elif need == "service":
            self._find_service()
        elif need == "visitors":
            post_visitors(self.port)
        elif need == "javascript-client":
            install(self._folder, self._folder.parent)
        elif need == "keys":
            self.variables["WILLBUY_API_KEYS_FILE"] = str(write_keys(self._folder / "keys.toml", KEY))
        else:
            self._copy(need)

    def _find_redis(self, server: RedisServer) -> None:
        server.flush()
        self.redis_port = server.port
        self.variables["WILLBUY_REDIS_URL"] = server.url

    def _find_service(self) -> None:
        service, server = self._request.getfixturevalue("running")
        self._find_redis(server)
        self.port = service.port

    def _copy(self, need: str) -> None:
        month: Path = self._request.getfixturevalue("month")
        target = self._folder / need
        if need == "shop-log.csv":
            export(month / "log.parquet", target)
        elif need in EXPORTS:
            EXPORTS[need](pl.read_parquet(month / "log.parquet"), target)
        elif target.suffix in {".parquet", ".pt"}:
            shutil.copy(month / {".parquet": "log.parquet", ".pt": "model.pt"}[target.suffix], target)
        else:
            shutil.copytree(month / "sessions", target)


@pytest.mark.parametrize("name", PAGES)
def test_commands_that_are_not_run_are_valid_to_the_shell(name: str) -> None:
    for block in read_page(DOCS / name).blocks:
        if block.not_run is not None and block.language in COMMANDS:
            done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
            assert not done.stderr, f"{name}, line {block.line}: {done.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_a_page_does_what_it_says(
    name: str, programs: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = read_page(DOCS / name)
    if name in ELSEWHERE:
        return
    if name not in WITH_REPORTS:
        for module in ("train", "evaluate"):
            monkeypatch.setattr(f"training.commands.{module}.write_html", lambda _path, _report: None)
    folder = tmp_path / "reader"
    folder.mkdir()
    # Given what the page takes for granted
    shelf = Shelf(request, folder)
    for need in page.needs:
        shelf.bring(need)
    # When a reader follows it
    variables = environment([programs, Path(sys.executable).parent], **shelf.variables)
    reader = Reader(folder, port=shelf.port, redis_port=shelf.redis_port, environment=variables)
    try:
        # Then everything does what the page says, which the reader checks
        reader.follow(page.blocks)
    finally:
        reader.close()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_readmes_commands_for_an_own_shop_work_one_after_another(
    month: Path, warm_commands: Path, tmp_path: Path
) -> None:
    """As they stand, but for the log's name, the port, and a shorter training."""
    (block,) = re.findall(
        r"^## Your own shop$.*?^```sh\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    port = free_port()
    environment = service_environment() | {
        "PATH": f"{warm_commands}{os.pathsep}{os.environ['PATH']}",
        # Where other commands of this user would look, too
        "XDG_RUNTIME_DIR": str(tmp_path),
    }
    shutil.copy(month / "log.parquet", tmp_path / "log.parquet")
    changes = SMALLER | {" LOG ": " log.parquet ", "willbuy serve ": f"willbuy serve --port {port} "}
    changes["willbuy replay "] = f"willbuy replay --url http://127.0.0.1:{port} "
    changes["willbuy train "] += "--hidden-size 8 --head-size 8 "
    del changes["willbuy evaluate "], changes["willbuy compare "]
    served: subprocess.Popen[bytes] | None = None
    try:
        for line in block.splitlines():
            command = line.partition("#")[0].strip()
            for plain, changed in changes.items():
                command = command.replace(plain, changed)
            if " serve " in command:
                served = subprocess.Popen(shlex.split(command), cwd=tmp_path, env=environment)
                while not is_ready(port):
                    assert served.poll() is None
                    time.sleep(0.1)
                continue
            if " collect " in command:
                # The replayed sessions end with the idle time, a purchase at once
                bought = {"session_id": "p", "event_name": "purchase"}
                httpx.post(f"http://127.0.0.1:{port}/v1/events", json=bought, timeout=30)
                while "willbuy_outcomes_total{" not in httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text:
                    time.sleep(0.1)
            done = subprocess.run(
                shlex.split(command), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, (command, done.stdout, done.stderr)
    finally:
        if served is not None:
            served.terminate()
            served.wait(30)
    assert [*(tmp_path / "collected").glob("*.parquet")]
    # And afterwards there is no server that anybody could take for one
    again = subprocess.run(
        ["willbuy", "collect", "--out", "c"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert again.returncode == 1
    assert "no Redis: no `willbuy serve`" in " ".join(again.stderr.split())


def is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("```ruby\nputs 1\n```\n", "kind 'ruby'"),
        ("```\nls\n```\n", "kind ''"),
        ("```bash\nls\n", "no end"),
        ("  ```bash\n  ls\n  ```\n", "indented"),
        ("    willbuy train log\n", "outside"),
        ("<!-- not run -->\n```bash\nls\n```\n", "reason"),
        ("<!-- notrun: a typing error -->\n```bash\nls\n```\n", "neither"),
        ("<!-- status: 3 -->\n\nA block follows later.\n", "expected"),
    ],
    ids=["unknown", "untold", "endless", "indented", "outside", "without a reason", "misspelt", "without a block"],
)
def test_a_block_that_would_not_be_run_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(PageError, match=reason):
        read_page(page)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("```bash\nfalse\n```\n", "ended with 1"),
        ("```bash\nfalse | true\n```\n", "ended with 1"),
        ("```python\nraise SystemExit(3)\n```\n", "ended with 3"),
        ('```bash\necho \'{"a": 1}\'\n```\n```json\n{"b": 1}\n```\n', ".b was not said"),
        ('```bash\necho \'{"a": 1}\'\n```\n```json\n{"a": null}\n```\n', ".a is 1"),
        ("```toml\na = 1\n```\n", "no title"),
        ("```bash\necho one 1\n```\n```text\ntwo 1\n```\n", "nothing like"),
    ],
    ids=["command", "in a pipe", "program", "absent field", "other type", "no file", "other text"],
)
def test_a_page_that_says_what_is_not_so_fails(text: str, reason: str, tmp_path: Path, programs: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    reader = Reader(tmp_path, port=1, redis_port=1, environment=environment([programs, Path(sys.executable).parent]))
    with pytest.raises((AssertionError, PageError), match=reason):
        reader.follow(read_page(page).blocks)
