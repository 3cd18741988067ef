"""Fitting: what the loss counts, what a seed fixes, what is kept, and that nothing of the future is seen."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.encoder import Encoder
from model.events import Event
from model.network import SessionModel
from model.sizes import NetworkSizes
from training.config import FitSettings
from training.data.encoded import Encoded, encode, scaling_of
from training.fit import loop
from training.fit.checkpoint import CheckpointError, Epoch, Fit
from training.fit.loop import evaluate_loss, fit, logits
from training.fit.objective import Batch, Objective, batch_of

NAMES = ["a", "b", "c"]
SIZES = NetworkSizes(hidden_size=8, head_size=8, dropout=0.0, input_dropout=0.0)
QUICK = FitSettings(epochs=4, patience=4, batch_sessions=16, learning_rate=1e-2)


def encoder() -> Encoder:
    return Encoder(NAMES, [], [], [], {}, calendar=False)


def session(names: str, gap_ms: int = 1000) -> list[Event]:
    return [Event(name, position * gap_ms) for position, name in enumerate(names)]


def model_of(data: Encoded, *, seed: int = 0, sizes: NetworkSizes = SIZES) -> SessionModel:
    torch.manual_seed(seed)
    return SessionModel(encoder(), sizes, scaling_of(data.features))


@pytest.fixture
def encoded(columns_of) -> Callable[..., Encoded]:
    def make(sessions: list[list[Event]], outcomes: list[float]) -> Encoded:
        return encode(encoder(), columns_of(sessions, outcomes))

    return make


@pytest.fixture
def draw(encoded) -> Callable[..., Encoded]:
    """Draw sessions whose outcome is chance (`rule` None) or depends on the names."""

    def sessions(count: int, seed: int, rule: Callable[[str], bool] | None = None, longest: int = 8) -> Encoded:
        generator = torch.Generator().manual_seed(seed)

        def below(limit: int) -> int:
            return int(torch.randint(limit, (), generator=generator))

        names = ["ab"[below(2)] + "".join(NAMES[below(3)] for _ in range(below(longest))) for _ in range(count)]
        outcomes = [float(below(4) == 0 if rule is None else rule(name)) for name in names]
        data: Encoded = encoded([session(name) for name in names], outcomes)
        return data

    return sessions


def weights(model: SessionModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def losses(state: Fit) -> list[tuple[float, float, float]]:
    return [(epoch.train_loss, epoch.validation_loss, epoch.learning_rate) for epoch in state.epochs]


# --- encoding and scaling


def test_a_session_is_encoded_the_same_alone_and_among_longer_ones(encoded) -> None:
    sessions = [session("ab"), session("abcabcabc", 70_000), session("c"), session("bca", 5)]
    together = encoded(sessions, [0] * 4)
    apart = [encoded([one], [0]) for one in sessions]
    assert torch.equal(together.features, torch.cat([one.features for one in apart]))
    assert torch.equal(together.indices, torch.cat([one.indices for one in apart]))


@pytest.mark.parametrize("batch_sessions", [1, 2, 3])
def test_encoding_does_not_depend_on_the_batch_and_tells_of_every_session(columns_of, batch_sessions) -> None:
    columns = columns_of([session("ab"), session("abcab"), session("c"), session("bca"), session("a")], [0] * 5)
    told: list[int] = []
    chunked = encode(encoder(), columns, batch_sessions=batch_sessions, progress=told.append)
    assert torch.equal(chunked.features, encode(encoder(), columns).features)
    assert sum(told) == 5


def test_scaling_by_hand() -> None:
    scaling = scaling_of(torch.tensor([[0.0, 5.0], [2.0, 5.0], [4.0, 5.0]]), bins=2)
    torch.testing.assert_close(scaling.mean, torch.tensor([2.0, 5.0]))
    # A constant feature has no spread to divide by.
    torch.testing.assert_close(scaling.deviation, torch.tensor([math.sqrt(8 / 3), 1.0]))
    assert scaling.bin_feature.tolist() == [0, 0]
    assert scaling.bin_low.tolist() == [0.0, 2.0]
    assert scaling.bin_width.tolist() == [2.0, 2.0]


def test_quantile_bins_hold_equal_shares_and_those_without_width_are_left_out() -> None:
    half_zero = torch.cat([torch.zeros(50), torch.arange(1.0, 51.0)]).unsqueeze(1)
    scaling = scaling_of(half_zero, bins=4)
    assert len(scaling.bin_low) == 3
    assert (scaling.bin_width > 0).all()
    assert float(scaling.bin_low[-1]) == pytest.approx(25.25)
    assert float(scaling.bin_low[-1] + scaling.bin_width[-1]) == 50.0


def test_scaling_of_features_that_never_change_is_usable() -> None:
    scaling = scaling_of(torch.full((5, 2), 3.0))
    assert scaling.mean.tolist() == [3.0, 3.0]
    assert scaling.deviation.tolist() == [1.0, 1.0]
    assert (scaling.bin_width > 0).all()


# --- the loss


def test_the_loss_is_the_mean_over_every_prefix_and_over_nothing_else(encoded) -> None:
    # Given a model that says 0.8 of everything, a buyer with three prefixes and another visitor with one
    data = encoded([session("abc"), session("a")], [1, 0])
    model = model_of(data)
    with torch.no_grad():
        model.logit.weight.zero_()
        model.logit.bias.fill_(math.log(0.8 / 0.2))
    # Then the loss counts four predictions: padding of the shorter session is none of them
    assert evaluate_loss(model, data) == pytest.approx((3 * -math.log(0.8) - math.log(0.2)) / 4, rel=1e-6)


def test_the_training_loss_is_the_mean_over_every_prefix_too(encoded) -> None:
    data = encoded([session("abcab"), session("a"), session("bc")], [1, 0, 0])
    model = model_of(data)
    before = evaluate_loss(model, data)
    state = fit(model, data, data, replace(QUICK, epochs=1))
    # One batch without dropout: its loss is that of the weights before the step.
    assert state.epochs[0].train_loss == pytest.approx(before, rel=1e-6)
    assert state.epochs[0].validation_loss != pytest.approx(before, rel=1e-6)


def test_the_loss_is_the_one_of_the_logits(draw) -> None:
    data = draw(30, seed=3)
    model = model_of(data)
    outcome = data.columns.outcome[data.columns.session_index()]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits(model, data), outcome)
    assert evaluate_loss(model, data) == pytest.approx(float(expected), rel=1e-5)


def test_a_longer_session_in_the_batch_changes_nothing_of_the_others(encoded) -> None:
    short, other = session("abc"), session("ba")
    alone = encoded([short], [1])
    model = model_of(alone)
    beside_short = encoded([short, other], [1, 0])
    beside_long = encoded([short, other + session("cabcabcabcabcabcabc")], [1, 0])
    for data in (beside_short, beside_long):
        torch.testing.assert_close(logits(model, data)[:3], logits(model, alone), rtol=0, atol=1e-6)
        rest = encode(encoder(), data.columns.select(torch.tensor([1])))
        counts = 3, len(rest.features)
        total = evaluate_loss(model, data) * sum(counts) - evaluate_loss(model, rest) * counts[1]
        assert total / counts[0] == pytest.approx(evaluate_loss(model, alone), rel=1e-5)


def test_logits_stand_beside_their_events_whatever_the_batch(draw) -> None:
    data = draw(40, seed=4)
    model = model_of(data)
    torch.testing.assert_close(logits(model, data, batch_sessions=3), logits(model, data), rtol=0, atol=1e-6)
    one = encode(encoder(), data.columns.select(torch.tensor([7])))
    begin, end = data.columns.offsets[7:9].tolist()
    torch.testing.assert_close(logits(model, data)[begin:end], logits(model, one), rtol=0, atol=1e-6)


# --- no leak


def test_a_prediction_does_not_change_with_what_comes_after_it(draw) -> None:
    # Given a model trained where buyers stay longer, so that the length would give the outcome away
    train = draw(200, seed=5, rule=lambda names: len(names) > 4)
    model = model_of(train)
    fit(model, train, train, QUICK)
    whole = draw(30, seed=6, rule=lambda names: len(names) > 4)
    everywhere = logits(model, whole)
    for row in range(len(whole.columns.outcome)):
        begin, end = whole.columns.offsets[row : row + 2].tolist()
        for length in range(1, end - begin + 1):
            # When the session is cut after `length` events
            cut = replace_events(whole, row, length)
            # Then the last prediction is the one that the whole session had there
            torch.testing.assert_close(logits(model, cut)[-1], everywhere[begin + length - 1], rtol=0, atol=1e-5)


def replace_events(data: Encoded, row: int, length: int) -> Encoded:
    columns = data.columns.select(torch.tensor([row]))
    return encode(
        encoder(),
        replace(
            columns,
            offsets=torch.tensor([0, length]),
            timestamp_ms=columns.timestamp_ms[:length],
            codes=columns.codes[:length],
            numbers=columns.numbers[:length],
        ),
    )


def test_the_length_of_a_session_is_not_known_at_its_first_event(encoded) -> None:
    # Given buyers who see eight pages and others who see two, alike in everything else
    data = encoded([session("a" * 8), session("a" * 2)] * 60, [1, 0] * 60)
    model = model_of(data)
    # One batch holds all: batches of equal length would pull the base rate to and fro.
    fit(model, data, data, FitSettings(epochs=60, patience=60, batch_sessions=120, learning_rate=2e-2))
    probability = torch.sigmoid(logits(model, data))
    first = data.columns.prefix_length() == 1
    third = data.columns.prefix_length() == 3
    # Then after one event it knows the base rate and no more, and after three it knows all
    torch.testing.assert_close(probability[first], torch.full((120,), 0.5), rtol=0, atol=0.1)
    assert float(probability[first].std()) < 1e-6
    assert (probability[third] > 0.9).all()


def test_an_early_event_that_decides_is_remembered(draw) -> None:
    train, unseen = (draw(400, seed, rule=lambda names: names[0] == "a") for seed in (7, 8))
    model = model_of(train)
    state = fit(model, train, unseen, FitSettings(epochs=15, patience=15, batch_sessions=16, learning_rate=1e-2))
    assert state.best_loss < 0.03
    last = unseen.columns.offsets[1:] - 1
    right = (logits(model, unseen)[last] > 0) == (unseen.columns.outcome > 0)
    assert float(right.float().mean()) > 0.99


def test_where_the_outcome_is_chance_the_loss_stays_at_the_base_rate(draw) -> None:
    train, validation, unseen = (draw(400, seed) for seed in (9, 10, 11))
    model = model_of(train)
    fit(model, train, validation, replace(QUICK, epochs=6))
    share = float(unseen.columns.outcome[unseen.columns.session_index()].mean())
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert entropy - 0.01 < evaluate_loss(model, unseen) < entropy + 0.06


# --- seeds, early stopping


def test_a_seed_fixes_the_weights_and_another_gives_others(draw) -> None:
    train, validation = draw(80, seed=12), draw(40, seed=13)
    dropping = replace(SIZES, dropout=0.2, input_dropout=0.1)

    def run(seed: int) -> tuple[dict[str, torch.Tensor], list[tuple[float, float, float]]]:
        model = model_of(train, sizes=dropping)
        state = fit(model, train, validation, replace(QUICK, epochs=2, seed=seed))
        return weights(model), losses(state)

    first, again, other = run(0), run(0), run(1)
    assert same(first[0], again[0])
    assert first[1] == again[1]
    assert not same(first[0], other[0])


def test_early_stopping_keeps_the_weights_of_the_best_epoch(draw) -> None:
    # Given outcomes by chance, which a network with a high rate soon learns by heart
    train, validation = draw(60, seed=14), draw(60, seed=15)
    model = model_of(train, sizes=replace(SIZES, hidden_size=32, head_size=32))
    state = fit(model, train, validation, FitSettings(epochs=40, patience=3, batch_sessions=8, learning_rate=2e-2))
    seen = [epoch.validation_loss for epoch in state.epochs]
    # Then it stops `patience` epochs after the best, and has that one's weights
    assert state.stopped.startswith(f"stopped early after {len(seen)} of 40 passes: none of the last 3")
    assert state.best_loss == min(seen)
    assert state.best_epoch == seen.index(min(seen)) + 1
    assert len(seen) == state.best_epoch + 3 < 40
    assert evaluate_loss(model, validation) == pytest.approx(state.best_loss, abs=1e-9)
    assert state.best_loss < seen[-1]
    assert not model.training


def test_a_fit_that_uses_all_its_passes_says_whether_the_last_was_the_best(draw) -> None:
    train = draw(40, seed=16)
    short = replace(QUICK, epochs=2, learning_rate=1e-3)
    assert fit(model_of(train), train, train, short).stopped == (
        "all 2 passes done, and the last was the best: more may help (fit.epochs)"
    )
    beaten = fit(model_of(train), train, train, short, loss_to_beat=0.0)
    assert (beaten.best_epoch, beaten.stopped) == (0, "all 2 passes done")


def test_an_epoch_that_is_no_better_than_the_earlier_model_does_not_replace_it(draw) -> None:
    train = draw(20, seed=23)
    model = model_of(train)
    before = weights(model)
    # Steps so small that no weight changes
    still = replace(QUICK, epochs=1, learning_rate=1e-30)
    state = fit(model, train, train, still, loss_to_beat=evaluate_loss(model, train))
    assert state.best_loss == state.epochs[0].validation_loss
    assert state.best_epoch == 0
    assert same(weights(model), before)


def test_the_loss_does_not_depend_on_how_the_sessions_are_divided(draw, monkeypatch) -> None:
    data = draw(40, seed=24)
    model = model_of(data)
    whole = evaluate_loss(model, data)
    for most_events in (3, 17, 50):
        monkeypatch.setattr(loop, "MOST_EVALUATED_EVENTS", most_events)
        assert evaluate_loss(model, data) == pytest.approx(whole, rel=1e-6)


def test_each_epoch_has_an_order_of_its_own_which_the_seed_fixes(draw, monkeypatch) -> None:
    data = draw(40, seed=25)
    taken: list[int] = []

    def noted(encoded: Encoded, chosen: torch.Tensor, device: str = "cpu") -> Batch:
        if torch.is_grad_enabled():
            taken.extend(chosen.tolist())
        return batch_of(encoded, chosen, device)

    monkeypatch.setattr(loop, "batch_of", noted)
    for _ in range(2):
        fit(model_of(data), data, data, replace(QUICK, epochs=2))
    epochs = [taken[begin : begin + 40] for begin in range(0, 160, 40)]
    assert [sorted(order) for order in epochs] == [[*range(40)]] * 4
    assert epochs[0] == epochs[2] != epochs[1] == epochs[3]


def test_a_step_follows_the_gradient_of_the_mean_loss_up_to_the_norm_that_is_set(draw, monkeypatch) -> None:
    data = draw(20, seed=27)
    model = model_of(data)
    bounded: list[tuple[list[torch.Tensor], float]] = []
    bound = torch.nn.utils.clip_grad_norm_

    def noted(parameters: list[torch.nn.Parameter], norm: float) -> torch.Tensor:
        bounded.append(([parameter.grad.clone() for parameter in parameters if parameter.grad is not None], norm))
        return bound(parameters, norm)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", noted)
    mean = Objective(model)(batch_of(data, torch.arange(20))) / len(data.features)
    expected = torch.autograd.grad(mean, [one for one in model.parameters() if one.requires_grad], allow_unused=True)
    fit(model, data, data, replace(QUICK, epochs=1, batch_sessions=20, gradient_norm=0.25))
    ((gradients, norm),) = bounded
    assert norm == 0.25
    for found, one in zip(gradients, [one for one in expected if one is not None], strict=True):
        torch.testing.assert_close(found, one, rtol=1e-4, atol=1e-7)


def test_a_run_that_stopped_early_goes_on_where_there_is_more_patience(draw, tmp_path: Path) -> None:
    train, checkpoint = draw(20, seed=26), tmp_path / "run.checkpoint"
    impatient, patient = (replace(QUICK, epochs=3, patience=patience) for patience in (1, 3))
    first = fit(model_of(train), train, train, impatient, checkpoint=checkpoint, loss_to_beat=0.0)
    assert len(first.epochs) == 1
    again = fit(model_of(train), train, train, patient, checkpoint=checkpoint, resume=True, loss_to_beat=0.0)
    assert len(again.epochs) == 3
    assert losses(again) == losses(fit(model_of(train), train, train, patient, loss_to_beat=0.0))


def test_the_warm_up_takes_a_hundred_steps_at_most() -> None:
    # private: an epoch of so many steps would take minutes
    rates = [loop._rate(1.0, step, steps_an_epoch=1000, passes=2) for step in range(2000)]  # noqa: SLF001 - see above
    assert rates[0] == pytest.approx(0.01, rel=1e-3)
    assert rates.index(max(rates)) == 99
    assert rates[99:] == sorted(rates[99:], reverse=True)
    assert rates[-1] == pytest.approx(0.05, rel=1e-3)


def test_the_learning_rate_warms_up_over_the_first_epoch_and_falls_after_it(draw) -> None:
    train = draw(64, seed=16)
    state = fit(model_of(train), train, train, replace(QUICK, epochs=5, patience=5))
    rates = [epoch.learning_rate for epoch in state.epochs]
    assert max(rates) == rates[0] <= QUICK.learning_rate
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.2 * QUICK.learning_rate
    # And soft targets allow a rate twice as high
    train.soft_targets = torch.full((len(train.features),), 0.3)
    taught = fit(model_of(train), train, train, replace(QUICK, epochs=5, patience=5))
    assert [epoch.learning_rate for epoch in taught.epochs] == pytest.approx([2 * rate for rate in rates])


def test_progress_tells_of_every_session_and_of_every_epoch(draw) -> None:
    train = draw(40, seed=17)
    told: list[tuple[int, int, Epoch | None]] = []
    state = fit(model_of(train), train, train, replace(QUICK, epochs=2), progress=lambda *facts: told.append(facts))
    assert [done for number, done, epoch in told if number == 1 and epoch is None][-1] == 40
    assert [epoch for _, _, epoch in told if epoch is not None] == state.epochs


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epochs", 0),
        ("patience", 0),
        ("batch_sessions", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("gradient_norm", 0.0),
        ("weight_decay", -0.1),
        ("weight_decay", math.nan),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=setting):
        FitSettings(**{setting: value})  # type: ignore[arg-type]  # one field after another


# --- resuming

DROPPING = replace(SIZES, dropout=0.2, input_dropout=0.1)
FIVE = replace(QUICK, epochs=5, patience=5)


class Interrupt:
    """Breaks a run off as Ctrl-C does, some way into an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def __call__(self, number: int, done: int, epoch: Epoch | None) -> None:
        if number == self.epoch and epoch is None and done > 20:
            raise KeyboardInterrupt


