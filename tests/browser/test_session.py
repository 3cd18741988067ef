"""The view of one session."""

import re

import pytest
from playwright.sync_api import expect

# The character itself: the browser matches, and does not know its name.
CHANGE = re.compile("[+\N{MINUS SIGN}]\\d+\\.\\d")
PAINTED = """() => {
    const canvas = document.querySelector("#session-chart canvas");
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return data.some((value) => value > 0);
}"""


def test_a_session_opens_from_the_board_and_the_back_button_returns_to_its_row(shop, page) -> None:
    # Given
    shop.post("s-1", "view_item", item_id="SKU-1")
    shop.post("s-1", "add_to_cart", item_id="SKU-2")
    last = shop.post("s-1", "search")
    # When
    page.get_by_role("link", name="s-1").click()
    # Then
    expect(page.get_by_role("heading", level=1)).to_have_text("Session s-1")
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    expect(page).to_have_title("Session s-1 · willbuy")
    rows = page.locator("#session-events tr")
    expect(rows).to_have_count(3)
    expect(rows.locator("td:nth-child(3)")).to_have_text(["view_item", "add_to_cart", "search"])
    expect(rows.locator("td:nth-child(6)")).to_have_text(["SKU-1", "SKU-2", "—"])
    expect(rows.locator(".delta")).to_have_text(["—", CHANGE, CHANGE])
    expect(rows.locator("td:nth-child(4)").last).to_have_text(f"{100 * last['probability']:.1f}%")
    expect(page.locator("#session-chart")).to_have_attribute("aria-label", re.compile("after each of 3 events"))
    page.wait_for_function(PAINTED)
    # When
    page.go_back()
    # Then
    expect(page.get_by_role("link", name="s-1")).to_be_focused()
    expect(page).to_have_title("Live board · willbuy")


def test_why_is_asked_for_and_sums_to_the_change(shop, page) -> None:
    # Given
    shop.post("s-1", "view_item", item_id="<b>SKU</b>")
    shop.post("s-1", "add_to_cart", item_id="<b>SKU</b>", price=59.9)
    page.get_by_role("link", name="s-1").click()
    why = page.locator("#why")
    expect(page.locator("#session-events tr")).to_have_count(2)
    expect(why).to_be_hidden()
    # When
    page.get_by_role("button", name="Why this probability?").click()
    # Then
    expect(why.locator("#why-summary")).to_contain_text("Event 2, add_to_cart: from ")
    expect(why.locator("li", has_text="put into the cart, worth 59.90: ")).to_have_text(re.compile(r"points$"))
    # When another event comes, the explanation of the last one goes
    shop.post("s-1", "search")
    expect(page.locator("#session-events tr")).to_have_count(3)
    expect(why).to_be_hidden()


def test_items_are_in_sight_on_a_phone(shop, opened) -> None:
    long = "blue-running-shoes-size-42-and-a-half-" * 3
    shop.post("s-1", "view_item", item_id=long)
    shop.post("s-1", "add_to_cart", item_id="SKU-2")
    page = opened(viewport={"width": 360, "height": 740})
    # On the board, the item of the last event
    item = page.locator("#rows .last-item")
    expect(item).to_have_text("SKU-2")
    item.scroll_into_view_if_needed()
    expect(item).to_be_in_viewport(ratio=1)
    shop.post("s-1", "search")
    expect(page.locator("#rows .c-last-event")).to_have_text("search ")
    # On the session's page, all items
    page.get_by_role("link", name="s-1").click()
    items = page.locator("#session-events .item")
    expect(items).to_have_text([long, "SKU-2", "—"])
    for number in range(2):
        items.nth(number).scroll_into_view_if_needed()
        expect(items.nth(number)).to_be_in_viewport(ratio=1)


def test_a_session_opens_by_its_link_and_shows_new_events(shop, opened) -> None:
    shop.post("s/1 ü", "view_item")
    page = opened(shop.address("s/1 ü"))
    rows = page.locator("#session-events tr")
    expect(rows).to_have_count(1)
    expect(page.locator("#session-outcome")).to_have_text("open")
    # When
    shop.post("s/1 ü", "view_cart")
    # Then
    expect(rows).to_have_count(2)
    # When
    shop.post("s/1 ü", "purchase")
    # Then
    expect(page.locator("#session-outcome")).to_have_text("bought")
    expect(page.locator("#session-summary")).to_contain_text("ended in a purchase")
    expect(rows).to_have_count(2)


@pytest.mark.parametrize("address", ["#/session/never-was", "#/session/%E0%A4%A", "#/session/" + "x" * 300])
def test_a_missing_session_is_reported(shop, opened, address) -> None:
    opened.may_fail = True
    page = opened(shop.url + address)
    expect(page.locator("#session-summary")).to_contain_text("The service has no session with this id")
    expect(page.locator("#connection-text")).to_have_text("Live")


def test_a_session_that_is_deleted_while_it_is_open_stays_visible(shop, opened) -> None:
    opened.may_fail = True
    shop.post("s-1")
    page = opened(shop.address("s-1"))
    expect(page.locator("#session-events tr")).to_have_count(1)
    # When
    shop.redis.flush()
    # Then
    expect(page.locator("#session-summary")).to_contain_text("The service no longer has this session")
    expect(page.locator("#session-events tr")).to_have_count(1)
