"""The report: what it says, that it stands alone, and that nothing a shop named can break the page."""

import io
import json
from collections import Counter
from dataclasses import asdict, replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

from training.config import Assumptions, Offer
from training.data.findings import DOUBTFUL, INVALID, Finding
from training.data.leaks import RankedInput
from training.evaluation.ladder import Rung
from training.evaluation.metrics import PREFIX_LENGTHS, Scores, position_rates, score
from training.evaluation.resampling import Estimate
from training.fit.checkpoint import Epoch
from training.fit.importance import Importance
from training.report.build import build_report
from training.report.content import METRICS, OPTIMUM, Report, write_json
from training.report.page import draw, write_html
from training.report.terminal import TERMINAL_METRICS, console_table
from training.report.verdict import verdict

# Four scores by length, ROC, precision-recall, reliability over all and by length, spread, two of earliness, profit,
# learning curve.
CHARTS = 13
HOSTILE = "<script>alert('x')</script> & $a_b$ [red]"
EPOCHS = [Epoch(number, 0.5 - 0.01 * number, 0.5 - 0.02 * number, 1e-3, 2.0) for number in (1, 2, 3)]


class Page(HTMLParser):
    """All tags, attributes and text of a page, read by the standard library."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.rows: list[list[tuple[str, str]]] = []
        self.in_cell = False
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.in_cell = True
            self.rows[-1].append((dict(attrs).get("class") or "", ""))

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in {"td", "th"}

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.in_cell:
            style, text = self.rows[-1][-1]
            self.rows[-1][-1] = (style, text + data.strip())


def predictions(sessions: int = 400, seed: int = 0) -> dict[str, Any]:
    """Sessions of 1 to 12 events whose outcome depends on a strength that the models see with more or less noise."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, 13, size=sessions)
    index = np.repeat(np.arange(sessions), length)
    strength = rng.normal(-1.0, 1.5, sessions)
    outcome = rng.random(sessions) < 1 / (1 + np.exp(-strength))
    prefix_length = np.concatenate([np.arange(1, n + 1) for n in length])

    def seen(noise: float) -> np.ndarray:
        return 1 / (1 + np.exp(-(strength[index] + noise * rng.standard_normal(len(index)))))

    return {
        "predictions": {"willbuy": seen(0.1), "LightGBM": seen(2.5)},
        "outcome": outcome[index].astype(float),
        "prefix_length": prefix_length,
        "session_index": index,
        "optimum": seen(0.0),
    }


def agree(scores: Scores, expected: Scores) -> None:
    assert {name: pytest.approx(value) for name, value in asdict(expected).items()} == asdict(scores)


@pytest.fixture(scope="module")
def report() -> Report:
    return build_report(
        **predictions(),
        resamples=100,
        title="A report",
        dataset={"source": "shop.parquet", "sessions": {"train": 1_234_567}, "clock": None},
        settings={"learning_rate": 0.002, "resumed": False, "properties": ["device", "visits"]},
        epochs=EPOCHS,
        importance=[Importance("property.<b>", Estimate(0.0123, 0.01, 0.02))],
        created=datetime(2026, 11, 22, 10, 15, tzinfo=UTC),
    )


