"""Every settings dataclass of training; each default stands here and nowhere else.

A field made by `option` is also a command-line option: `training.commands.options` generates name, type, default and
help text from it; `Attributes` has what the help text does not say. `TrainSettings`, `LogSettings` and
`ComputeSettings` are the file that `--config` reads (`training.config_file`). This module imports neither torch nor
polars, so that `willbuy --help` answers at once.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Literal

from model.redis_keys import DEFAULT_KEY_PREFIX
from model.sizes import CELL_KINDS, NetworkSizes

Device = Literal["auto", "cpu", "cuda"]
Tracker = Literal["tensorboard", "mlflow"]
Interventions = Literal["keep", "leave-out", "property"]
AfterPurchase = Literal["ignore", "restart"]
Part = Literal["train", "validation", "calibration", "test"]

PARTS: Final[tuple[str, ...]] = ("train", "validation", "calibration", "test")
DEFAULT_FRACTIONS: Final = (0.65, 0.1, 0.1, 0.15)
"""Shares of the sessions by part, in the order of `PARTS`."""

IDLE_TIMEOUT_S: Final = 1800.0
# Plausible times: from the earliest until so many days after now.
EARLIEST: Final = "1990-01-01"
DAYS_AHEAD: Final = 2.0
EVALUATE_RESAMPLES: Final = 500
COMPARE_RESAMPLES: Final = 2_000
# Sessions that suffice to choose an epoch, and to fit a calibration: a tenth of a large log would be more than needed.
_ENOUGH_HELD_OUT: Final = 2_500
# Passes over the training sessions, whatever the steps that suffice. Three are the least where they have at most
# `_MOST_STEPS`; the most of pre-training are fewer, because nothing stops it early.
_LEAST_PASSES: Final = 3
_MOST_PASSES: Final = 60
_MOST_PRETRAINING_PASSES: Final = 20
_MOST_STEPS: Final = 20_000
_LEAST_SHARE: Final = 0.02

DATA: Final = "Data"
MODEL: Final = "Model"
ASSUMPTIONS: Final = "Assumptions"


@dataclass(frozen=True, slots=True)
class Option:
    """How a settings field appears on the command line.

    Attributes:
        help: help text.
        flag: the option's name; derived from the field's name where empty.
        low, high: bounds that the command line checks.
        panel: heading in the help.
        metavar: placeholder of the value.
        kind: type on the command line where it differs from the field's.
        envvar: environment variable that sets it.
        shown: the default as the help shows it; False hides it.
    """

    help: str
    flag: str = ""
    low: float | None = None
    high: float | None = None
    panel: str | None = None
    metavar: str | None = None
    kind: Any = None
    envvar: str | None = None
    shown: bool | str = True


def option(default: Any, help: str, **facts: Any) -> Any:  # noqa: A002, ANN401  # as `field`; `Option.help`
    """Return a dataclass field that is also a command-line option; `facts` are attributes of `Option`."""
    return field(default=default, metadata={"option": Option(help, **facts)})


def _require(settings: object, expected: str, holds: Callable[[Any], bool], *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not holds(value):
            raise ValueError(f"{name}: expected {expected}, not {value}")


def _require_positive(settings: object, *names: str) -> None:
    _require(settings, "a whole number from 1 up", lambda value: value >= 1, *names)


def _passes(asked: int | None, steps: int, steps_a_pass: float, most: int) -> int:
    if asked is not None:
        return asked
    least = min(_LEAST_PASSES, max(1, round(_MOST_STEPS / steps_a_pass)))
    return min(most, max(least, round(steps / steps_a_pass)))


# --- the data


@dataclass(frozen=True, slots=True)
class LogFormat:
    """The format of a raw log."""

    format: str = option(
        "auto", "auto, mapping, or a known format such as ga4 or segment (docs/event-table.md).", panel=DATA
    )
    mapping: Path | None = option(None, "TOML file that assigns columns to fields (docs/event-table.md).", panel=DATA)


@dataclass(frozen=True, slots=True)
class LogSettings(LogFormat):
    """How a raw log is read; prepared sessions ignore it.

    Attributes:
        equal_rows: keep or drop rows that agree in every column; by default, a mapped log's are dropped where it has an
            event id or times below the second, so that they are one event logged twice.
    """

    idle_timeout_s: float = option(IDLE_TIMEOUT_S, "Idle seconds that end a session.", panel=DATA)
    keep_open_sessions: bool = option(default=False, help="Keep sessions that the log's end cuts off.", panel=DATA)
    time_unit: str | None = option(None, "Unit of times that are numbers: s, ms, us or ns.", panel=DATA)
    time_zone: str | None = option(
        None, "Zone of times without an offset, such as Europe/Berlin; by default they are UTC.", panel=DATA
    )
    earliest: str = option(EARLIEST, "Earliest plausible time; rows before it are rejected.", panel=DATA)
    days_ahead: float = option(DAYS_AHEAD, "Days by which times may be later than now.", panel=DATA)
    keep_placeholder_ids: bool = option(
        default=False, help="Accept placeholders such as undefined as session ids.", panel=DATA
    )
    equal_rows: str | None = option(
        None,
        "keep or drop: rows that agree in every column (default: dropped with an event id or times below the second).",
        panel=DATA,
    )
    after_purchase: AfterPurchase = option(
        "ignore",
        "Rows after a session's purchase: ignore them, or restart with them as another session. As the service's "
        "WILLBUY_AFTER_PURCHASE.",
        panel=DATA,
    )


@dataclass(frozen=True, slots=True)
class ColumnOptions:
    """A column mapping as command-line options, in place of a mapping file.

    Attributes:
        constants: `name=value` pairs of fields that are the same in every row; an event name is that of rows whose own
            is blank.
    """

    columns: tuple[str, ...] = option((), "FIELD=COLUMN, repeatable: session_id=sid.", flag="--column", panel=DATA)
    events: tuple[str, ...] = option((), "THEIRS=OURS, repeatable: cart=add_to_cart.", flag="--event", panel=DATA)
    properties: tuple[str, ...] = option((), "NAME=COLUMN, repeatable: device=dev.", flag="--property", panel=DATA)
    time_format: str | None = option(
        None, "iso, epoch_s, epoch_ms, epoch_us, epoch_ns, elapsed_s, elapsed_ms, or a strptime pattern.", panel=DATA
    )
    separator: str | None = option(None, "Character between fields of a CSV; found out by default.", panel=DATA)
    encoding: str | None = option(None, "Encoding of text, such as latin-1; found out by default.", panel=DATA)
    session_key: tuple[str, ...] = option(
        (), "COLUMN,COLUMN: columns that together name a session.", flag="--session-key", panel=DATA
    )
    session: str | None = option(None, "Column of the session: --column session_id=COLUMN.", panel=DATA)
    visitor: str | None = option(None, "Column of the visitor: --column visitor_id=COLUMN.", panel=DATA)
    drop: tuple[str, ...] = option((), "Event name whose rows are left out; repeatable.", flag="--drop", panel=DATA)
    constants: tuple[str, ...] = option(
        (),
        "FIELD=VALUE for every row, or for blank event names, repeatable: event_name=page_view.",
        flag="--constant",
        panel=DATA,
    )
    has_header: bool = option(
        default=True,
        help="Whether the first line names the columns; otherwise they are column_1, column_2.",
        flag="--header/--no-header",
        panel=DATA,
    )
    missing_values: tuple[str, ...] = option(
        (), "Word for a missing value, such as NULL; repeatable.", flag="--missing-value", panel=DATA
    )
    decimal_comma: bool = option(
        default=False, help="Numbers have a decimal comma, as in 1.299,50.", flag="--decimal-comma", panel=DATA
    )


@dataclass(frozen=True, slots=True)
class DryRun:
    """A first look at a log that writes nothing."""

    dry_run: bool = option(default=False, help="Read the first rows, show what they are read as, write nothing.")
    rows: int = option(20_000, "Rows that --dry-run reads.", low=1)


@dataclass(frozen=True, slots=True)
class SynthesizeSettings:
    """The synthetic log of `willbuy synthesize`."""

    sessions: int = option(20_000, "Number of sessions.", low=1)
    shape: str = option("default", "default, low-base-rate, long-sessions, long-tail or treated.")
    seed: int = option(0, "Same seed, same log.", low=0)


# --- training


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How a network is fitted.

    Attributes:
        epochs: most passes over the training sessions; None for as many as have `steps`, from 3 to 60, and
            fewer where three have more than 20,000 steps.
        patience: epochs without a lower validation loss before the fit stops; None for a third of the passes, at
            least 3.
        learning_rate: highest rate of AdamW against outcomes, twice as high against soft targets; it warms up over the
            first epoch, then follows a cosine down.
        gradient_norm: longer gradients are clipped to this.
        bucket_batches: see `training.data.dataset.batches`.
        teacher_weight: weight of the loss against soft targets, where there are any; the rest is against outcomes.
        mixed_precision: bfloat16 for dense layers on a GPU that supports it; a CPU always computes in float32.
        seed: of weights, order and dropout. Same seed, same result on the same CPU build.
    """

    steps: int = option(
        500, "Optimiser steps; the number of passes over the data follows from them.", low=1, panel=MODEL
    )
    epochs: int | None = option(
        None, "Most passes over the data.", kind=int, low=1, panel=MODEL, shown="by the steps, 3 to 60"
    )
    patience: int | None = option(
        None,
        "Stop after so many epochs without a better validation loss.",
        kind=int,
        low=1,
        panel=MODEL,
        shown="a third of the passes",
    )
    batch_sessions: int = option(128, "Sessions in each step.", low=1, panel=MODEL)
    learning_rate: float = option(
        1e-3, "Highest learning rate against outcomes; against soft targets it is twice as high.", panel=MODEL
    )
    weight_decay: float = option(1e-2, "AdamW's weight decay.", panel=MODEL)
    gradient_norm: float = 1.0
    bucket_batches: int = 4
    teacher_weight: float = 0.9
    mixed_precision: bool = True
    seed: int = option(0, "Seed of weights, order, dropout, split and search.", low=0)

    def __post_init__(self) -> None:
        _require_positive(self, "steps", "batch_sessions", "bucket_batches")
        _require_positive(self, *(name for name in ("epochs", "patience") if getattr(self, name) is not None))
        _require(self, "a number above 0", lambda value: value > 0, "learning_rate", "gradient_norm")
        _require(self, "a number from 0 up", lambda value: value >= 0, "weight_decay")
        _require(self, "a share from 0 to 1", lambda value: 0 <= value <= 1, "teacher_weight")

    def passes(self, sessions: int) -> int:
        """Return the most passes over so many training sessions."""
        return _passes(self.epochs, self.steps, sessions / self.batch_sessions, _MOST_PASSES)

    def patience_of(self, passes: int) -> int:
        """Return the passes without a lower validation loss after which a fit of so many passes stops."""
        return max(_LEAST_PASSES, passes // 3) if self.patience is None else self.patience


@dataclass(frozen=True, slots=True)
class PretrainingSettings:
    """Pre-training on next-event prediction.

    Attributes:
        steps: optimiser steps, as in `FitSettings`.
        epochs: passes over the training sessions; 0 for no pre-training, None for as many as have `steps`.
        learning_rate: highest rate of AdamW.
        weight_decay: decoupled weight decay of AdamW.
    """

    steps: int = 600
    epochs: int | None = None
    learning_rate: float = 3e-3
    weight_decay: float = 0.5

    def __post_init__(self) -> None:
        _require(self, "a whole number from 0 up", lambda value: value is None or value >= 0, "epochs")
        _require(self, "a number above 0", lambda value: value > 0, "learning_rate")
        _require(self, "a number from 0 up", lambda value: value >= 0, "weight_decay")
        _require_positive(self, "steps")

    def passes(self, sessions: int, batch_sessions: int) -> int:
        """Return the passes over so many training sessions."""
        return _passes(self.epochs, self.steps, sessions / batch_sessions, _MOST_PRETRAINING_PASSES)


@dataclass(frozen=True, slots=True)
class TeacherSettings:
    """Distillation: the teacher whose out-of-fold probabilities are the network's soft targets.

    Attributes:
        folds: folds of the sessions, at least 2; 0 for no teacher.
        least_buyers: with fewer buyers among the training sessions there is no teacher.
        sample_events: most events that the teacher is fitted on, drawn from all sessions. It predicts all events.
    """

    folds: int = 4
    least_buyers: int = 200
    sample_events: int = 250_000

    def __post_init__(self) -> None:
        _require(self, "0 or a whole number from 2 up", lambda value: value == 0 or value > 1, "folds")
        _require_positive(self, "least_buyers", "sample_events")


@dataclass(frozen=True, slots=True)
class LeakSettings:
    """Bounds of the leak check: an input that predicts the future better than this by itself is refused.

    Attributes:
        outcome_auc: highest AUC for the outcome, and for the end of the session.
        future_correlation: highest rank correlation with the time or number of events still to come.
        warn_auc: an input that ranks buyers by itself with this AUC or a higher one is named in the report.
        buyers_share: an event name is suspect where the lower end of the 95 % interval of its buyers' share reaches
            this; likewise of its share of last events, and of other visitors, by the odds.
        significance: highest probability that a useless input is found by chance, over all tests of a run.
        most_sessions: most training sessions examined, drawn evenly.
    """

    outcome_auc: float = 0.95
    future_correlation: float = 0.95
    warn_auc: float = 0.75
    buyers_share: float = 0.98
    significance: float = 0.001
    most_sessions: int = 50_000
    allow_suspect: tuple[str, ...] = option(
        (),
        "Use this input although the leak check refuses it (docs/leaks.md); repeatable.",
        metavar="NAME",
        panel=DATA,
    )

    def __post_init__(self) -> None:
        names = ("outcome_auc", "future_correlation", "warn_auc", "buyers_share", "significance")
        _require(self, "a number above 0 and at most 1", lambda value: 0 < value <= 1, *names)
        _require_positive(self, "most_sessions")


@dataclass(frozen=True, slots=True)
class VocabularySettings:
    """How many training sessions must contain a word for the model to know it, and how many words it knows at most.

    Other words count as "other": a word seen in a handful of sessions would add noise.
    """

    event_names_at_least: int = 10
    event_names_at_most: int = 64
    categories_at_least: int = 50
    categories_at_most: int = 256
    items_at_least: int = 100
    items_at_most: int = 1024
    property_values_at_least: int = 20
    property_values_at_most: int = 64


SIZE_OPTIONS: Final[Mapping[str, Option]] = {
    "cell": Option("Kind of recurrent cell (docs/recipe.md).", kind=Literal[CELL_KINDS], panel=MODEL),
    "aggregates": Option("Show the model running counts, sums and times beside the current event.", panel=MODEL),
    "hidden_size": Option("Units of a recurrent layer.", low=1, panel=MODEL),
    "layers": Option("Recurrent layers.", low=1, high=8, panel=MODEL),
    "head_size": Option("Units of the head.", low=1, panel=MODEL),
    "dropout": Option("Share of units dropped while training; of inputs, half of it.", low=0.0, high=0.95, panel=MODEL),
}
"""Options of `model.sizes.NetworkSizes`, which has no command-line facts of its own."""


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Everything that decides what a run computes.

    Attributes:
        fractions: shares of the sessions by part; a run without a choice takes `fractions_for` its sessions.
        split_seed: varies a split by session; a split by time does not depend on it.
        sample_events: most events of a part that calibration, LightGBM and the report look at; a random sample of
            sessions represents a larger part. The network is always fitted on all sessions.
    """

    fit: FitSettings = field(default_factory=FitSettings)
    pretraining: PretrainingSettings = field(default_factory=PretrainingSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    sizes: NetworkSizes = field(default_factory=NetworkSizes, metadata={"options": SIZE_OPTIONS})
    vocabulary: VocabularySettings = field(default_factory=VocabularySettings)
    properties: tuple[str, ...] | None = option(
        None,
        "Names of the properties that the model uses, separated by commas; all, or none.",
        kind=str,
        shown="all",
        panel=DATA,
    )
    interventions: Interventions = option(
        "keep",
        "Sessions that a rule treated: keep, leave-out, or property, which makes the group an input.",
        panel=DATA,
    )
    fractions: tuple[float, ...] = DEFAULT_FRACTIONS
    split_seed: int = 0
    quantile_bins: int = option(12, "Quantile bins of each feature; 1 turns them off.", low=1, high=256, panel=MODEL)
    lightgbm: bool = option(default=True, help="Fit LightGBM for comparison.")
    sample_events: int = 500_000
    leaks: LeakSettings = field(default_factory=LeakSettings)

    def __post_init__(self) -> None:
        _require_positive(self, "quantile_bins", "sample_events")


@dataclass(frozen=True, slots=True)
class ComputeSettings:
    """Where to compute; the last digits of a result depend on it."""

    device: Device = option("auto", "auto takes a GPU where there is one.")
    threads: int = option(1, "CPU threads; one is quickest for a small network.", low=1, high=256)

    def __post_init__(self) -> None:
        _require_positive(self, "threads")


@dataclass(frozen=True, slots=True)
class RunConfig:
    """The complete configuration of a run.

    Attributes:
        chosen: dotted keys that file or flags set, as opposed to defaults.
    """

    train: TrainSettings = field(default_factory=TrainSettings)
    log: LogSettings = field(default_factory=LogSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    chosen: frozenset[str] = frozenset()

    def for_sessions(self, sessions: int) -> "RunConfig":
        """Return this configuration with the fractions for a log of that size, unless others were chosen."""
        if "fractions" in self.chosen or self.train.fractions != DEFAULT_FRACTIONS:
            return self
        return replace(self, train=replace(self.train, fractions=fractions_for(sessions)))

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the TOML file: JSON-ready, without the keys that have no value."""
        document = {**asdict(self.train), "log": asdict(self.log), "compute": asdict(self.compute)}
        plain: dict[str, Any] = json.loads(json.dumps(document, default=str))
        return _without_none(plain)


@dataclass(frozen=True, slots=True)
class StorageBudget:
    """Where encoded sessions are kept.

    Attributes:
        scratch: folder of those files, which are unlinked once they are open and so vanish with the run. None for the
            system's folder for temporary files.
    """

    memory_mib: int = option(256, "Encoded sessions larger than this are kept in files while it trains.", low=0)
    scratch: Path | None = option(None, "Folder for those files, on a disk with room for them.", shown="beside --out")

    def __post_init__(self) -> None:
        _require(self, "a whole number from 0 up", lambda value: value >= 0, "memory_mib")


_POSTERIOR_HELP: Final = "Exact posterior of a synthetic log (NAME.posterior.parquet), shown as the optimum."


QUICK_SETTINGS: Final = (
    "pretraining.epochs=0",
    "teacher.folds=0",
    "lightgbm=false",
    "fit.epochs=4",
    "fit.learning_rate=3e-3",
)
"""Assignments of `willbuy train --quick`, over those of a file; the user's own assignments and flags override them."""


@dataclass(frozen=True, slots=True)
class ConfigOptions:
    """Where the settings of a `willbuy train` come from, beside its flags."""

    config: Path | None = option(None, "TOML file of settings; options override it.")
    assignments: tuple[str, ...] = option(
        (), "Any setting of the file, repeatable: fit.bucket_batches=8.", flag="--set", metavar="KEY=VALUE"
    )
    print_config: bool = option(default=False, help="Print the settings as TOML, and stop.")


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """Options of one `willbuy train` that its configuration file does not hold."""

    resume: bool = option(default=False, help="Continue from the last checkpoint of this run.")
    quick: bool = option(
        default=False, help="A first look in a minute: fit alone, without pre-training, distillation and LightGBM."
    )
    compile: bool = option(default=False, help="Compile the step for this machine's kind of CPU (willbuy compile).")
    search: int | None = option(None, "Try this many settings first, and train with the best.", low=1)
    start: Path | None = option(None, "Artifact of an earlier model to continue from, on newer data.", flag="--from")
    posterior: Path | None = option(None, _POSTERIOR_HELP, panel=DATA)
    logger: Tracker | None = option(None, "Experiment tracker to log the run in (docs/training.md).", kind=Tracker)
    storage: StorageBudget = field(default_factory=StorageBudget)


# --- evaluation


@dataclass(frozen=True, slots=True)
class SelectionSettings:
    """Which sessions an evaluation uses.

    Attributes:
        most_fitted: most sessions to fit baselines on; a quarter as many to choose their settings by.
        seed: of the samples.
    """

    baselines: bool = option(default=True, help="Fit baselines for comparison.")
    all_sessions: bool = option(
        default=False, help="Evaluate on sessions that a model was trained on, too.", panel=DATA
    )
    most_sessions: int = option(
        20_000, "Most sessions to evaluate on; of more, a random sample is taken.", flag="--sessions", low=1, panel=DATA
    )
    most_fitted: int = option(
        20_000, "Most sessions to fit the baselines on.", flag="--baseline-sessions", low=100, panel=DATA
    )
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Offer:
    """The assumed effect of acting on an alarm, in the shop's own money.

    Attributes:
        uplift: additional purchases that contacts cause, as a share of the purchases that the contacted sessions make
            anyway. An assumption: a log without contacts cannot measure it.
    """

    margin: float = option(30.0, "Earned by each purchase.", panel=ASSUMPTIONS)
    cost: float = option(0.3, "Cost of contacting a session.", panel=ASSUMPTIONS)
    uplift: float = option(
        0.1, "Assumed additional purchases by contacts, as a share of those without.", panel=ASSUMPTIONS
    )

    def __post_init__(self) -> None:
        names = [each.name for each in fields(self)]
        _require(self, "a number from 0 up", lambda value: 0 <= value < float("inf"), *names)


@dataclass(frozen=True, slots=True)
class Assumptions:
    """The assumptions of a report, which no log contains."""

    offer: Offer = field(default_factory=Offer)
    precision: float = option(0.5, "Share of the alarmed sessions that shall buy.", panel=ASSUMPTIONS)
    alarm_share: float = option(0.1, "Share of the sessions that shall be alarmed.", panel=ASSUMPTIONS)

    def __post_init__(self) -> None:
        names = ("precision", "alarm_share")
        _require(self, "a share above 0 and below 1", lambda value: 0.0 < value < 1.0, *names)


@dataclass(frozen=True, slots=True)
class EvaluateSettings:
    """Options of `willbuy evaluate`."""

    out: Path | None = option(
        None, "HTML file to write, with a JSON file of the same content beside it.", shown="beside ARTIFACT"
    )
    log: LogFormat = field(default_factory=LogFormat)
    beside: tuple[str, ...] = option((), "Another model to evaluate as well; repeatable.", metavar="NAME=ARTIFACT")
    baseline_data: Path | None = option(None, "Prepared sessions to fit the baselines on.", panel=DATA)
    posterior: Path | None = option(None, _POSTERIOR_HELP, panel=DATA)
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    assumptions: Assumptions = field(default_factory=Assumptions)
    base_rate: float | None = option(None, "Share of sessions that buy, where it differs from the training's.")
    resamples: int = option(EVALUATE_RESAMPLES, "Bootstrap resamples of the sessions.", flag="--bootstrap", low=20)
    seed: int = option(0, "Seed of samples, baselines and bootstrap.", low=0)
    threads: int = option(1, "CPU threads.", low=1, high=256)


@dataclass(frozen=True, slots=True)
class PredictSettings:
    """Options of `willbuy predict`."""

    log: LogFormat = field(default_factory=LogFormat)
    base_rate: float | None = option(None, "Share of sessions that buy, where it differs from the training's.")
    threads: int = option(1, "CPU threads.", low=1, high=256)


@dataclass(frozen=True, slots=True)
class CompareSettings:
    """Options of `willbuy compare`.

    Attributes:
        tolerance: with `gate`, upper bound in nats that the interval of B's log loss minus A's must stay below.
    """

    log: LogFormat = field(default_factory=LogFormat)
    gate: bool = option(default=False, help="Exit with status 3 unless B is not worse.")
    tolerance: float | None = option(
        None, "With --gate: the interval must show that B is worse by less than this, in nats.", low=0.0
    )
    all_sessions: bool = option(default=False, help="Compare on sessions that a model was trained on, too.")
    most_sessions: int = option(
        20_000, "Most sessions to compare on; of more, a random sample is taken.", flag="--sessions", low=1
    )
    resamples: int = option(COMPARE_RESAMPLES, "Bootstrap resamples of the sessions.", flag="--bootstrap", low=100)
    seed: int = option(0, "Seed of sample and bootstrap.", low=0)
    as_json: bool = option(default=False, help="Print JSON and nothing else.", flag="--json")


# --- commands for a running service


@dataclass(frozen=True, slots=True)
class CheckSettings:
    """Options of `willbuy interventions check`."""

    artifact: Path | None = option(None, "The model that the service runs.", envvar="WILLBUY_ARTIFACT", shown=False)
    log: LogFormat = field(default_factory=LogFormat)
    all_sessions: bool = option(default=False, help="Also sessions that the model was trained on.", panel=DATA)
    most_sessions: int = option(
        20_000, "Most sessions; of more, a random sample is taken.", flag="--sessions", low=1, panel=DATA
    )
    base_rate: float | None = option(None, "Share of sessions that buy, where it differs from the training's.")


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """Options of `willbuy replay`."""

    url: str = option("http://127.0.0.1:8000", "URL of the service.")
    sessions: int = option(500, "Most sessions to replay.", low=1)
    part: Part = option("test", "Part of the split to replay; training has not seen the test part.")
    concurrency: int = option(8, "Sessions replayed at the same time.", low=1, high=1024)
    tolerance: float | None = option(
        None, "Largest difference allowed; by default 2e-3 with float16 state, 1e-5 with float32."
    )
    base_rate: float | None = option(
        None, "Base rate that the answers are shifted to; by default the one that the service reports."
    )
    api_key: str | None = option(
        None,
        "Key of the service, with the scopes events:write and sessions:read.",
        envvar="WILLBUY_API_KEY",
        shown=False,
    )


@dataclass(frozen=True, slots=True)
class CollectSettings:
    """Options of `willbuy collect`."""

    redis_url: str = option(
        "",
        "The service's Redis.",
        envvar="WILLBUY_REDIS_URL",
        shown="the embedded server of a running willbuy serve",
    )
    redis_key_prefix: str = option(
        DEFAULT_KEY_PREFIX, "Beginning of the service's keys.", envvar="WILLBUY_REDIS_KEY_PREFIX"
    )
    redis_ca_file: Path | None = option(
        None, "Certificate authorities of rediss:// URLs, in PEM.", envvar="WILLBUY_REDIS_CA_FILE"
    )
    redis_cert_file: Path | None = option(
        None, "Own certificate for rediss:// URLs, in PEM.", envvar="WILLBUY_REDIS_CERT_FILE"
    )
    redis_key_file: Path | None = option(
        None, "Its private key, if it is in another file.", envvar="WILLBUY_REDIS_KEY_FILE"
    )
    follow: bool = option(
        default=False, help="Wait for new sessions until Ctrl-C, or end with the last one.", flag="--follow/--once"
    )
    every_s: float = option(60.0, "With --follow: least seconds between two files.", low=1.0)
    sessions_a_file: int = option(
        10_000, "Most sessions in one file, approximately.", flag="--sessions-per-file", low=1
    )
    group: str = option("willbuy", "Consumer group; another group gets every session once more.")
    consumer: str = option("collect", "Name within the group; one for each folder.")


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """Options of `willbuy demo`."""

    sessions: int = option(15_000, "Past sessions to train on.", low=500)
    seconds: float | None = option(None, "Stop after so long; by default at Ctrl-C.", low=1.0)
    shoppers: int = option(12, "Shoppers in the shop at the same time.", low=1, high=500)
    speed: float = option(20.0, "How much faster than real time they act.", low=1.0)
    port: int = option(0, "Port of the service; 0 takes a free one.", low=0, high=65535)
    folder: Path = option(Path("artifacts/demo"), "Folder for log, artifact and report.")
    kafka: str | None = option(None, "Brokers, HOST:PORT: events and answers in topics made for it.", shown=False)
    url: str | None = option(None, "Play at this service, and train and start nothing.", shown=False)
    api_key: str | None = option(None, "Key of the service at --url.", envvar="WILLBUY_API_KEY", shown=False)


def fractions_for(sessions: int) -> tuple[float, ...]:
    """Return the shares of `PARTS` in a log of so many sessions, where no others were chosen.

    Validation and calibration are a tenth each up to 2,500 sessions, from there on 2,500 or a fiftieth, whichever is
    more. The training part takes the rest; the test part does not change.
    """
    share = max(_LEAST_SHARE, _ENOUGH_HELD_OUT / max(sessions, 1))
    *_, most, test = DEFAULT_FRACTIONS
    return DEFAULT_FRACTIONS if share >= most else (1.0 - 2 * share - test, share, share, test)


def _without_none(document: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in document.items()
        if value is not None
    }
