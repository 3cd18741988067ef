"""The board and the numbers over HTTP, with a store in memory."""

from itertools import islice

import pytest
from support.fakes import FakeModel
from support.memory_store import MemoryStore
from unit.app.api.test_http import assert_problem, running

from app.errors import StoreUnavailableError
from app.store.keys import shard_of

pytestmark = pytest.mark.anyio

NOW_MS = 1_795_342_600_000


class BreakableStore(MemoryStore):
    """Answers as a Redis that is gone once it is broken."""

    def __init__(self):
        super().__init__(session_idle_s=1800, now_ms=lambda: self.now_ms)
        self.now_ms = NOW_MS
        self.readings = 0
        self.broken = False
        read = self.board.read

        async def counted(*arguments, **options):
            self.readings += 1
            if self.broken:
                raise StoreUnavailableError("gone")
            return await read(*arguments, **options)

        self.board.read = counted  # type: ignore[method-assign]  # a spy


@pytest.fixture
def store():
    return BreakableStore()


@pytest.fixture
async def client(store, monkeypatch):
    # However slow the machine, an answer is still kept when the next request comes.
    monkeypatch.setattr("app.wiring.BOARD_KEPT_S", 10)
    async with running(store, now_ms=lambda: store.now_ms) as client:
        yield client


async def post(client, session_id, *names):
    for name in names:
        response = await client.post("/v1/events", json={"session_id": session_id, "event_name": name})
    return response.json()


async def test_an_empty_board_says_so(client):
    response = await client.get("/v1/sessions")
    assert response.json() == {"sessions": [], "next_cursor": None, "live_sessions": 0}
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "private, no-cache"


async def test_carts_are_shown_and_what_is_at_stake_is_summed_by_currency(store, monkeypatch):
    model = FakeModel()
    model.cart_value = 40.0
    monkeypatch.setattr("app.wiring.BOARD_KEPT_S", 0)
    async with running(store, model=model, now_ms=lambda: store.now_ms) as client:
        scores = {}
        for session_id, currency in (("a", "EUR"), ("b", "CHF"), ("c", "EUR"), ("d", None)):
            body = {"session_id": session_id, "event_name": "add_to_cart", "currency": currency}
            scores[session_id] = (await client.post("/v1/events", json=body)).json()["probability"]
        await client.post("/v1/events", json={"session_id": "e", "event_name": "purchase"})
        sessions = {one["session_id"]: one for one in (await client.get("/v1/sessions")).json()["sessions"]}
        assert {one: (row["cart_value"], row.get("currency")) for one, row in sessions.items()} == {
            "a": (40.0, "EUR"),
            "b": (40.0, "CHF"),
            "c": (40.0, "EUR"),
            "d": (40.0, None),
        }
        assert sessions["a"]["value_at_stake"] == pytest.approx(40 * scores["a"], abs=0.01)
        stake = (await client.get("/v1/stats")).json()["at_stake"]
        assert (stake["sessions"], stake["complete"]) == (4, True)
        assert [(one["currency"], one["carts"], one["cart_value"]) for one in stake["values"]] == [
            ("EUR", 2, 80.0),
            (None, 1, 40.0),
            ("CHF", 1, 40.0),
        ]
        assert stake["values"][0]["at_stake"] == pytest.approx(40 * (scores["a"] + scores["c"]), abs=0.01)
        for least, number in ((40, 4), (40.01, 0)):
            assert len((await client.get(f"/v1/sessions?min_cart_value={least}")).json()["sessions"]) == number
        # A session of a model that is not in use has a state that nobody can read
        model.fingerprint = "0" * 16
        assert all("cart_value" not in one for one in (await client.get("/v1/sessions")).json()["sessions"])


