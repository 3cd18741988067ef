"""Warm start: `willbuy train --from ARTIFACT` continues from an earlier model on newer data.

Vocabularies, scaling and sizes are the artifact's, so that its weights fit; new words of the newer data count as
"other". The learning rate is lower by default. An epoch is kept only if it improves the model's loss on the new
validation sessions. The calibration is fitted again on the new calibration sessions. Only sessions of the newer log are
used; older data is not mixed in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from model.artifact import Manifest, load
from model.eager import eager_model
from model.network import SessionModel
from model.sizes import NetworkSizes
from training.config import RunConfig, TrainSettings
from training.data.dataset import words_by_sessions
from training.data.index import index_sessions
from training.data.interventions import possible_inputs
from training.data.prepared import PreparedDataset

LEARNING_RATE_SHARE: Final = 0.5
"""Learning rate of a warm start as a share of the default, where neither file nor flag sets it."""

NOT_BETTER: Final = (
    "no epoch was better on the new validation sessions than the earlier model: its weights stay, calibrated anew"
)

# Sizes that may change, as the weights' shapes do not depend on dropout.
_FREE_SIZES: Final = frozenset({"dropout", "input_dropout"})


class WarmStartError(ValueError):
    """The newer data or the settings do not fit the artifact; the message names the mismatch."""


@dataclass(frozen=True, slots=True)
class Start:
    """An earlier model: eager module and manifest."""

    model: SessionModel
    manifest: Manifest


def read_start(path: Path) -> Start:
    """Read an artifact and return its model as it was before scripting.

    Raises:
        model.artifact.ArtifactError: the file cannot be used.
    """
    module, manifest = load(path)
    return Start(eager_model(module, manifest), manifest)


def warm_config(config: RunConfig, manifest: Manifest) -> RunConfig:
    """Return the configuration with the artifact's fixed settings, and a lower learning rate unless one was chosen.

    Raises:
        WarmStartError: file or flags contradict the artifact; the message names the setting.
    """
    train = config.train
    sizes = NetworkSizes(**manifest.sizes)
    kept = {name: getattr(train.sizes, name) for name in _FREE_SIZES if f"sizes.{name}" in config.chosen}
    properties = tuple(spec.name for spec in manifest.properties)
    fixed: dict[str, tuple[Any, Any]] = {
        f"sizes.{name}": (getattr(train.sizes, name), value)
        for name, value in manifest.sizes.items()
        if name not in _FREE_SIZES
    }
    fixed["properties"] = (train.properties, properties)
    quantile_bins = manifest.training.get("quantile_bins", train.quantile_bins)
    fixed["quantile_bins"] = (train.quantile_bins, quantile_bins)
    for key, (asked, given) in fixed.items():
        if key in config.chosen and asked != given:
            raise WarmStartError(
                f"{key}: the artifact has {_listed(given)}, not {_listed(asked)}; leave it out, or train without --from"
            )
    fit = train.fit
    if "fit.learning_rate" not in config.chosen:
        fit = replace(fit, learning_rate=fit.learning_rate * LEARNING_RATE_SHARE)
    return replace(
        config,
        train=replace(train, fit=fit, sizes=replace(sizes, **kept), properties=properties, quantile_bins=quantile_bins),
    )


def check_fits(start: Start, dataset: PreparedDataset) -> list[str]:
    """Return warnings about continuing with this data.

    Raises:
        WarmStartError: the data lacks an input of the model, or has another kind of it.
    """
    check_properties(start.manifest, dataset)
    if start.manifest.calendar != (dataset.clock == "calendar"):
        raise WarmStartError(
            f"clock: the artifact was trained {'with' if start.manifest.calendar else 'without'} the time of day, and "
            f"the data's clock is {dataset.clock!r}"
        )
    # What rules did is left out unless it is chosen, and training says so by itself.
    offered = {spec.name for spec in possible_inputs(dataset.properties, "keep")}
    unused = sorted(offered - {spec.name for spec in start.manifest.properties})
    return [f"properties that the artifact does not use are left out: {', '.join(unused)}"] if unused else []


def check_properties(manifest: Manifest, dataset: PreparedDataset) -> None:
    """Refuse data without the properties that a model uses.

    Raises:
        WarmStartError: one is missing, or of another kind; the message names it.
    """
    there = {spec.name: spec for spec in dataset.properties}
    for spec in manifest.properties:
        if spec.name not in there:
            raise WarmStartError(
                f"property {spec.name!r} of the artifact is not in the data; it has: {', '.join(there) or 'none'}"
            )
        if there[spec.name].kind != spec.kind:
            raise WarmStartError(
                f"property {spec.name!r} is a {spec.kind} in the artifact and a {there[spec.name].kind} in the data"
            )


def words_left_out(start: Start, dataset: PreparedDataset, settings: TrainSettings) -> list[str]:
    """Return a warning for each column with frequent words that a new training would know and the artifact does not.

    Args:
        start: the earlier model.
        dataset: the newer data.
        settings: split and vocabulary limits.
    """
    manifest, limits = start.manifest, settings.vocabulary
    rows = index_sessions(dataset, settings.fractions, settings.split_seed).rows("train")
    columns: list[tuple[str, Sequence[str], int, int]] = [
        ("event_name", manifest.event_names, limits.event_names_at_least, limits.event_names_at_most),
        ("item_category", manifest.item_categories, limits.categories_at_least, limits.categories_at_most),
        ("item_id", manifest.items, limits.items_at_least, limits.items_at_most),
    ]
    columns += [
        (f"property.{name}", words, limits.property_values_at_least, limits.property_values_at_most)
        for name, words in _values(manifest).items()
    ]
    warnings = []
    for column, known, at_least, at_most in columns:
        frequent = words_by_sessions(dataset.shards, column, rows, at_least=at_least, at_most=at_most)
        new = [word for word in frequent if word not in set(known)]
        if new:
            warnings.append(
                f"{column}: {len(new)} of {len(frequent)} frequent words are new since the artifact was trained and "
                f"count as other ({', '.join(new[:3])}{', ...' if len(new) > 3 else ''}); "  # noqa: PLR2004  # examples
                "training without --from learns them"
            )
    return warnings


def _values(manifest: Manifest) -> Mapping[str, Sequence[str]]:
    return {
        spec.name: manifest.property_values.get(spec.name, [])
        for spec in manifest.properties
        if spec.kind == "category"
    }


def _listed(value: Any) -> str:  # noqa: ANN401  # any setting
    if value is None:
        return "all that the data has"
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
