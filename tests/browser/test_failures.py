"""The page names failures and recovers without a reload."""

import json

from playwright.sync_api import Page, Route, expect


def with_stats(page: Page, change) -> None:
    """Apply `change` to each response of `GET /v1/stats`."""

    def answer(route: Route) -> None:
        # Without the ETag, because a 304 has no body to change.
        known = {name: value for name, value in route.request.headers.items() if name != "if-none-match"}
        real = route.fetch(headers=known)
        route.fulfill(response=real, json=change(real.json()))

    page.route("**/v1/stats", answer)


def test_a_killed_service_is_reported_and_the_page_recovers_after_its_restart(shop, opened) -> None:
    # Given
    opened.may_fail = True
    shop.post("s-1")
    page = opened()
    expect(page.get_by_role("link", name="s-1")).to_be_visible()
    # The page is live only after both the board and the statistics have arrived.
    expect(page.locator("#connection-text")).to_have_text("Live")
    # When
    shop.kill_service()
    try:
        # Then the page keeps the last data
        expect(page.locator("#connection-text")).to_have_text("Not reachable")
        expect(page.locator("#banner")).to_contain_text("The service cannot be reached.")
        expect(page.locator("#banner")).to_contain_text("The page shows data from")
        expect(page.get_by_role("status").first).to_have_text("The service cannot be reached.")
        expect(page.get_by_role("link", name="s-1")).to_be_visible()
    finally:
        shop.service.start()
    # Then
    expect(page.locator("#connection-text")).to_have_text("Live")
    expect(page.locator("#banner")).to_be_hidden()
    shop.post("s-2")
    expect(page.get_by_role("link", name="s-2")).to_be_visible()


def test_an_unavailable_redis_is_named_and_the_page_recovers(shop, opened) -> None:
    opened.may_fail = True
    page = opened()
    expect(page.locator("#connection-text")).to_have_text("Live")
    # When
    shop.redis.kill()
    try:
        # Then
        expect(page.locator("#banner")).to_contain_text("its Redis does not respond")
    finally:
        shop.redis.start()
    expect(page.locator("#connection-text")).to_have_text("Live")
    expect(page.locator("#banner")).to_be_hidden()


def test_an_overload_is_shown_until_it_ends(shop, page) -> None:
    with_stats(page, lambda stats: stats | {"queue": {"length": 4096, "capacity": 4096, "overloaded": True}})
    expect(page.locator("#connection-text")).to_have_text("Overloaded")
    expect(page.locator("#banner")).to_contain_text("4,096 events are queued")
    # When
    page.unroute("**/v1/stats")
    # Then
    expect(page.locator("#connection-text")).to_have_text("Live")
    expect(page.locator("#banner")).to_be_hidden()


def test_a_proxy_that_requires_a_key_gets_the_key_of_the_user(shop, opened) -> None:
    opened.may_fail = True
    problem = {
        "status": 401,
        "code": "unauthorized",
        "title": "The API key is missing or unknown",
        "detail": "Send an API key.",
    }

    def proxy(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer open sesame":
            route.continue_()
        else:
            route.fulfill(status=401, content_type="application/problem+json", body=json.dumps(problem))

    shop.post("s-1")
    page = opened("about:blank")
    page.route("**/v1/**", proxy)
    page.goto(shop.url)
    # When
    page.get_by_label("This service requires an API key").fill("open sesame")
    page.get_by_role("button", name="Use key").click()
    # Then
    expect(page.get_by_role("link", name="s-1")).to_be_visible()
    expect(page.get_by_label("This service requires an API key")).to_be_hidden()