async def test_more_open_sessions_than_are_read_make_the_value_at_stake_a_lower_bound(store, monkeypatch):
    monkeypatch.setattr("app.board.stake._PAGE", 2)  # private: pages of two rows
    monkeypatch.setattr("app.board.stake._MOST_PAGES", 1)  # private: same
    model = FakeModel()
    model.cart_value = 10.0
    async with running(store, model=model, now_ms=lambda: store.now_ms) as client:
        scores = sorted([(await post(client, f"s-{number}", "search"))["probability"] for number in range(5)])
        stake = (await client.get("/v1/stats")).json()["at_stake"]
        assert (stake["sessions"], stake["complete"]) == (2, False)
        assert stake["values"][0]["at_stake"] == pytest.approx(10 * sum(scores[-2:]), abs=0.01)


async def test_sessions_that_just_crossed_a_probability_are_found(client):
    trails = {}
    for number in range(12):
        trails[f"s-{number}"] = [(await post(client, f"s-{number}", "search"))["probability"] for _ in range(12)]
    for threshold in (0.2, 0.5, 0.8):
        expected = {
            session_id
            for session_id, trail in trails.items()
            if trail[-1] >= threshold and min(trail[-9:-1]) < threshold
        }
        found = (await client.get(f"/v1/sessions?crossed={threshold}&recent=2")).json()["sessions"]
        assert {one["session_id"] for one in found} == expected
        assert all(len(one["recent_probabilities"]) == 2 for one in found)


async def test_sessions_are_found_by_the_last_value_of_a_property(client):
    async def send(session_id, **properties):
        body = {"session_id": session_id, "event_name": "search", "properties": properties}
        assert (await client.post("/v1/events", json=body)).status_code == 200

    await send("a", device="mobile", premium=True)
    await send("a")
    await send("b", device="mobile")
    await send("b", device="desktop")
    for wanted, ids in (("device=mobile", ["a"]), ("device=desktop", ["b"]), ("premium=TRUE", ["a"]), ("x=y", [])):
        found = (await client.get("/v1/sessions", params={"property": wanted})).json()["sessions"]
        assert [one["session_id"] for one in found] == ids
    assert_problem(await client.get("/v1/sessions?property=device"), 422, "invalid_request")


async def walk(client, query):
    """Return the pages of a query, each as its ids; every page has the number of live sessions."""
    pages, cursor, live = [], "", set()
    while cursor is not None:
        page = (await client.get(f"/v1/sessions?{query}{cursor and f'&cursor={cursor}'}")).json()
        pages.append([one["session_id"] for one in page["sessions"]])
        live.add(page["live_sessions"])
        cursor = page["next_cursor"]
    return pages, live


def in_shard(shard, count):
    """Return ids of sessions of one shard."""
    return list(islice((one for number in range(10**6) if shard_of(one := f"s-{number}") == shard), count))


@pytest.mark.parametrize("bounds", [{}, {"_MOST_ROUNDS": 1, "_MOST_ENTRIES": 512}], ids=["as ever", "bounded"])
async def test_pages_have_every_session_once_the_most_probable_first(client, monkeypatch, bounds):
    for name, bound in bounds.items():
        monkeypatch.setattr(f"app.board.reader.{name}", bound)  # private: a page that reaches a bound with few sessions
    ids = [*in_shard(7, 20), *(f"t-{number}" for number in range(40))]
    scores = {session_id: (await post(client, session_id, "search"))["probability"] for session_id in ids}
    pages, live = await walk(client, "limit=15")
    best_first = sorted(ids, key=lambda one: (scores[one], one), reverse=True)
    assert [one for page in pages for one in page] == best_first
    assert max(map(len, pages)) <= 15
    assert live == {60}


