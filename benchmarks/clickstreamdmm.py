"""willbuy against tuned LightGBM on ClickstreamDMM: repeated hold-out, one interval over all held-out sessions.

    python -m benchmarks.clickstreamdmm SESSIONS --seeds 10 --out result.json

SESSIONS is the output of `willbuy prepare` for the log. Each seed makes a new split (65 % training, 10 % validation,
10 % calibration, 15 % test), trains with the defaults of `willbuy train`, searches LightGBM's parameters on the
validation sessions, and predicts the test sessions with both. LightGBM gets all features and indices of the network and
the same training sessions. The same validation sessions stop it early, and the same calibration sessions calibrate it.

Criteria, fixed before any of these test sessions was used:
    * the log loss of all prefixes of the held-out sessions, willbuy's minus LightGBM's, has a 95 % interval below zero;
    * the AUC's difference has a lower bound above -0.003;
    * at none of the prefix lengths 1, 2, 3, 5, 8, 10, 15, 20 is the log loss worse with an interval above zero.
Intervals resample sessions; all predictions of a session stay together, also those of several seeds. The recipe was
chosen in experiments with six of ten sessions (`explored`), so the criteria apply to the other four of ten. Results for
all sessions are reported as well. LightGBM is raw or calibrated, whichever is better on the deciding sessions.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import lightgbm
import numpy as np
import optuna
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from training.config import FitSettings, TrainSettings
from training.data.encoded import Encoded
from training.data.prepared import read_prepared
from training.data.training_set import load
from training.evaluation.calibration import fit_calibration
from training.evaluation.metrics import log_losses
from training.fit.train import WILLBUY, train

PREFIX_LENGTHS: Final = (1, 2, 3, 5, 8, 10, 15, 20)
AUC_MARGIN: Final = -0.003
EXPLORED_SHARE: Final = 0.6
_ROUNDS: Final = 3000
_BUCKETS: Final = 2000  # of predicted probability; the AUC of a resample is counted from them

Floats = NDArray[np.float64]


def explored(session_id: str) -> bool:
    """Return whether the session was used in the experiments that chose the recipe."""
    code = hashlib.blake2b(f"confirm:{session_id}".encode(), digest_size=8).digest()
    return int.from_bytes(code, "big") / 2**64 < EXPLORED_SHARE


def tuned_lightgbm(parts: dict[str, Encoded], trials: int, seed: int) -> tuple[Floats, Floats, dict[str, Any]]:
    """Return probabilities of the test events, raw and calibrated, and the parameters found by the search."""
    width = parts["train"].features.size(1)
    categorical = list(range(width, width + parts["train"].indices.size(1)))
    training = lightgbm.Dataset(
        _matrix(parts["train"]),
        _labels(parts["train"]),
        categorical_feature=categorical,
        free_raw_data=False,
        params={"verbose": -1, "feature_pre_filter": False},
    ).construct()
    stopping = lightgbm.Dataset(
        _matrix(parts["validation"]),
        _labels(parts["validation"]),
        reference=training,
        categorical_feature=categorical,
        free_raw_data=False,
        params={"verbose": -1},
    ).construct()

    def fitted(parameters: dict[str, Any]) -> lightgbm.Booster:
        return lightgbm.train(
            parameters,
            training,
            _ROUNDS,
            valid_sets=[stopping],
            callbacks=[lightgbm.early_stopping(50, verbose=False)],
        )

    def loss(trial: optuna.Trial) -> float:
        parameters = {
            "objective": "binary",
            "learning_rate": trial.suggest_float("learning_rate", 0.015, 0.08, log=True),
            "num_leaves": trial.suggest_int("num_leaves", 4, 96, log=True),
            "min_data_in_leaf": trial.suggest_int("min_data_in_leaf", 50, 2000, log=True),
            "feature_fraction": trial.suggest_float("feature_fraction", 0.15, 0.9),
            "bagging_fraction": trial.suggest_float("bagging_fraction", 0.4, 1.0),
            "bagging_freq": 1,
            "lambda_l2": trial.suggest_float("lambda_l2", 0.1, 100.0, log=True),
            "path_smooth": trial.suggest_float("path_smooth", 0.01, 100.0, log=True),
            "extra_trees": trial.suggest_categorical("extra_trees", [False, True]),
            "feature_pre_filter": False,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": 1,
            "seed": seed,
            "verbose": -1,
        }
        booster = fitted(parameters)
        trial.set_user_attr("parameters", parameters)
        return float(booster.best_score["valid_0"]["binary_logloss"])

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(loss, n_trials=trials)
    best: dict[str, Any] = study.best_trial.user_attrs["parameters"]
    booster = fitted(best)
    raw = {part: np.asarray(booster.predict(_matrix(parts[part]))) for part in ("calibration", "test")}
    index = parts["calibration"].columns.session_index().numpy()
    fit = fit_calibration(_logit(raw["calibration"]).astype(np.float32), _labels(parts["calibration"]), index)
    assert fit is not None  # noqa: S101  # thousands of sessions of each outcome
    return raw["test"], 1 / (1 + np.exp(-(_logit(raw["test"]) / fit.temperature + fit.bias))), best


def _matrix(data: Encoded) -> NDArray[np.float32]:
    return np.concatenate([data.features.numpy(), data.indices.numpy().astype(np.float32)], axis=1)


def _labels(data: Encoded) -> NDArray[np.float32]:
    labels: NDArray[np.float32] = data.columns.outcome.numpy()[data.columns.session_index().numpy()]
    return labels


def _logit(probability: Floats) -> Floats:
    clipped = probability.clip(1e-9, 1 - 1e-9)
    logit: Floats = np.log(clipped / (1 - clipped))
    return logit


def difference(
    outcome: Floats, ours: Floats, theirs: Floats, session: NDArray[np.int64], resamples: int
) -> list[float]:
    """Return the mean difference of the log losses and its 95 % interval over sessions."""
    _, index = np.unique(session, return_inverse=True)
    gaps = np.bincount(index, log_losses(outcome, ours) - log_losses(outcome, theirs))
    counts = np.bincount(index).astype(np.float64)
    weights = _resampled(len(counts), resamples)
    means = (weights @ gaps) / (weights @ counts)
    return [float(gaps.sum() / counts.sum()), *map(float, np.percentile(means, [2.5, 97.5]))]


def auc_difference(
    outcome: Floats, ours: Floats, theirs: Floats, session: NDArray[np.int64], resamples: int
) -> list[float]:
    """Return the difference of the AUCs and its 95 % interval over sessions.

    Probabilities are sorted into buckets of equal mass, in which a pair of outcomes counts half.
    """
    _, index = np.unique(session, return_inverse=True)
    weights = np.vstack([np.ones(index.max() + 1), _resampled(index.max() + 1, resamples)])
    areas = []
    for probability in (ours, theirs):
        edges = np.quantile(probability, np.linspace(0, 1, _BUCKETS + 1)[1:-1])
        bucket = np.searchsorted(edges, probability, side="right")
        area = np.empty(len(weights))
        for row, weight in enumerate(weights):
            buyers = np.bincount(bucket, weight[index] * outcome, _BUCKETS)
            others = np.bincount(bucket, weight[index] * (1 - outcome), _BUCKETS)
            below = others.cumsum() - others / 2
            area[row] = (buyers * below).sum() / (buyers.sum() * others.sum())
        areas.append(area)
    gap = areas[0] - areas[1]
    return [float(gap[0]), *map(float, np.percentile(gap[1:], [2.5, 97.5]))]


def _resampled(sessions: int, resamples: int) -> Floats:
    generator = np.random.default_rng(0)
    return generator.multinomial(sessions, np.full(sessions, 1 / sessions), resamples).astype(np.float64)


def _interval(
    measure: Callable[[Floats, Floats, Floats, NDArray[np.int64], int], list[float]],
    columns: tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]],
    rows: NDArray[np.bool_],
    resamples: int,
) -> list[float]:
    outcome, ours, theirs, session = (column[rows] for column in columns)
    return measure(outcome, ours, theirs, session, resamples)


def judged(columns: dict[str, NDArray[Any]], theirs: str, rows: NDArray[np.bool_], resamples: int) -> dict[str, Any]:
    """Return the differences of willbuy and LightGBM over these rows, pooled and by prefix length."""
    chosen = {name: column[rows] for name, column in columns.items()}
    common = (chosen["outcome"], chosen["willbuy"], chosen[theirs], chosen["session"])
    everywhere = np.ones(len(chosen["outcome"]), dtype=bool)
    by_length = {}
    for length in PREFIX_LENGTHS:
        here = chosen["prefix_length"] == length
        by_length[length] = {
            "prefixes": int(here.sum()),
            "log_loss": _interval(difference, common, here, resamples),
            "auc": _interval(auc_difference, common, here, min(resamples, 300)),
        }
    return {
        "sessions": len(np.unique(chosen["session"])),
        "prefixes": len(chosen["session"]),
        "log_loss_willbuy": float(log_losses(chosen["outcome"], chosen["willbuy"]).mean()),
        "log_loss_lightgbm": float(log_losses(chosen["outcome"], chosen[theirs]).mean()),
        "log_loss": _interval(difference, common, everywhere, resamples),
        "auc": _interval(auc_difference, common, everywhere, min(resamples, 300)),
        "by_prefix_length": by_length,
    }


def main(
    sessions: Annotated[Path, typer.Argument(help="Prepared ClickstreamDMM sessions.")],
    out: Annotated[Path, typer.Option(help="JSON file for the result.")],
    seeds: Annotated[int, typer.Option(min=3, help="How many splits and trainings.")] = 10,
    trials: Annotated[int, typer.Option(min=1, help="Sets of LightGBM parameters tried for each seed.")] = 25,
    resamples: Annotated[int, typer.Option(min=100)] = 1000,
) -> None:
    """Train, predict the hold-out sessions, and apply the criteria above."""
    dataset = read_prepared(sessions)
    rows: list[dict[str, NDArray[Any]]] = []
    details: list[dict[str, Any]] = []
    for seed in track(range(seeds), "seeds"):
        settings = TrainSettings(fit=FitSettings(seed=seed), split_seed=seed, lightgbm=False)
        result = train(dataset, settings)
        raw, calibrated, parameters = tuned_lightgbm(load(dataset, settings).parts, trials, seed)
        test = result.test
        rows.append(
            {
                "session_id": test.session_id[test.session_index],
                "seed": np.full(len(test.outcome), seed),
                "outcome": test.outcome,
                "prefix_length": test.prefix_length,
                "willbuy": test.probability[WILLBUY],
                "raw": raw,
                "calibrated": calibrated,
            }
        )
        details.append(
            {
                "seed": seed,
                "seconds": round(result.seconds, 1),
                "best_epoch": result.fit.best_epoch,
                "lightgbm": parameters,
                "log_loss": {
                    name: float(log_losses(test.outcome, rows[-1][name]).mean())
                    for name in ("willbuy", "raw", "calibrated")
                },
            }
        )
    columns = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    ids, columns["session"] = np.unique(columns["session_id"].astype(str), return_inverse=True)
    deciding = ~np.array([explored(session_id) for session_id in ids])[columns["session"]]
    losses = {name: log_losses(columns["outcome"], columns[name]) for name in ("raw", "calibrated")}
    theirs = min(losses, key=lambda name: float(losses[name][deciding].mean()))
    result_of = {
        "seeds": details,
        "lightgbm_taken": theirs,
        "deciding": judged(columns, theirs, deciding, resamples),
        "all": judged(columns, theirs, np.ones(len(deciding), dtype=bool), resamples),
        "by_seed": {
            str(seed): judged(columns, theirs, columns["seed"] == seed, resamples)["log_loss"] for seed in range(seeds)
        },
    }
    out.write_text(json.dumps(result_of, indent=1), encoding="utf-8")
    _show(result_of)


def _show(result: dict[str, Any]) -> None:
    console = Console()
    for name in ("deciding", "all"):
        judgement = result[name]
        table = Table("events", "prefixes", "log loss difference", "95 %", "AUC difference", "95 %", title=name)
        lines = {**judgement["by_prefix_length"], "all": judgement}
        for length, line in lines.items():
            loss, low, high = line["log_loss"]
            area, area_low, area_high = line["auc"]
            table.add_row(
                str(length),
                f"{line['prefixes']:,}",
                f"{loss:+.4f}",
                f"{low:+.4f} to {high:+.4f}",
                f"{area:+.4f}",
                f"{area_low:+.4f} to {area_high:+.4f}",
            )
        console.print(table)
    decided = result["deciding"]
    console.print(
        {
            "log loss better, interval below zero": decided["log_loss"][2] < 0,
            f"AUC's lower bound above {AUC_MARGIN}": decided["auc"][1] > AUC_MARGIN,
            "no prefix length worse with an interval above zero": all(
                line["log_loss"][1] <= 0 for line in decided["by_prefix_length"].values()
            ),
        }
    )


if __name__ == "__main__":
    typer.run(main)
