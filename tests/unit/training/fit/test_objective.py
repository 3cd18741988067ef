"""The loss of a batch: the same network as on padded sessions, whatever the batch, and what a teacher adds."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from model.encoder import Encoder
from model.events import Event
from model.network import SessionModel
from model.sizes import NetworkSizes
from training.data.dataset import padded
from training.data.encoded import Encoded, encode, scaling_of
from training.fit.objective import Objective, batch_of, groups

SIZES = NetworkSizes(hidden_size=8, layers=2, head_size=8, dropout=0.0, input_dropout=0.0)


@pytest.fixture
def data(columns_of) -> Encoded:
    """Ninety sessions of 1 to 40 events."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 41, (90,), generator=generator).tolist()
    names = [[["a", "b"][int(torch.randint(2, (), generator=generator))] for _ in range(n)] for n in lengths]
    sessions = [[Event(name, at * 1000) for at, name in enumerate(one)] for one in names]
    outcomes = [float(one[0] == "a") for one in names]
    return encode(Encoder(["a", "b"], [], [], [], {}, calendar=False), columns_of(sessions, outcomes))


def objective_of(data: Encoded, cell: str = "lstm", **options: Any) -> Objective:
    torch.manual_seed(0)
    encoder = Encoder(["a", "b"], [], [], [], {}, calendar=False)
    model = SessionModel(encoder, replace(SIZES, cell=cell), scaling_of(data.features))
    return Objective(model, **options)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn", "feed-forward"])
@pytest.mark.parametrize("ascending", [True, False])
def test_events_in_a_row_get_the_logits_of_padded_sessions(data, cell: str, ascending: bool) -> None:
    objective = objective_of(data, cell)
    chosen = torch.arange(90)
    if ascending:
        chosen = chosen[data.columns.lengths.argsort()]
    lengths = data.columns.lengths[chosen]
    # Given the network's own answer for the sessions side by side
    features, indices = (padded(values, data.columns.offsets, chosen) for values in (data.features, data.indices))
    inside = torch.arange(features.size(1)) < lengths.unsqueeze(1)
    expected = objective.model.sequence_logits(features, indices)[inside]
    # When they are computed as a batch of events in a row
    batch = batch_of(data, chosen)
    # Then logits and gradients are the same
    raw = objective.logits(batch)
    torch.testing.assert_close(raw, expected, rtol=0, atol=1e-6)
    parameters = [each for each in objective.parameters() if each.requires_grad]
    ours = torch.autograd.grad(raw.square().sum(), parameters)
    theirs = torch.autograd.grad(expected.square().sum(), parameters)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_sum_over_all_events(data) -> None:
    objective = objective_of(data)
    batch = batch_of(data, torch.arange(90))
    assert len(batch.outcome) == int(data.columns.lengths.sum())
    expected = functional.binary_cross_entropy_with_logits(
        objective.logits(batch), data.columns.outcome[data.columns.session_index()], reduction="sum"
    )
    torch.testing.assert_close(objective(batch), expected)


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_a_teachers_word_has_its_share_of_the_loss(data, weight: float) -> None:
    data.soft_targets = torch.rand(len(data.features), generator=torch.Generator().manual_seed(1))
    objective = objective_of(data, teacher_weight=weight)
    batch = batch_of(data, torch.tensor([3, 1]))
    begin, end = data.columns.offsets[3:5].tolist()
    first, second = data.columns.offsets[1:3].tolist()
    told = torch.cat([data.soft_targets[begin:end], data.soft_targets[first:second]])
    assert batch.soft_targets is not None
    assert torch.equal(batch.soft_targets, told)
    raw = objective.logits(batch)
    of_the_outcome, of_the_teacher = (
        functional.binary_cross_entropy_with_logits(raw, target, reduction="sum") for target in (batch.outcome, told)
    )
    torch.testing.assert_close(objective(batch), (1 - weight) * of_the_outcome + weight * of_the_teacher)


def test_without_a_teacher_the_loss_is_that_of_the_outcomes_whatever_the_weight(data) -> None:
    batch = batch_of(data, torch.tensor([0, 1]))
    torch.testing.assert_close(
        objective_of(data, teacher_weight=0.9).eval()(batch), objective_of(data, teacher_weight=0.0).eval()(batch)
    )


def test_groups_hold_every_session_in_order_and_leave_little_padding() -> None:
    lengths = sorted(torch.randint(1, 80, (256,), generator=torch.Generator().manual_seed(2)).tolist())
    cut = groups(lengths, 16)
    assert [length for group in cut for length in group] == lengths
    steps = sum(len(group) * max(group) for group in cut)
    assert steps < 1.5 * sum(lengths) < len(lengths) * max(lengths)
    # Sessions of one length need no cut, and a GPU wants none.
    assert groups([7] * 256, 16) == [[7] * 256]
    assert groups(lengths, None) == [lengths]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_mixed_precision_keeps_float32_where_it_matters_and_the_loss_where_it_was(data) -> None:
    plain, mixed = objective_of(data).cuda(), objective_of(data).cuda()
    mixed = Objective(mixed.model, mixed_precision=True)
    batch = batch_of(data, torch.arange(90), "cuda")
    assert mixed.logits(batch).dtype == torch.float32
    torch.testing.assert_close(mixed(batch), plain(batch), rtol=2e-2, atol=0)
    mixed(batch).backward()
    assert all(each.grad.isfinite().all() for each in mixed.parameters() if each.grad is not None)


def test_a_cpu_computes_in_float32_whatever_is_asked(data) -> None:
    objective = objective_of(data, mixed_precision=True)
    batch = batch_of(data, torch.arange(90))
    assert torch.equal(objective(batch), objective_of(data)(batch))