@pytest.fixture(scope="module")
def page(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = tmp_path_factory.mktemp("page") / "new" / "report.html"
    write_html(path, report)
    return Page(path)


def test_a_report_counts_sessions_and_scores_every_model(report: Report) -> None:
    data = predictions()

    bought = {s for s, o in zip(data["session_index"], data["outcome"], strict=True) if o}
    assert (report.sessions, report.buyers) == (400, len(bought))
    assert report.subject == "willbuy"
    by_position = position_rates(data["prefix_length"], data["outcome"])
    for name, probability in data["predictions"].items():
        rows = report.models[name]
        assert [row.prefix_length for row in rows] == [*PREFIX_LENGTHS, None]
        for row in rows[:-1]:
            of_length = data["prefix_length"] == row.prefix_length
            agree(row.scores, score(data["outcome"][of_length], probability[of_length]))
        agree(rows[-1].scores, score(data["outcome"], probability, by_position))
    assert report.optimum is not None
    agree(report.optimum[-1].scores, score(data["outcome"], data["optimum"], by_position))
    assert sum(report.histogram.bought) == data["outcome"].sum()
    assert sum(report.histogram.bought) + sum(report.histogram.left) == len(data["outcome"])


def test_differences_are_negative_where_the_subject_is_better(report: Report) -> None:
    assert set(report.differences) == {"LightGBM"}
    high = report.differences["LightGBM"].high
    assert high is not None
    assert high < 0.0


def test_few_buyers_are_warned_about_and_many_are_not(report: Report) -> None:
    assert any(f"Only {report.buyers} of 400 sessions" in warning for warning in report.warnings)
    many = build_report(**predictions(sessions=2_000), title="", warnings=["first"], resamples=10)
    assert many.warnings == ["first"]


def test_the_worst_fact_comes_first_and_all_are_in_one_box(tmp_path: Path) -> None:
    data = predictions(60)
    worst, middling = Finding("the test part was seen", INVALID), Finding("parts differ", DOUBTFUL)
    made = build_report(**data, title="", warnings=["a remark", middling, worst, "a remark"], resamples=20)
    assert made.warnings[0] == worst
    assert made.warnings[-1] == "a remark"
    assert made.warnings.index(middling) < made.warnings.index("a remark")
    write_html(tmp_path / "report.html", made)
    page = Page(tmp_path / "report.html")
    assert [value for name, value in page.attributes if name == "class"].count("warning") == 1
    assert page.text.index(worst) < page.text.index(middling) < page.text.index("a remark")
    # as plain text in JSON
    write_json(tmp_path / "report.json", made)
    assert json.loads((tmp_path / "report.json").read_text())["warnings"] == [*map(str, made.warnings)]


@pytest.mark.parametrize(("scale", "is_said"), [(1.0, False), (0.3, True)])
def test_an_error_of_calibration_beyond_chance_is_said(scale: float, is_said: bool) -> None:
    data = predictions(2_000)
    data["predictions"] = {"willbuy": np.clip(scale * data["optimum"], 1e-6, 1), "LightGBM": data["optimum"]}
    made = build_report(**data, title="", resamples=50)
    found = [warning for warning in made.warnings if warning.startswith("The calibration error of willbuy")]
    assert len(found) == is_said


def test_inputs_are_ranked_by_their_own_auc(tmp_path: Path) -> None:
    ranking = [RankedInput("grade", 0.8881, {1: 0.885, 2: 0.89}), RankedInput("price", None, {1: 0.5, 2: None})]
    made = build_report(**predictions(60), title="", inputs_alone=ranking, resamples=20)
    write_html(tmp_path / "report.html", made)
    page = Page(tmp_path / "report.html")
    cells = [[text for _, text in row] for row in page.rows]
    assert ["input", "all events", "after 1", "after 2"] in cells
    assert ["grade", "0.888", "0.885", "0.890"] in cells
    assert ["price", "\u2013", "0.500", "\u2013"] in cells
    assert made.to_dict()["inputs_alone"][0] == {"name": "grade", "auc": 0.8881, "by_length": {1: 0.885, 2: 0.89}}


def test_the_verdict_says_how_good_which_threshold_and_what_pays(report: Report, page: Page) -> None:
    quality, against, alarm, contacts = verdict(report)
    scores, found = report.pooled.scores["willbuy"], report.earliness["precision"]["willbuy"]
    assert f"AUC {scores['auc'].value:.3f}" in quality
    assert against.startswith("willbuy predicts better than LightGBM: ")
    assert f"Threshold {found.threshold:.3f}: 50% of the alarmed sessions buy" in alarm
    assert f"{found.recall[found.lengths.index(5)].value:.1%} by event 5" in alarm
    curve = report.profit["willbuy"]
    assert f"the {curve.best_share:.0%} of the sessions that reach {curve.best_threshold:.3f}" in contacts
    # The page begins with it, before the reasons to doubt it
    text = page.text
    assert text.index(quality) < text.index(report.warnings[0])


def test_the_verdict_does_not_praise_what_is_worse_or_cannot_be_had(report: Report) -> None:
    made = predictions()
    good, bad = made["predictions"]["willbuy"], made["predictions"]["LightGBM"]
    worse = build_report(
        **made | {"predictions": {"willbuy": bad, "LightGBM": good}},
        resamples=50,
        title="worse",
        assumptions=Assumptions(offer=Offer(margin=0.1, cost=5.0)),
    )
    nowhere = replace(worse.earliness["precision"]["willbuy"], threshold=None)
    _, against, alarm, contacts = verdict(replace(worse, earliness={"precision": {"willbuy": nowhere}}))
    assert against.startswith("willbuy predicts worse than LightGBM: ")
    assert alarm == "No threshold makes 50% of the alarmed sessions buy."
    assert "it pays most to contact nobody" in contacts
    alone = replace(report, names=["willbuy"], warnings=[])
    assert "LightGBM was not fitted, so there is no comparison with it." in verdict(alone)
    assert verdict(alone)[-1] == "No reason to doubt these figures was found."


def test_the_page_asks_no_other_host_for_anything(page: Page) -> None:
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(page.tags)
    references = [value for name, value in page.attributes if name in {"src", "href", "xlink:href", "action", "data"}]
    assert all(value.startswith("#") for value in references)
    assert page.source.count("url(") == page.source.count("url(#")
    assert "@import" not in page.source
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_the_page_has_every_chart_once_and_no_id_twice(page: Page) -> None:
    assert page.tags["svg"] == CHARTS
    assert all(count == 1 for count in Counter(value for name, value in page.attributes if name == "id").values())
    assert sum(name == "role" and value == "img" for name, value in page.attributes) == CHARTS


def test_the_page_shows_facts_scores_and_the_comparison(report: Report, page: Page) -> None:
    assert "22 November 2026, 10:15 UTC" in page.text
    cells = [[text for _, text in row] for row in page.rows]
    assert ["sessions, train", "1,234,567"] in cells
    assert ["property.<b>", "+0.0123", "+0.0100 to +0.0200"] in cells
    assert ["clock", "none"] in cells
    assert ["learning rate", "0.002"] in cells
    assert ["resumed", "no"] in cells
    assert ["properties", "device, visits"] in cells
    assert "willbuy is better than LightGBM" in " ".join(page.text.split())
    assert "of the skill that there is to be had" in " ".join(page.text.split())
    row = report.by_length[0].scores
    mine, other, best = (row[name]["auc"] for name in ("willbuy", "LightGBM", OPTIMUM))
    shown = f"{mine.value:.3f}{mine.low:.3f} to {mine.high:.3f}"
    assert ["1", shown, f"{other.value:.3f}", f"{best.value:.3f}"] in cells


def test_the_best_value_of_each_row_is_marked_in_page_and_terminal(report: Report, page: Page) -> None:
    table = console_table(report)
    for metric in METRICS:
        pooled = [report.pooled.scores[name][metric.field] for name in report.names]
        winner = [metric.text(s) for s, best in zip(pooled, metric.best(pooled), strict=True) if best]
        assert len(winner) == 1
        marked = [
            text for row in page.rows if row and row[0][1] == "all prefixes" for style, text in row if style == "best"
        ]
        assert any(text.startswith(winner[0]) for text in marked)
        if metric not in TERMINAL_METRICS:
            continue
        bold = [
            cell.plain
            for column in table.columns
            for cell in column.cells
            if isinstance(cell, Text) and "bold" in str(cell.style)
        ]
        assert winner[0] in bold


def test_nothing_a_caller_named_becomes_markup(tmp_path: Path) -> None:
    data = predictions(60)
    data["predictions"] = {HOSTILE: data["predictions"]["willbuy"], "_b": data["predictions"]["LightGBM"]}
    hostile = build_report(
        **data,
        title=HOSTILE,
        dataset={HOSTILE: {HOSTILE: HOSTILE}},
        settings={"x": [HOSTILE]},
        warnings=[HOSTILE],
        notes=[HOSTILE],
        slices={HOSTILE: {HOSTILE: [True] * len(data["outcome"])}},
        resamples=20,
    )
    hostile = replace(hostile, model_card={HOSTILE: {HOSTILE: HOSTILE}, "limits": [HOSTILE], "split": HOSTILE})

    write_html(tmp_path / "report.html", hostile)

    page = Page(tmp_path / "report.html")
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) > 10  # shown, as text
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(console_table(hostile))
    assert HOSTILE in console.export_text()


