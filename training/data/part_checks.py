"""Checks of the split: parts that differ, sessions that occur again in another part, and times without an order."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import chi2

from training.config import PARTS
from training.data.findings import DOUBTFUL, INVALID, UNCHECKED, Finding
from training.data.index import SessionIndex
from training.data.sources.mapping import Clock

# A difference that is hardly chance, and matters.
_SIGNIFICANCE: Final = 0.05
_RATIO: Final = 1.25
# Sessions of fewer events are equal by chance.
_LONG: Final = 3
_REPEATED: Final = 0.05
_FEWEST_REPEATED: Final = 10
_FEWEST_PAIRS: Final = 300
_NO_ORDER: Final = 0.05
_SINGLE: Final = 0.95
_DAY_MS: Final = 86_400_000
_HASH_SEED: Final = 20_151_115


def check_parts(shards: Sequence[Path], index: SessionIndex, clock: Clock) -> list[str]:
    """Return what makes the test part no fair judge; reads one shard at a time.

    Args:
        shards: prepared shards.
        index: their sessions, and the part of each.
        clock: meaning of the times.
    """
    content = np.zeros(len(index.lengths), dtype=np.uint64)
    spans = np.zeros(len(index.lengths), dtype=np.int64)
    pairs: Counter[tuple[str, str]] = Counter()
    for number, shard in enumerate(shards):
        first, parts = index.shard(number)
        inside = slice(first, first + len(parts))
        _read(shard, index.lengths[inside], content[inside], spans[inside], pairs)
    return [*_base_rates(index), *_repeated(index, content), *_order(index, pairs), *_spans(index, spans, clock)]


def _read(
    shard: Path,
    lengths: NDArray[np.int64],
    content: NDArray[np.uint64],
    spans: NDArray[np.int64],
    pairs: Counter[tuple[str, str]],
) -> None:
    """Fill in a code of each session's content, and its span in milliseconds; count first and last names."""
    columns = ["timestamp_ms", "event_name", "item_id", "price"]
    rows = pl.read_parquet(shard, columns=columns)
    if not rows.height:
        return
    starts = np.cumsum(lengths) - lengths
    ends = starts + lengths - 1
    times = rows["timestamp_ms"].to_numpy()
    spans[:] = times[ends] - times[starts]
    gaps = np.diff(times, prepend=times[:1])
    gaps[starts] = 0
    hashed = rows.select(pl.struct("event_name", "item_id", "price", gap=pl.Series(gaps)).hash(_HASH_SEED)).to_series()
    odd = 2 * (np.arange(rows.height) - np.repeat(starts, lengths)).astype(np.uint64) + 1
    # Sums wrap around. The odd factor makes the order count.
    content[:] = np.add.reduceat(hashed.to_numpy() * odd, starts)
    several = lengths > 1
    names = rows["event_name"]
    ends_of = pl.DataFrame({"first": names.gather(starts[several]), "last": names.gather(ends[several])})
    for one, other, count in ends_of.group_by("first", "last").len().iter_rows():
        pairs[one, other] += count


def _base_rates(index: SessionIndex) -> Iterator[Finding]:
    counts = np.array([[index.sessions(part), index.buyers(part)] for part in PARTS], dtype=np.float64)
    given = counts[counts[:, 0] > 0]
    sessions, buyers = given[:, 0], given[:, 1]
    overall = buyers.sum() / max(sessions.sum(), 1)
    if not 0 < overall < 1:
        return
    expected = sessions * overall
    distance = float(((buyers - expected) ** 2 / (expected * (1 - overall))).sum())
    shares = buyers / sessions
    if chi2.sf(distance, len(given) - 1) < _SIGNIFICANCE and shares.max() >= _RATIO * shares.min():
        listed = ", ".join(
            f"{part} {bought / count:.1%}" for part, (count, bought) in zip(PARTS, counts, strict=True) if count
        )
        yield Finding(
            f"the share of buyers differs from part to part by more than chance ({listed}): what the model learns of "
            "one time does not hold for another, and its probabilities are off by as much",
            DOUBTFUL + 2,
        )


def _repeated(index: SessionIndex, content: NDArray[np.uint64]) -> Iterator[Finding]:
    is_long = index.lengths >= _LONG
    training = content[is_long & index.inside("train")]
    found = {}
    for part in reversed(PARTS):
        own = content[is_long & index.inside(part)]
        again = len(own) - len(np.unique(own)) if part == "train" else int(np.isin(own, training).sum())
        if again >= _FEWEST_REPEATED and again > _REPEATED * len(own):
            found[part] = f"{again:,} of {len(own):,} {part}"
    if found:
        yield Finding(
            f"{', '.join(found.values())} sessions of {_LONG} events or more repeat a training session event by event, "
            "with the same gaps, under another id: was the log joined with a copy of itself? Scores of sessions that "
            "the model has seen say nothing",
            INVALID - 1 if "test" in found else INVALID - 2,
        )


def _order(index: SessionIndex, pairs: Counter[tuple[str, str]]) -> Iterator[Finding]:
    """Compare first with last events: without an order, each pair of names occurs as often the other way round."""
    if len(index.lengths) >= _FEWEST_PAIRS and float((index.lengths == 1).mean()) > _SINGLE:
        share = float((index.lengths == 1).mean())
        yield Finding(
            f"{share:.1%} of the sessions have one event: is another column the session or the visitor, or are times "
            "shuffled?",
            DOUBTFUL + 1,
        )
    unequal = {pair: count for pair, count in pairs.items() if pair[0] < pair[1] or (pair[1], pair[0]) not in pairs}
    sums = [(count, pairs.get((other, one), 0)) for (one, other), count in unequal.items() if one != other]
    total = sum(one + other for one, other in sums)
    if total < _FEWEST_PAIRS:
        if sum(pairs.values()) >= _FEWEST_PAIRS and not total:
            yield Finding("all events have one name, so that their order could not be checked", UNCHECKED - 5)
        return
    # Bowker's test of symmetry (1948): one pair a session, so that pairs are independent.
    distance = sum((one - other) ** 2 / (one + other) for one, other in sums)
    if chi2.sf(distance, len(sums)) > _NO_ORDER:
        yield Finding(
            f"the order of events says nothing: in {sum(pairs.values()):,} sessions, first and last events have the "
            "same names. Were times shuffled, cut to the day, or made up?",
            INVALID - 5,
        )


def _spans(index: SessionIndex, spans: NDArray[np.int64], clock: Clock) -> Iterator[Finding]:
    several = spans[index.lengths > 1]
    if clock == "calendar" and len(several) and float(np.median(several)) > _DAY_MS:
        yield Finding(
            f"half of the sessions with several events span more than {np.median(several) / _DAY_MS:.1f} days: their "
            "ids are no visits, or times are shuffled",
            DOUBTFUL + 3,
        )
