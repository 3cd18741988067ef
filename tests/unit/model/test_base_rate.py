"""Prior correction against Bayes' rule on a shop small enough to write out."""

import itertools
import math

import numpy as np
import pytest

from model.base_rate import logit_shift


def logit(probability):
    return math.log(probability / (1 - probability))


def posteriors(buyers, others, base_rate):
    """P(buys | prefix) for every prefix, by Bayes' rule from the prefix's probability among buyers and others."""
    return {
        prefix: base_rate * buyers[prefix] / (base_rate * buyers[prefix] + (1 - base_rate) * others[prefix])
        for prefix in buyers
    }


def a_behaviour(seed):
    """The probability of every prefix of up to three of three pages, whatever came before counting."""
    random = np.random.default_rng(seed)
    chance: dict[tuple[str, ...], float] = {(): 1.0}
    for length in (1, 2, 3):
        for before in itertools.product("abc", repeat=length - 1):
            # What is missing to 1 is the chance of leaving: that a session went on is part of the prefix.
            following = random.dirichlet(np.ones(4))[:3]
            chance |= {(*before, page): chance[before] * p for page, p in zip("abc", following, strict=True)}
    return chance


@pytest.mark.parametrize(("trained", "live"), [(0.2, 0.03), (0.03, 0.2), (0.5, 0.5), (0.9, 0.001)])
def test_one_constant_turns_the_logs_posterior_into_the_live_shops_at_every_prefix(trained, live):
    buyers, others = a_behaviour(1), a_behaviour(2)
    log, shop = (posteriors(buyers, others, base_rate) for base_rate in (trained, live))
    shift = logit_shift(trained, live)
    assert len(log) == 1 + 3 + 9 + 27
    for prefix, probability in log.items():
        assert logit(probability) + shift == pytest.approx(logit(shop[prefix]), abs=1e-9)


def test_the_shift_is_the_difference_of_the_logits_and_nothing_where_nothing_changed():
    assert logit_shift(0.5, 0.25) == pytest.approx(-math.log(3))
    assert logit_shift(0.07, 0.07) == 0.0
    assert logit_shift(0.1, 0.3) == -logit_shift(0.3, 0.1)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 1.5, math.nan, math.inf])
def test_what_is_no_share_is_refused_by_name(share):
    with pytest.raises(ValueError, match=r"^base_rate: expected a share of sessions above 0 and below 1, not"):
        logit_shift(0.1, share)
    with pytest.raises(ValueError, match=r"^the artifact's base rate: expected a share"):
        logit_shift(share, 0.1)
