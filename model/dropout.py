"""Dropout (Srivastava et al., 2014) that is cheap on a CPU."""

import torch
from torch import Tensor
from torch.nn import functional


def dropout(values: Tensor, share: float, training: bool) -> Tensor:
    """Return the values with a random share of them zero and the others scaled up; unchanged outside training.

    Equals torch's dropout up to 1/65536 of the share. On a CPU torch draws one float64 for each value, which took a
    third of the training time. Here one draw of 64 bits serves four values.
    """
    if not training or share == 0.0:
        return values
    return _dropped(values, share)


@torch.jit.unused
def _dropped(values: Tensor, share: float) -> Tensor:
    """Drop a share of the values. Not part of the artifact, which never trains."""
    if values.is_cuda:
        return functional.dropout(values, share, True)
    dropped = round(share * 65536)
    # With explicit bounds from the smallest int64 up; without bounds, torch never sets the sign bit.
    drawn = torch.empty(values.numel() // 4 + 1, dtype=torch.int64).random_(-(2**63), None)
    # As float32, where a comparison is many times faster than a boolean mask.
    kept = drawn.view(torch.int16)[: values.numel()].view(values.shape).to(torch.float32).ge_(dropped - 32768)
    return values * kept.mul_(65536 / (65536 - dropped))
