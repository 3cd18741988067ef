"""From drawn sessions to an event table with its exact posterior, or to events."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from model.events import FIELD_NAMES, PURCHASE, Event
from training.data.interventions import ALL, OF_RULE
from training.data.sources.canonical import write_events
from training.synthetic.posterior import posterior
from training.synthetic.process import ADD, CAMPAIGNS, DEVICES, EVENT_NAMES, REMOVE, Process
from training.synthetic.sample import Index, Traces, sample
from training.synthetic.shape import ShopShape
from training.synthetic.treatment import Treatment

DEFAULT_START: Final = datetime(2026, 1, 1, tzinfo=UTC)
RULE: Final = "voucher"
"""Name of the rule of a shop with a treatment."""
# Sessions are drawn in chunks, which bounds the memory besides the result to some hundred MB.
_CHUNK_SESSIONS: Final = 4_096
_CHUNK_EVENTS: Final = 1_600_000
_STREAM_CHUNK_SESSIONS: Final = 256  # small, so that a stream's first session comes soon


@dataclass(frozen=True, slots=True)
class SyntheticLog:
    """A log and its exact posterior.

    Attributes:
        events: one row an event in the canonical event table (docs/event-table.md), purchases included, by time.
            `outcome` is null: as in a real log, a purchase is a row.
        posterior: `session_id`, `prefix_length`, `probability`: P(purchase | prefix), one row an event that is no
            purchase. Never an input.
    """

    events: pl.DataFrame
    posterior: pl.DataFrame


def generate(shape: ShopShape, sessions: int, seed: int, start: datetime = DEFAULT_START) -> SyntheticLog:
    """Return a log of `sessions` sessions. The same arguments give the same log, with the same release of NumPy.

    Args:
        shape: of the shop.
        sessions: how many sessions, at least one.
        seed: not negative; other seeds give other visitors of the same shop.
        start: the log's start, with a time zone.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """
    if sessions < 1:
        raise ValueError(f"sessions: at least 1 is needed, not {sessions}")
    start_ms = _epoch_ms(start)
    process = Process.of(shape)
    events, truths = [], []
    chunk_sessions = max(1, min(_CHUNK_SESSIONS, _CHUNK_EVENTS // shape.max_events))
    for chunk, first in enumerate(range(0, sessions, chunk_sessions)):
        traces, group = _drawn(process, min(chunk_sessions, sessions - first), _generator(seed, chunk))
        ids = pl.Series([f"syn-{seed}-{number}" for number in range(first, first + len(traces.length))])
        events.append(_event_table(process, traces, group, ids, start_ms))
        truths.append(_posterior_table(_posterior(process, traces, group), traces.length, ids))
    table = pl.concat(events).sort("timestamp_ms", maintain_order=True)
    table = table.with_columns(source_line=pl.int_range(1, pl.len() + 1, dtype=pl.Int64))
    properties = [name for name in table.columns if name.startswith("property.")]
    return SyntheticLog(
        table.select(pl.exclude(properties), *properties), pl.concat(truths).sort("session_id", "prefix_length")
    )


def write(log: SyntheticLog, out: Path) -> Path:
    """Write the events to `out` (Parquet) and the posterior to `<stem>.posterior.parquet` beside it; return the latter.

    Two files, so that the posterior cannot become an input by mistake.
    """
    truth = out.with_name(f"{out.stem}.posterior.parquet")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_events(log.events, out, clock="calendar")
    log.posterior.write_parquet(truth)
    return truth


def sessions(shape: ShopShape, seed: int, start: datetime = DEFAULT_START) -> Iterator[list[Event]]:
    """Yield sessions without end, each in order and with its purchase if it has one; for replays and load.

    Session starts are spread over the shape's days in random order; a caller that replays sets the pace.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """
    start_ms = _epoch_ms(start)
    _generator(seed, 0)
    return _stream(Process.of(shape), seed, start_ms)


def _stream(process: Process, seed: int, start_ms: int) -> Iterator[list[Event]]:
    for chunk in count():
        traces, group = _drawn(process, _STREAM_CHUNK_SESSIONS, _generator(seed, chunk))
        ids = pl.Series([str(number) for number in range(_STREAM_CHUNK_SESSIONS)])
        table = _event_table(process, traces, group, ids, start_ms)
        for (_,), rows in table.group_by("session_id", maintain_order=True):
            yield [
                Event(
                    event_name=row["event_name"],
                    timestamp_ms=row["timestamp_ms"],
                    **{name: row.get(name) for name in FIELD_NAMES},
                    properties={
                        name.removeprefix("property."): value
                        for name, value in row.items()
                        if name.startswith("property.")
                    },
                )
                for row in rows.iter_rows(named=True)
            ]


def _epoch_ms(start: datetime) -> int:
    if start.tzinfo is None:
        raise ValueError("start: a time zone is needed")
    return round(start.timestamp() * 1_000)


def _generator(seed: int, chunk: int) -> np.random.Generator:
    if seed < 0:
        raise ValueError(f"seed: 0 or more is needed, not {seed}")
    return np.random.default_rng([seed, chunk])


def _drawn(process: Process, sessions: int, rng: np.random.Generator) -> tuple[Traces, NDArray[np.bool_] | None]:
    """Return sessions, and for a shop with a rule whether each is treated if it fires."""
    shape = process.shape
    if not shape.treatment:
        return sample(process, sessions, rng), None
    group = rng.random(sessions) >= shape.held_out
    return Treatment(shape.treatment).draw(process, sessions, rng, treated=group), group


def _posterior(process: Process, traces: Traces, group: NDArray[np.bool_] | None) -> NDArray[np.float64]:
    if group is None:
        return posterior(process, traces)
    shape = process.shape
    return Treatment(shape.treatment).posterior(process, traces, group, held_out=shape.held_out)


def _with_groups(table: pl.DataFrame, group: pl.Series) -> pl.DataFrame:
    """Add what a collected log has of a rule: the session's decision, and its group from the next event on.

    Args:
        table: the sessions' rows, session by session and in order.
        group: of each row.
    """
    fired = (pl.col("event_name") == Treatment(0.0).trigger).cum_max().over("session_id")
    is_after = fired.shift(1, fill_value=False).over("session_id")
    return table.with_columns(
        pl.when(fired.any().over("session_id")).then(pl.lit(f"{RULE}=") + group).alias(f"property.{ALL}"),
        pl.when(is_after).then(group).alias(f"property.{OF_RULE}{RULE}"),
    )


def _event_table(
    process: Process, traces: Traces, group: NDArray[np.bool_] | None, ids: pl.Series, start_ms: int
) -> pl.DataFrame:
    """Return the sessions' rows, session by session, in order, purchases last; `source_line` is still missing."""
    session, position = np.nonzero(traces.name >= 0)
    time_ms = start_ms + traces.start_ms[:, None] + np.cumsum(traces.gap_ms, axis=1)
    name, item = traces.name[session, position], traces.item[session, position]
    quantity = np.where((name == ADD) | (name == REMOVE), 1.0, np.nan)

    bought = np.flatnonzero(traces.purchased)
    last = traces.length[bought] - 1
    session = np.concatenate([session, bought])
    name = np.concatenate([name, np.full(len(bought), len(EVENT_NAMES))])
    item = np.concatenate([item, np.full(len(bought), -1)])
    quantity = np.concatenate([quantity, traces.cart[bought, last].astype(np.float64)])
    timestamp = np.concatenate(
        [time_ms[np.nonzero(traces.name >= 0)], time_ms[bought, last] + traces.paying_ms[bought]]
    )
    # Stable, so that within a session events keep their order and the purchase, appended, comes last.
    order = np.argsort(session, kind="stable")
    session, name, item, quantity, timestamp = (column[order] for column in (session, name, item, quantity, timestamp))
    number = pl.Series(item)
    known = number >= 0
    catalogue = process.catalogue
    table = pl.DataFrame(
        {
            "session_id": ids.gather(session),
            "timestamp_ms": pl.Series(timestamp, dtype=pl.Int64),
            "event_name": pl.Series([*EVENT_NAMES, PURCHASE]).gather(name),
            "item_id": number.cast(pl.String),
            "item_category": pl.Series(catalogue.category[item]).cast(pl.String),
            "price": pl.Series(catalogue.price[item]),
            "quantity": pl.Series(quantity).fill_nan(None),
            "outcome": pl.Series([None], dtype=pl.Boolean).new_from_index(0, len(session)),
            "property.device": pl.Series(DEVICES).gather(traces.device[session]),
            "property.campaign": pl.Series(CAMPAIGNS).gather(traces.campaign[session]),
            "property.visits": pl.Series(traces.visits[session], dtype=pl.Float64),
        }
    ).with_columns(
        item_id=pl.when(known).then(pl.concat_str(pl.lit("SKU-"), "item_id")),
        item_category=pl.when(known).then(pl.concat_str(pl.lit("category-"), "item_category")),
        price=pl.when(known).then("price"),
    )
    if group is None:
        return table
    return _with_groups(table, pl.Series(["control", "treatment"]).gather(group[session].astype(np.int64)))


def _posterior_table(probability: np.ndarray, length: Index, ids: pl.Series) -> pl.DataFrame:
    session, position = np.nonzero(np.arange(probability.shape[1]) < length[:, None])
    return pl.DataFrame(
        {
            "session_id": ids.gather(session),
            "prefix_length": pl.Series(position + 1, dtype=pl.UInt32),
            "probability": probability[session, position],
        }
    )
