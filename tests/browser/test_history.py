"""The history: hours with plots, and what is not known yet."""

import json

from playwright.sync_api import expect


def an_hour(start: str, sessions: int, purchases: int, *, complete: bool) -> dict[str, object]:
    return {
        "start": start,
        "sessions": sessions,
        "events": 5 * sessions,
        "purchases": purchases,
        "conversion": purchases / sessions if complete else None,
        "predicted": 0.08 if complete else None,
        "revenue": [{"currency": "EUR", "value": 1204.5, "purchases": purchases}] if purchases else [],
        "complete": complete,
    }


def test_a_new_shop_has_no_history_and_its_sessions_are_pending(shop, page) -> None:
    expect(page.locator("#history-summary")).to_have_text("Not yet known.")
    expect(page.locator("#history-parts")).to_be_hidden()
    # When one buys
    shop.post("s-1")
    shop.post("s-1", "purchase", value=59.9, currency="EUR")
    page.reload()
    # Then it is in the hour's volume, and in no conversion
    expect(page.locator("#history-summary")).to_have_text(
        "Not yet known. 1 ended session not yet counted.", timeout=60_000
    )
    expect(page.locator("#volume-chart canvas")).to_be_visible()


def test_hours_are_plotted_and_listed_and_the_week_is_asked_for(shop, opened) -> None:
    hours = [
        an_hour("2026-11-29T22:00:00Z", 100, 10, complete=True),
        an_hour("2026-11-29T23:00:00Z", 100, 0, complete=True),
        an_hour("2026-11-30T00:00:00Z", 7, 7, complete=False),
    ]
    asked: list[str] = []

    def answer(route) -> None:
        asked.append(route.request.url.partition("hours=")[2])
        body = {"as_of": "2026-11-30T00:30:00Z", "pending_s": 2700, "hours": hours}
        route.fulfill(body=json.dumps(body), content_type="application/json")

    page = opened("about:blank")
    page.route("**/v1/history?*", answer)
    page.goto(f"{shop.url}#/history")
    expect(page.get_by_role("heading", name="History", exact=True)).to_be_in_viewport()
    expect(page.locator("#history-summary")).to_have_text(
        "10 purchases, worth 1,204.50 EUR, of 200 sessions: 5.0% bought, 8.0% predicted. "
        "7 ended sessions not yet counted."
    )
    expect(page.locator("#conversion-chart canvas")).to_be_visible()
    page.locator("#history-details summary").click()
    expect(page.locator("#history-table tbody tr")).to_have_count(3)
    expect(page.locator("#history-table tbody tr").first).to_contain_text("1005001010.0%8.0%1,204.50 EUR")
    expect(page.locator("#history-table tbody tr").last).to_contain_text("7357——1,204.50 EUR")
    # When
    with page.expect_response("**/v1/history?hours=168"):
        page.locator("#history-hours").select_option("week")
    # Then
    assert asked[0] == "24"