def test_undefined_scores_show_as_a_dash_and_never_as_nan(tmp_path: Path) -> None:
    lonely = build_report(
        {"willbuy": [0.2, 0.3]},
        outcome=[0, 0],
        prefix_length=[1, 2],
        session_index=[0, 0],
        title="one session",
        resamples=20,
    )

    write_html(tmp_path / "report.html", lonely)
    write_json(tmp_path / "report.json", lonely)

    page = Page(tmp_path / "report.html")
    assert "nan" not in page.source.lower()
    assert ["1", "–"] in [[text for _, text in row] for row in page.rows]  # noqa: RUF001 - the dash that is shown
    # No epochs, no learning curve; no buyers, none to be found early or ranked.
    assert page.tags["svg"] == CHARTS - 5
    assert "best" not in [style for row in page.rows for style, _ in row]  # nothing to be better than
    assert json.loads((tmp_path / "report.json").read_text())["models"]["willbuy"][0]["scores"]["auc"] is None


@pytest.mark.slow
def test_a_subject_that_is_worse_or_no_different_is_called_so(report: Report, tmp_path: Path) -> None:
    found = report.differences["LightGBM"]
    assert found.value is not None
    for difference, words in [
        (Estimate(0.1, 0.05, 0.15), "willbuy is worse than LightGBM"),
        (Estimate(0.1, -0.05, 0.15), "willbuy and LightGBM cannot be told apart"),
    ]:
        rows = [
            replace(
                row,
                differences={**row.differences, "LightGBM": {**row.differences["LightGBM"], "log_loss": difference}},
            )
            if row.name == "all prefixes"
            else row
            for row in report.rows
        ]
        write_html(tmp_path / "report.html", replace(report, rows=rows))
        assert words in " ".join(Page(tmp_path / "report.html").text.split())


