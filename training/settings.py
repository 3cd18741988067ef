"""Everything that decides what a training run computes."""

from dataclasses import dataclass, field

from model.network import NetworkSizes
from training.loop import FitSettings
from training.sessions import DEFAULT_FRACTIONS


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
        sizes: how large it is.
        vocabulary: which words it knows.
        properties: names of the properties to use; None for all that the data has.
        fractions: shares of the sessions for training, validation, calibration and test.
        split_seed: varies a split by session; a split by time has nothing to vary.
        quantile_bins: bins of each feature's piecewise-linear encoding at most; 1 is as good as none.
        lightgbm: whether to fit LightGBM for comparison.
    """

    fit: FitSettings = field(default_factory=FitSettings)
    sizes: NetworkSizes = field(default_factory=NetworkSizes)
    vocabulary: VocabularySettings = field(default_factory=VocabularySettings)
    properties: tuple[str, ...] | None = None
    fractions: tuple[float, ...] = DEFAULT_FRACTIONS
    split_seed: int = 0
    quantile_bins: int = 12
    lightgbm: bool = True

    def __post_init__(self) -> None:
        if self.quantile_bins < 1:
            raise ValueError(f"quantile_bins: expected a whole number from 1 up, not {self.quantile_bins}")