@pytest.mark.parametrize("broken_off_in", [2, 4])
def test_a_resumed_run_ends_as_one_without_a_break(draw, tmp_path: Path, broken_off_in: int) -> None:
    train, validation = draw(80, seed=18), draw(40, seed=19)
    whole = model_of(train, sizes=DROPPING)
    expected = fit(whole, train, validation, FIVE)
    # Given a run that was broken off in the middle of an epoch
    checkpoint = tmp_path / "run.checkpoint"
    broken = model_of(train, sizes=DROPPING)
    with pytest.raises(KeyboardInterrupt):
        fit(broken, train, validation, FIVE, checkpoint=checkpoint, progress=Interrupt(broken_off_in))
    # When it goes on in a fresh process, whose random numbers are elsewhere
    resumed = model_of(train, seed=99, sizes=DROPPING)
    state = fit(resumed, train, validation, FIVE, checkpoint=checkpoint, resume=True)
    # Then weights and losses are those of the run without a break, bit for bit
    assert losses(state) == losses(expected)
    assert (state.best_epoch, state.best_loss, state.stopped) == (
        expected.best_epoch,
        expected.best_loss,
        expected.stopped,
    )
    assert same(weights(resumed), weights(whole))


def test_a_resumed_run_may_still_keep_an_epoch_from_before_the_break(draw, tmp_path: Path) -> None:
    train, validation = draw(60, seed=14), draw(60, seed=15)
    sizes = replace(SIZES, hidden_size=32, head_size=32)
    settings = FitSettings(epochs=40, patience=3, batch_sessions=8, learning_rate=2e-2)
    whole = model_of(train, sizes=sizes)
    expected = fit(whole, train, validation, settings)
    checkpoint = tmp_path / "run.checkpoint"
    with pytest.raises(KeyboardInterrupt):
        fit(
            model_of(train, sizes=sizes),
            train,
            validation,
            settings,
            checkpoint=checkpoint,
            progress=Interrupt(expected.best_epoch + 2),
        )
    resumed = model_of(train, seed=99, sizes=sizes)
    state = fit(resumed, train, validation, settings, checkpoint=checkpoint, resume=True)
    assert state.best_epoch == expected.best_epoch
    assert same(weights(resumed), weights(whole))


