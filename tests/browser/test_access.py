"""Accessibility: axe, keyboard, colour schemes, and the width of a phone."""

import itertools
from typing import Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, ViewportSize, expect

SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
DESKTOP: ViewportSize = {"width": 1280, "height": 900}
PHONE: ViewportSize = {"width": 360, "height": 740}


def findings(page: Page) -> list[str]:
    violations = Axe().run(page).response["violations"]
    return [f"{found['impact']} {found['id']}: {found['nodes'][0]['html'][:200]}" for found in violations]


def findings_in_all_variants(page: Page) -> list[str]:
    found = []
    for scheme, viewport in itertools.product(SCHEMES, (DESKTOP, PHONE)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size(viewport)
        found += [f"{scheme}, {viewport['width']} px: {finding}" for finding in findings(page)]
    return found


def test_axe_finds_nothing_on_board_and_session_in_all_variants(shop, page) -> None:
    # Given an empty board
    expect(page.get_by_role("heading", name="No sessions yet")).to_be_visible()
    expect(page.locator("#model-facts")).to_contain_text("float16")
    assert findings_in_all_variants(page) == []
    # And one with visitors
    visits = shop.visit(12)
    shop.post(visits[0], "purchase")
    expect(page.locator("#rows tr")).not_to_have_count(0)
    expect(page.locator("#latency-chart canvas")).to_be_visible()
    assert findings_in_all_variants(page) == []
    # And a session
    page.locator("#rows a").first.click()
    expect(page.locator("#session-chart canvas")).to_be_visible()
    assert findings_in_all_variants(page) == []


def test_axe_finds_nothing_while_the_service_is_down(shop, opened) -> None:
    opened.may_fail = True
    page = opened()
    page.route("**/v1/**", lambda route: route.abort())
    expect(page.locator("#banner")).to_be_visible()
    assert findings(page) == []


def test_axe_finds_nothing_on_an_empty_board_before_the_model_is_known(shop, opened) -> None:
    opened.may_fail = True
    page = opened()
    page.route("**/v1/model", lambda route: route.abort())
    page.reload()
    expect(page.get_by_role("heading", name="No sessions yet")).to_be_visible()
    expect(page.locator("#first-event")).to_be_hidden()
    assert findings(page) == []


def tab_to(page: Page, selector: str) -> None:
    """Press Tab until the focus is there."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"{selector} cannot be reached by keyboard")


def test_every_function_works_by_keyboard(shop, page) -> None:
    shop.post("s-1")
    shop.post("s-2")
    expect(page.locator("#rows tr")).to_have_count(2)
    # The first Tab reaches the skip link and makes it visible
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    expect(page.get_by_role("link", name="Skip to content")).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    # Sorting
    tab_to(page, "[data-order=last_seen]")
    page.keyboard.press("Enter")
    expect(page.locator("#by-last_seen")).to_have_attribute("aria-sort", "descending")
    expect(page.get_by_role("status").first).to_have_text("Sorted by last seen, highest first.")
    expect(page.locator("#rows .c-session")).to_have_text(["s-2", "s-1"])
    # Opening a session and coming back to its row
    tab_to(page, "#rows a")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1, name="Session s-2")).to_be_focused()
    expect(page.locator("#session-events tr")).to_have_count(1)
    page.go_back()
    expect(page.get_by_role("link", name="s-2")).to_be_focused()
    # Pausing
    page.locator("#pause").focus()
    page.keyboard.press("Space")
    expect(page.locator("#pause")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("status").first).to_have_text("Paused.")


def test_a_focused_row_that_leaves_the_board_moves_the_focus_to_its_neighbour(shop, page) -> None:
    for session_id in ("s-1", "s-2"):
        shop.post(session_id)
    expect(page.locator("#rows tr")).to_have_count(2)
    page.get_by_role("link", name="s-1").focus()
    # When
    shop.post("s-1", "purchase")
    # Then
    expect(page.locator("#rows .c-session")).to_have_text(["s-2"])
    expect(page.get_by_role("link", name="s-2")).to_be_focused()


def test_page_and_charts_follow_the_systems_colour_scheme(shop, page) -> None:
    expect(page.locator("#throughput-chart canvas")).to_be_visible()
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    # When
    page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    # Then
    expect(page.locator("body")).not_to_have_css("background-color", light)
    expect(page.locator("#throughput-chart canvas")).to_be_visible()
    assert page.evaluate("document.getAnimations().length") == 0
