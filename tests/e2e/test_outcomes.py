"""The loop closed from end to end: shoppers, a service, their sessions collected, the next model trained on them."""

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from threadpoolctl import threadpool_limits
from typer.testing import CliRunner

from model.artifact import read_manifest
from model.events import PURCHASE
from training.cli import cli
from training.data.prepare import prepare
from training.synthetic import PRESETS, generate, write
from training.synthetic.log import SyntheticLog

ENDED = re.compile(r"^willbuy_outcomes_total\{.*\} (.*)$", re.MULTILINE)
SESSIONS = 400
IDLE_S = 5
# Several times what one service of the test takes; sessions count a 48th of it after they ended.
TRUST_WINDOW_S = 240
# Visits of an hour become visits of a minute, since sessions count by the time at which they began.
FASTER = 60
# Their log is of another year.
ANY_AGE_S = 10**9


def shop_log(seed: int) -> SyntheticLog:
    """A log of visits that are short by the clock."""
    log = generate(PRESETS["default"], SESSIONS, seed)
    start_ms = pl.col("timestamp_ms").min()
    faster = start_ms + (pl.col("timestamp_ms") - start_ms) // FASTER
    return replace(log, events=log.events.with_columns(timestamp_ms=faster))


def bodies(events: pl.DataFrame) -> list[dict[str, Any]]:
    """The log's events as a shop posts them; a session's one after another, so that none idles out in between."""
    posted = []
    for row in events.sort("session_id", maintain_order=True).iter_rows(named=True):
        facts = {
            name: row[name]
            for name in ("session_id", "event_name", "item_id", "item_category", "price", "quantity")
            if row[name] is not None
        }
        properties = {
            name.removeprefix("property."): value
            for name, value in row.items()
            if name.startswith("property.") and value is not None
        }
        posted.append({"timestamp": row["timestamp_ms"], "properties": properties, **facts})
    return posted


