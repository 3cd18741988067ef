"""The examples of docs/act-on-a-score.md, run as they stand; only the web framework is a stand-in."""

import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager

import httpx
import pytest
from conftest import missing
from support.doc_runner import find_node
from support.javascript_client import install
from support.paths import ROOT
from support.redis_servers import free_port

PAGE = (ROOT / "docs/act-on-a-score.md").read_text()
RULES = """
[[rules]]
name = "voucher"
events = ["view_cart"]

[[rules]]
name = "held"
control = 1.0
tell_control = true
"""
# What the example uses of Express, on Node's own server.
EXPRESS = """
const http = require("node:http");
function express() {
  const routes = {};
  return {
    use() { return this; },
    post(path, handler) { routes[path] = handler; },
    listen(port) {
      http.createServer((request, response) => {
        let text = "";
        request.on("data", (part) => (text += part)).on("end", () => {
          request.body = JSON.parse(text);
          request.get = (name) => request.headers[name];
          response.json = (value) => response.end(JSON.stringify(value));
          routes[request.url](request, response);
        });
      }).listen(port, () => console.log("listening"));
    },
  };
}
express.json = () => {};
module.exports = express;
"""
# What the example uses of Django.
DJANGO = {
    "django/__init__.py": "",
    "django/views/__init__.py": "",
    "django/views/decorators/__init__.py": "",
    "django/views/decorators/http.py": "require_POST = lambda view: view\n",
    "django/http.py": "JsonResponse = lambda value, safe: value\n",
}


def example(title):
    (text,) = re.findall(rf'```\w+ title="{re.escape(title)}"\n(.*?)```', PAGE, re.DOTALL)
    return text


@pytest.fixture
def running(service, shared_valkey, tmp_path):
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES)
    return service(redis_url=shared_valkey.url, interventions_file=rules)


def node_binary():
    node = find_node()
    if node is None:
        raise missing("node")
    return node


@contextmanager
def express_shop(url, folder):
    node, port = node_binary(), free_port()
    (folder / "node_modules/express").mkdir(parents=True)
    (folder / "node_modules/express/index.js").write_text(EXPRESS)
    install(folder, folder)
    (folder / "shop.mjs").write_text(example("shop.mjs"))
    environment = os.environ | {"WILLBUY_URL": url, "WILLBUY_API_KEY": "unused", "PORT": str(port)}
    with subprocess.Popen([node, "shop.mjs"], cwd=folder, env=environment, stdout=subprocess.PIPE) as shop:
        assert shop.stdout is not None
        assert shop.stdout.readline()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            shop.kill()


def test_express(running, tmp_path):
    with express_shop(running.base_url, tmp_path) as shop, httpx.Client(base_url=shop) as client:
        first = client.post("/track", json={"event_name": "view_item", "item_id": "SKU-1"}, headers={"x-session": "e"})
        cart = client.post("/track", json={"event_name": "view_cart"}, headers={"x-session": "e"})
    # The answer contains the control group, since its rule asks for it; the browser gets nothing of it
    assert (first.json(), cart.json()) == ([], ["voucher"])


def test_the_script_of_the_page_shows_what_the_shop_names():
    page = """
const sent = [], shown = [];
const document = {
  body: { dataset: { session: "p", page: "view_cart" } },
  getElementById: (id) => (id === "voucher" ? { removeAttribute: (name) => shown.push(id, name) } : null),
};
const fetch = async (path, options) => { sent.push(path, options); return { json: async () => ["voucher", "other"] }; };
"""
    program = page + example("track.js") + "setTimeout(() => console.log(JSON.stringify({ sent, shown })), 0);"
    ran = subprocess.run([node_binary(), "-e", program], capture_output=True, text=True, check=True)
    result = json.loads(ran.stdout)
    assert result["shown"] == ["voucher", "hidden"]
    path, options = result["sent"]
    assert (path, options["method"], options["headers"]["x-session"]) == ("/track", "POST", "p")
    assert json.loads(options["body"]) == {"event_name": "view_cart"}


def test_without_the_service_the_express_page_does_not_wait(tmp_path):
    with express_shop("http://127.0.0.1:1", tmp_path) as shop:
        answer = httpx.post(f"{shop}/track", json={"event_name": "view_cart"}, headers={"x-session": "e"})
    assert answer.json() == []


def test_django(running, tmp_path):
    for path, text in DJANGO.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "views.py").write_text(example("views.py"))
    program = """
import json, sys
from types import SimpleNamespace as Some
from views import track
for body in ({"event_name": "view_item", "item_id": "SKU-1"}, {"event_name": "view_cart"}):
    print(json.dumps(track(Some(body=json.dumps(body), session=Some(session_key="d")))))
"""
    for url, expected in ((running.base_url, [[], ["voucher"]]), ("http://127.0.0.1:1", [[], []])):
        environment = os.environ | {"WILLBUY_URL": url, "WILLBUY_API_KEY": "unused"}
        ran = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        assert [json.loads(line) for line in ran.stdout.splitlines()] == expected
