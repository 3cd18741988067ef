"""Hyperparameter search: `willbuy train --search N` tries N settings and then trains with the best.

Optuna's tree-structured Parzen estimator (Bergstra et al., 2011) proposes the settings. Median pruning stops a trial
whose validation loss after some epoch is worse than the median of the earlier trials at that epoch. The objective is
the log loss on the validation sessions at the best epoch; calibration and test sessions are not used. Trials run one
after another with fixed seeds, so the same seed on the same data repeats the search.

    setting                    tried
    fit.learning_rate          0.0003 to 0.005, by its logarithm
    fit.weight_decay           0.001 to 0.5, by its logarithm
    fit.teacher_weight         0 to 1; without effect where there is no teacher
    fit.bucket_batches         1, 2, 4, 8
    pretraining.learning_rate  0.001 to 0.01, by its logarithm
    pretraining.steps          150, 300, 600; without effect where `pretraining.epochs` is given
    sizes.dropout              0 to 0.6
    sizes.input_dropout        0 to 0.3
    sizes.hidden_size          32, 64, 96, 128
    sizes.head_size            32, 64, 96, 128
    quantile_bins              1, 6, 12, 24

The first trial has the given settings; settings outside the space widen it.
"""

import csv
import io
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import optuna

from model.atomic_write import atomic_write
from model.encoder import Encoder
from training.config import TrainSettings
from training.data.encoded import Encoded
from training.data.training_set import TrainingError
from training.fit.checkpoint import Epoch
from training.fit.loop import fit
from training.fit.recipe import add_soft_targets, pretrained
from training.runtime.progress import StageFactory, null_progress

RANGES: Final[Mapping[str, tuple[float, float, bool]]] = MappingProxyType(
    {
        "fit.learning_rate": (3e-4, 5e-3, True),
        "fit.weight_decay": (1e-3, 0.5, True),
        "fit.teacher_weight": (0.0, 1.0, False),
        "pretraining.learning_rate": (1e-3, 1e-2, True),
        "sizes.dropout": (0.0, 0.6, False),
        "sizes.input_dropout": (0.0, 0.3, False),
    }
)
"""Lowest and highest value, and whether the value is drawn on a logarithmic scale."""

CHOICES: Final[Mapping[str, tuple[int, ...]]] = MappingProxyType(
    {
        "fit.bucket_batches": (1, 2, 4, 8),
        "pretraining.steps": (150, 300, 600),
        "sizes.hidden_size": (32, 64, 96, 128),
        "sizes.head_size": (32, 64, 96, 128),
        "quantile_bins": (1, 6, 12, 24),
    }
)

_RANDOM_TRIALS: Final = 8  # random trials before the estimator starts
_UNPRUNED_TRIALS: Final = 4
_UNPRUNED_EPOCHS: Final = 2


@dataclass(frozen=True, slots=True)
class Trial:
    """The result of one trial.

    Attributes:
        number: from 0.
        settings: the values tried, by dotted key.
        state: `complete`, `pruned` (stopped early, worse than the median) or `failed` (the loss was not finite).
        validation_loss: lowest log loss on the validation sessions, nats a prefix; None where it was never finite.
        epochs: passes over the training sessions.
        seconds: duration.
    """

    number: int
    settings: dict[str, float]
    state: str
    validation_loss: float | None
    epochs: int
    seconds: float


