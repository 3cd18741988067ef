"""The dashboard and the alert rules in deploy/, held against the metrics that the service has and the runbook."""

import json
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from conftest import missing
from prometheus_client import Histogram

from app.api import board, events, operations, outcomes, sessions, stream
from app.errors import WillbuyError
from app.monitoring.metrics import Metrics

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "willbuy.json"
# Of Prometheus itself: what it adds to each series that it scrapes.
ADDED_LABELS = {"instance", "job"}
SERIES = {
    "counter": ["_total"],
    "gauge": [""],
    "summary": ["_sum", "_count"],
    "histogram": ["_bucket", "_sum", "_count"],
}


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return read


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> dict[str, str]:
    """Every expression of both files, by where it stands."""
    found = {f"alert {rule['alert']}": rule["expr"] for rule in alerts()}
    for panel in panels():
        for target in panel["targets"]:
            found[f"panel {panel['title']}, {target['refId']}"] = target["expr"]
    for note in dashboard()["annotations"]["list"]:
        found[f"annotation {note['name']}"] = note["expr"]
    return found


def series() -> dict[str, set[str]]:
    """The labels of every series that the service can expose, by its name."""
    found: dict[str, set[str]] = {}
    for metric in vars(Metrics()).values():
        if hasattr(metric, "describe"):
            (family,) = metric.describe()
            for suffix in SERIES[family.type]:
                extra = {"le"} if isinstance(metric, Histogram) and suffix == "_bucket" else set()
                found[family.name + suffix] = set(metric._labelnames) | extra  # noqa: SLF001 - prometheus_client shows no labels of a metric without a series
    return found


def codes(error: type[WillbuyError] = WillbuyError) -> set[str]:
    return {error.code}.union(*(codes(child) for child in error.__subclasses__()))


def known_values() -> dict[str, set[str]]:
    modules = (board, events, operations, outcomes, sessions, stream)
    routes = {route.path for module in modules for route in module.router.routes}
    return {
        "code": codes(),
        "route": routes,
        "figure": {"base_rate", "mean_probability", "log_loss", "auc", "calibration_error"},
        "result": {"swapped", "unchanged", "refused"},
    }


class Looked:
    """What an expression asks for: selectors, and labels that it groups by."""

    def __init__(self, expression: str) -> None:
        self.selectors: list[promql_parser.VectorSelector] = []
        self.grouped: set[str] = set()
        # Grafana's own variable stands for a length of time.
        promql_parser.walk(promql_parser.parse(expression.replace("$__rate_interval", "5m")), self._look)

    def _look(self, node: object) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            self.selectors.append(node)
        elif isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            self.grouped |= set(node.modifier.labels)
        return True


@pytest.mark.parametrize("where", queries())
def test_every_series_and_label_that_is_asked_for_exists(where: str) -> None:
    looked = Looked(queries()[where])
    known, values = series(), known_values()
    assert looked.selectors
    labels: set[str] = set()
    for selector in looked.selectors:
        assert selector.name in known
        labels |= known[selector.name] | ADDED_LABELS
        for matcher in selector.matchers.matchers:
            assert matcher.name in known[selector.name] | ADDED_LABELS
            if matcher.op == promql_parser.MatchOp.Equal and matcher.name in values:
                assert matcher.value in values[matcher.name]
    assert looked.grouped <= labels


def test_a_series_that_does_not_exist_would_be_found() -> None:
    (selector,) = Looked("rate(willbuy_requests[5m])").selectors
    assert selector.name not in series()
    assert series()["willbuy_request_seconds_bucket"] == {"route", "le"}


def test_every_metric_is_on_the_dashboard_or_in_a_rule() -> None:
    asked = {selector.name for query in queries().values() for selector in Looked(query).selectors}
    # Which candidate it is, and how many sessions stand behind its figures, is for those who look at it closely.
    closer = {
        *("willbuy_shadow_info", "willbuy_shadow_outcomes_total", "willbuy_shadow_probability_sum"),
        *("willbuy_shadow_probability_count", "willbuy_drift_sessions", "willbuy_model_compiled"),
        *("willbuy_build_info", "willbuy_suspicious_fields_total"),
    }
    families: dict[str, set[str]] = {}
    for name in series():
        families.setdefault(re.sub("_(bucket|sum|count)$", "", name), set()).add(name)
    assert all(names & (asked | closer) for names in families.values()), families


def sections() -> list[str]:
    """The runbook's entries."""
    return re.split(r"^## ", (ROOT / "docs" / "runbook.md").read_text(), flags=re.MULTILINE)[1:]


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_each_alert_says_how_bad_it_is_what_it_means_and_where_the_runbook_is(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    # The page that `make docs` builds, at a host that operators replace
    site, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert (site, anchor) == ("https://willbuy.example/docs/runbook.html", rule["alert"].lower())
    [section] = [part for part in sections() if part.partition("\n")[0].lower() == anchor]
    # As bad there as here
    assert f"`{rule['labels']['severity']}`" in section.partition("**Look.**")[0]


def test_the_runbook_has_a_section_for_each_alert_and_for_no_other() -> None:
    names = [section.partition("\n")[0] for section in sections()]
    assert names == [rule["alert"] for rule in alerts()]
    for section in sections():
        for part in ("**Meaning.**", "**Look.**", "```bash", "**Do.**"):
            assert part in section, section


def test_metrics_that_the_runbook_names_exist() -> None:
    named = set(re.findall(r"`(willbuy_\w+)", (ROOT / "docs" / "runbook.md").read_text()))
    assert named
    assert named <= set(series()) | {name.removesuffix("_bucket") for name in series()}


def test_panels_have_a_place_of_their_own_and_say_what_they_show() -> None:
    places = [panel["gridPos"] for panel in dashboard()["panels"]]
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)
    assert all(place["x"] + place["w"] <= 24 for place in places)
    identifiers = [panel["id"] for panel in dashboard()["panels"]]
    assert len(set(identifiers)) == len(identifiers)
    for panel in panels():
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        # Whatever the reader's Prometheus is called
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}


def test_rows_cover_what_operators_ask() -> None:
    rows = [panel["title"] for panel in dashboard()["panels"] if panel["type"] == "row"]
    assert {"Traffic", "Latency", "Store", "Model quality", "Drift", "Rebuilds and releases", "Saturation"} <= set(rows)


@pytest.mark.slow
def test_rules_fire_when_they_should_and_only_then() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        raise missing("promtool")
    folder = RULES.parent
    for command in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run([promtool, *command], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_in_which_everything_goes_wrong_has_every_alert() -> None:
    examples = yaml.safe_load((RULES.parent / "alerts_test.yml").read_text())["tests"]
    fired = {
        name
        for example in examples
        for check in example["promql_expr_test"]
        for sample in check["exp_samples"]
        for name in re.findall(r'alertname="(\w+)"', sample["labels"])
    }
    assert fired == {rule["alert"] for rule in alerts()}
