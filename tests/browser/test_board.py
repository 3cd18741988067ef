"""The live board: rows, order, filters, polling and untrusted input."""

import pytest
from playwright.sync_api import Page, expect


def ids(page: Page):
    return page.locator("#rows .c-session")


def test_an_empty_board_shows_how_to_send_a_first_event_which_then_appears(shop, page) -> None:
    expect(page.get_by_role("heading", name="No sessions yet")).to_be_visible()
    expect(page.locator("#first-event")).to_contain_text(f"curl {shop.service.base_url}/v1/events")
    # When
    shop.post("s-1", "view_item", item_id="SKU-1")
    # Then
    expect(ids(page)).to_have_text(["s-1"])
    expect(page.get_by_role("heading", name="No sessions yet")).to_be_hidden()
    expect(page.locator("#rows .c-last-event")).to_have_text("view_item SKU-1")
    expect(page.locator("#board-count")).to_have_text("1 live session")


def test_rows_reorder_as_probabilities_move_and_keep_the_keyboard_focus(shop, page) -> None:
    # Given two sessions; the second has the focus
    for session_id in ("s-1", "s-2"):
        shop.post(session_id)
    shop.overtake("s-1", "s-2")
    expect(ids(page)).to_have_text(["s-1", "s-2"])
    second = page.get_by_role("link", name="s-2")
    second.focus()
    # When the second overtakes the first
    shop.overtake("s-2", "s-1")
    # Then
    expect(ids(page)).to_have_text(["s-2", "s-1"])
    expect(second).to_be_focused()
    answer = shop.get("s-2")
    row = page.get_by_role("row").filter(has=second)
    expect(row.locator(".c-events")).to_have_text(str(answer["events"]))
    expect(row.locator(".share")).to_have_text(f"{100 * answer['probability']:.1f}%")
    # The sparkline has a point for each of the recent probabilities.
    points = row.locator("polyline").get_attribute("points")
    assert points is not None
    assert len(points.split()) == min(16, answer["events"])


def test_the_outcome_shows_after_a_purchase_in_the_order_of_last_seen(shop, page) -> None:
    shop.post("s-1")
    shop.post("s-2")
    expect(ids(page)).to_have_count(2)
    page.get_by_role("button", name="Last seen").click()
    expect(page.locator("#by-last_seen")).to_have_attribute("aria-sort", "descending")
    expect(page.locator("#by-probability")).to_have_attribute("aria-sort", "none")
    # When
    shop.post("s-1", "purchase")
    # Then
    expect(ids(page)).to_have_text(["s-1", "s-2"])
    expect(page.locator("#rows .c-outcome")).to_have_text(["bought", "open"])


def test_filters_leave_out_sessions_and_can_be_cleared(shop, page) -> None:
    shop.post("short")
    for name in ("view_item", "add_to_cart", "view_cart"):
        shop.post("long", name)
    expect(ids(page)).to_have_count(2)
    # When
    page.get_by_label("Minimum number of events").fill("3")
    # Then
    expect(ids(page)).to_have_text(["long"])
    expect(page.locator("#board-count")).to_have_text("1 of 2 live sessions")
    # When
    page.get_by_label("Minimum number of events").fill("4")
    # Then
    expect(page.get_by_role("heading", name="No session matches the filters")).to_be_visible()
    page.get_by_role("button", name="Clear filters").click()
    expect(ids(page)).to_have_count(2)


def test_unchanged_sessions_are_answered_with_304(shop, page) -> None:
    shop.post("s-1")
    expect(ids(page)).to_have_count(1)
    with page.expect_response(lambda answer: "/v1/sessions?" in answer.url and answer.status == 304):
        pass


