"""What operators ask, of an app in this process with a real artifact and a store in memory."""

import gc
import shutil
import weakref
from contextlib import asynccontextmanager

import httpx
import pytest
from support.artifacts import write_artifact
from support.keys import make_key, write_keys
from support.memory_store import MemoryStore

from app.main import create_app
from app.settings import Settings

pytestmark = pytest.mark.anyio

NOW_MS = 1_795_342_600_000
EVENT = {"session_id": "s-1", "event_name": "page_view"}


@pytest.fixture(autouse=True)
def few_sizes_to_warm_up(monkeypatch):
    monkeypatch.setattr(Settings, "max_batch_size", 4)


@asynccontextmanager
async def running(path, tmp_path, **settings):
    """An app and a client of it with a key that may do everything."""
    key = make_key("events:write", "sessions:read", "model:admin")
    keys = write_keys(tmp_path / "keys.toml", key)
    chosen = Settings(artifact=path, api_keys_file=keys, **settings)
    store = MemoryStore(session_idle_s=1800, now_ms=lambda: NOW_MS)
    app = create_app(chosen, store=store, now_ms=lambda: NOW_MS)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://willbuy", headers=key.headers) as client:
            yield app, client


async def test_a_model_that_was_replaced_is_freed(artifact, tmp_path):
    path = tmp_path / "model.pt"
    shutil.copy(artifact, path)
    other = write_artifact(tmp_path / "other.pt", seed=1)
    async with running(path, tmp_path) as (app, client):
        old = weakref.ref(app.state.services.model)
        first = (await client.get("/v1/model")).json()
        await client.post("/v1/events", json=EVENT)
        other.replace(path)
        assert (await client.post("/v1/model/reload")).json()["result"] == "swapped"
        second = (await client.get("/v1/model")).json()
        assert second["fingerprint"] != first["fingerprint"]
        assert second["loaded_at"] > first["loaded_at"]
        assert (await client.post("/v1/events", json=EVENT)).json()["events"] == 2
        gc.collect()
        assert old() is None


async def test_a_pinned_artifact_cannot_be_replaced_by_another(artifact, tmp_path):
    import hashlib  # noqa: PLC0415 - next to its one use

    path = tmp_path / "model.pt"
    shutil.copy(artifact, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    async with running(path, tmp_path, artifact_sha256=digest) as (_, client):
        write_artifact(path, seed=1)
        response = await client.post("/v1/model/reload")
        assert response.status_code == 422
        assert "SHA-256" in response.json()["detail"]


async def test_a_shadow_in_the_app_is_named_and_compares(artifact, tmp_path):
    candidate = write_artifact(tmp_path / "candidate.pt", seed=1)
    async with running(artifact, tmp_path, shadow_artifact=candidate, shadow_share=1.0) as (_, client):
        answer = (await client.post("/v1/events", json=EVENT)).json()
        metrics = (await client.get("/metrics")).text
        assert 'willbuy_shadow_info{fingerprint="' in metrics
        assert f'willbuy_shadow_info{{fingerprint="{answer["model"]}"' not in metrics
