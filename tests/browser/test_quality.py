"""The panels of the model: quality and properties."""

import pytest
from playwright.sync_api import expect

from app.schemas.quality import (
    AnswersOut,
    DriftOut,
    FeatureDriftOut,
    ModelQualityOut,
    PrefixAnswersOut,
    ReliabilityOut,
)
from browser.test_failures import with_stats


def quality_of(buyers: int, pending: int = 7) -> ModelQualityOut:
    facts: dict[str, float] = {"sessions": 20 * buyers, "buyers": buyers, "predictions": 100 * buyers}
    facts |= {"base_rate": 0.05, "mean_probability": 0.06, "log_loss": 0.2, "auc": 0.81, "calibration_error": 0.01}
    return ModelQualityOut(
        window_s=86400,
        pending=pending,
        pending_s=2700,
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


def test_model_quality_is_shown_with_its_number_of_sessions_and_a_warning_if_they_are_few(shop, page) -> None:
    def show(quality: ModelQualityOut | None) -> None:
        body = quality and quality.model_dump(mode="json", by_alias=True)
        page.unroute("**/v1/stats")
        with_stats(page, lambda stats: stats | {"trust": body})

    summary = page.locator("#quality-summary")
    show(None)
    expect(summary).to_contain_text("sends no model quality")
    expect(page.locator("#quality-parts")).to_be_hidden()
    show(quality_of(2))
    expect(summary).to_contain_text("too few to judge the model")
    show(quality_of(20))
    expect(summary).to_contain_text("so they are uncertain")
    show(quality_of(500))
    expect(summary).to_have_text(
        "Over all predictions, the mean predicted probability is 6.0%; the observed purchase rate is 5.0%."
    )
    expect(page.locator("#quality-basis")).to_have_text(
        "10,000 ended sessions, 500 buyers, last 24 h; 7 not yet counted"
    )
    expect(page.locator("#prefix-table tbody tr")).to_have_count(2)
    expect(page.locator("#prefix-table tbody tr").first).to_contain_text("21+")
    expect(page.locator("#drift-summary")).to_contain_text("based on 10,000 sessions")
    expect(page.locator("#drift-table tbody tr")).to_contain_text(["<i>price</i>0.3large", "gap0.01small"])
    label = page.locator("#reliability-chart").get_attribute("aria-label")
    assert label is not None
    assert "predicted 20.0%, observed 20.0%" in label
    expect(page.locator("#reliability-chart canvas")).to_be_visible()


def test_sessions_that_have_just_ended_are_not_yet_counted(shop, page) -> None:
    for session_id in ("s-1", "s-2"):
        shop.post(session_id)
    tile = page.locator("#tiles > *", has_text="Purchases")
    expect(tile).to_contain_text("not yet known")
    # When one buys and the other leaves
    shop.post("s-1", "purchase")
    shop.end("s-2")
    # Then neither the tile nor the model's quality says a figure, since buyers end first
    expect(page.locator("#quality-summary")).to_contain_text(
        "Not yet known. Sessions count from 45 min after they began; 2 ended sessions began later."
    )
    expect(page.locator("#quality-parts")).to_be_hidden()
    expect(tile).to_contain_text("not yet known")
    expect(tile).to_contain_text("2 ended sessions; they count 45 min after they began")


def test_the_model_in_use_is_shown_with_its_properties(shop, page) -> None:
    fingerprint = shop.post("s-1")["model"]
    expect(page.locator("#model-facts")).to_contain_text(fingerprint)
    expect(page.locator("#model-facts")).to_contain_text("float16")


@pytest.mark.parametrize("route", ["#/quality", "#/trust"])
def test_the_model_quality_panel_has_a_link_and_keeps_its_former_one(shop, opened, route) -> None:
    page = opened(shop.url + route)
    expect(page.get_by_role("heading", name="Model quality")).to_be_in_viewport()
    expect(page.get_by_role("link", name="Model quality")).to_have_attribute("aria-current", "page")
    # When
    page.get_by_role("link", name="Live board").click()
    page.go_back()
    # Then
    expect(page.get_by_role("heading", name="Model quality")).to_be_focused()