@dataclass(slots=True)
class Search:
    """Runs trials on encoded sessions; it is a `tune` callback of `training.fit.train.train`.

    Attributes:
        base: settings to start from.
        count: number of trials.
        table: CSV file of the trials, rewritten after each.
        device: `cpu`, `cuda` or `auto`.
        stages: shows progress.
        on_better: called with the best settings so far, after each trial that improved them.
        trials: finished trials.
    """

    base: TrainSettings
    count: int
    table: Path | None = None
    device: str = "cpu"
    stages: StageFactory = null_progress
    on_better: Callable[[TrainSettings], None] | None = None
    trials: list[Trial] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether every trial is over."""
        return len(self.trials) >= self.count

    @property
    def best(self) -> Trial | None:
        """The complete trial with the lowest validation loss, the earliest of equals; None before there is one."""
        complete = [trial for trial in self.trials if trial.state == "complete"]
        return min(complete, key=lambda trial: trial.validation_loss or math.inf, default=None)

    @property
    def settings(self) -> TrainSettings:
        """The base settings with the values of the best trial."""
        return self.base if self.best is None else with_values(self.base, self.best.settings)

    def summary(self) -> dict[str, Any]:
        """Return the summary of the search for the run's record."""
        best = self.best
        return {
            "trials": len(self.trials),
            "pruned": sum(trial.state == "pruned" for trial in self.trials),
            "best": None if best is None else best.number,
            "validation_loss": None if best is None else best.validation_loss,
            "settings": {} if best is None else best.settings,
            "first_validation_loss": self.trials[0].validation_loss if self.trials else None,
        }

    def __call__(self, encoder: Encoder, train: Encoded, validation: Encoded) -> TrainSettings:
        """Run the trials and return the best settings.

        Raises:
            TrainingError: the loss was finite in no trial.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=self.base.fit.seed, n_startup_trials=_RANDOM_TRIALS),
            pruner=optuna.pruners.MedianPruner(_UNPRUNED_TRIALS, _UNPRUNED_EPOCHS),
        )
        study.enqueue_trial(_first(self.base))
        # One teacher for all trials: its soft targets hardly depend on the searched settings, their weight apart.
        model = pretrained(encoder, train, validation, self.base, device=self.device)
        add_soft_targets(model, train, validation, self.base, stages=self.stages)
        epochs = self.base.fit.passes(len(train.columns.outcome))
        with self.stages("searching settings", self.count * epochs) as show:
            for _ in range(self.count):
                drawn = study.ask()
                done = len(self.trials) * epochs

                def progress(epoch: Epoch, done: int = done) -> None:
                    show(done + epoch.number, self._note())

                before = self.best
                trial = self._try(drawn, encoder, train, validation, progress)
                self.trials.append(trial)
                if trial.state == "complete":
                    study.tell(drawn, trial.validation_loss)
                else:
                    states = optuna.trial.TrialState
                    study.tell(drawn, state=states.PRUNED if trial.state == "pruned" else states.FAIL)
                show(len(self.trials) * epochs, self._note())
                self._write(before)
        if self.best is None:
            raise TrainingError("the validation loss was never a number in any trial of the search")
        return self.settings

    def _try(
        self,
        drawn: optuna.trial.Trial,
        encoder: Encoder,
        train: Encoded,
        validation: Encoded,
        show: Callable[[Epoch], None],
    ) -> Trial:
        values = _draw(drawn, self.base)
        settings = with_values(self.base, values)
        began = time.perf_counter()
        losses: list[float] = []

        def progress(_number: int, _done: int, epoch: Epoch | None) -> None:
            if epoch is None:
                return
            losses.append(epoch.validation_loss)
            show(epoch)
            if math.isfinite(epoch.validation_loss):
                drawn.report(epoch.validation_loss, epoch.number)
                if drawn.should_prune():
                    raise optuna.TrialPruned

        model = pretrained(encoder, train, validation, settings, device=self.device)
        state = "complete"
        try:
            fit(model, train, validation, settings.fit, device=self.device, progress=progress)
        except optuna.TrialPruned:
            state = "pruned"
        finite = [loss for loss in losses if math.isfinite(loss)]
        return Trial(
            number=drawn.number,
            settings=values,
            state=state if finite else "failed",
            validation_loss=min(finite, default=None),
            epochs=len(losses),
            seconds=round(time.perf_counter() - began, 2),
        )

    def _note(self) -> str:
        best = self.best
        reached = "" if best is None else f", best {best.validation_loss:.4f} nats (trial {best.number})"
        return f"{len(self.trials)} of {self.count} trials{reached}"

    def _write(self, before: Trial | None) -> None:
        if self.table is not None:
            write_trials(self.table, self.trials)
        if self.on_better is not None and self.best is not before:
            self.on_better(self.settings)


def with_values(base: TrainSettings, values: Mapping[str, float]) -> TrainSettings:
    """Return the settings with some values replaced, by dotted key."""
    changed: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        table, _, name = key.rpartition(".")
        changed.setdefault(table, {})[name] = value
    top = changed.pop("", {})
    tables: dict[str, Any] = {table: replace(getattr(base, table), **given) for table, given in changed.items()}
    return replace(base, **tables, **top)


def write_trials(path: Path, trials: list[Trial]) -> None:
    """Write the trials as a table, one a row."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["number", "state", "validation_loss", "epochs", "seconds", *RANGES, *CHOICES])
    for trial in trials:
        rows.writerow(
            [trial.number, trial.state, trial.validation_loss, trial.epochs, trial.seconds]
            + [trial.settings[key] for key in (*RANGES, *CHOICES)]
        )
    atomic_write(path, text.getvalue())


def _value(settings: TrainSettings, key: str) -> float:
    value: Any = settings
    for name in key.split("."):
        value = getattr(value, name)
    return value  # type: ignore[no-any-return]  # a setting of the space is a number


def _first(base: TrainSettings) -> dict[str, float]:
    """Return the base's values for the first trial; a value without a logarithm becomes the range's lower end."""
    values = {key: _value(base, key) for key in CHOICES}
    for key, (low, _, logarithmic) in RANGES.items():
        value = _value(base, key)
        values[key] = low if logarithmic and value <= 0 else value
    return values


def _draw(drawn: optuna.trial.Trial, base: TrainSettings) -> dict[str, float]:
    first = _first(base)
    values: dict[str, float] = {}
    for key, (low, high, logarithmic) in RANGES.items():
        values[key] = drawn.suggest_float(key, min(low, first[key]), max(high, first[key]), log=logarithmic)
    for key, choices in CHOICES.items():
        values[key] = drawn.suggest_categorical(key, sorted({*choices, int(first[key])}))
    return values
