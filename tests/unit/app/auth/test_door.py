"""What every request passes first, in the app as it is put together, with a model whose answers are known."""

import asyncio
import json
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
from fastapi.routing import iter_route_contexts
from pydantic import ValidationError
from support.fakes import FakeModel
from support.keys import make_key, write_keys
from support.memory_store import MemoryStore

from app.auth.scopes import Rules, Scope
from app.auth.setup import KEYS_CHECKED_EVERY_S
from app.main import StartupError, create_app
from app.settings import Settings

pytestmark = pytest.mark.anyio

EVENT = {"session_id": "s-1", "event_name": "page_view"}
ADMIN = make_key("model:admin", name="release")
READER = make_key("sessions:read", name="desk")
WRITER = make_key("events:write", name="shop")
EVERY_SCOPE = {scope: key for key in (ADMIN, READER, WRITER) for scope in key.entry.scopes}


def build(**settings):
    # Redis is nowhere: the store is in memory, and what counts requests finds nothing to count in.
    chosen = {"artifact": "unused.pt", "redis_url": "redis://127.0.0.1:1/0"} | settings
    store = MemoryStore(session_idle_s=1800, now_ms=lambda: 1_795_342_600_000)
    return create_app(Settings(**chosen), model=FakeModel(), store=store)


@asynccontextmanager
async def running(*keys, **settings):
    """A client of a service that lets in these keys."""
    with TemporaryDirectory() as folder:
        if keys:
            settings["api_keys_file"] = write_keys(Path(folder) / "keys.toml", *keys)
        app = build(**settings)
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://willbuy") as client:
                yield client


def routes_of(app):
    """Every path template and method that the app serves."""
    contexts = list(iter_route_contexts(app.routes))
    # What has no methods is no route of HTTP: neither WebSockets nor mounted apps are served.
    assert all(context.path and context.methods for context in contexts)
    return {(context.path, method) for context in contexts for method in context.methods or ()}


def test_every_route_of_the_app_stands_in_the_table() -> None:
    served = routes_of(build(open_access=True))
    assert len(served) > 12
    rules = Rules(metrics_public=True)
    for path, method in served:
        methods = rules.methods(path)
        assert methods is not None, f"{path} has no entry in app/auth/scopes.py"
        assert method in methods, f"{method} {path} has no entry in app/auth/scopes.py"


def test_what_everybody_may_ask_is_no_more_than_is_meant() -> None:
    rules = Rules(metrics_public=False)
    public = {
        path for path, method in routes_of(build(open_access=True)) if (rules.methods(path) or {}).get(method) is None
    }
    assert public == {"/", "/healthz", "/readyz", "/openapi.json", "/dashboard", "/dashboard/{path:path}"}


CALLS = [
    ("POST", "/v1/events", Scope.EVENTS_WRITE),
    ("POST", "/v1/events/batch", Scope.EVENTS_WRITE),
    ("POST", "/v1/sessions/s-1/outcome", Scope.EVENTS_WRITE),
    ("DELETE", "/v1/sessions/s-1", Scope.EVENTS_WRITE),
    ("GET", "/v1/sessions", Scope.SESSIONS_READ),
    ("GET", "/v1/sessions/s-1", Scope.SESSIONS_READ),
    ("GET", "/v1/sessions/a/b%2Fc", Scope.SESSIONS_READ),
    ("GET", "/v1/stats", Scope.SESSIONS_READ),
    ("GET", "/v1/history", Scope.SESSIONS_READ),
    ("GET", "/v1/model", Scope.SESSIONS_READ),
    ("GET", "/v1/interventions", Scope.SESSIONS_READ),
    ("GET", "/v1/webhooks/shop.example-1/dead", Scope.SESSIONS_READ),
    ("POST", "/v1/interventions/voucher/switch", Scope.INTERVENTIONS_ADMIN),
    ("POST", "/v1/webhooks/shop.example-1/resend", Scope.INTERVENTIONS_ADMIN),
    ("POST", "/v1/model/reload", Scope.MODEL_ADMIN),
]


async def test_each_call_needs_its_scope_and_no_other() -> None:
    async with running(ADMIN, READER, WRITER) as client:
        for method, path, needed in CALLS:
            refused = await client.request(method, path)
            assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized"), path
            for scope, key in EVERY_SCOPE.items():
                response = await client.request(method, path, headers=key.headers)
                if scope is needed:
                    assert response.status_code not in {401, 403}, path
                else:
                    assert (response.status_code, response.json()["code"]) == (403, "forbidden"), path


