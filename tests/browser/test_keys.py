"""The page of a service that requires API keys."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect
from support.keys import make_key, write_keys
from support.service import Service

from browser.shop import Shop
from browser.test_access import findings_in_all_variants, tab_to

DESK = make_key("sessions:read", "events:write", name="desk")
BACKEND = make_key("events:write", name="backend")


@pytest.fixture(scope="module")
def running_shop(artifact, start_redis, tmp_path_factory) -> Iterator[Shop]:
    """A shop whose service accepts two keys; one has the scope `sessions:read`."""
    redis = start_redis("valkey-8.1")
    folder = tmp_path_factory.mktemp("keys")
    settings = {"artifact": artifact, "redis_url": redis.url}
    settings["api_keys_file"] = write_keys(folder / "keys.toml", DESK, BACKEND)
    service = Service(folder / "service.log", settings)
    try:
        service.start()
        shop = Shop(service, redis, headers=DESK.headers)
        yield shop
        shop.close()
    finally:
        service.stop()


def key_field(page: Page):
    return page.get_by_label("This service requires an API key")


def test_the_page_asks_for_a_key_and_then_shows_the_board(shop, opened) -> None:
    opened.may_fail = True
    shop.post("s-1")
    page = opened()
    # Given a page without a key, by keyboard alone
    expect(key_field(page)).to_be_visible()
    expect(page.locator("#connection-text")).to_have_text("API key required")
    expect(page.get_by_role("status").first).to_have_text("The service requires an API key.")
    expect(page.get_by_role("link", name="s-1")).to_have_count(0)
    assert findings_in_all_variants(page) == []
    # When a wrong key is entered
    tab_to(page, "#key")
    page.keyboard.type("wb_wrong")
    page.keyboard.press("Enter")
    # Then the page shows the error
    expect(page.get_by_role("alert")).to_have_text("The service does not know this API key.")
    assert findings_in_all_variants(page) == []
    # When the key lacks the scope
    key_field(page).fill(BACKEND.key)
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("sessions:read")
    # When the key is valid
    key_field(page).fill(DESK.key)
    page.keyboard.press("Enter")
    # Then the board is shown and has the keyboard focus
    expect(page.get_by_role("link", name="s-1")).to_be_visible()
    expect(key_field(page)).to_be_hidden()
    expect(page.locator("main")).to_be_focused()
    expect(page.locator("#open-access")).to_be_hidden()
    assert findings_in_all_variants(page) == []


def test_a_key_is_kept_for_one_tab(shop, opened) -> None:
    opened.may_fail = True
    page = opened()
    key_field(page).fill(DESK.key)
    page.get_by_role("button", name="Use key").click()
    expect(page.locator("#connection-text")).to_have_text("Live")
    # The command that sends a first event includes a key too
    expect(page.locator("#first-event")).to_contain_text('-H "Authorization: Bearer $WILLBUY_API_KEY"')
    # When
    page.reload()
    # Then
    expect(page.locator("#connection-text")).to_have_text("Live")
    other = page.context.new_page()
    other.goto(shop.url)
    expect(key_field(other)).to_be_visible()
    # And the key is neither in the URL nor in a cookie
    assert DESK.key not in page.url
    assert page.context.cookies() == []
