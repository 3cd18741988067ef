"""What a release must not change unless it wants to: a model's fingerprint, its features, and its state's layout.

A record in Redis carries a state and the fingerprint of the model that made the state. A change of either without the
other makes the service read a state that means something else.
"""

import pytest
import torch
from support.artifacts import random_model
from support.event_strategies import ALL_SCOPES, columns_of, random_session

from model.artifact import manifest_of
from model.network import SessionModel

# Of weights and configuration; `save` adds the code to it, which the numbers below hold.
# All of a session of twelve events, after its last one.
FINGERPRINT = "5c9c4b764317b157"
FEATURES = """
    4.15379 5.56244 2.56495 0.69315 2.74849 1.11343 4.15379 0.41871 0.0 0.0 0.0 0.0 0.0 1.94591 2.48491 0.45455 0.0
    0.0 1.60944 0.0 0.0 1.0 0.0 0.0 5.58431 5.65059 5.50923 -0.0 -0.0 0.69315 1.60944 0.0 0.69315 0.69315 1.09861
    0.69315 0.69315 1.09861 0.33333 0.0 0.08333 0.08333 0.16667 0.08333 0.08333 0.16667 0.19403 0.0 1.0 0.1563 0.17372
    0.15378 0.16264 0.19373 -0.43122 0.90225 -0.81993 0.57246 2.49178 0.0 1.0 0.0
"""
CARRY = """
    12.0 1.0 2.0 2.74849 13.63698 4.15379 4.15379 6.0 11.0 5.0 4.0 0.0 0.0 795.65002 3.0 283.45999 245.96001 245.96001
    4.0 0.0 1.0 1.0 2.0 1.0 1.0 2.0 196.782 -1.0 259.457 39.479 144.134 15.056 88.284 196.26199 3.0 2.0 2.0 1.0 2.0
    1.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 3.0 4.0 3.0 1.0 0.0 0.0 0.0 0.0 6.0 nan
"""
MEMORY = """
    1700000009739 1700000269196 1860371426 305259612 1618497614 1107274112 793588433 1860371426 1743944858 0 0 0 0 0 0
    0 0 0 0 568912005 966169262 1502025686 317160835 0 0 0 0 1899595514 0
"""
PROBABILITIES = """
    0.47661 0.45734 0.472069 0.475737 0.476701 0.476268 0.47658 0.46092 0.449418 0.454324 0.459726 0.45416
"""


def numbers(text: str) -> torch.Tensor:
    return torch.tensor([float(word) for word in text.split()], dtype=torch.float64)


@pytest.fixture(scope="module")
def model() -> SessionModel:
    """A model whose weights are the same on every machine."""
    model = random_model(properties=ALL_SCOPES, calendar=True)
    with torch.no_grad():
        for weights in model.parameters():
            weights.copy_((torch.arange(weights.numel()) % 13 - 6).reshape(weights.shape) / 64)
    return model


def test_the_fingerprint_of_a_model_is_golden(model):
    assert manifest_of(model).fingerprint == FINGERPRINT


@pytest.mark.parametrize("is_scripted", [False, True])
def test_features_state_and_probabilities_are_golden(model, is_scripted):
    # Given
    fold = torch.jit.script(model) if is_scripted else model
    columns = columns_of([random_session(7, 12, items=6)])
    state = fold.initial_state(1)
    probabilities = []

    # When
    for position in range(12):
        probability, *state = fold.step(*(column[:, position] for column in columns), *state)
        probabilities.append(probability)
    features, _ = fold.encoder.sequence(*columns)

    # Then
    _, carry, memory = state
    golden = [
        (features[0, -1], FEATURES, 2e-5),
        (carry[0], CARRY, 2e-5),
        (memory[0], MEMORY, 0.0),
        (torch.cat(probabilities), PROBABILITIES, 2e-6),
    ]
    for actual, expected, tolerance in golden:
        torch.testing.assert_close(
            actual.to(torch.float64), numbers(expected), rtol=tolerance, atol=tolerance, equal_nan=True
        )
