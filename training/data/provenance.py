"""Provenance of a model's data: a fingerprint of prepared sessions, and the sessions that a model has not seen."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypedDict

import polars as pl

from model.manifest import Manifest
from training.config import DAYS_AHEAD, DEFAULT_FRACTIONS, EARLIEST, IDLE_TIMEOUT_S, AfterPurchase
from training.data.prepared import PreparedDataset
from training.data.sessions import split
from training.data.sources import MAPPING

# Control characters that no log contains: separator of values, and null.
_END_OF_TEXT: Final = "\x00"
_NO_TEXT: Final = "\x01"
_FACTS: Final = ("source_format", "clock", "first_time_ms", "last_time_ms", "counts")
TEST: Final = "test"


@dataclass(frozen=True, slots=True)
class Unseen:
    """The sessions that none of some models was trained on, according to their manifests.

    Attributes:
        session_ids: those sessions; None for all of the data.
        note: how this is known, or that it is unknown, as a text.
        known: whether it is known.
    """

    session_ids: frozenset[str] | None
    note: str
    known: bool


class Cuts(TypedDict):
    """How `training.data.prepare.prepare` cuts a log into sessions."""

    idle_timeout_s: float
    keep_open_sessions: bool
    time_unit: str | None
    time_zone: str | None
    earliest: str
    days_ahead: float
    keep_placeholder_ids: bool
    after_purchase: AfterPurchase
    equal_rows: str | None


def cuts_of(manifest: Manifest) -> Cuts:
    """Return how a model's training log was cut into sessions, so that its split can be repeated."""
    before = manifest.data.get("prepare", {})
    return {
        "idle_timeout_s": before.get("idle_timeout_s", IDLE_TIMEOUT_S),
        "keep_open_sessions": before.get("keep_open_sessions", False),
        "time_unit": before.get("time_unit"),
        "time_zone": before.get("time_zone"),
        "earliest": before.get("earliest", EARLIEST),
        "days_ahead": before.get("days_ahead", DAYS_AHEAD),
        "keep_placeholder_ids": before.get("keep_placeholder_ids", False),
        "after_purchase": before.get("after_purchase", "ignore"),
        "equal_rows": before.get("equal_rows", _equal_rows_before(manifest, before)),
    }


def _equal_rows_before(manifest: Manifest, settings: Mapping[str, Any]) -> str | None:
    """Return what earlier releases did with equal rows: mapped logs lost them."""
    if settings.get("keep_equal_rows"):
        return "keep"
    return "drop" if manifest.data.get("source_format") == MAPPING else None


def data_fingerprint(dataset: PreparedDataset) -> str:
    """Return the SHA-256 of the content of prepared sessions: equal logs, prepared alike, have equal fingerprints.

    Reads one shard at a time. Paths and compression do not matter.
    """
    digest = hashlib.sha256()
    for shard in dataset.shards:
        frame = pl.read_parquet(shard)
        for column in frame.iter_columns():
            digest.update(f"{column.name} {column.dtype} {len(column)}".encode())
            if column.dtype == pl.String:
                digest.update(column.fill_null(_NO_TEXT).str.join(_END_OF_TEXT)[0].encode())
            else:
                digest.update(column.is_null().to_numpy().tobytes())
                digest.update(column.fill_null(strategy="zero").to_numpy().tobytes())
    return digest.hexdigest()


def ancestor(manifest: Manifest) -> dict[str, Any]:
    """Return what a warm-started model records of its predecessor: fingerprint, data and split."""
    training = manifest.training
    return {
        "fingerprint": manifest.fingerprint,
        "created": manifest.created,
        "data": {name: manifest.data.get(name) for name in ("fingerprint", *_FACTS)},
        "fractions": training.get("fractions", DEFAULT_FRACTIONS),
        "split_seed": training.get("split_seed", 0),
    }


def lineage(manifest: Manifest) -> list[dict[str, Any]]:
    """Return the model and its predecessors, as `ancestor` describes them, latest first."""
    return [ancestor(manifest), *manifest.training.get("lineage", [])]


def unseen_sessions(dataset: PreparedDataset, models: Mapping[str, Manifest]) -> Unseen:
    """Return the sessions of `dataset` that neither the models nor their predecessors have seen.

    A model trained on this dataset has seen all but its test part. A model trained on other data has not seen sessions
    that began after its data ended; whether it has seen earlier sessions is unknown.

    Args:
        dataset: the sessions to predict.
        models: manifests by the user's names for them.
    """
    fingerprint = data_fingerprint(dataset)
    described = dataset.to_dict()
    sessions = dataset.sessions()
    left: frozenset[str] | None = None
    by_test_part, unknown = [], []
    for name, manifest in models.items():
        for step in lineage(manifest):
            if _is_same(step["data"], described, fingerprint):
                table = split(sessions, dataset.clock, step["fractions"], step["split_seed"])
                test = frozenset(table.filter(pl.col("part") == TEST)["session_id"])
                left = test if left is None else left & test
                by_test_part.append(name)
            elif not _began_later(dataset, step["data"]):
                unknown.append(name)
    return Unseen(left, _note(sorted(set(by_test_part)), sorted(set(unknown))), known=not unknown)


def _is_same(data: Mapping[str, Any], described: Mapping[str, Any], fingerprint: str) -> bool:
    if data.get("fingerprint"):
        return bool(data["fingerprint"] == fingerprint)
    return all(data.get(name) == described[name] for name in _FACTS)


def _began_later(dataset: PreparedDataset, data: Mapping[str, Any]) -> bool:
    first_ms, last_ms = dataset.first_time_ms, data.get("last_time_ms")
    return first_ms is not None and last_ms is not None and first_ms > last_ms


def _note(by_test_part: Sequence[str], unknown: Sequence[str]) -> str:
    notes = []
    if by_test_part:
        notes.append(f"{_and(by_test_part)} trained on this data: only the test part is compared")
    if unknown:
        notes.append(
            f"{_and(unknown)} trained on other data of the same or an unknown time: whether sessions are among its "
            "training sessions is unknown"
        )
    return "; ".join(notes) or "the sessions began after everything that the models were trained on"


def _and(names: Sequence[str]) -> str:
    return " and ".join(names)
