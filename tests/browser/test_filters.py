"""Finding sessions on the board: by id, by activity, by a link with filters, and as CSV."""

import csv
import re
import time

import pytest
import redis
from playwright.sync_api import Page, expect
from support.redis_keys import seen_key

from app.store.keys import shard_of


def ids(page: Page):
    return page.locator("#rows .c-session")


def leave(shop, session_id: str, *, minutes: float) -> None:
    """Let the session's last event be so long ago."""
    with redis.Redis.from_url(shop.redis.url) as client:
        client.zadd(seen_key(shard_of(session_id)), {session_id: time.time() * 1000 - minutes * 60_000})


def test_the_board_shows_who_was_active_in_the_last_five_minutes_until_another_time_is_chosen(shop, page) -> None:
    for session_id in ("gone", "here"):
        shop.post(session_id)
    leave(shop, "gone", minutes=7)
    expect(ids(page)).to_have_text(["here"])
    expect(page.locator("#board-count")).to_have_text("1 of 2 live sessions")
    # When
    page.get_by_label("Active in the last").select_option("15 min")
    # Then
    expect(ids(page)).to_have_count(2)
    # When no session was active within the time
    page.get_by_label("Active in the last").select_option("5 min")
    leave(shop, "here", minutes=6)
    # Then
    expect(page.get_by_role("heading", name="No open session was active in the last 5 min")).to_be_visible()
    page.get_by_role("button", name="Clear filters").click()
    expect(ids(page)).to_have_count(2)
    expect(page.get_by_label("Active in the last")).to_have_value("any")


def test_a_session_is_found_by_the_begin_of_its_id_and_opened(shop, opened) -> None:
    opened.may_fail = True  # an id that there is not is 404
    page = opened()
    for session_id in ("s-1", "s-12", "s-13", "t-1"):
        shop.post(session_id)
    expect(ids(page)).to_have_count(4)
    box = page.get_by_label("Session id")
    # When the text is how three ids begin, and one id
    box.fill("s-1")
    expect(ids(page)).to_have_count(3)
    expect(page.locator("#board-partial")).to_be_hidden()
    box.press("Enter")
    # Then the one opens
    expect(page.get_by_role("heading", level=1, name="Session s-1", exact=True)).to_be_focused()
    page.go_back()
    expect(ids(page)).to_have_count(3)
    # When it is how several begin, and no id
    box.fill("s-")
    expect(ids(page)).to_have_count(3)
    page.get_by_role("button", name="Open").click()
    expect(page.locator("#find-note")).to_have_text("No session has exactly this id.")
    # When it is how one begins
    box.fill(" t")
    expect(ids(page)).to_have_text(["t-1"])
    expect(page.locator("#find-note")).to_have_text("")
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Session t-1")


def test_a_part_of_the_board_is_said_to_be_one(shop, page) -> None:
    shop.post("s-1")
    expect(ids(page)).to_have_count(1)
    # Given pages that do not end
    answer = {"sessions": [], "next_cursor": "more", "live_sessions": 1_000_000}
    page.route("**/v1/sessions?**", lambda route: route.fulfill(json=answer))
    page.get_by_label("Session id").fill("x")
    expect(page.locator("#board-partial")).to_be_visible()


def test_filters_are_in_the_address_and_survive_reload_back_and_sharing(shop, page, opened) -> None:
    for session_id in ("s-1", "s-2", "t-1"):
        for name in ("view_item", "add_to_cart"):
            shop.post(session_id, name)
    shop.post("s-3")
    expect(ids(page)).to_have_count(4)
    # When
    page.get_by_label("Session id").fill("s-")
    page.get_by_label("Minimum number of events").fill("2")
    page.get_by_label("Active in the last").select_option("15 min")
    page.get_by_role("button", name="Last seen").click()
    # Then
    address = f"{shop.url}#/?order=last_seen&id=s-&active_min=15&min_events=2"
    expect(page).to_have_url(address)
    for act in (
        lambda: None,
        page.reload,
        lambda: (page.get_by_role("link", name="s-1").click(), page.go_back()),
        lambda: (page.get_by_role("link", name="s-1").click(), page.get_by_role("link", name="← Live board").click()),
        lambda: (
            page.get_by_role("link", name="Model quality").click(),
            page.get_by_role("link", name="Live board").click(),
        ),
    ):
        act()
        expect(page).to_have_url(address)
        expect(ids(page)).to_have_text(["s-2", "s-1"])
        expect(page.get_by_role("link", name="Live board", exact=True)).to_have_attribute("aria-current", "page")
    other = opened(address)
    expect(ids(other)).to_have_text(["s-2", "s-1"])
    expect(other.get_by_label("Minimum number of events")).to_have_value("2")
    expect(other.locator("#by-last_seen")).to_have_attribute("aria-sort", "descending")
    # And without filters the address is the short one
    other.goto(f"{shop.url}#/")
    expect(ids(other)).to_have_count(4)


