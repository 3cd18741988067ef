"""Small shops and toy sessions, for the tests of training."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from support.threads import one_thread

from model.columns import columns_from_events
from model.events import Event
from model.properties import PropertySpec
from model.sizes import NetworkSizes
from training.config import FitSettings, PretrainingSettings, TeacherSettings, TrainSettings
from training.data.dataset import Columns
from training.data.prepare import prepare
from training.data.prepared import PreparedDataset
from training.data.sources.canonical import write_events
from training.fit.result import TrainResult
from training.fit.train import train
from training.synthetic import PRESETS, generate, write

SETTINGS = TrainSettings(
    fit=FitSettings(epochs=3, patience=3, batch_sessions=64, learning_rate=5e-3),
    sizes=NetworkSizes(hidden_size=16, head_size=16, dropout=0.1, input_dropout=0.0),
    # A teacher and pretraining take longer than all else here together; they have tests of their own.
    teacher=TeacherSettings(folds=0),
    pretraining=PretrainingSettings(epochs=0),
)


@pytest.fixture(scope="session", autouse=True)
def in_one_thread() -> Iterator[None]:
    with one_thread():
        yield


@dataclass(frozen=True)
class SyntheticShop:
    """A prepared synthetic log, and the truth about it."""

    log: Path
    posterior: Path
    dataset: PreparedDataset


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> SyntheticShop:
    folder = tmp_path_factory.mktemp("shop")
    log = folder / "shop.parquet"
    posterior = write(generate(PRESETS["default"], 3000, seed=5), log)
    return SyntheticShop(log, posterior, prepare(log, folder / "prepared"))


@pytest.fixture(scope="session")
def small_shop(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """Enough sessions to run through everything, too few to learn much."""
    folder = tmp_path_factory.mktemp("small-shop")
    write(generate(PRESETS["default"], 700, seed=3), folder / "shop.parquet")
    return prepare(folder / "shop.parquet", folder / "prepared")


@pytest.fixture(scope="module")
def no_page() -> Iterator[None]:
    """Leave the report's HTML page empty: its charts take longer than these small trainings. Others test them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.commands.train.write_html", lambda path, _report: path.touch())
        yield


@pytest.fixture(scope="session")
def settings() -> TrainSettings:
    return SETTINGS


@pytest.fixture(scope="session")
def trained(shop: SyntheticShop, in_one_thread: None) -> TrainResult:
    """A model of the synthetic shop, with everything it is compared with."""
    return train(shop.dataset, SETTINGS)


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., PreparedDataset]:
    """Prepare a log of rows by column: `prepared({"session_id": [...], ...}, clock="session")`."""

    def make(columns: dict[str, Sequence[Any]] | pl.DataFrame, *, clock: Any = "session", **options: Any) -> Any:
        log = tmp_path / "log.parquet"
        write_events(pl.DataFrame(columns), log, clock=clock)
        # Short times and logs of no buyers serve tests of what comes after.
        return prepare(log, tmp_path / "prepared", **{"earliest": "1970-01-01", "needs_buyers": False, **options})

    return make


@pytest.fixture
def log_of(prepared: Callable[..., PreparedDataset]) -> Callable[..., PreparedDataset]:
    """Prepare two hundred sessions of two events, one an hour, of which every fourth buys; columns may be added."""

    def make(**added: Callable[[int, int], Any]) -> PreparedDataset:
        places = [(number, position) for number in range(200) for position in range(2)]
        columns: dict[str, Sequence[Any]] = {
            "session_id": [f"s-{number:03}" for number, _ in places],
            "timestamp_ms": [3_600_000 * number + 1000 * position for number, position in places],
            "event_name": ["view_item"] * len(places),
            "outcome": [number % 4 == 0 for number, _ in places],
        }
        columns |= {name: [value(*place) for place in places] for name, value in added.items()}
        return prepared(columns, clock="calendar", keep_open_sessions=True)

    return make


@pytest.fixture(scope="session")
def columns_of() -> Callable[..., Columns]:
    """Lay out sessions of events as the training's columns."""

    def make(
        sessions: Sequence[Sequence[Event]], outcomes: Sequence[float], properties: Sequence[PropertySpec] = ()
    ) -> Columns:
        timestamp_ms, codes, numbers = columns_from_events([event for one in sessions for event in one], properties)
        offsets = np.cumsum([0, *map(len, sessions)])
        return Columns(
            np.array([f"s{number}" for number in range(len(sessions))], dtype=object),
            np.array([events[0].timestamp_ms for events in sessions]),
            torch.tensor(outcomes, dtype=torch.float32),
            torch.from_numpy(offsets),
            timestamp_ms,
            codes,
            numbers,
        )

    return make
