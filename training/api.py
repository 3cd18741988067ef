"""The training commands as five calls for a program or a notebook: prepare, train, load, predict, evaluate.

    from training.api import evaluate, load, predict, prepare, train

    prepare("log.csv", "sessions")
    model = train("sessions", "model.pt", settings={"fit.epochs": 5})
    report = evaluate(model, "sessions")
    table = predict(model, "newer-log.csv")

Each call does what the command of its name does, prints what the command prints, and raises the command's errors. Paths
may be `str` or `Path`. docs/notebooks/log-to-decision.ipynb uses all five.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import polars as pl

from model.artifact import Manifest, read_manifest
from training.commands.evaluate import run_evaluate
from training.commands.predict import run_predict
from training.commands.prepare import run_prepare
from training.commands.train import run_train
from training.config import (
    QUICK_SETTINGS,
    Assumptions,
    ColumnOptions,
    EvaluateSettings,
    LogFormat,
    LogSettings,
    Offer,
    PredictSettings,
    SelectionSettings,
    StorageBudget,
    TrainOptions,
)
from training.config_file import read_config
from training.data.prepared import PreparedDataset
from training.report.content import Report

PathLike = str | Path
_PATHS: Final = frozenset({"mapping", "posterior", "start", "baseline_data", "out", "scratch"})


@dataclass(frozen=True, slots=True)
class Model:
    """A trained model.

    Attributes:
        path: the artifact, which `willbuy serve --artifact` takes.
        manifest: what it is: sizes, vocabulary, data, scores of the test sessions (`metrics`), model card.
    """

    path: Path
    manifest: Manifest


def prepare(log: PathLike, out: PathLike, **options: Any) -> PreparedDataset:  # noqa: ANN401  # the fields' own types
    """Prepare a log into a folder of sessions, as `willbuy prepare` does.

    Args:
        log: a file, or a folder of files.
        out: folder for the prepared sessions.
        options: fields of `training.config.LogSettings` and `ColumnOptions`, such as `time_zone="Europe/Berlin"` or
            `columns=["session_id=sid", "event_name=type", "timestamp=at"]`.

    Raises:
        TypeError: there is no such option.
        training.commands.prepare.PREPARE_ERRORS: the log cannot be read; the message says why.
    """
    settings, columns = _built(options, LogSettings, ColumnOptions)
    return run_prepare(Path(log), Path(out), settings, columns)


def train(
    data: PathLike,
    out: PathLike,
    *,
    settings: Mapping[str, Any] | None = None,
    config: PathLike | None = None,
    **options: Any,  # noqa: ANN401  # same
) -> Model:
    """Train on past sessions and write the artifact with its report, as `willbuy train` does.

    Args:
        data: prepared sessions, or a log in a known format.
        out: the artifact to write.
        settings: values by dotted key of the configuration file, such as `{"fit.epochs": 5, "lightgbm": False}`.
        config: TOML file of settings; `settings` override it.
        options: fields of `training.config.TrainOptions` and `StorageBudget`, such as `quick=True` or `search=20`.

    Raises:
        TypeError: there is no such option.
        training.commands.train.TRAIN_ERRORS: see the message.
    """
    given, storage = _built(options, TrainOptions, StorageBudget)
    quick = QUICK_SETTINGS if given.quick else ()
    run = read_config(None if config is None else Path(config), settings, quick)
    storage = replace(storage, scratch=storage.scratch or Path(out).parent)
    run_train(Path(data), Path(out), run, replace(given, storage=storage))
    return load(out)


def load(artifact: PathLike) -> Model:
    """Return the model of an artifact.

    Raises:
        model.artifact.ArtifactError: the file is not an artifact that this version can use.
    """
    return Model(Path(artifact), read_manifest(Path(artifact)))


def predict(
    model: Model | PathLike,
    data: PathLike,
    *,
    out: PathLike | None = None,
    **options: Any,  # noqa: ANN401  # same
) -> pl.DataFrame:
    """Return the probability after each event of past sessions, as `willbuy predict` writes it.

    Args:
        model: the model, or its artifact.
        data: prepared sessions, or a log.
        out: Parquet or CSV file to write instead; the table is empty then, so that no large one is held in memory.
        options: fields of `training.config.PredictSettings` and `LogFormat`.

    Returns:
        One row an event before the first purchase: session_id, event (its number), timestamp_ms, event_name,
        probability.

    Raises:
        TypeError: there is no such option.
        training.commands.predict.PREDICT_ERRORS: see the message.
    """
    settings, log = _built(options, PredictSettings, LogFormat)
    settings = replace(settings, log=log)
    if out is not None:
        run_predict(_path(model), Path(data), Path(out), settings)
        return pl.DataFrame()
    with tempfile.TemporaryDirectory(prefix="willbuy-") as folder:
        table = Path(folder) / "predictions.parquet"
        run_predict(_path(model), Path(data), table, settings)
        return pl.read_parquet(table)


def evaluate(model: Model | PathLike, data: PathLike, **options: Any) -> Report:  # noqa: ANN401  # same
    """Evaluate a model on sessions that it has not seen, write the report, and return it; as `willbuy evaluate` does.

    Args:
        model: the model, or its artifact.
        data: prepared sessions, or a log.
        options: fields of `training.config.EvaluateSettings` and of what it consists of: `SelectionSettings`,
            `Assumptions`, `Offer` and `LogFormat`; such as `baselines=False` or `margin=40.0`.

    Raises:
        TypeError: there is no such option.
        training.commands.evaluate.EVALUATE_ERRORS: see the message.
    """
    kinds = (EvaluateSettings, SelectionSettings, Assumptions, Offer, LogFormat)
    settings, selection, assumptions, offer, log = _built(options, *kinds)
    settings = replace(settings, selection=selection, assumptions=replace(assumptions, offer=offer), log=log)
    return run_evaluate(_path(model), Path(data), settings)


def _path(model: Model | PathLike) -> Path:
    return model.path if isinstance(model, Model) else Path(model)


def _built(options: Mapping[str, Any], *kinds: type[Any]) -> list[Any]:
    """Return one settings object of each kind, with the options that are its fields; lists become tuples.

    Raises:
        TypeError: an option is a field of none.
    """
    names = {name for kind in kinds for name in (each.name for each in fields(kind))}
    unknown = sorted(options.keys() - names)
    if unknown:
        raise TypeError(f"{unknown[0]}: no such option; there are {', '.join(sorted(names))}")
    values = {name: _value(name, value) for name, value in options.items()}
    return [kind(**{each.name: values[each.name] for each in fields(kind) if each.name in values}) for kind in kinds]


def _value(name: str, value: Any) -> Any:  # noqa: ANN401  # same
    if name in _PATHS and isinstance(value, str):
        return Path(value)
    return tuple(value) if isinstance(value, list) else value
