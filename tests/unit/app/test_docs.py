import re
from pathlib import Path

from prometheus_client import Histogram

from app.monitoring.metrics import Metrics
from app.settings import Settings

DOCS = Path(__file__).parents[3] / "docs"


def rows(page):
    """The first cell of each table row of a page, which is a name in backticks, and the rest of the row."""
    return dict(re.findall(r"^\| `([^`]+)` \|(.*)\|$", (DOCS / page).read_text(), flags=re.MULTILINE))


def test_every_setting_says_what_it_is():
    assert all(field.description for field in Settings.model_fields.values())


def test_every_metric_is_documented_and_no_other():
    metrics = vars(Metrics()).values()
    names = set()
    for metric in metrics:
        if hasattr(metric, "describe"):
            (family,) = metric.describe()
            suffix = "_total" if family.type == "counter" else ""
            names.add(family.name + suffix)
    assert any(isinstance(metric, Histogram) for metric in metrics)
    assert set(rows("reference/metrics.md")) == names