@pytest.mark.parametrize(
    "query",
    ["min_events=many&rule=%3Cb%3E&rows=7&active_min=-1&order=x&min_percent=-5&unknown=1", "%%%", "rule=gone.rule"],
    ids=["values", "escapes", "rule"],
)
def test_what_an_address_cannot_mean_is_left_out(shop, opened, query) -> None:
    shop.post("s-1")
    page = opened(f"{shop.url}#/?{query}")
    expect(ids(page)).to_have_text(["s-1"])
    expect(page.get_by_label("Active in the last")).to_have_value("5")
    expect(page.locator("#row-limit")).to_have_value("25")


def test_the_rows_are_saved_as_csv_without_formulas(shop, page, tmp_path) -> None:
    expect(page.get_by_role("button", name="Download CSV")).to_be_hidden()
    odd = ["=1+1", "+1", "-2", "@sum", 'a,"b" c', "plain", "日本"]
    for session_id in odd:
        shop.post(session_id, item_id="=2")
    shop.post("plain", "view_cart")
    expect(ids(page)).to_have_count(len(odd))
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name="plain"))
    expect(row.locator(".c-events")).to_have_text("2")
    # When
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Download CSV").click()
    # Then
    assert re.fullmatch(r"willbuy-sessions-[-0-9T]+\.csv", downloading.value.suggested_filename)
    saved = tmp_path / "saved.csv"
    downloading.value.save_as(saved)
    with saved.open(encoding="utf-8", newline="") as file:
        found = {row["session_id"]: row for row in csv.DictReader(file)}
    assert found["'=1+1"]["last_item_id"] == "'=2"
    assert set(found) == {"'=1+1", "'+1", "'-2", "'@sum", 'a,"b" c', "plain", "日本"}
    answer = shop.get("plain")
    assert float(found["plain"]["probability"]) == pytest.approx(answer["probability"], abs=1e-6)
    kept = {name: found["plain"][name] for name in ("events", "last_event", "last_item_id", "outcome", "model")}
    assert kept == {
        "events": "2",
        "last_event": "view_cart",
        "last_item_id": "",
        "outcome": "open",
        "model": answer["model"],
    }


def test_carts_properties_and_crossings_filter_the_board_and_stand_in_the_address(shop, page) -> None:
    for session_id, device, price in (("phone", "mobile", 59.9), ("desk", "desktop", 20.0)):
        shop.post(session_id, "view_item", properties={"device": device})
        shop.post(session_id, "add_to_cart", price=price, currency="EUR", properties={"device": device})
    expect(ids(page)).to_have_count(2)
    row = page.locator("#rows tr", has_text="phone")
    expect(row.locator(".c-cart")).to_contain_text("59.90 EUR")
    expect(page.locator("#tiles > *", has_text="At stake")).to_contain_text("2 filled carts", timeout=60_000)
    # When
    page.get_by_label("Minimum value of the cart").fill("40")
    # Then
    expect(ids(page)).to_have_text(["phone"])
    expect(page).to_have_url(re.compile(r"min_cart=40"))
    page.get_by_label("Minimum value of the cart").fill("")
    page.get_by_label("Property").fill("device=desktop")
    expect(ids(page)).to_have_text(["desk"])
    page.get_by_label("Property").fill("")
    page.get_by_label("Just crossed this probability in percent").fill("100")
    expect(page.get_by_role("heading", name="No session matches the filters")).to_be_visible()
