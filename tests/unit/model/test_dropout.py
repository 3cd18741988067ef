"""Dropout: which share is dropped, that the rest makes up for it, and that nothing is dropped when serving."""

import pytest
import torch

from model.dropout import dropout


def ones() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.ones(401, 501)


def test_values_stay_as_they_are_outside_training() -> None:
    values = ones()
    assert dropout(values, 0.5, False) is values
    assert dropout(values, 0.0, True) is values


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.5, 0.95])
def test_the_share_is_dropped_and_the_rest_scaled_so_that_the_mean_stays(share: float) -> None:
    dropped = dropout(ones(), share, True)
    # 200,000 draws: five standard deviations.
    tolerance = 5 * (share * (1 - share) / dropped.numel()) ** 0.5
    assert float((dropped == 0).float().mean()) == pytest.approx(share, abs=tolerance)
    kept = dropped[dropped != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - share)), rtol=1e-3, atol=0)


def test_values_are_dropped_independently_wherever_they_stand() -> None:
    # Four values share a draw of 64 bits: any two of them that went together would show.
    kept = (dropout(ones(), 0.5, True).flatten()[:200_000] != 0).double().reshape(-1, 8)
    correlation = torch.corrcoef(kept.t()) - torch.eye(8)
    assert float(correlation.abs().max()) < 0.04
    assert float((kept.mean(0) - 0.5).abs().max()) < 0.02


def test_a_seed_fixes_what_is_dropped_and_the_gradient_goes_where_the_values_went() -> None:
    values = ones().requires_grad_()
    torch.manual_seed(1)
    dropped = dropout(values, 0.3, True)
    torch.manual_seed(1)
    assert torch.equal(dropped, dropout(values, 0.3, True))
    assert not torch.equal(dropped, dropout(values, 0.3, True))
    dropped.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, dropped.detach())


def test_a_script_holds_nothing_of_it_and_passes_values_on() -> None:
    scripted = torch.jit.script(dropout)
    values = ones()
    assert torch.equal(scripted(values, 0.3, False), values)
    assert "random_" not in str(scripted.inlined_graph)
