"""Bodies of every kind to the calls for vendors: each is answered, and none is a failure of the service."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.fakes import FakeModel
from support.memory_store import MemoryStore

from app.api.vendors import INGEST_PATHS
from app.main import create_app
from app.settings import Settings
from fuzz.cases import CASES

pytestmark = pytest.mark.anyio

NOW_MS = 1_795_342_600_000
MICROS = NOW_MS * 1000
EXAMPLES: dict[str, Any] = {
    "call": {
        "type": "track",
        "messageId": "1",
        "anonymousId": "a",
        "event": "Product Viewed",
        "timestamp": "2026-11-22T10:15:00Z",
        "properties": {"products": [{"sku": "S", "price": 1}], "price": 2, "revenue": 3},
        "context": {"device": {"type": "ios"}, "campaign": {"source": "x"}},
    },
    "enriched": {
        "event": "struct",
        "event_name": "event",
        "se_action": "add_to_cart",
        "event_id": "e",
        "derived_tstamp": "2026-11-22T10:15:00Z",
        "domain_sessionid": "s",
        "domain_userid": "u",
        "domain_sessionidx": 3,
        "contexts_com_snowplowanalytics_snowplow_ecommerce_product_1": [{"id": "S", "price": 1}],
    },
    "collected": {
        "client_id": "1.2",
        "timestamp_micros": MICROS,
        "events": [{"name": "purchase", "params": {"session_id": "1", "value": 2, "items": [{"item_id": "S"}]}}],
    },
    "exported": {
        "event_timestamp": str(MICROS),
        "event_name": "view_item",
        "user_pseudo_id": "1.2",
        "event_params": [{"key": "ga_session_id", "value": {"int_value": "1"}}],
        "items": [{"item_id": "S"}],
    },
}
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["\ud800", "\u0000", "undefined", "1e999", "2026-99-99T00:00:00Z", "x" * 300, MICROS, -1, 10**400]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)


@st.composite
def changed(draw: st.DrawFn) -> Any:
    """An example in which some values, however deep, are others."""

    def copied(value: Any) -> Any:
        if draw(st.integers(0, 9)) == 0:
            return draw(VALUES)
        if isinstance(value, dict):
            return {name: copied(held) for name, held in value.items() if draw(st.integers(0, 19))}
        return [copied(held) for held in value] if isinstance(value, list) else value

    return copied(draw(st.sampled_from(list(EXAMPLES.values()))))


DOCUMENTS = st.one_of(
    VALUES,
    changed(),
    st.lists(st.one_of(changed(), VALUES), max_size=4),
    st.builds(lambda calls: {"batch": calls, "sentAt": "2026-11-22T10:15:00Z"}, st.lists(changed(), max_size=3)),
)
BODIES = st.one_of(DOCUMENTS.map(lambda value: json.dumps(value).encode()), st.binary(max_size=40))


@pytest.fixture(scope="module")
async def client():
    store = MemoryStore(session_idle_s=1800, now_ms=lambda: NOW_MS)
    settings = Settings(artifact="unused.pt", open_access=True, log_level="error", max_event_age_s=10**7)
    app = create_app(settings, model=FakeModel(), store=store, now_ms=lambda: NOW_MS)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://willbuy") as client:
            yield client


@settings(
    max_examples=CASES or 150,
    derandomize=not CASES,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(path=st.sampled_from(INGEST_PATHS), body=BODIES)
async def test_no_body_is_a_failure(client, path: str, body: bytes) -> None:
    response = await client.post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 200, (path, body, response.text)
    answer = response.json()
    # The service itself is to blame for no record
    assert "internal_error" not in {one["code"] for one in answer["rejects"]}, (path, body, answer)
    assert all(answer[name] >= 0 for name in ("accepted", "duplicates", "ignored", "rejected"))


@pytest.mark.parametrize("path", INGEST_PATHS)
async def test_the_plain_examples_are_taken(client, path: str) -> None:
    name = {"snowplow": "enriched", "ga4": "collected"}.get(path.rpartition("/")[2], "call")
    ids = dict.fromkeys(("anonymousId", "domain_sessionid", "client_id"), path)
    response = await client.post(path, json=EXAMPLES[name] | ids)
    assert response.json()["rejected"] == 0, response.text
