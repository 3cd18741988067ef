"""A small shop whose log holds everything that a leak needs, and the ways from it to prepared sessions and a model."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from support.threads import one_thread

from model.sizes import NetworkSizes
from training.config import FitSettings, PretrainingSettings, TrainSettings, VocabularySettings
from training.data.prepare import prepare
from training.data.prepared import PreparedDataset
from training.data.sources.canonical import write_events

HOUR_MS = 3_600_000
PAGES = ("page_view", "view_item", "search", "add_to_cart")


@pytest.fixture(scope="session", autouse=True)
def in_one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the reports' HTML pages, which take longer than the trainings here."""
    for command in ("train", "evaluate"):
        monkeypatch.setattr(f"training.commands.{command}.write_html", lambda _path, _report: None)


@pytest.fixture
def settings() -> TrainSettings:
    """A training run of a second or two."""
    return TrainSettings(
        fit=FitSettings(epochs=2, patience=2, batch_sessions=64, learning_rate=5e-3),
        sizes=NetworkSizes(hidden_size=8, head_size=8, dropout=0.1, input_dropout=0.0),
        vocabulary=VocabularySettings(categories_at_least=10, items_at_least=10),
        pretraining=PretrainingSettings(epochs=2),
        lightgbm=False,
    )


def shop_log(sessions: int = 600, seed: int = 0, pages: tuple[int, int] = (1, 6)) -> pl.DataFrame:
    """A log of one session an hour; carts make buyers, and most of these look at a page or two after it."""
    random = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for number in range(sessions):
        names = [
            str(name) for name in random.choice(PAGES, random.integers(*pages, endpoint=True), p=(0.4, 0.3, 0.2, 0.1))
        ]
        buys = random.random() < (0.75 if "add_to_cart" in names else 0.25)
        names += ["purchase", *["page_view"] * random.integers(0, 3)] * buys
        facts = {
            "session_id": f"s{number:05d}",
            "property.device": str(random.choice(["mobile", "desktop"])),
            "property.visits": float(random.integers(0, 9)),
        }
        now_ms = number * HOUR_MS
        for name in names:
            item = int(random.integers(0, 20))
            rows.append(
                {
                    **facts,
                    "timestamp_ms": now_ms,
                    "event_name": name,
                    "item_id": f"SKU-{item}",
                    "item_category": f"group-{item % 3}",
                    "price": 5.0 * item,
                    "property.scroll": float(random.random()),
                }
            )
            now_ms += int(random.exponential(30_000)) + 1
    return pl.DataFrame(rows)


@pytest.fixture(scope="session")
def log() -> pl.DataFrame:
    return shop_log()


@pytest.fixture(scope="session")
def long_log() -> pl.DataFrame:
    """A log whose sessions all go on after their third event."""
    return shop_log(pages=(5, 14))


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., PreparedDataset]:
    """Prepare a log: `prepared(events)`."""
    made: list[Path] = []

    def make(events: pl.DataFrame, *, clock: Any = "calendar", **options: Any) -> PreparedDataset:
        folder = tmp_path / f"log-{len(made)}"
        made.append(folder)
        folder.mkdir()
        write_events(events, folder / "log.parquet", clock=clock)
        # The log begins in 1970, so that times are short.
        return prepare(folder / "log.parquet", folder / "prepared", **{"earliest": "1970-01-01", **options})

    return make
