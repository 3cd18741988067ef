"""The three steps of the recipe: pre-training, out-of-fold soft targets, and the fit to both."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from model.encoder import Encoder
from model.events import Event
from model.network import SessionModel
from model.sizes import NetworkSizes
from training.config import FitSettings, PretrainingSettings, TeacherSettings, TrainSettings
from training.data.encoded import Encoded, encode, scaling_of
from training.fit.distillation import fit_teacher
from training.fit.objective import batch_of
from training.fit.pretraining import PREDICTED_FEATURES, NextEventPrediction
from training.fit.recipe import add_soft_targets, pretrained
from training.fit.train import train

NAMES = ["a", "b", "c"]
SIZES = NetworkSizes(hidden_size=8, head_size=8, dropout=0.0, input_dropout=0.0)
SETTINGS = TrainSettings(
    fit=FitSettings(epochs=1, patience=1, batch_sessions=32, seed=3),
    sizes=SIZES,
    pretraining=PretrainingSettings(epochs=2, weight_decay=0.0),
    teacher=TeacherSettings(folds=3, least_buyers=20),
)


@pytest.fixture
def sessions_of(columns_of):
    """Sessions of given names, a second apart, encoded."""

    def make(names, outcomes) -> Encoded:
        sessions = [[Event(name, 1000 * at, price=float(at + 1)) for at, name in enumerate(one)] for one in names]
        return encode(Encoder(NAMES, [], [], [], {}, calendar=False), columns_of(sessions, outcomes))

    return make


@pytest.fixture
def alternating(sessions_of) -> Encoded:
    """Three hundred sessions in which b follows a and a follows b."""
    random = np.random.default_rng(0)
    names = [("abab" * 5)[first : first + random.integers(2, 14)] for first in random.integers(0, 2, 300)]
    return sessions_of(names, random.integers(0, 2, 300).astype(float).tolist())


def model_of(data: Encoded, **sizes) -> SessionModel:
    torch.manual_seed(0)
    encoder = Encoder(NAMES, [], [], [], {}, calendar=False)
    return SessionModel(encoder, replace(SIZES, **sizes), scaling_of(data.features))


# --- pre-training


def test_the_loss_is_that_of_name_or_end_gap_and_what_the_next_event_is_about(sessions_of) -> None:
    data = sessions_of(["ab", "c", "bca"], [1.0, 0.0, 0.0])
    model = model_of(data)
    objective = NextEventPrediction(model)
    batch = batch_of(data, torch.arange(3))
    inputs = model.inputs(batch.features, batch.indices)
    output = objective.unroll(inputs, batch.lengths)
    # Given each event's successor, event by event; the end is the number after all names
    expected = torch.zeros(())
    successors = [1, None, None, 4, 5, None]
    names = list(model.encoder.feature_names)
    for row, successor in enumerate(successors):
        following = model.encoder.index_sizes[0] if successor is None else int(batch.indices[successor, 0])
        expected = expected + functional.cross_entropy(objective.name_head(output[row]), torch.tensor(following))
        if successor is None:
            continue
        scaled = (batch.features[successor] - model.feature_mean) / model.feature_deviation
        mean, log_deviation = objective.gap_head(output[row])
        gap = scaled.clamp(-8, 8)[names.index("log_gap")]
        expected = expected + 0.5 * ((gap - mean) / log_deviation.exp()) ** 2 + log_deviation
        about = scaled.clamp(-8, 8)[[names.index(name) for name in PREDICTED_FEATURES]]
        expected = expected + 0.5 * (objective.feature_head(output[row]) - about).square().sum()
    torch.testing.assert_close(objective(batch), expected)


def test_sessions_of_one_event_only_end(sessions_of) -> None:
    data = sessions_of(["a", "b"], [1.0, 0.0])
    objective = NextEventPrediction(model_of(data))
    assert torch.isfinite(objective(batch_of(data, torch.arange(2))))


def test_every_weight_has_a_gradient_even_where_nothing_follows(sessions_of) -> None:
    """Processes that train together wait for each weight's, whatever their share of a batch is."""
    data = sessions_of(["a", "b"], [1.0, 0.0])
    objective = NextEventPrediction(model_of(data))
    objective(batch_of(data, torch.arange(2))).backward()
    assert [name for name, weight in objective.named_parameters() if weight.requires_grad and weight.grad is None] == []


def test_no_outcome_is_learned_from(alternating) -> None:
    encoder = Encoder(NAMES, [], [], [], {}, calendar=False)
    one = pretrained(encoder, alternating, alternating, SETTINGS)
    alternating.columns.outcome.copy_(1 - alternating.columns.outcome)
    other = pretrained(encoder, alternating, alternating, SETTINGS)
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_the_cell_learns_what_follows(alternating) -> None:
    encoder = Encoder(NAMES, [], [], [], {}, calendar=False)
    losses: list[float] = []
    settings = replace(SETTINGS, pretraining=PretrainingSettings(epochs=8, learning_rate=1e-2, weight_decay=0.0))
    pretrained(
        encoder,
        alternating,
        alternating,
        settings,
        progress=lambda _number, _done, epoch: losses.append(epoch.validation_loss) if epoch else None,
    )
    assert losses[-1] < 0.6 * losses[0]


