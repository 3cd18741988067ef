"""Three logs as a new user brings them, from the raw file to a served score that equals the offline model's."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from support.log_exports import export_ga4, export_pages, export_segment
from typer.testing import CliRunner

from training.cli import cli
from training.data.prepared import read_prepared
from training.synthetic import PRESETS, generate

SMALL = ["--epochs", "1", "--no-lightgbm", "--set", "pretraining.epochs=0", "--set", "fit.teacher_weight=0"]
WALKS: dict[str, tuple[Callable[[pl.DataFrame, Path], None], list[str]]] = {
    "ga4": (export_ga4, []),
    "segment": (export_segment, []),
    "pages.csv": (
        export_pages,
        [
            *("--visitor", "Cookie", "--column", "timestamp=Date+Time", "--column", "event_name=Page"),
            *("--event", "/thank-you=purchase", "--event", "/cart=view_cart"),
        ],
    ),
}


def willbuy(*arguments: object) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output[-3000:]
    return result.output


@pytest.fixture(scope="module")
def events() -> pl.DataFrame:
    return generate(PRESETS["default"], 700, seed=5).events


@pytest.mark.slow
@pytest.mark.parametrize("walk", WALKS)
def test_from_the_raw_file_to_a_served_score(
    walk: str, events: pl.DataFrame, tmp_path: Path, service: Callable[..., Any], valkey: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("training.commands.train.write_html", lambda _path, _report: None)
    export, options = WALKS[walk]
    # Given a shop's log as it lies there
    export(events, tmp_path / walk)
    # When it is looked at, prepared and trained on
    assert "purchase" in willbuy("prepare", tmp_path / walk, *options, "--dry-run")
    willbuy("prepare", tmp_path / walk, *options, "--out", tmp_path / "sessions")
    willbuy("train", tmp_path / "sessions", "--out", tmp_path / "model.pt", *SMALL)
    # Then every visit is a session with its own label,
    sessions = read_prepared(tmp_path / "sessions").sessions()
    bought = set(events.filter(pl.col("event_name") == "purchase")["session_id"])
    assert 0.9 * len(bought) <= sessions["outcome"].sum() <= len(bought)
    assert (tmp_path / "sessions" / "log.html").stat().st_size > 10_000
    # and the service gives unseen sessions the offline model's scores.
    served = service(artifact=tmp_path / "model.pt", redis_url=valkey.url)
    told = willbuy(
        *("replay", tmp_path / "sessions", "--artifact", tmp_path / "model.pt", "--sessions", 15),
        *("--url", served.base_url),
    )
    assert re.search(r"sessions\W+15\b", told), told
