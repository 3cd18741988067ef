"""Everything that decides what a training run computes."""

from dataclasses import dataclass, field

from model.network import NetworkSizes
from training.data.leaks import LeakSettings
from training.data.sessions import DEFAULT_FRACTIONS
from training.fit.distillation import TeacherSettings
from training.fit.loop import FitSettings
from training.fit.pretraining import PretrainingSettings


@dataclass(frozen=True, slots=True)
class VocabularySettings:
    """How many training sessions must contain a word for the model to know it by name, and how many it knows.

    Words below that are "other": a name seen in a handful of sessions teaches chance.
    """

    event_names_at_least: int = 10
    event_names_at_most: int = 64
    categories_at_least: int = 50
    categories_at_most: int = 256
    items_at_least: int = 100
    items_at_most: int = 1024
    property_values_at_least: int = 20
    property_values_at_most: int = 64


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Everything that decides what a run computes.

    Attributes:
        fit: how the network is fitted.
        pretraining: what it learns before that.
        teacher: who tells it what to think of each prefix, beside the outcomes.
        sizes: how large it is.
        vocabulary: which words it knows.
        properties: names of the properties to use; None for all that the data has.
        fractions: shares of the sessions for training, validation, calibration and test; where nobody chose them, a
            run takes those of `training.data.sessions.fractions_for`.
        split_seed: varies a split by session; a split by time has nothing to vary.
        quantile_bins: bins of each feature's piecewise-linear encoding at most; 1 is as good as none.
        lightgbm: whether to fit LightGBM for comparison.
        sample_events: events of a part that are looked at whole, by calibration, LightGBM and the report; where a part
            has more, a random sample of its sessions stands for it. The network is fitted on all.
        leaks: what an input may tell by itself before it is refused.
    """

    fit: FitSettings = field(default_factory=FitSettings)
    pretraining: PretrainingSettings = field(default_factory=PretrainingSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    sizes: NetworkSizes = field(default_factory=NetworkSizes)
    vocabulary: VocabularySettings = field(default_factory=VocabularySettings)
    properties: tuple[str, ...] | None = None
    fractions: tuple[float, ...] = DEFAULT_FRACTIONS
    split_seed: int = 0
    quantile_bins: int = 12
    lightgbm: bool = True
    sample_events: int = 2_000_000
    leaks: LeakSettings = field(default_factory=LeakSettings)

    def __post_init__(self) -> None:
        if self.quantile_bins < 1:
            raise ValueError(f"quantile_bins: expected a whole number from 1 up, not {self.quantile_bins}")
        if self.sample_events < 1:
            raise ValueError(f"sample_events: expected a whole number from 1 up, not {self.sample_events}")
