"""The JavaScript client as it is published: packed, and run by Node against a real service."""

import os
import shutil
import subprocess

import pytest
from conftest import missing
from support.deployment import ROOT
from support.doc_runner import find_node, playwright_node
from support.javascript_client import SOURCE, deno, install
from support.keys import make_key, write_keys
from support.service import Service

from app.auth.scopes import Scope

RULES = """
[[rules]]
name = "chat"
events = ["view_cart"]
control = 1.0
"""
# A caller's program; each line below `@ts-expect-error` must be an error of types.
CALLER = """
import { Client, ProblemError, type EventIn, type ScoreOut } from "@willbuy/client";

const event: EventIn = { session_id: "s", event_name: "view_item", timestamp: new Date(), properties: { a: true } };
const score: ScoreOut = await new Client("http://127.0.0.1:1").send(event);
const known: number | null = score.probability;
// @ts-expect-error: null once the outcome is known
const certain: number = score.probability;
// @ts-expect-error: a misspelt field
const misspelt: EventIn = { session_id: "s", event_name: "page_view", item: "SKU-1" };
function codes(error: ProblemError): boolean {
  // @ts-expect-error: no such outcome
  void new Client("").outcome("s", "perhaps");
  return error.code === "overloaded" || error.code === "http_502";
}
console.log(known, certain, misspelt, codes);
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("deno")


@pytest.fixture(scope="module")
def shop(cache, tmp_path_factory):
    """A folder with the tests, into which the packed package was installed."""
    folder = tmp_path_factory.mktemp("shop")
    install(folder, cache)
    for test in (SOURCE / "test").iterdir():
        shutil.copy(test, folder)
    return folder


@pytest.fixture(scope="module")
def running(artifact, shared_valkey, tmp_path_factory):
    folder = tmp_path_factory.mktemp("javascript")
    key = make_key(*Scope, name="shop")
    settings = {"artifact": artifact, "redis_url": shared_valkey.url}
    (folder / "rules.toml").write_text(RULES)
    settings |= {"interventions_file": folder / "rules.toml"}
    settings |= {"api_keys_file": write_keys(folder / "keys.toml", key)}
    started = Service(folder / "service.log", settings)
    try:
        started.start()
        yield started, key.key
    finally:
        started.stop()


def test_sources_have_no_error_of_types_or_style(cache):
    deno(cache, "check", "src/index.ts")
    deno(cache, "lint")
    deno(cache, "fmt", "--check")


def test_the_package_holds_javascript_and_types_alone(shop):
    package = shop / "node_modules/@willbuy/client"
    files = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    names = [path.stem for path in (SOURCE / "src").glob("*.ts")]
    expected = {f"src/{name}{ending}" for name in names for ending in (".js", ".d.ts")}
    assert files == expected | {"package.json", "README.md", "LICENSE"}
    # deno packs no symbolic link.
    assert (package / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_a_callers_program_is_checked_against_the_packages_types(cache, shop):
    (shop / "caller.ts").write_text(CALLER)
    (shop / "package.json").write_text('{"dependencies": {"@willbuy/client": "*"}}')
    deno(cache, "check", "--node-modules-dir=manual", "caller.ts", cwd=shop)


@pytest.mark.slow
def test_the_package_works_with_node(shop, running):
    service, key = running
    # The system's Node may be an older one.
    nodes = {node.resolve() for node in (find_node(), playwright_node()) if node}
    if not nodes:
        raise missing("node")
    tests = sorted(str(path) for path in shop.glob("*.test.mjs"))
    environment = os.environ | {"WILLBUY_URL": service.base_url, "WILLBUY_API_KEY": key, "NO_COLOR": "1"}
    for node in sorted(nodes):
        done = subprocess.run(
            [node, "--test", *tests], cwd=shop, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
