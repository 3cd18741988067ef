"""The step between two copies, on the CPU in all that a GPU does but its graphs, and on a GPU where there is one."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from model.device_step import DeviceStep

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def step(numbers, codes, flags):
    """Tensors of several types, shapes and sizes in and out, none of them a multiple of the alignment."""
    return numbers.sum(1) + codes[:, 0], torch.cat([codes, codes + 1], 1), numbers.half(), ~flags


def inputs(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand(size, 7, generator=generator)
    return numbers, torch.randint(100, (size, 3), generator=generator), numbers[:, :1] > 0.5


@pytest.mark.parametrize("device", DEVICES)
@torch.inference_mode()
def test_outputs_are_the_steps_whatever_sizes_come_in_turn(device):
    run = DeviceStep(step, torch.device(device))
    for seed, size in enumerate([1, 64, 3, 64, 1, 64]):
        given = inputs(size, seed)
        found = run(given)
        for one, expected in zip(found, step(*given), strict=True):
            assert one.device.type == "cpu"
            torch.testing.assert_close(one, expected)


@pytest.mark.parametrize("device", DEVICES)
@torch.inference_mode()
def test_outputs_stay_what_they_are_when_the_next_step_runs(device):
    run = DeviceStep(step, torch.device(device))
    first = run(inputs(8, 1))
    kept = [part.clone() for part in first]
    run(inputs(8, 2))
    assert all(torch.equal(one, other) for one, other in zip(first, kept, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_threads_take_turns(device):
    run = DeviceStep(step, torch.device(device))

    def check(seed):
        with torch.inference_mode():
            given = inputs(16, seed)
            return all(torch.equal(one, other) for one, other in zip(run(given), step(*given), strict=True))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(check, range(200)))