@pytest.mark.parametrize("limit", [3, 4, 5])
async def test_a_page_of_sessions_with_enough_events_has_no_more_than_were_asked_for(client, limit):
    scores = {}
    for number in range(40):
        # So that sessions of one event are between those of more
        for position in range(1 + number % 2):
            item = f"SKU-{number * (2 - number % 2 - position)}"
            event = {"session_id": f"s-{number}", "event_name": "view_item", "item_id": item}
            scores[f"s-{number}"] = (await client.post("/v1/events", json=event)).json()["probability"]
    pages, live = await walk(client, f"limit={limit}&min_events=2")
    enough = sorted((f"s-{number}" for number in range(1, 40, 2)), key=lambda one: (scores[one], one), reverse=True)
    assert [one for page in pages for one in page] == enough
    assert max(map(len, pages)) == limit
    assert live == {40}


async def test_who_has_bought_has_no_probability_and_an_empty_cart_is_none(store):
    model = FakeModel()
    model.cart_value = 0.0
    async with running(store, model=model, now_ms=lambda: store.now_ms) as client:
        await post(client, "s-1", "view_item", "purchase")
        await post(client, "s-2", "view_item")
        found = (await client.get("/v1/sessions?order=last_seen")).json()["sessions"]
    rows = {one["session_id"]: one for one in found}
    assert (rows["s-1"]["outcome"], rows["s-1"]["probability"]) == ("purchase", None)
    assert rows["s-2"]["probability"] is not None
    assert not any("cart_value" in row for row in rows.values())


async def test_a_cart_has_the_currency_that_came_last(store):
    model = FakeModel()
    model.cart_value = 40.0
    async with running(store, model=model, now_ms=lambda: store.now_ms) as client:
        for currency in ("EUR", "CHF", None):
            body = {"session_id": "s-1", "event_name": "add_to_cart", "currency": currency}
            assert (await client.post("/v1/events", json=body)).status_code == 200
        (session,) = (await client.get("/v1/sessions?recent=8")).json()["sessions"]
    assert (session["cart_value"], session["currency"]) == (40.0, "CHF")


async def test_a_row_has_what_a_dashboard_shows(client):
    answers = [await post(client, "s-1", name) for name in ("page_view", "view_item")]
    (session,) = (await client.get("/v1/sessions?recent=8")).json()["sessions"]
    assert session == {
        "session_id": "s-1",
        "probability": pytest.approx(answers[1]["probability"], abs=1e-6),
        "events": 2,
        "first_seen": "2026-11-22T10:16:40Z",
        "last_seen": "2026-11-22T10:16:40Z",
        "model": answers[1]["model"],
        "outcome": "open",
        "last_event": "view_item",
        "last_item_id": None,
        "recent_probabilities": pytest.approx([answer["probability"] for answer in answers], abs=1e-4),
    }


async def test_a_row_has_the_item_of_the_last_event_alone(client):
    for number, fields in enumerate(({"item_id": "SKU-1"}, {"item_id": "SKU-2"}, {}), start=1):
        await client.post("/v1/events", json={"session_id": "s-1", "event_name": "view_item"} | fields)
        (session,) = (await client.get(f"/v1/sessions?limit={number}")).json()["sessions"]
        assert session["last_item_id"] == fields.get("item_id")


async def test_the_same_question_is_read_once_and_its_answer_has_one_tag(client, store):
    await post(client, "s-1", "page_view")
    tags = {(await client.get("/v1/sessions?limit=5")).headers["etag"] for _ in range(20)}
    # Another way to ask the same
    tags.add((await client.get("/v1/sessions?limit=5&order=probability")).headers["etag"])
    assert len(tags) == 1
    assert store.readings == 1
    (tag,) = tags
    unchanged = await client.get("/v1/sessions?limit=5", headers={"If-None-Match": tag})
    assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", tag)
    assert (await client.get("/v1/sessions?limit=5", headers={"If-None-Match": '"another"'})).status_code == 200


async def test_answers_from_memory_are_counted_under_their_route(client):
    for _ in range(3):
        await client.get("/v1/sessions")
        await client.get("/v1/stats")
    text = (await client.get("/metrics")).text
    for route in ("/v1/sessions", "/v1/stats"):
        assert f'willbuy_requests_total{{method="GET",route="{route}",status="200"}} 3.0' in text