def test_a_finished_run_is_not_run_again(draw, tmp_path: Path) -> None:
    train = draw(40, seed=20)
    checkpoint = tmp_path / "run.checkpoint"
    model = model_of(train)
    expected = fit(model, train, train, QUICK, checkpoint=checkpoint)
    again = model_of(train, seed=99)

    def never(number: int, done: int, epoch: Epoch | None) -> None:
        pytest.fail(f"epoch {number} was run again")

    state = fit(again, train, train, QUICK, checkpoint=checkpoint, resume=True, progress=never)
    assert state == expected
    assert same(weights(again), weights(model))


def test_without_resume_a_checkpoint_is_written_over(draw, tmp_path: Path) -> None:
    train = draw(40, seed=21)
    checkpoint = tmp_path / "run.checkpoint"
    checkpoint.write_bytes(b"an older file")
    state = fit(model_of(train), train, train, replace(QUICK, epochs=2), checkpoint=checkpoint)
    assert len(state.epochs) == 2
    assert checkpoint.stat().st_size > 1000


def test_resuming_without_a_checkpoint_begins(draw, tmp_path: Path) -> None:
    train = draw(40, seed=22)
    state = fit(
        model_of(train), train, train, replace(QUICK, epochs=2), checkpoint=tmp_path / "none.checkpoint", resume=True
    )
    assert [epoch.number for epoch in state.epochs] == [1, 2]


def test_a_checkpoint_of_another_run_is_refused_by_what_differs(draw, tmp_path: Path) -> None:
    train = draw(40, seed=23)
    checkpoint = tmp_path / "run.checkpoint"
    fit(model_of(train), train, train, QUICK, checkpoint=checkpoint, identity={"sessions": 40, "data": {"events": 9}})
    other = replace(QUICK, learning_rate=3e-3, seed=4)
    model = model_of(train)
    before = weights(model)
    with pytest.raises(CheckpointError, match=r"run\.checkpoint: .*\(data, learning_rate, seed differ\)"):
        fit(
            model,
            train,
            train,
            other,
            checkpoint=checkpoint,
            resume=True,
            identity={"sessions": 40, "data": {"events": 8}},
        )
    assert same(weights(model), before)