def shop(base_url: str, posted: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Post events in order, many at a time, each session's purchase last; return what each session was answered."""
    answers: dict[str, list[float]] = {}
    with httpx.Client(base_url=base_url, timeout=30) as client:
        for part in parts(posted):
            results = client.post("/v1/events/batch", json=part).json()["results"]
            for body, result in zip(part, results, strict=True):
                assert result["status"] == 200, result
                if result["score"]["folded"]:
                    answers.setdefault(body["session_id"], []).append(result["score"]["probability"])
    return answers


def parts(posted: Sequence[dict[str, Any]]) -> Iterable[list[dict[str, Any]]]:
    """Requests of many events, at most so many of one session as it remembers."""
    part: list[dict[str, Any]] = []
    for body in posted:
        part.append(body)
        if len(part) == 60:
            yield part
            part = []
    if part:
        yield part


def stats_once(base_url: str, is_done: Any) -> dict[str, Any]:
    """The first answer of `/v1/stats` that is so."""
    deadline = time.monotonic() + 60
    while not is_done(stats := httpx.get(f"{base_url}/v1/stats", timeout=30).json()):
        assert time.monotonic() < deadline, stats
        time.sleep(0.2)
    return dict(stats)


def events_of(folder: Path) -> pl.DataFrame:
    """Prepared events, the sessions under the shop's own ids."""
    frame = pl.concat([pl.read_parquet(path) for path in sorted(folder.glob("events-*.parquet"))])
    frame = frame.with_columns(pl.col("session_id").str.replace(r"@\d+$", ""))
    return frame.select(sorted(frame.columns)).sort("session_id", "timestamp_ms", maintain_order=True)


@pytest.mark.parametrize("in_one_request", [True, False], ids=["one", "many"])
@pytest.mark.parametrize("after_purchase", ["ignore", "restart"])
def test_what_comes_after_a_purchase_is_the_same_in_the_service_and_in_a_log(
    service, valkey, tmp_path, after_purchase, in_one_request
) -> None:
    now_ms = time.time_ns() // 1_000_000 - 60_000
    names = ["view_item", PURCHASE, PURCHASE, "view_item", "view_cart", PURCHASE, "view_item", "search"]
    events = [
        {"session_id": "s", "event_id": f"e{at}", "event_name": name, "item_id": f"i{at}", "timestamp": now_ms + at}
        for at, name in enumerate(names)
    ]
    running = service(redis_url=valkey.url, after_purchase=after_purchase, session_idle_s=3)
    with httpx.Client(base_url=running.base_url, timeout=30) as client:
        requests = [events] if in_one_request else [[event] for event in events]
        results = [
            result["score"]
            for some in requests
            for result in client.post("/v1/events/batch", json=some).json()["results"]
        ]
        restarts = after_purchase == "restart"
        assert [score["events"] for score in results] == ([1, 1, 1, 1, 2, 2, 1, 2] if restarts else [1] * 8)
        # Once the outcome is known there is no score to act on
        is_known = [score["outcome"] == "purchase" for score in results]
        assert is_known == ([name == PURCHASE for name in names] if restarts else [False] + [True] * 7)
        assert [score["probability"] is None for score in results] == is_known
        told = [any("the session's outcome is known" in text for text in score["warnings"]) for score in results]
        assert told == ([at == 2 for at in range(8)] if restarts else [at >= 2 for at in range(8)])
        session = client.get("/v1/sessions/s", params={"trace": "true"}).json()
        assert (session["outcome"], session["probability"] is None) == (
            ("open", False) if restarts else ("purchase", True)
        )
        assert [point["item_id"] for point in session["trace"]] == (["i6", "i7"] if restarts else ["i0"])
        (row,) = client.get("/v1/sessions", params={"order": "last_seen"}).json()["sessions"]
        assert (row["outcome"], row["probability"]) == (session["outcome"], row["probability"] if restarts else None)
        # A retry of what was answered before the purchase begins nothing
        again = client.post("/v1/events", json=events[1]).json()
        assert (again["duplicate"], again["outcome"], again["probability"]) == (True, "purchase", None)
    wanted = 3 if restarts else 1
    while sum(map(float, ENDED.findall(httpx.get(f"{running.base_url}/metrics", timeout=30).text))) < wanted:
        time.sleep(0.1)
    collected = tmp_path / "collected"
    assert CliRunner().invoke(cli, ["collect", "--redis-url", valkey.url, "--out", str(collected)]).exit_code == 0
    log = tmp_path / "log.parquet"
    columns = {
        "session_id": "session_id",
        "timestamp_ms": "timestamp",
        "event_name": "event_name",
        "item_id": "item_id",
    }
    pl.DataFrame({ours: [event[theirs] for event in events] for ours, theirs in columns.items()}).write_parquet(log)
    prepared = {}
    for name, source, options in (("log", log, {"after_purchase": after_purchase}), ("service", collected, {})):
        prepare(source, tmp_path / name, keep_open_sessions=True, **options)
        frame = events_of(tmp_path / name).group_by("session_start_ms").agg("item_id", pl.col("outcome").first())
        prepared[name] = sorted(frame.select("item_id", "outcome").rows())
    assert prepared["log"] == prepared["service"]
    expected = [(["i0"], True), (["i3", "i4"], True), (["i6", "i7"], False)]
    assert prepared["log"] == (expected if restarts else expected[:1])


@pytest.mark.timeout(180)
def test_the_next_model_trains_on_what_the_service_saw(service, valkey, tmp_path, monkeypatch):
    # Given the log of a shop whose visitors come now
    log = shop_log(1)
    path = tmp_path / "log.parquet"
    write(log, path)
    settings = {
        "redis_url": valkey.url,
        "session_idle_s": IDLE_S,
        "trust_window_s": TRUST_WINDOW_S,
        "max_event_age_s": ANY_AGE_S,
    }
    first = service(**settings)
    answers = shop(first.base_url, bodies(log.events))
    # When all their sessions have ended and were collected, in two goes
    collected = tmp_path / "collected"
    arguments = ["collect", "--redis-url", valkey.url, "--out", str(collected)]
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    told = sum(map(len, answers.values()))
    stats = stats_once(
        first.base_url,
        lambda stats: (
            stats["outcomes"]["purchase"] + stats["outcomes"]["none"] == SESSIONS
            # And the figures rest on every answer that was given
            and stats["trust"]["predictions"] == told
        ),
    )
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    buyers = log.events.filter(pl.col("event_name") == PURCHASE)["session_id"].n_unique()
    assert (stats["outcomes"]["purchase"], stats["outcomes"]["none"]) == (buyers, SESSIONS - buyers)
    # Then what training sees is what it would have seen of the log itself: events, their order, outcomes
    prepare(path, tmp_path / "of-log", keep_open_sessions=True)
    prepare(collected, tmp_path / "of-service", keep_open_sessions=True)
    expected, found = events_of(tmp_path / "of-log"), events_of(tmp_path / "of-service")
    assert_frame_equal(found.select(expected.columns), expected)
    # An artifact that does not say what it was trained on knows of no drift
    assert stats["trust"]["drift"] is None
    first.stop()

    # When the next model is trained on it and serves
    artifact = tmp_path / "next.pt"
    options = ["--epochs", "1", "--no-lightgbm", "--keep-open-sessions", "--hidden-size", "8", "--head-size", "8"]
    options += ["--set", "pretraining.epochs=0", "--set", "fit.teacher_weight=0"]
    monkeypatch.setattr("training.commands.train.write_html", lambda _path, _report: None)
    with threadpool_limits(1):
        trained = CliRunner().invoke(cli, ["train", str(collected), "--out", str(artifact), *options])
    assert trained.exit_code == 0, trained.output
    inputs = read_manifest(artifact).data["inputs"]
    assert inputs["sessions"] < SESSIONS
    every_session = {"app.quality.model_quality:ModelQuality": {"drift_events_per_s": 100_000}}
    second = service(**settings, artifact=artifact, tuned=every_session)
    # Then visitors of the same kind look like those it was trained on
    again = shop_log(2)
    shop(second.base_url, bodies(again.events))
    browsed = SESSIONS - sessions_without_events(again.events)
    alike = stats_once(second.base_url, lambda stats: stats["trust"]["drift"]["sessions"] == browsed)["trust"]
    assert alike["drift"]["max_psi"] < 0.25
    assert alike["overall"]["log_loss"] > 0
    assert alike["by_prefix_length"][0]["from"] == 1
    assert alike["by_prefix_length"][0]["sessions"] == alike["sessions"] == browsed
    # And visitors who only search, all at once dear things, do not
    other = again.events.with_columns(
        session_id=pl.lit("other-") + pl.col("session_id"),
        event_name=pl.when(pl.col("event_name") == PURCHASE).then("event_name").otherwise(pl.lit("wheel_of_fortune")),
        price=pl.col("price") * 100,
    )
    shop(second.base_url, bodies(other))
    apart = stats_once(second.base_url, lambda stats: stats["trust"]["drift"]["sessions"] == 2 * browsed)["trust"]
    assert apart["drift"]["max_psi"] > 0.25
    assert apart["drift"]["unseen_name_share"] > alike["drift"]["unseen_name_share"] + 0.4


def sessions_without_events(events: pl.DataFrame) -> int:
    """Sessions of which nothing was folded."""
    folded = events.filter(pl.col("event_name") != PURCHASE)["session_id"].n_unique()
    return events["session_id"].n_unique() - folded