async def test_a_refusal_is_a_problem_with_a_challenge_and_is_counted() -> None:
    async with running(WRITER) as client:
        response = await client.post("/v1/events", json=EVENT)
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers["www-authenticate"] == 'Bearer realm="willbuy"'
        assert response.headers["x-request-id"]
        metrics = (await client.get("/metrics")).text
        assert 'willbuy_errors_total{code="unauthorized"} 1.0' in metrics


async def test_the_body_of_a_stranger_is_not_read() -> None:
    async def body():
        raise AssertionError("the body was read")
        yield b""  # what makes it a generator

    async with running(WRITER) as client:
        response = await client.post("/v1/events", content=body())
        assert response.status_code == 401


async def test_who_has_no_key_learns_nothing_of_what_is_served() -> None:
    async with running(WRITER) as client:
        for method, path in [("GET", "/v1/other"), ("PUT", "/v1/events"), ("PUT", "/"), ("GET", "/v1/events")]:
            assert (await client.request(method, path)).status_code == 401
        known = await client.request("GET", "/v1/other", headers=WRITER.headers)
        assert (known.status_code, known.json()["code"]) == (404, "not_found")
        known = await client.request("PUT", "/v1/events", headers=WRITER.headers)
        assert (known.status_code, known.json()["code"], known.headers["allow"]) == (405, "method_not_allowed", "POST")


@pytest.mark.parametrize("path", ["/v1/model/reload%0A", "/v1/model//reload", "/V1/model/reload", "/v1/model/reload/"])
async def test_a_path_that_only_looks_like_a_route_reaches_none(path) -> None:
    async with running(WRITER, ADMIN) as client:
        assert (await client.post(path, headers=WRITER.headers)).status_code == 404
        assert (await client.post(path, headers=ADMIN.headers)).status_code == 404


async def test_public_paths_need_no_key() -> None:
    async with running(WRITER) as client:
        for path in ("/healthz", "/readyz", "/openapi.json", "/dashboard/", "/dashboard/main.js", "/metrics"):
            assert (await client.get(path)).status_code == 200


async def test_metrics_need_a_key_where_the_setting_says_so() -> None:
    async with running(WRITER, READER, metrics_public=False) as client:
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.get("/metrics", headers=WRITER.headers)).status_code == 403
        assert (await client.get("/metrics", headers=READER.headers)).status_code == 200


async def test_behind_a_proxys_prefix_the_same_scopes_are_needed(tmp_path) -> None:
    app = build(api_keys_file=write_keys(tmp_path / "keys.toml", WRITER))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, root_path="/shop")
        async with httpx.AsyncClient(transport=transport, base_url="http://willbuy/shop") as client:
            assert (await client.post("/v1/events", json=EVENT)).status_code == 401
            assert (await client.post("/v1/model/reload", headers=WRITER.headers)).status_code == 403
            assert (await client.post("/v1/events", json=EVENT, headers=WRITER.headers)).status_code == 200


async def test_a_kept_answer_is_not_given_to_strangers() -> None:
    async with running(READER) as client:
        for path in ("/v1/stats", "/v1/sessions"):
            assert (await client.get(path, headers=READER.headers)).status_code == 200
            assert (await client.get(path)).status_code == 401


async def test_with_keys_the_scope_allows_a_reload_and_open_access_does_not() -> None:
    async with running(ADMIN) as client:
        assert (await client.post("/v1/model/reload", headers=ADMIN.headers)).json()["code"] != "reload_disabled"
    async with running(open_access=True) as client:
        assert (await client.post("/v1/model/reload")).json()["code"] == "reload_disabled"


def test_without_keys_the_service_does_not_start_and_says_what_to_do() -> None:
    with pytest.raises(StartupError, match=r"WILLBUY_API_KEYS_FILE.*WILLBUY_OPEN_ACCESS=true"):
        build()


def test_keys_and_open_access_together_are_refused(tmp_path) -> None:
    with pytest.raises(StartupError, match="WILLBUY_OPEN_ACCESS=true lets in everybody"):
        build(open_access=True, api_keys_file=write_keys(tmp_path / "keys.toml", WRITER))


