"""The check of keys by itself: what it asks the rate limit, and what it passes on."""

from typing import cast

import httpx
import pytest
from support.keys import make_key

from app.auth.access import Access
from app.auth.middleware import COUNT_EVENTS, KEY_NAME, AccessControl, holder_of, route_path
from app.auth.rate_limit import RateLimit
from app.auth.scopes import Rules
from app.auth.tokens import TokenStore
from app.errors import RateLimitedError
from app.monitoring.metrics import Metrics

pytestmark = pytest.mark.anyio

SHOP = make_key("events:write", name="shop", events_per_s=5)
DESK = make_key("sessions:read", name="desk")


class Limits:
    """Keys with a limit of their own are limited; keeps what it was asked, whole."""

    def __init__(self, *, exceeded=False):
        self.asked = []
        self._exceeded = exceeded

    def is_limited(self, key):
        return key.events_per_s is not None

    async def take(self, key, count=1):
        self.asked.append(("take", key.name, count))
        if self._exceeded:
            raise RateLimitedError("too many")


class Behind:
    """The application behind the check: keeps the scopes that it was given."""

    def __init__(self):
        self.scopes = []

    async def __call__(self, scope, receive, send):
        self.scopes.append(scope)
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"passed"})


class Guarded:
    def __init__(self, access=None, *, exceeded=False, metrics_public=False):
        self.behind, self.limits, self.metrics = Behind(), Limits(exceeded=exceeded), Metrics()
        rules = Rules(metrics_public=metrics_public)
        access = access or Access([SHOP.entry, DESK.entry])
        self.app = AccessControl(
            self.behind,
            access=access,
            rules=rules,
            rate=cast("RateLimit", self.limits),
            # No request of these tests has a token; tests/e2e/test_tokens.py has those that do.
            tokens=cast("TokenStore", None),
            metrics=self.metrics,
        )

    async def ask(self, method, path, key=None, **options):
        headers = {"content-type": "application/json"} | ({} if key is None else {"X-API-Key": key.key})
        transport = httpx.ASGITransport(self.app, **options)
        async with httpx.AsyncClient(transport=transport, base_url="http://willbuy") as client:
            return await client.request(method, path, headers=headers)

    def errors(self, code):
        return self.metrics.registry.get_sample_value("willbuy_errors_total", {"code": code})


async def test_a_request_is_passed_on_with_its_keys_name_and_counted_once() -> None:
    it = Guarded()
    assert (await it.ask("POST", "/v1/events", SHOP)).text == "passed"
    assert it.limits.asked == [("take", "shop", 1)]
    (scope,) = it.behind.scopes
    assert (holder_of(scope), scope[KEY_NAME]) == ("shop", "shop")


async def test_only_a_batchs_events_are_counted() -> None:
    it = Guarded()
    await it.ask("POST", "/v1/events/batch", SHOP)
    # The request itself was the first event
    await it.behind.scopes[0][COUNT_EVENTS](7)
    await it.behind.scopes[0][COUNT_EVENTS](1)
    assert it.limits.asked == [("take", "shop", 1), ("take", "shop", 6)]
    it.limits.asked.clear()
    await it.ask("POST", "/v1/sessions/batch/outcome", SHOP)
    assert it.limits.asked == [("take", "shop", 1)]
    assert COUNT_EVENTS not in it.behind.scopes[1]


async def test_a_key_without_a_limit_is_not_counted() -> None:
    it = Guarded()
    assert (await it.ask("GET", "/v1/stats", DESK)).text == "passed"
    assert it.limits.asked == []


async def test_beyond_its_limit_nothing_is_passed_on() -> None:
    it = Guarded(exceeded=True)
    assert (await it.ask("POST", "/v1/events", SHOP)).status_code == 429
    assert it.behind.scopes == []
    assert it.errors("rate_limited") == 1


async def test_a_key_without_the_scope_is_neither_counted_nor_passed_on() -> None:
    it = Guarded()
    assert (await it.ask("GET", "/v1/stats", SHOP)).status_code == 403
    assert (await it.ask("GET", "/v1/stats")).status_code == 401
    assert (it.behind.scopes, it.limits.asked) == ([], [])
    assert (it.errors("forbidden"), it.errors("unauthorized")) == (1, 1)


async def test_open_access_knows_no_names_and_counts_nothing() -> None:
    it = Guarded(Access(None))
    for path in ("/v1/events", "/v1/nowhere"):
        assert (await it.ask("POST", path, SHOP)).text == "passed"
    assert [holder_of(scope) for scope in it.behind.scopes] == [None, None]
    assert it.limits.asked == []


@pytest.mark.parametrize("metrics_public", [True, False])
async def test_metrics_are_public_where_the_settings_say_so(metrics_public) -> None:
    it = Guarded(metrics_public=metrics_public)
    assert (await it.ask("GET", "/metrics")).status_code == (200 if metrics_public else 401)


@pytest.mark.parametrize(("method", "status", "allow"), [("PATCH", 405, "POST"), ("GET", 405, "POST")])
async def test_a_method_that_a_path_has_not_is_answered_with_those_it_has(method, status, allow) -> None:
    it = Guarded()
    answer = await it.ask(method, "/v1/events", SHOP)
    assert (answer.status_code, answer.headers["allow"]) == (status, allow)
    assert (await it.ask(method, "/v1/events")).status_code == 401
    nowhere = await it.ask(method, "/v1/nowhere", SHOP)
    assert (nowhere.status_code, "allow" in nowhere.headers) == (404, False)


@pytest.mark.parametrize(
    ("path", "prefix", "found"),
    [
        ("/shop/v1/events", "/shop", "/v1/events"),
        ("/shopping/v1/events", "/shop", "/shopping/v1/events"),
        ("/v1/events", "/shop", "/v1/events"),
        ("/v1/events", "", "/v1/events"),
        ("/shop", "/shop", "/shop"),
    ],
)
def test_the_path_is_the_one_behind_a_proxys_prefix(path, prefix, found) -> None:
    assert route_path({"path": path, "root_path": prefix}) == found


async def test_a_prefixed_path_needs_the_scope_of_its_route() -> None:
    it = Guarded()
    assert (await it.ask("POST", "/shop/v1/events", SHOP, root_path="/shop")).text == "passed"
    assert (await it.ask("GET", "/shop/v1/stats", SHOP, root_path="/shop")).status_code == 403