@pytest.mark.parametrize("reason", ["pause", "hidden tab"])
def test_a_paused_or_hidden_page_sends_no_requests(shop, opened, reason) -> None:
    # Given a page with a clock under the test's control
    page = opened("about:blank")
    page.clock.install()
    page.goto(shop.url)
    expect(page.locator("#connection-text")).to_have_text("Live")
    # When
    if reason == "pause":
        page.get_by_role("button", name="Pause").click()
        expect(page.locator("#connection-text")).to_have_text("Paused")
    else:
        page.evaluate("""() => {
            Object.defineProperty(document, "hidden", { configurable: true, get: () => true });
            document.dispatchEvent(new Event("visibilitychange"));
        }""")
        expect(page.locator("#connection-text")).to_have_text("Paused in the background")
    page.wait_for_load_state("networkidle")
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.clock.run_for(60_000)
    # Then
    assert requested == []
    # When
    shop.post("s-1")
    if reason == "pause":
        page.get_by_role("button", name="Pause").click()
    else:
        page.evaluate("""() => {
            Object.defineProperty(document, "hidden", { configurable: true, get: () => false });
            document.dispatchEvent(new Event("visibilitychange"));
        }""")
    # Then
    expect(ids(page)).to_have_text(["s-1"])


def test_input_from_shops_is_shown_as_text(shop, page) -> None:
    # Given ids that run a script if a page inserts them as markup
    bad = '<img src=x onerror="window.hacked = true">'
    shop.post(bad, bad[:128], item_id=bad, item_category=bad, properties={"device": bad})
    # Then
    expect(ids(page)).to_have_text([bad])
    # When
    page.get_by_role("link", name=bad).click()
    # Then
    expect(page.get_by_role("heading", level=1, name=bad)).to_be_visible()
    expect(page.locator("#session-events td")).to_contain_text([bad, bad])
    assert page.evaluate("window.hacked") is None


def test_trusted_types_prevent_markup_from_strings(shop, opened) -> None:
    page = opened()
    refused = page.evaluate("""() => {
        try { document.body.innerHTML = "<b>no</b>"; return "made"; } catch (error) { return error.name; }
    }""")
    assert refused == "TypeError"
    expect(page.locator("#connection-text")).to_have_text("Live")
    (complaint,) = opened.complaints
    assert "TrustedHTML" in complaint
    opened.complaints.clear()


def test_long_and_non_latin_ids_do_not_break_the_layout(shop, page) -> None:
    odd = ["x" * 256, "😀" * 256, "שלום-עולם-" * 25, "a/b?c#d e%20", "w w " * 64]
    for session_id in odd:
        shop.post(session_id, item_id="y" * 256)
    expect(ids(page)).to_have_count(len(odd))
    fits = "document.documentElement.scrollWidth <= innerWidth"
    for width in (1280, 1024, 768, 360):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_function(fits)
        page.wait_for_function("[...document.querySelectorAll('#rows a')].every((link) => link.offsetWidth >= 60)")
    for session_id in odd:
        page.locator("#rows a").filter(has_text=session_id).first.click()
        expect(page.locator("#session-title")).to_have_text(f"Session {session_id}")
        expect(page.locator("#session-events tr")).to_have_count(1)
        page.wait_for_function(fits)
        page.go_back()


def test_the_footer_states_open_access(shop, page) -> None:
    expect(page.locator("#open-access")).to_contain_text("Access is open")
    expect(page.locator("#first-event")).to_contain_text("curl")
    expect(page.locator("#first-event")).not_to_contain_text("Authorization")


def test_a_section_below_a_live_board_stays_in_view_while_rows_change_places(shop, opened) -> None:
    # Given more sessions than the window has room for
    sessions = [f"s-{number:02}" for number in range(25)]
    for session_id in sessions:
        shop.post(session_id)
    page = opened(viewport={"width": 1200, "height": 700})
    page.get_by_role("button", name="Last seen").click()
    expect(ids(page)).to_have_count(25)
    # When a section below is opened
    page.get_by_role("link", name="Model quality").click()
    title = page.locator("#quality-title")
    expect(title).to_be_in_viewport()
    expect(title).to_be_focused()
    before = title.evaluate("title => title.getBoundingClientRect().top")
    # And the board is sorted anew, three times
    for session_id in (sessions[3], sessions[11], sessions[20]):
        shop.post(session_id)
        expect(ids(page).first).to_have_text(session_id)
    # Then the section is where it was
    assert title.evaluate("title => title.getBoundingClientRect().top") == before
