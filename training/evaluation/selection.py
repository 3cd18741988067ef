"""Selection of the sessions to evaluate on, and of disjoint sessions to fit the baselines on."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from model.manifest import Manifest
from training.config import DEFAULT_FRACTIONS, SelectionSettings
from training.data.prepared import PreparedDataset
from training.data.provenance import data_fingerprint, unseen_sessions
from training.data.sessions import split


class SelectionError(ValueError):
    """No session is left to evaluate on, or to fit baselines on; the message has the reason and a remedy."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Sessions by their use.

    Attributes:
        judged: ids of the sessions that the models are evaluated on.
        training: ids that the baselines are fitted on; None for no baselines.
        validation: ids that their settings are chosen by.
        own: ids of the first model's training part, where it was trained on this data.
        notes: the selection as sentences.
        warnings: reasons to doubt the numbers.
    """

    judged: frozenset[str]
    training: frozenset[str] | None
    validation: frozenset[str]
    own: frozenset[str] | None
    notes: list[str]
    warnings: list[str]


def select(
    dataset: PreparedDataset,
    models: Mapping[str, Manifest],
    wanted: SelectionSettings,
    elsewhere: PreparedDataset | None = None,
) -> Selection:
    """Choose the sessions.

    * Sessions that a model was trained on are left out, as far as the manifests show.
    * Baselines are fitted on the training part of `elsewhere`, or else of this data, with the first model's split.
    * Where the first model has not seen this data and baselines are fitted on it, only its test part is evaluated.

    Args:
        dataset: the sessions to choose from.
        models: manifests by name, the subject first.
        wanted: settings of the selection.
        elsewhere: prepared sessions to fit the baselines on.

    Raises:
        SelectionError: nothing is left for a use.
    """
    name, subject = next(iter(models.items()))
    unseen = unseen_sessions(dataset, models)
    notes: list[str] = []
    warnings: list[str] = [] if unseen.known or wanted.all_sessions else [f"Sessions: {unseen.note}."]
    parts = _parts(dataset, subject)
    trained_here = _trained_here(dataset, subject)
    ids = dataset.sessions()["session_id"]
    judged = frozenset(ids)
    if wanted.all_sessions:
        notes.append("All sessions of the data are judged.")
        if trained_here:
            warnings.append(f"{name} was trained on some of the judged sessions: its scores are too good.")
    elif unseen.session_ids is not None:
        judged = unseen.session_ids
        notes.append(f"Sessions: {unseen.note}.")
    elif wanted.baselines and elsewhere is None:
        judged = parts["test"]
        notes.append(
            f"{name} was not trained on this data. The baselines learn from its training part, so its test part alone "
            "is judged; --no-baselines, or --baseline-data, has all of it judged."
        )
    else:
        notes.append(f"{name} was not trained on this data: all of it is judged.")
    if not judged:
        raise SelectionError("no session is left that no model was trained on: give newer data, or --all-sessions")
    sampled = _sample(judged, wanted.most_sessions, wanted.seed)
    if len(sampled) < len(judged):
        notes.append(f"A random sample of {len(sampled):,} of {len(judged):,} sessions represents all (--sessions).")
    training, validation = _fitting(dataset, subject, parts, sampled, wanted, elsewhere, notes, warnings)
    own = parts["train"] if trained_here else None
    return Selection(sampled, training, validation, own, notes, warnings)


def _fitting(
    dataset: PreparedDataset,
    subject: Manifest,
    parts: Mapping[str, frozenset[str]],
    judged: frozenset[str],
    wanted: SelectionSettings,
    elsewhere: PreparedDataset | None,
    notes: list[str],
    warnings: list[str],
) -> tuple[frozenset[str] | None, frozenset[str]]:
    if not wanted.baselines:
        return None, frozenset()
    if elsewhere is None and wanted.all_sessions:
        warnings.append(
            "Baselines are left out: they would learn from the sessions that are judged; --baseline-data gives others."
        )
        return None, frozenset()
    source = "this data"
    if elsewhere is not None and data_fingerprint(elsewhere) != data_fingerprint(dataset):
        parts, source = _parts(elsewhere, subject), str(elsewhere.path)
        judged = frozenset()
    training, validation = parts["train"] - judged, parts["validation"] - judged
    if not training or not validation:
        raise SelectionError(
            f"no session of {source} is left to fit baselines on: give others with --baseline-data, or --no-baselines"
        )
    chosen = _sample(training, wanted.most_fitted, wanted.seed)
    chosen_by = _sample(validation, max(1, wanted.most_fitted // 4), wanted.seed)
    sampled = "" if len(chosen) == len(training) else f", a random sample of {len(training):,} (--baseline-sessions)"
    notes.append(
        f"Baselines were fitted on {len(chosen):,} sessions of the training part of {source}{sampled}, and their "
        f"settings chosen by {len(chosen_by):,} of its validation part."
    )
    return chosen, chosen_by


def _parts(dataset: PreparedDataset, subject: Manifest) -> dict[str, frozenset[str]]:
    training: Mapping[str, Any] = subject.training
    fractions = tuple(training.get("fractions", DEFAULT_FRACTIONS))
    table = split(dataset.sessions(), dataset.clock, fractions, training.get("split_seed", 0))
    return {
        part: frozenset(table.filter(pl.col("part") == part)["session_id"]) for part in ("train", "validation", "test")
    }


def _trained_here(dataset: PreparedDataset, subject: Manifest) -> bool:
    """Return whether the model itself, and not only a predecessor, was trained on this data."""
    alone = replace(subject, training={key: value for key, value in subject.training.items() if key != "lineage"})
    return unseen_sessions(dataset, {"": alone}).session_ids is not None


def _sample(ids: frozenset[str], most: int, seed: int) -> frozenset[str]:
    if len(ids) <= most:
        return ids
    # Sorted: the order of a set differs from run to run.
    return frozenset(np.random.default_rng(seed).choice(np.array(sorted(ids), dtype=object), most, replace=False))
