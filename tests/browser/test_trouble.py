"""The page says what is wrong, and recovers by itself."""

import json

from playwright.sync_api import Page, Route, expect

from app.schemas.quality import (
    AnswersOut,
    DriftOut,
    FeatureDriftOut,
    ModelQualityOut,
    PrefixAnswersOut,
    ReliabilityOut,
)


def with_stats(page: Page, change) -> None:
    """Let the page see the service's real figures with something changed."""

    def answer(route: Route) -> None:
        # Unconditionally, since there is nothing to change about an answer without a body.
        known = {name: value for name, value in route.request.headers.items() if name != "if-none-match"}
        real = route.fetch(headers=known)
        route.fulfill(response=real, json=change(real.json()))

    page.route("**/v1/stats", answer)


def test_a_service_that_is_killed_is_told_and_the_page_recovers_when_it_is_back(shop, opened) -> None:
    # Given
    opened.may_fail = True
    shop.post("s-1")
    page = opened()
    expect(page.get_by_role("link", name="s-1")).to_be_visible()
    # The board may come before the figures, and the page dates what it shows by both.
    expect(page.locator("#connection-text")).to_have_text("Live")
    # When
    shop.kill_service()
    try:
        # Then what was known stays
        expect(page.locator("#connection-text")).to_have_text("Not reachable")
        expect(page.locator("#banner")).to_contain_text("The service cannot be reached.")
        expect(page.locator("#banner")).to_contain_text("What is shown is from")
        expect(page.get_by_role("status").first).to_have_text("The service cannot be reached.")
        expect(page.get_by_role("link", name="s-1")).to_be_visible()
    finally:
        shop.service.start()
    # Then
    expect(page.locator("#connection-text")).to_have_text("Live")
    expect(page.locator("#banner")).to_be_hidden()
    shop.post("s-2")
    expect(page.get_by_role("link", name="s-2")).to_be_visible()


def test_a_redis_that_is_gone_is_named_and_the_page_recovers(shop, opened) -> None:
    opened.may_fail = True
    page = opened()
    expect(page.locator("#connection-text")).to_have_text("Live")
    # When
    shop.redis.kill()
    try:
        # Then
        expect(page.locator("#banner")).to_contain_text("its Redis does not answer")
    finally:
        shop.redis.start()
    expect(page.locator("#connection-text")).to_have_text("Live")
    expect(page.locator("#banner")).to_be_hidden()


def test_an_overload_is_told_while_it_lasts(shop, page) -> None:
    with_stats(page, lambda stats: stats | {"queue": {"length": 4096, "capacity": 4096, "overloaded": True}})
    expect(page.locator("#connection-text")).to_have_text("Overloaded")
    expect(page.locator("#banner")).to_contain_text("4,096 events wait")
    # When
    page.unroute("**/v1/stats")
    # Then
    expect(page.locator("#connection-text")).to_have_text("Live")
    expect(page.locator("#banner")).to_be_hidden()


def test_a_gate_before_the_service_that_asks_for_a_key_gets_the_one_that_the_user_enters(shop, opened) -> None:
    opened.may_fail = True
    problem = {"status": 401, "code": "unauthorized", "title": "Who is asking?", "detail": "Send an API key."}

    def gate(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer open sesame":
            route.continue_()
        else:
            route.fulfill(status=401, content_type="application/problem+json", body=json.dumps(problem))

    shop.post("s-1")
    page = opened("about:blank")
    page.route("**/v1/**", gate)
    page.goto(shop.url)
    # When
    page.get_by_label("This service asks for an API key").fill("open sesame")
    page.get_by_role("button", name="Use key").click()
    # Then
    expect(page.get_by_role("link", name="s-1")).to_be_visible()
    expect(page.get_by_label("This service asks for an API key")).to_be_hidden()


def trust_of(buyers: int) -> ModelQualityOut:
    facts: dict[str, float] = {"sessions": 20 * buyers, "buyers": buyers, "predictions": 100 * buyers}
    facts |= {"base_rate": 0.05, "mean_probability": 0.06, "log_loss": 0.2, "auc": 0.81, "calibration_error": 0.01}
    return ModelQualityOut(
        window_s=86400,
        sessions=20 * buyers,
        buyers=buyers,
        predictions=100 * buyers,
        overall=AnswersOut.model_validate(facts),
        by_prefix_length=[PrefixAnswersOut.model_validate(facts | {"from": 21, "to": None})],
        reliability=[ReliabilityOut(mean_probability=p, purchase_rate=p, predictions=50) for p in (0.01, 0.2)],
        drift=DriftOut(
            sessions=20 * buyers,
            unseen_name_share=0.01,
            trained_unseen_name_share=None,
            features=[FeatureDriftOut(name="<i>price</i>", psi=0.3), FeatureDriftOut(name="gap", psi=0.01)],
            max_psi=0.3,
        ),
    )


def test_trust_is_shown_with_how_much_it_rests_on_and_with_doubt_where_that_is_little(shop, page) -> None:
    def show(trust: ModelQualityOut | None) -> None:
        body = trust and trust.model_dump(mode="json", by_alias=True)
        page.unroute("**/v1/stats")
        with_stats(page, lambda stats: stats | {"trust": body})

    words = page.locator("#trust-words")
    show(None)
    expect(words).to_contain_text("keeps no figures")
    expect(page.locator("#trust-parts")).to_be_hidden()
    show(trust_of(2))
    expect(words).to_contain_text("too few to judge the model")
    show(trust_of(20))
    expect(words).to_contain_text("a first impression")
    show(trust_of(500))
    expect(words).to_have_text(
        "Averaged over all predictions the model said 6.0%; 5.0% of them were followed by a purchase."
    )
    expect(page.locator("#trust-basis")).to_have_text("10,000 ended sessions, 500 buyers, last 24 h")
    expect(page.locator("#prefix-table tbody tr")).to_have_count(2)
    expect(page.locator("#prefix-table tbody tr").first).to_contain_text("21+")
    expect(page.locator("#drift-words")).to_contain_text("judging by 10,000 sessions")
    expect(page.locator("#drift-table tbody tr")).to_contain_text(["<i>price</i>0.3far off", "gap0.01steady"])
    label = page.locator("#reliability-chart").get_attribute("aria-label")
    assert label is not None
    assert "said 20.0%, bought 20.0%" in label
    expect(page.locator("#reliability-chart canvas")).to_be_visible()


def test_what_became_of_the_sessions_reaches_the_trust_panel(shop, page) -> None:
    for session_id in ("s-1", "s-2"):
        shop.post(session_id)
    # When
    shop.post("s-1", "purchase")
    shop.end("s-2")
    # Then
    expect(page.locator("#trust-basis")).to_contain_text("2 ended sessions, 1 buyer")
    expect(page.locator("#trust-words")).to_contain_text("too few to judge the model")
    expect(page.locator("#prefix-table tbody th").first).to_have_text("1")


def test_the_live_model_is_named_with_its_facts(shop, page) -> None:
    fingerprint = shop.post("s-1")["model"]
    expect(page.locator("#model-facts")).to_contain_text(fingerprint)
    expect(page.locator("#model-facts")).to_contain_text("float16")


def test_the_foot_of_the_page_says_that_access_is_open(shop, page) -> None:
    expect(page.locator("#open-access")).to_contain_text("Access is open")
    expect(page.locator("#first-event")).to_contain_text("curl")
    expect(page.locator("#first-event")).not_to_contain_text("Authorization")
