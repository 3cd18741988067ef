"""The rules on the page: what they brought, their switches, and where they fired."""

import json

import httpx
from playwright.sync_api import Page, Route, expect

from browser.test_access import findings_in_all_variants

GROUP = {
    "fired_today": 120,
    "sessions": 2000,
    "pending": 2,
    "buyers": 270,
    "conversion": 0.135,
    "conversion_interval": {"low": 0.1207, "high": 0.1507},
    "revenue": 8100.0,
    "revenue_per_session": 4.05,
}
EXPERIMENT = {
    "difference": 0.015,
    "interval": {"low": -0.0151, "high": 0.0451},
    "interval_once": {"low": -0.0057, "high": 0.0357},
    "revenue_difference": 0.45,
    "revenue_interval": {"low": -0.5, "high": 1.4},
    "minimum_detectable_effect": 0.0389,
    "sample_ratio_p": 0.9,
    "days_left": 9,
    "finding": "unknown",
    "verdict": "not yet known: about 9 more days",
}
RULE = {
    "name": "voucher",
    "on": True,
    "in_file": True,
    "switched_off": None,
    "control": 0.5,
    "rule": {"control": 0.5},
    "fired_today": 230,
    "treatment": GROUP,
    "control_group": GROUP | {"fired_today": 110, "buyers": 240, "conversion": 0.12, "revenue_per_session": 3.6},
    "experiment": EXPERIMENT,
}
WEBHOOK = {"name": "shop.example-3fa9c1d2", "rules": None, "waiting": 3, "next_attempt": None, "dead": 2}


def with_rules(page: Page, rules: list, webhooks: list | None = None) -> None:
    """Answer `GET /v1/interventions` with these."""
    body = {"as_of": "2026-11-29T12:00:00Z", "rules": rules, "webhooks": webhooks or []}
    page.route("**/v1/interventions", lambda route: route.fulfill(json=body))


def opened_with(opened, rules, webhooks=None, address="") -> Page:
    page = opened("about:blank")
    with_rules(page, rules, webhooks)
    page.goto(address)
    return page


def test_a_rule_has_its_groups_its_difference_and_its_verdict(shop, opened) -> None:
    known = RULE | {
        "name": "chat",
        "experiment": EXPERIMENT
        | {"finding": "more", "verdict": "more purchases with it: +0.50 to +3.10 percentage points"},
    }
    page = opened_with(opened, [RULE, known], [WEBHOOK], shop.url + "#/interventions")
    expect(page.get_by_role("heading", name="Interventions")).to_be_in_viewport()
    card = page.locator(".rule").first
    expect(card.locator(".mark")).to_have_text("Not yet known: about 9 more days.")
    expect(card).to_contain_text(
        "Fired 230 times today, of which 110 held out. 4 ended sessions not yet counted. "
        "50.0% of the sessions are held out."
    )
    rows = card.locator("tbody tr")
    expect(rows.nth(0)).to_contain_text("Treatment13.5%12.1% to 15.1%2702,0004.05120")
    expect(rows.nth(1)).to_contain_text("Control12.0%12.1% to 15.1%2402,0003.6110")
    expect(card).to_contain_text(
        "Treatment minus control: +1.50 percentage points (\N{MINUS SIGN}1.51 to +4.51, valid at every look); "
        "revenue per session +0.45 (\N{MINUS SIGN}0.5 to +1.4). Detectable so far: 3.89 points."
    )
    expect(page.locator(".rule").nth(1).locator(".mark")).to_have_attribute("data-level", "good")
    expect(page.locator(".rule").nth(2)).to_contain_text("shop.example-3fa9c1d2all32")
    assert findings_in_all_variants(page) == []


def test_a_switch_works_for_the_service_and_shows_so(shop, page) -> None:
    switch = page.get_by_role("switch", name="Rule voucher")
    expect(switch).to_have_attribute("aria-checked", "true")
    # When
    switch.click()
    # Then
    expect(switch).to_have_attribute("aria-checked", "false")
    expect(page.locator(".rule").first).to_contain_text("Switched off")
    expect(page.locator("#announcer")).to_have_text("Rule voucher is off.")
    expect(switch).to_be_focused()
    assert shop.post("s-1", "view_promotion")["interventions"] == []
    switch.click()
    expect(switch).to_have_attribute("aria-checked", "true")


def test_a_key_without_the_scope_switches_nothing_and_the_page_says_why(shop, opened) -> None:
    opened.may_fail = True
    page = opened()

    def refuse(route: Route) -> None:
        body = {"status": 403, "code": "forbidden", "detail": "no"}
        route.fulfill(status=403, content_type="application/problem+json", body=json.dumps(body))

    page.route("**/v1/interventions/*/switch", refuse)
    switch = page.get_by_role("switch", name="Rule voucher")
    switch.click()
    expect(page.locator("#switch-error")).to_contain_text("lacks the scope interventions:admin")
    expect(switch).to_have_attribute("aria-checked", "true")


def test_a_decision_is_at_its_event_and_the_board_can_show_its_sessions_alone(shop, page) -> None:
    shop.post("s-1", "view_item")
    shop.post("s-1", "view_promotion")
    shop.post("s-2", "view_item")
    expect(page.locator("#rows tr")).to_have_count(2)
    # When
    page.locator("#rule").select_option("chat")
    # Then
    expect(page.locator("#rows tr")).to_have_count(1)
    expect(page.locator("#rows")).to_contain_text("s-1")
    page.locator("#rows a").click()
    rows = page.locator("#session-events tr")
    expect(rows.nth(0).locator(".decision")).to_have_count(0)
    expect(rows.nth(1)).to_contain_text("chat: treated")
    expect(rows.nth(1).locator(".decision")).to_have_count(2)
    # And a rule in which no session is left an empty board that can be cleared
    page.go_back()
    answer = httpx.get(f"{shop.service.base_url}/v1/sessions?rule=nothing", timeout=30).json()
    assert (answer["sessions"], answer["live_sessions"]) == ([], 2)


def test_without_rules_the_section_says_so_and_the_board_has_no_such_filter(shop, opened) -> None:
    page = opened_with(opened, [], None, shop.url)
    expect(page.locator("#no-rules")).to_be_visible()
    expect(page.locator("#rule-filter")).to_be_hidden()