def test_without_aggregates_none_of_them_is_predicted(alternating) -> None:
    objective = NextEventPrediction(model_of(alternating, aggregates=False))
    assert torch.isfinite(objective(batch_of(alternating, torch.arange(10))))
    assert objective.feature_head.out_features < len(PREDICTED_FEATURES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": -1}, "epochs: expected a whole number from 0"),
        ({"learning_rate": 0.0}, "learning_rate: expected a number above 0"),
        ({"weight_decay": -0.1}, "weight_decay: expected a number from 0"),
    ],
)
def test_bad_pretraining_settings_are_refused_by_name(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        PretrainingSettings(**settings)


# --- the teacher


@pytest.fixture
def telling(sessions_of):
    """Four hundred sessions that buy if they begin with a, and a hundred more to validate on."""
    random = np.random.default_rng(1)
    names = ["".join(random.choice(list("abc"), random.integers(1, 8))) for _ in range(500)]
    outcomes = [float(one[0] == "a") for one in names]
    return sessions_of(names[:400], outcomes[:400]), sessions_of(names[400:], outcomes[400:])


@pytest.mark.parametrize("with_cell", [True, False])
def test_the_teacher_ranks_buyers_that_it_did_not_see(telling, with_cell: bool) -> None:
    model = model_of(telling[0]) if with_cell else None
    for part, said in zip(telling, fit_teacher(list(telling), SETTINGS.teacher, model=model, seed=0), strict=True):
        assert said.shape == (len(part.features),)
        assert ((said > 0) & (said < 1)).all()
        bought = part.columns.outcome[part.columns.session_index()]
        assert roc_auc_score(bought, said) > 0.8


def test_of_outcomes_that_are_chance_the_teacher_knows_nothing(telling) -> None:
    # Given outcomes that only a model that was told them could tell
    part = telling[0]
    random = np.random.default_rng(2)
    part.columns.outcome.copy_(torch.from_numpy(random.integers(0, 2, 400).astype(np.float32)))
    (said,) = fit_teacher([part], SETTINGS.teacher, model=model_of(part), seed=0)
    bought = part.columns.outcome[part.columns.session_index()]
    assert 0.4 < roc_auc_score(bought, said) < 0.6


def test_a_teacher_that_learned_from_a_sample_judges_every_event(telling) -> None:
    few = replace(SETTINGS.teacher, sample_events=600)
    said = fit_teacher(list(telling), few, model=None, seed=0)
    for part, told in zip(telling, said, strict=True):
        assert torch.isfinite(told).all()
        assert len(told) == len(part.features)


def test_the_same_seed_is_the_same_teacher(telling) -> None:
    first, second, other = (fit_teacher([telling[0]], SETTINGS.teacher, model=None, seed=seed)[0] for seed in (5, 5, 6))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_training_and_validation_sessions_get_soft_targets(telling) -> None:
    training, validation = telling
    assert add_soft_targets(model_of(training), training, validation, SETTINGS) is None
    assert training.soft_targets is not None
    assert validation.soft_targets is not None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (replace(SETTINGS, teacher=TeacherSettings(least_buyers=300)), "too few for boosted trees"),
        (replace(SETTINGS, teacher=TeacherSettings(folds=0)), None),
        (replace(SETTINGS, fit=replace(SETTINGS.fit, teacher_weight=0.0)), None),
    ],
)
def test_without_a_teacher_there_are_no_soft_targets(telling, settings, says) -> None:
    training, validation = telling
    why = add_soft_targets(model_of(training), training, validation, settings)
    assert (why is None) if says is None else (says in (why or ""))
    assert training.soft_targets is None
    assert validation.soft_targets is None


def test_a_teacher_needs_as_many_sessions_without_a_purchase(telling) -> None:
    training, validation = telling
    training.columns.outcome[20:] = 1.0
    settings = replace(SETTINGS, teacher=TeacherSettings(least_buyers=21))
    assert "too few for boosted trees" in (add_soft_targets(model_of(training), training, validation, settings) or "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"folds": 1}, "folds: expected 0 or a whole number from 2"),
        ({"folds": -1}, "folds: expected 0"),
        ({"least_buyers": 0}, "least_buyers: expected a whole number from 1"),
        ({"sample_events": 0}, "sample_events: expected a whole number from 1"),
    ],
)
def test_bad_teacher_settings_are_refused_by_name(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        TeacherSettings(**settings)


# --- all of it


def test_a_seed_fixes_all_three_steps(small_shop) -> None:
    settings = replace(SETTINGS, lightgbm=False)
    one, same = (train(small_shop, settings).model.state_dict() for _ in range(2))
    assert all(torch.equal(value, same[name]) for name, value in one.items())


@pytest.mark.slow
def test_the_recipe_beats_learning_from_outcomes_alone(shop) -> None:
    settings = replace(
        SETTINGS,
        fit=FitSettings(epochs=6, batch_sessions=64, learning_rate=3e-3),
        sizes=NetworkSizes(hidden_size=32, head_size=32),
        pretraining=PretrainingSettings(epochs=6),
        teacher=TeacherSettings(folds=4, least_buyers=20),
        lightgbm=False,
    )
    plain = replace(settings, pretraining=PretrainingSettings(epochs=0), teacher=TeacherSettings(folds=0))

    def loss(chosen: TrainSettings) -> float:
        test = train(shop.dataset, chosen).test
        said = test.probability["willbuy"]
        return float(-(test.outcome * np.log(said) + (1 - test.outcome) * np.log(1 - said)).mean())

    assert loss(settings) < loss(plain) - 0.002
