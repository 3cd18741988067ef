"""Distance of `willbuy train` from the exact posterior of synthetic shops, for which the optimum is known.

    python -m benchmarks.synthetic_optimum --out result.json                        # three shops, 50,000 sessions each
    python -m benchmarks.synthetic_optimum --shape long-tail --sessions 5000 --out quick.json

Each shop's log is drawn, prepared, split by time and trained on as by `willbuy train`, including temperature and bias.
The test sessions (15 %) are judged by

    * the expected excess log loss over the posterior: the mean Kullback-Leibler divergence of the model's probabilities
      from the posterior over all prefixes. It does not depend on the drawn outcomes;
    * the observed excess log loss, from the drawn outcomes;
    * the calibration error against the posterior: bins of equally many prefixes, mean posterior minus mean probability;
    * the calibration error against the outcomes, and that of the posterior itself for comparison.

Intervals resample sessions. Criteria, fixed before: excess of at most 0.005 nats, calibration error of at most 0.01.
"""

import json
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from training.commands.console import errors_for_people, print_line
from training.commands.stages import stage
from training.config import FitSettings, TrainSettings, fractions_for
from training.data.prepare import prepare
from training.evaluation.metrics import (
    CALIBRATION_BINS,
    calibration_error,
    equal_mass_bins,
    log_losses,
)
from training.evaluation.posterior import posterior_of
from training.evaluation.resampling import ClusterMean, Estimate, estimate, once, resample
from training.fit.result import Predictions
from training.fit.train import WILLBUY, train
from training.synthetic import PRESETS, generate, write

SHAPES: Final = ("low-base-rate", "long-sessions", "long-tail")
RESAMPLES: Final = 2_000
MOST_EXCESS: Final = 0.005
MOST_CALIBRATION_ERROR: Final = 0.01

Floats = NDArray[np.float64]


class AskedError(ValueError):
    """The measurement is not possible; the message names the reason."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Results of a model on the test sessions of a shop.

    Attributes:
        shape: the shop's.
        sessions: drawn; `trained`, `tested`: of these, in the training and in the test part.
        prefixes: of the test sessions.
        excess: expected excess log loss over the posterior in nats, with its interval.
        observed_excess: the same with the outcomes that happened.
        calibration_error: against the posterior.
        observed_calibration_error: against the outcomes; `chance_calibration_error`: the posterior's.
        excess_by_length: expected excess after so many events.
        seconds: of training.
    """

    shape: str
    sessions: int
    trained: int
    tested: int
    prefixes: int
    excess: Estimate
    observed_excess: Estimate
    calibration_error: float
    observed_calibration_error: float
    chance_calibration_error: float
    excess_by_length: dict[int, float]
    seconds: float

    @property
    def near(self) -> bool:
        """Whether the model meets the criteria."""
        return (self.excess.value or 0.0) <= MOST_EXCESS and self.calibration_error <= MOST_CALIBRATION_ERROR


def expected_log_losses(posterior: Floats, probability: Floats) -> Floats:
    """Return (N,) the expected log loss of each probability, given the chances of a purchase."""
    bought, left = log_losses(np.ones_like(posterior), probability), log_losses(np.zeros_like(posterior), probability)
    losses: Floats = posterior * bought + (1.0 - posterior) * left
    return losses


def error_against(posterior: Floats, probability: Floats) -> float:
    """Return the calibration error of probabilities against known chances, in bins of equally many predictions."""
    bin_of = equal_mass_bins(probability, CALIBRATION_BINS)
    return float(np.abs(np.bincount(bin_of, posterior - probability)).sum() / len(posterior))


def mean_over_sessions(session_index: NDArray[np.int64], values: Floats) -> Estimate:
    """Return the mean of the prefixes' values with its 95 % interval, from resampled sessions."""
    ids, session = np.unique(session_index, return_inverse=True)
    statistic = ClusterMean(values, session, len(ids))
    (drawn,) = resample([statistic], len(ids), resamples=RESAMPLES)
    return estimate(float(once(statistic, len(ids))["mean"]), drawn["mean"])


