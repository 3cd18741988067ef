"""`POST /v1/sessions/{id}/outcome` over a store in memory."""

from contextlib import asynccontextmanager

import httpx
import pytest
from support.fakes import FakeModel
from support.memory_store import MemoryStore

from app.main import create_app
from app.settings import Settings

pytestmark = pytest.mark.anyio

NOW_MS = 1_795_342_600_000


class ConfirmingStore(MemoryStore):
    """Counts commits, and wants what was read written again before it is acknowledged."""

    def __init__(self, *, confirms=False, conflicts=0):
        super().__init__(session_idle_s=1800, now_ms=lambda: NOW_MS)
        self.confirms = confirms
        self.conflicts = conflicts
        self.commits = []

    @property
    def confirms_by_writing(self):
        return self.confirms

    async def commit(self, commits):
        self.commits += commits
        if self.conflicts and commits[0].closed_by == "api":
            self.conflicts -= 1
            return [False]
        return await super().commit(commits)


@asynccontextmanager
async def running(store=None, **settings):
    store = store or ConfirmingStore()
    chosen = Settings(artifact="unused.pt", open_access=True, **settings)
    app = create_app(chosen, model=FakeModel(), store=store, now_ms=lambda: NOW_MS)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://willbuy") as client:
            yield client


async def post(client, event_name="page_view", session_id="s", **fields):
    body = {"session_id": session_id, "event_name": event_name} | fields
    return (await client.post("/v1/events", json=body)).json()


async def say(client, outcome, session_id="s", **fields):
    return await client.post(f"/v1/sessions/{session_id}/outcome", json={"outcome": outcome} | fields)


@pytest.mark.parametrize("outcome", ["purchase", "none"])
async def test_a_session_is_closed_once_and_has_no_probability_any_more(outcome):
    async with running() as client:
        assert (await post(client))["probability"] is not None
        answer = await say(client, outcome)
        assert answer.status_code == 200
        assert (answer.json()["outcome"], answer.json()["probability"]) == (outcome, None)
        assert (await client.get("/v1/sessions/s")).json() == answer.json()
        # The same again changes nothing
        again = await say(client, outcome)
        assert (again.status_code, again.json()) == (200, answer.json())
        # And nothing is folded any more, nor does the outcome change
        for name in ("view_item", "purchase"):
            later = await post(client, name)
            assert (later["folded"], later["outcome"], later["probability"]) == (False, outcome, None)


async def test_the_other_outcome_is_refused():
    async with running() as client:
        await post(client)
        await post(client, "purchase")
        assert (await say(client, "purchase")).status_code == 200
        refused = await say(client, "none")
        assert (refused.status_code, refused.json()["code"]) == (409, "outcome_conflict")
        assert (await client.get("/v1/sessions/s")).json()["outcome"] == "purchase"


async def test_a_session_that_is_not_there_is_not_found():
    async with running() as client:
        answer = await say(client, "purchase", "never")
        assert (answer.status_code, answer.json()["code"]) == (404, "session_not_found")


async def test_ids_with_slashes_are_closed_too():
    async with running() as client:
        await post(client, session_id="a/b/outcome")
        assert (await say(client, "none", "a/b/outcome")).json()["session_id"] == "a/b/outcome"


async def test_a_purchase_closes_with_its_commit_and_what_follows_does_not_close_again():
    store = ConfirmingStore()
    async with running(store) as client:
        await post(client)
        await post(client, "purchase")
        await post(client, "view_item")
        await say(client, "purchase")
        await post(client, session_id="t")
        await say(client, "none", "t")
        assert [commit.closed_by for commit in store.commits] == [None, "event", None, None, "api"]
        assert [len(commit.probabilities) for commit in store.commits] == [1, 0, 0, 1, 0]


async def test_the_model_is_noted_where_a_history_begins():
    store = ConfirmingStore()
    async with running(store) as client:
        await post(client)
        await post(client)
        assert [commit.model for commit in store.commits] == [FakeModel().fingerprint, None]


async def test_the_time_may_be_said_within_the_bounds_of_an_event():
    store = ConfirmingStore()
    async with running(store) as client:
        await post(client)
        refused = await say(client, "purchase", timestamp=NOW_MS - 86_400_001)
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
        assert refused.json()["errors"][0]["field"] == "timestamp"
        assert (await say(client, "purchase", timestamp="2026-11-22T10:15:00Z")).status_code == 200
        assert store.commits[-1].record.outcome_ms == 1_795_342_500_000


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"outcome": "maybe"}, "outcome"),
        ({}, "outcome"),
        ({"outcome": "none", "reason": "x"}, "reason"),
        ({"outcome": "none", "timestamp": "yesterday"}, "timestamp"),
        ([], "body"),
    ],
)
async def test_a_body_that_is_no_outcome_is_refused_by_the_name_of_its_field(body, field):
    async with running() as client:
        await post(client)
        answer = await client.post("/v1/sessions/s/outcome", json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
        assert answer.json()["errors"][0]["field"] == field
        assert (await client.get("/v1/sessions/s")).json()["outcome"] == "open"


async def test_events_that_come_in_between_are_waited_for():
    store = ConfirmingStore(conflicts=3)
    async with running(store) as client:
        await post(client)
        assert (await say(client, "purchase")).json()["outcome"] == "purchase"
    store = ConfirmingStore(conflicts=9)
    async with running(store) as client:
        await post(client)
        answer = await say(client, "purchase")
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


async def test_where_replicas_confirm_the_same_outcome_is_written_again():
    store = ConfirmingStore(confirms=True)
    async with running(store) as client:
        await post(client)
        await say(client, "none")
        made = len(store.commits)
        assert (await say(client, "none")).status_code == 200
        assert len(store.commits) == made + 1
        assert store.commits[-1].record == store.commits[-2].record
        assert store.commits[-1].closed_by is None


async def test_the_document_says_what_an_outcome_is():
    async with running() as client:
        document = (await client.get("/openapi.json")).json()
        operation = document["paths"]["/v1/sessions/{session_id}/outcome"]["post"]
        assert {"404", "409", "422"} <= operation["responses"].keys()
        assert "OutcomeIn" in document["components"]["schemas"]
