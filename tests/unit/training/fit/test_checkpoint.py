"""Checkpoints: whole or not there, and refused where they do not fit."""

from pathlib import Path

import pytest
import torch

from model.encoder import Encoder
from model.network import SessionModel
from model.sizes import NetworkSizes
from training.fit.checkpoint import CheckpointError, Epoch, Fit, restore, store

IDENTITY = {"epochs": 3, "model": {"hidden_size": 4}}
PROGRESS = Fit([Epoch(1, 0.5, 0.6, 1e-3, 2.0), Epoch(2, 0.4, 0.7, 9e-4, 2.0)], best_loss=0.6, best_epoch=1)


def model_and_optimizer(seed: int, hidden_size: int = 4) -> tuple[SessionModel, torch.optim.Optimizer]:
    """Return a model that took a step, so that the optimizer has something to remember."""
    torch.manual_seed(seed)
    model = SessionModel(Encoder(["a"], [], [], [], {}, calendar=False), NetworkSizes(hidden_size, head_size=4))
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-3)
    features = torch.randn(2, 3, len(model.encoder.feature_names))
    indices = torch.zeros(2, 3, len(model.encoder.index_names), dtype=torch.int64)
    torch.autograd.backward(model.sequence_logits(features, indices).sum())
    optimizer.step()
    return model, optimizer


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model.checkpoint"
    model, optimizer = model_and_optimizer(seed=0)
    store(path, model, optimizer, PROGRESS, {"logit.bias": torch.tensor([7.0])}, IDENTITY)
    return path


def test_all_that_a_run_needs_comes_back(checkpoint: Path) -> None:
    written, its_optimizer = model_and_optimizer(seed=0)
    model, optimizer = model_and_optimizer(seed=1)
    state, best = restore(checkpoint, model, optimizer, IDENTITY)
    assert state == PROGRESS
    assert best["logit.bias"].tolist() == [7.0]
    for name, value in written.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    moments, expected = (each.state_dict()["state"] for each in (optimizer, its_optimizer))
    assert moments.keys() == expected.keys()
    for number, of_parameter in expected.items():
        assert all(torch.equal(moments[number][key], value) for key, value in of_parameter.items())


def test_nothing_but_the_checkpoint_is_left_behind(checkpoint: Path) -> None:
    model, optimizer = model_and_optimizer(seed=1)
    store(checkpoint, model, optimizer, PROGRESS, {}, IDENTITY)
    assert [path.name for path in checkpoint.parent.iterdir()] == ["model.checkpoint"]


def test_another_identity_is_refused_by_name_and_changes_nothing(checkpoint: Path) -> None:
    model, optimizer = model_and_optimizer(seed=1)
    before = model.logit.weight.clone()
    with pytest.raises(CheckpointError, match=r"model\.checkpoint.*another run \(data, model differ\)"):
        restore(checkpoint, model, optimizer, {"epochs": 3, "model": {"hidden_size": 5}, "data": 1})
    assert torch.equal(model.logit.weight, before)


def damage_nothing_left(data: bytes) -> bytes:
    return b""


def damage_half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def damage_noise(data: bytes) -> bytes:
    return bytes(torch.randint(256, (5000,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).tolist())


def damage_text(data: bytes) -> bytes:
    return b"epoch 3: 0.42\n"


@pytest.mark.parametrize("damage", [damage_nothing_left, damage_half, damage_noise, damage_text])
def test_a_damaged_checkpoint_is_refused_and_says_what_to_do(checkpoint: Path, damage) -> None:
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    model, optimizer = model_and_optimizer(seed=1)
    with pytest.raises(CheckpointError, match=r"model\.checkpoint: not a readable checkpoint.*leave out --resume"):
        restore(checkpoint, model, optimizer, IDENTITY)


@pytest.mark.parametrize("content", [{}, [1, 2], {"identity": IDENTITY}, {"identity": None}])
def test_another_programs_file_is_refused(checkpoint: Path, content: object) -> None:
    torch.save(content, checkpoint)
    model, optimizer = model_and_optimizer(seed=1)
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        restore(checkpoint, model, optimizer, IDENTITY)


def test_a_file_that_would_run_code_is_not_run(checkpoint: Path, tmp_path: Path) -> None:
    torch.save({"identity": Planted(tmp_path / "ran")}, checkpoint)
    model, optimizer = model_and_optimizer(seed=1)
    with pytest.raises(CheckpointError):
        restore(checkpoint, model, optimizer, IDENTITY)
    assert not (tmp_path / "ran").exists()


class Planted:
    """Unpickles by touching a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)