async def test_what_cannot_be_understood_is_refused_by_its_name(client):
    body = assert_problem(await client.get("/v1/sessions?limit=0&order=x"), 422, "invalid_request")
    assert {error["field"] for error in body["errors"]} == {"limit", "order"}
    assert_problem(await client.get("/v1/stream?recent=x"), 422, "invalid_request")
    await post(client, "s-1", "page_view")
    await post(client, "s-2", "page_view", "view_item")
    cursor = (await client.get("/v1/sessions?limit=1")).json()["next_cursor"]
    following = await client.get("/v1/sessions", params={"limit": 5, "cursor": cursor})
    assert len(following.json()["sessions"]) == 1
    for changed in (
        {"cursor": cursor[:-1]},
        {"cursor": cursor, "min_events": 2},
        {"cursor": cursor, "order": "last_seen"},
    ):
        body = assert_problem(await client.get("/v1/sessions", params=changed), 422, "invalid_request")
        assert [error["field"] for error in body["errors"]] == ["cursor"]


async def test_pages_of_active_sessions_end_at_one_time_whenever_they_are_read(client, store):
    store.now_ms = NOW_MS - 90_000
    await post(client, "gone", "page_view")
    store.now_ms = NOW_MS - 58_000
    await post(client, "s-2", "page_view")
    store.now_ms = NOW_MS
    await post(client, "s-1", "page_view")
    first = (await client.get("/v1/sessions?limit=1&active_s=60&id_prefix=s-")).json()
    assert [session["session_id"] for session in first["sessions"]] == ["s-1"]
    # When the second page is read so late that no session is active any more
    store.now_ms += 600_000
    cursor = first["next_cursor"]
    second = await client.get(f"/v1/sessions?limit=1&active_s=60&id_prefix=s-&cursor={cursor}")
    assert [session["session_id"] for session in second.json()["sessions"]] == ["s-2"]
    assert second.json()["next_cursor"] is None
    assert (await client.get("/v1/sessions?limit=2&active_s=60")).json()["sessions"] == []
    assert_problem(await client.get(f"/v1/sessions?active_s=61&id_prefix=s-&cursor={cursor}"), 422, "invalid_request")


async def test_a_store_that_is_gone_is_said_and_not_remembered(client, store):
    store.broken = True
    response = await client.get("/v1/sessions")
    assert_problem(response, 503, "store_unavailable")
    assert response.headers["retry-after"] == "1"
    store.broken = False
    assert (await client.get("/v1/sessions")).status_code == 200


async def test_the_numbers_are_complete_with_nothing_to_count(client):
    stats = (await client.get("/v1/stats")).json()
    assert stats["replicas"] == 1
    assert stats["live_sessions"] == stats["open_sessions"] == 0
    assert stats["latency_ms"] == {"p50": None, "p95": None, "p99": None}
    assert stats["scores"]["edges"][0] == 0
    assert stats["scores"]["edges"][-1] == 1
    assert set(stats["scores"]["counts"]) == {0}
    assert set(stats["totals"].values()) == {0}
    assert stats["queue"] == {"length": 0, "capacity": 4096, "overloaded": False}


async def test_openapi_documents_the_parameters(client):
    paths = (await client.get("/openapi.json")).json()["paths"]
    names = [parameter["name"] for parameter in paths["/v1/sessions"]["get"]["parameters"]]
    assert names == [
        *("order", "limit", "min_probability", "max_probability"),
        *("min_events", "rule", "seen_since", "active_s", "id_prefix"),
        *("property", "min_cart_value", "crossed", "recent", "cursor"),
    ]
    order = paths["/v1/sessions"]["get"]["parameters"][0]
    assert order["schema"]["enum"] == ["probability", "last_seen"]
    assert order["schema"]["default"] == "probability"
    assert [one["name"] for one in paths["/v1/stream"]["get"]["parameters"]] == names[:-1]
