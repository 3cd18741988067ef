"""`willbuy predict`: the probability after each event, in bounded pieces, as Parquet and as CSV."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from support.artifacts import write_artifact
from typer.testing import CliRunner

from model.events import Event
from model.predictor import load_predictor
from training.cli import cli
from training.commands import predict
from training.data.prepare import prepare
from training.data.prepared import PreparedDataset
from training.data.sources.canonical import write_events

HOUR_MS = 3_600_000
START_MS = 1_700_000_000_000
NAMES = ("page_view", "view_item", "add_to_cart", "never seen")


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "model.pt", seed=3, properties=(), data={"base_rate": 0.05})


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Sessions of one to nine events; every third one buys, and the last one is open at the log's end."""
    rows: list[dict[str, Any]] = []
    for number in range(40):
        names = [NAMES[(number + at) % 4] for at in range(1 + number * 7 % 9)] + ["purchase", "page_view"] * (
            number % 3 == 0
        )
        for at, name in enumerate(names):
            item = None if at % 4 == 3 else f"SKU-{at % 3}"
            price = None if at % 5 == 4 else 9.9 * at
            rows.append(
                {
                    "session_id": f"s{number:02}",
                    "timestamp_ms": START_MS + number * HOUR_MS + at * 1500,
                    "event_name": name,
                    "item_id": item,
                    "item_category": "shoes" if at % 2 else "none",
                    "price": price,
                }
            )
    path = tmp_path / "log.parquet"
    write_events(pl.DataFrame(rows, infer_schema_length=None), path, clock="calendar")
    return path


def command(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["predict", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result.exit_code, " ".join(result.output.split())


def expected(artifact: Path, dataset: PreparedDataset) -> list[tuple[str, int, int, str, float]]:
    """What the service answers: a fold of each session's events, one after another, with its whole state."""
    predictor = load_predictor(artifact, state_dtype="float32")
    rows = []
    for (session_id,), events in (
        dataset.scan().collect().partition_by("session_id", as_dict=True, maintain_order=True).items()
    ):
        history = [
            Event(
                row["event_name"],
                row["timestamp_ms"],
                row["item_id"],
                row["item_category"],
                row["price"],
                row["quantity"],
            )
            for row in events.iter_rows(named=True)
        ]
        state: list[bytes | None] = [None]
        for number, event in enumerate(history, start=1):
            (probability,), following = predictor.advance([event], state)
            state = [*following]
            rows.append((session_id, number, event.timestamp_ms, event.event_name, probability))
    return rows


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize(("at_once", "shard_bytes"), [(50_000, 10**9), (7, 2_000)])
def test_each_event_has_the_probability_that_the_service_answers(
    artifact: Path,
    log: Path,
    tmp_path: Path,
    suffix: str,
    at_once: int,
    shard_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given prepared sessions in one shard or many, read in large pieces or in such of two sessions or three
    monkeypatch.setattr(predict, "_EVENTS_AT_ONCE", at_once)  # private: a small log has more than one chunk
    dataset = prepare(log, tmp_path / "prepared", keep_open_sessions=True, shard_bytes=shard_bytes)
    out = tmp_path / f"out{suffix}"
    code, output = command(artifact, dataset.path, "--out", out)
    assert code == 0, output
    # Then there is a row for each event before the purchase, in order, with the service's answer
    found = pl.read_parquet(out) if suffix == ".parquet" else pl.read_csv(out)
    wanted = expected(artifact, dataset)
    assert found.columns == ["session_id", "event", "timestamp_ms", "event_name", "probability"]
    assert [row[:4] for row in found.iter_rows()] == [row[:4] for row in wanted]
    assert found["probability"].to_list() == pytest.approx([row[4] for row in wanted], abs=1e-5)
    assert found["probability"].max() - found["probability"].min() > 0.001  # type: ignore[operator]  # numbers
    assert f"{len(wanted):,} predictions of 40 sessions" in output
    # and nothing else is left.
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["model.pt", "log.parquet", "prepared", out.name])


def test_a_log_is_prepared_as_for_training_and_open_sessions_are_predicted_too(
    artifact: Path, log: Path, tmp_path: Path
) -> None:
    code, output = command(artifact, log, "--out", tmp_path / "out.csv")
    assert code == 0, output
    found = pl.read_csv(tmp_path / "out.csv")
    assert set(found["session_id"]) == {f"s{number:02}" for number in range(40)}
    assert "purchase" not in set(found["event_name"])


def test_a_log_without_a_purchase_is_predicted(artifact: Path, log: Path, tmp_path: Path) -> None:
    nobody = pl.read_parquet(log).filter(pl.col("event_name") != "purchase")
    write_events(nobody, tmp_path / "nobody.parquet", clock="calendar")
    assert command(artifact, tmp_path / "nobody.parquet", "--out", tmp_path / "out.csv")[0] == 0


def test_the_base_rate_moves_all_probabilities_the_same_way(artifact: Path, log: Path, tmp_path: Path) -> None:
    found = []
    for name, options in {"as trained": (), "shifted": ("--base-rate", "0.5")}.items():
        out = tmp_path / f"{name}.parquet"
        code, output = command(artifact, log, "--out", out, *options)
        assert code == 0, output
        found.append(pl.read_parquet(out)["probability"])
    odds = [values / (1 - values) for values in found]
    assert (odds[1] / odds[0]).to_list() == pytest.approx([19.0] * len(found[0]), rel=1e-3)
    # An artifact that does not tell its own
    other = write_artifact(tmp_path / "other.pt", properties=())
    code, output = command(other, log, "--out", tmp_path / "out.csv", "--base-rate", "0.5")
    assert (code, "does not tell the base rate that it was trained at" in output) == (1, True)


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("out.xlsx", "expected a name that ends with .parquet or .csv"),
        ("out", "expected a name that ends with .parquet or .csv"),
        ("folder.csv", "is a folder; name the file to write"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    artifact: Path, log: Path, tmp_path: Path, out: str, reason: str
) -> None:
    (tmp_path / "folder.csv").mkdir()
    code, output = command(artifact, log, "--out", tmp_path / out)
    assert (code, reason in output) == (1, True)


def test_after_an_error_no_part_of_a_table_is_left(
    artifact: Path, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: Callable[..., Any] = predict.predicted_rows

    def breaks(*arguments: Any) -> Any:
        yield next(iter(rows(*arguments)))
        raise OSError("the disk is full")

    monkeypatch.setattr(predict, "predicted_rows", breaks)
    for name in ("out.csv", "out.parquet"):
        (tmp_path / name).write_text("before")
        code, output = command(artifact, log, "--out", tmp_path / name)
        assert (code, "the disk is full" in output) == (1, True)
        assert (tmp_path / name).read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.parquet", "model.pt", "out.csv", "out.parquet"]
