"""Permutation importance: the group that decides has it, and a group that never changes has none."""

import pytest
import torch

from model.encoder import Encoder
from model.events import Event
from model.network import SessionModel
from model.sizes import NetworkSizes
from training.config import FitSettings
from training.data.encoded import encode, scaling_of
from training.fit.importance import groups_of, permutation_importance
from training.fit.loop import fit


def test_the_group_that_decides_has_the_importance(columns_of):
    # Given sessions of which the first event's name decides, with gaps that tell nothing
    chance = torch.Generator().manual_seed(0)
    sessions, outcomes = [], []
    for _ in range(300):
        bought, gap_ms = (int(torch.randint(high, (), generator=chance)) for high in (2, 100_000))
        sessions.append([Event("ab"[bought], at * gap_ms) for at in range(3)])
        outcomes.append(float(bought))
    encoder = Encoder(["a", "b"], [], [], [], {}, calendar=False)
    data = encode(encoder, columns_of(sessions, outcomes))
    torch.manual_seed(0)
    sizes = NetworkSizes(hidden_size=8, head_size=8, dropout=0.0, input_dropout=0.0)
    model = SessionModel(encoder, sizes, scaling_of(data.features))
    fit(model, data, data, FitSettings(epochs=4, patience=4, batch_sessions=16, learning_rate=1e-2))
    # When inputs are exchanged
    first, *others = found = permutation_importance(model, data, resamples=50)
    # Then the names cost the most, prices that no event has cost nothing, and the same seed gives the same
    assert {one.group for one in found} == set(groups_of(model))
    assert first.group == "event"
    assert (first.log_loss.low or 0) > 0.1
    assert {one.group: one.log_loss.value for one in others}["price"] == pytest.approx(0, abs=1e-7)
    assert permutation_importance(model, data, resamples=50) == found