def judged(shape: str, sessions: int, trained: int, seconds: float, test: Predictions, posterior: Floats) -> Judgement:
    """Return the outcomes of a shop's test sessions."""
    said = test.probability[WILLBUY]
    excess = expected_log_losses(posterior, said) - expected_log_losses(posterior, posterior)
    observed = log_losses(test.outcome, said) - log_losses(test.outcome, posterior)
    errors = [calibration_error(test.outcome, probability) for probability in (said, posterior)]
    if errors[0] is None or errors[1] is None:
        raise AskedError("sessions: the test part has none; more are needed")
    return Judgement(
        shape=shape,
        sessions=sessions,
        trained=trained,
        tested=len(np.unique(test.session_index)),
        prefixes=len(excess),
        excess=mean_over_sessions(test.session_index, excess),
        observed_excess=mean_over_sessions(test.session_index, observed),
        calibration_error=error_against(posterior, said),
        observed_calibration_error=errors[0],
        chance_calibration_error=errors[1],
        excess_by_length={
            length: float(excess[test.prefix_length == length].mean())
            for length in (1, 2, 3, 5, 10, 20, 50, 100, 200)
            if (test.prefix_length == length).any()
        },
        seconds=round(seconds, 1),
    )


def measure(shape: str, sessions: int, log_seed: int, settings: TrainSettings, folder: Path) -> Judgement:
    """Draw a shop's log, train on it, and evaluate the test sessions.

    Raises:
        training.fit.train.TrainingError: too few sessions to train on.
    """
    log = folder / f"{shape}.parquet"
    write(generate(PRESETS[shape], sessions, log_seed), log)
    dataset = prepare(log, folder / shape)
    settings = replace(settings, fractions=fractions_for(dataset.counts.sessions.sessions))
    result = train(dataset, settings, stages=stage)
    test = result.test
    posterior = posterior_of(
        log.with_suffix(".posterior.parquet"), test.session_id[test.session_index], test.prefix_length
    )
    return judged(shape, sessions, result.sessions["train"], result.seconds, test, posterior)


def shown(judgements: list[Judgement]) -> Table:
    """Return the results as a table."""
    table = Table(title="mean excess log loss over the exact posterior, test sessions", title_justify="left")
    table.add_column("shop")
    for heading in (
        "trained on", "prefixes", "excess, nats", "95 %", "observed", "95 %", "calibration error", "against outcomes",
        "posterior's", "within",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for one in judgements:
        table.add_row(
            one.shape,
            f"{one.trained:,}",
            f"{one.prefixes:,}",
            f"{one.excess.value:.4f}",
            f"{one.excess.low:.4f} to {one.excess.high:.4f}",
            f"{one.observed_excess.value:.4f}",
            f"{one.observed_excess.low:.4f} to {one.observed_excess.high:.4f}",
            f"{one.calibration_error:.4f}",
            f"{one.observed_calibration_error:.4f}",
            f"{one.chance_calibration_error:.4f}",
            "yes" if one.near else "no",
        )
    return table


@errors_for_people(ValueError, OSError)
def main(
    out: Annotated[Path, typer.Option(help="JSON file for the result; written after each shop.")],
    shape: Annotated[list[str] | None, typer.Option(help="Shops to draw; may be repeated.")] = None,
    sessions: Annotated[int, typer.Option(min=1000, help="Sessions to draw of each.")] = 50_000,
    log_seed: Annotated[int, typer.Option(min=0, help="Of the visitors.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the training.")] = 0,
) -> None:
    """Train on synthetic shops and print the distance of the models from the optimum."""
    shapes = shape or list(SHAPES)
    unknown = [name for name in shapes if name not in PRESETS]
    if unknown:
        raise AskedError(f"--shape: expected one of {', '.join(PRESETS)}, not {unknown[0]!r}")
    settings = TrainSettings(fit=FitSettings(seed=seed), lightgbm=False)
    judgements: list[Judgement] = []
    for name in shapes:
        print_line(f"{name}, {sessions:,} sessions", style="bold")
        with tempfile.TemporaryDirectory(prefix="willbuy-") as folder:
            judgements.append(measure(name, sessions, log_seed, settings, Path(folder)))
        out.write_text(json.dumps([asdict(one) for one in judgements], indent=1), encoding="utf-8")
    Console(width=180).print(shown(judgements))


if __name__ == "__main__":
    typer.run(main)