def test_a_keys_file_that_cannot_be_used_ends_the_start(tmp_path) -> None:
    with pytest.raises(StartupError, match=r"missing\.toml: No such file"):
        build(api_keys_file=tmp_path / "missing.toml")


def test_open_access_is_said_loudly_at_the_start(capsys) -> None:
    build(open_access=True, log_level="warning")
    line = capsys.readouterr().err
    assert "warning" in line
    assert "WILLBUY_OPEN_ACCESS" in line


async def eventually(condition):
    deadline = asyncio.get_running_loop().time() + 30
    while not await condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(KEYS_CHECKED_EVERY_S / 5)


async def test_keys_are_rotated_without_a_restart_and_a_slip_changes_nothing(tmp_path) -> None:
    old, new = make_key("events:write"), make_key("events:write")
    path = write_keys(tmp_path / "keys.toml", old)

    async def status(key):
        return (await client.post("/v1/events", json=EVENT, headers=key.headers)).status_code

    async with running(api_keys_file=path) as client:
        assert (await status(old), await status(new)) == (200, 401)
        # When both are let in
        write_keys(path, old, new)

        async def new_is_known():
            return await status(new) == 200

        await eventually(new_is_known)
        assert await status(old) == 200
        # When somebody slips, and then the old one goes
        path.write_text("[[keys]\n")
        write_keys(path, new)

        async def old_is_gone():
            return await status(old) == 401

        await eventually(old_is_gone)
        assert await status(new) == 200


async def test_a_broken_keys_file_is_told_and_the_keys_stay(tmp_path, capsys) -> None:
    path = write_keys(tmp_path / "keys.toml", WRITER)
    async with running(api_keys_file=path) as client:
        path.write_text("[[keys]\n")
        told = ""

        async def is_told():
            nonlocal told
            told += capsys.readouterr().err
            return "api_keys_refused" in told

        await eventually(is_told)
        assert "Traceback" not in told
        assert (await client.post("/v1/events", json=EVENT, headers=WRITER.headers)).status_code == 200


async def test_a_stream_ends_when_its_key_is_taken_away(tmp_path) -> None:
    path = write_keys(tmp_path / "keys.toml", READER, WRITER)
    app = build(api_keys_file=path)
    frames: list[bytes] = []
    began = asyncio.Event()

    async def receive():
        await asyncio.sleep(3600)

    async def send(message):
        frames.append(message.get("body", b""))
        if b"event: board" in frames[-1]:
            began.set()

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/v1/stream",
        "raw_path": b"/v1/stream",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {READER.key}".encode())],
    }
    async with app.router.lifespan_context(app), asyncio.timeout(30):
        stream = asyncio.create_task(app(scope, receive, send))
        await began.wait()
        assert not stream.done()
        write_keys(path, WRITER)
        await stream
    assert frames[-1] == b""


async def test_no_answer_carries_a_cors_header_unless_origins_are_set() -> None:
    async with running(WRITER) as client:
        response = await client.post(
            "/v1/events", json=EVENT, headers=WRITER.headers | {"origin": "https://desk.example"}
        )
        assert response.status_code == 200
        assert not [name for name in response.headers if name.startswith("access-control-")]
        preflight = await client.options(
            "/v1/stats", headers={"origin": "https://desk.example", "access-control-request-method": "GET"}
        )
        assert preflight.status_code == 401


