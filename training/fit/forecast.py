"""What each stage of a training run is expected to take, for the time left that `willbuy train` shows."""

from typing import Final

from training.config import TrainSettings
from training.fit.importance import MOST_EVENTS

# Microseconds an event on one core of a current CPU. Only their proportions matter: finished stages correct the pace.
_CHECK_US: Final = 20
_ENCODE_US: Final = 5
_LIGHTGBM_US: Final = 40
_RESAMPLE_US: Final = 300
_EXCHANGE_US: Final = 180
# For a network without units, and for each unit of the cell.
_PRETRAIN_US: Final = (4.0, 0.28)
_FIT_US: Final = (3.0, 0.22)
_TEACH_US: Final = (8.0, 0.16)


def expected_seconds(
    settings: TrainSettings, sessions: int, events: int, *, trials: int = 0, warm_start: bool = False
) -> dict[str, float]:
    """Return the expected seconds of each stage of a run by its name, in order.

    Args:
        settings: of the run.
        sessions: of the data.
        events: of all sessions.
        trials: settings to try before.
        warm_start: whether the run continues from an earlier model.
    """
    train, validation, _, test = (share * events / 1e6 for share in settings.fractions)
    trained = round(settings.fractions[0] * sessions) or 1
    passes = 0 if warm_start else settings.pretraining.passes(trained, settings.fit.batch_sessions)
    pretraining = passes * train * _of_size(_PRETRAIN_US, settings)
    teaches = settings.teacher.folds and settings.fit.teacher_weight and not warm_start
    taught = min(train + validation, settings.teacher.sample_events / 1e6)
    distillation = settings.teacher.folds * taught * _of_size(_TEACH_US, settings) if teaches else 0.0
    fit = settings.fit.passes(trained) * train * _of_size(_FIT_US, settings)
    most = settings.sample_events / 1e6
    stages = {
        "checking inputs": _CHECK_US * events / 1e6,
        "encoding sessions": _ENCODE_US * events / 1e6,
        "searching settings": trials * (pretraining + fit),
        "pre-training": pretraining,
        "distillation": distillation,
        "fit": fit,
        "fitting LightGBM for comparison": _LIGHTGBM_US * min(train, most) if settings.lightgbm else 0.0,
        "exchanging inputs": _EXCHANGE_US * min(test, MOST_EVENTS / 1e6),
        "resampling test sessions": _RESAMPLE_US * min(test, most),
    }
    return {name: seconds for name, seconds in stages.items() if seconds}


def _of_size(microseconds: tuple[float, float], settings: TrainSettings) -> float:
    fixed, each_unit = microseconds
    return fixed + each_unit * settings.sizes.hidden_size