def test_json_holds_the_same_report(report: Report, tmp_path: Path) -> None:
    write_json(tmp_path / "report.json", report)

    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert content["created"] == "2026-11-22T10:15:00+00:00"
    assert content["buyers"] == report.buyers
    assert content["models"]["willbuy"][-1]["prefix_length"] is None
    assert content["models"]["willbuy"][-1]["scores"]["auc"] == report.models["willbuy"][-1].scores.auc
    assert content["epochs"][2]["validation_loss"] == pytest.approx(0.44)


def test_the_same_report_is_the_same_page(report: Report, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_html(tmp_path / name, report)

    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_equal_shown_values_are_all_the_best() -> None:
    auc = METRICS[0]
    undefined = Estimate(None, None, None)
    same = [Estimate(0.70001, None, None), Estimate(0.70002, None, None), undefined]

    assert auc.best(same) == [True, True, False]
    assert auc.best([undefined, undefined]) == [False, False]


@pytest.mark.parametrize(
    ("low", "high", "auc", "log_loss"),
    [(0.01, 0.02, "better", "worse"), (-0.02, -0.01, "worse", "better"), (-0.01, 0.02, "same", "same")],
)
def test_a_difference_is_called_by_what_its_interval_excludes(low, high, auc, log_loss) -> None:
    found = Estimate((low + high) / 2, low, high)
    verdicts = {metric.field: metric.verdict(found) for metric in METRICS}
    assert (verdicts["auc"], verdicts["log_loss"]) == (auc, log_loss)
    assert METRICS[0].verdict(Estimate(0.1, None, None)) == "same"


def test_charts_show_six_models_at_most_and_the_tables_all(tmp_path: Path) -> None:
    # Given nine models, of which the base rate is not among the best
    data = predictions(300)
    rng = np.random.default_rng(1)
    data["predictions"] = {
        "willbuy": data["predictions"]["willbuy"],
        **{
            f"m{n}": np.clip(data["optimum"] + n * 0.04 * rng.standard_normal(len(data["outcome"])), 0.01, 0.99)
            for n in range(7)
        },
        "base rate": np.full(len(data["outcome"]), 0.5),
    }
    many = build_report(**data, title="many", resamples=20)
    # Then the subject, the base rate and the four best are drawn
    assert list(draw(many).colours) == ["willbuy", "m0", "m1", "m2", "m3", "base rate"]
    write_html(tmp_path / "report.html", many)
    cells = [[text for _, text in row] for row in Page(tmp_path / "report.html").rows]
    assert ["events", *data["predictions"], OPTIMUM] in cells
    # And the terminal has one row a model and no lengths
    assert console_table(many).row_count == 10


def test_slices_the_ladder_and_the_model_card_have_sections(page: Page, tmp_path: Path) -> None:
    data = predictions()
    long = data["prefix_length"] > 3
    full = build_report(
        **data,
        title="full",
        slices={"cart": {"before": ~long, "after": long}},
        rungs={"willbuy": Rung("lstm", aggregates=True), "LightGBM": Rung("feed-forward", aggregates=True)},
        resamples=20,
    )
    write_html(tmp_path / "full.html", replace(full, model_card={"intended_use": ["watching"], "split": "by time"}))

    text = " ".join(Page(tmp_path / "full.html").text.split())
    for heading in (
        "By cart",
        "What memory buys, what gates buy",
        "Model card",
        "Intended use",
        "Propensity is not uplift",
    ):
        assert heading in text
    assert "What memory buys" not in page.text
    assert "Model card" not in page.text
    rows = {row.name: row.count for row in full.slices["cart"]}
    assert rows == {"before": int((~long).sum()), "after": int(long.sum())}


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_shares_that_make_no_sense_are_refused_by_name(share: float) -> None:
    with pytest.raises(ValueError, match=r"^precision: expected a share"):
        Assumptions(precision=share)
    with pytest.raises(ValueError, match=r"^alarm_share: expected a share"):
        Assumptions(alarm_share=share)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": {}}, r"^predictions: "),
        ({"predictions": {"a": []}, "outcome": [], "prefix_length": [], "session_index": []}, r"^outcome: "),
        ({"prefix_length": [1]}, r"^prefix_length: "),
        ({"session_index": [1]}, r"^session_index: "),
        ({"optimum": [0.5]}, r"^probability: "),
        ({"slices": {"cart": {"after": [True]}}}, r"^slice cart, after: "),
        ({"predictions": {OPTIMUM: [0.5]}}, r"^(probability|predictions): "),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_report(**{**predictions(), **change}, title="", resamples=20)