async def test_pages_of_the_set_origins_may_ask_and_no_others() -> None:
    asked = {"access-control-request-method": "GET", "access-control-request-headers": "authorization"}
    async with running(READER, cors_origins="https://desk.example, http://localhost:3000") as client:
        for origin in ("https://desk.example", "http://localhost:3000"):
            preflight = await client.options("/v1/stats", headers=asked | {"origin": origin})
            assert preflight.status_code == 200
            assert preflight.headers["access-control-allow-origin"] == origin
            assert "access-control-allow-credentials" not in preflight.headers
        stranger = await client.options("/v1/stats", headers=asked | {"origin": "https://desk.example.evil"})
        assert stranger.status_code == 400
        assert "access-control-allow-origin" not in stranger.headers
        # What is refused can be read by the page too, so that it may ask for a key
        refused = await client.get("/v1/stats", headers={"origin": "https://desk.example"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://desk.example"


@pytest.mark.parametrize("origins", ["*", "desk.example", "https://desk.example/", "https://desk.example/page"])
def test_what_is_no_origin_is_refused(origins) -> None:
    with pytest.raises(ValidationError, match="cors_origins"):
        Settings(artifact="unused.pt", cors_origins=origins)


async def test_a_head_that_is_too_large_is_refused() -> None:
    async with running(open_access=True) as client:
        assert (await client.get("/healthz", headers={"x-long": "a" * 16000})).status_code == 200
        for request in (
            {"url": "/healthz", "headers": {"x-long": "a" * 16400}},
            {"url": "/healthz", "params": {"q": "a" * 16400}},
            {"url": "/v1/sessions/" + "a" * 16400},
            {"url": "/healthz", "headers": [(f"x-{number}", "a") for number in range(101)]},
        ):
            response = await client.get(**request)
            assert (response.status_code, response.json()["code"]) == (431, "head_too_large")


async def test_the_api_description_says_which_key_each_call_needs() -> None:
    async with running(WRITER) as client:
        document = (await client.get("/openapi.json")).json()
    for method, path, needed in CALLS:
        template = path if path in document["paths"] else "/v1/sessions/{session_id}"
        template += "/outcome" if path.endswith("/outcome") else ""
        if path.startswith(("/v1/interventions/", "/v1/webhooks/")):
            *start, _, end = path.split("/")
            template = "/".join([*start, "{name}", end])
        operation = document["paths"][template][method.lower()]
        assert operation["security"] == [{"bearer": [needed]}, {"header": [needed]}]
        assert {"401", "403", "429", "431"} <= set(operation["responses"])
    assert "security" not in document["paths"]["/healthz"]["get"]


@pytest.mark.parametrize("depth", [500, 30_000, 100_000])
async def test_json_however_deep_is_refused_as_such(depth, monkeypatch) -> None:
    monkeypatch.setattr(Settings, "max_body_bytes", 2**20)
    deep = '{"session_id": "s-1", "event_name": "page_view", "properties": {"a": ' + "[" * depth + "]" * depth + "}}"
    json_type = {"content-type": "application/json"}
    ndjson = {"content-type": "application/x-ndjson"}
    async with running(open_access=True) as client:
        one = await client.post("/v1/events", content=deep, headers=json_type)
        assert one.status_code in {400, 422}
        assert one.json()["code"] in {"invalid_json", "invalid_event"}
        array = await client.post("/v1/events/batch", content=f"[{deep}]", headers=json_type)
        lines = await client.post("/v1/events/batch", content=f"{deep}\n{json.dumps(EVENT)}", headers=ndjson)
        assert array.status_code == 400 or array.json()["results"][0]["status"] in {400, 422}
        assert [result["status"] for result in lines.json()["results"]][1:] == [200]
        assert lines.json()["results"][0]["status"] in {400, 422}
        # And nobody after it is the worse for it
        assert (await client.post("/v1/events", json=EVENT)).status_code == 200


@pytest.mark.parametrize("path", ["/v1/events", "/v1/events/batch"])
async def test_who_may_read_sessions_may_ask_for_control_groups_in_an_answer(path, tmp_path) -> None:
    both = make_key("events:write", "sessions:read", name="backend")
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rules]]\nname = "voucher"\ncontrol = 1.0\n')
    body = EVENT | {"event_id": "e-1"}

    async def interventions(client, query, key):
        response = await client.post(path + query, json=[body] if path.endswith("batch") else body, headers=key.headers)
        if response.status_code != 200:
            return response.status_code, response.json()["code"]
        answer = response.json()["results"][0]["score"] if path.endswith("batch") else response.json()
        return [(one["name"], one["group"]) for one in answer["interventions"]]

    async with running(WRITER, both, interventions_file=rules) as client:
        for query in ("", "?control=false", "?other=1"):
            assert await interventions(client, query, WRITER) == []
        for _ in range(2):  # and so for a repeated event
            assert await interventions(client, "?control=true", both) == [("voucher", "control")]
        assert await interventions(client, "", both) == []
        assert await interventions(client, "?control=true", WRITER) == (403, "forbidden")
        for value in ("1", "", "%ff", "true&control=no"):
            assert await interventions(client, f"?control={value}", both) == (422, "invalid_request")
