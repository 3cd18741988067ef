"""Prior correction: probabilities for a shop whose share of buying sessions differs from the training log's.

By Bayes' rule, for the prefix x = (x_1 ... x_n) of a session, p0 the share of sessions that buy in the log and p1 in
the live shop:

    odds(buys | x; log)  = P(x | buys) / P(x | leaves) * p0 / (1 - p0)
    odds(buys | x; live) = P(x | buys) / P(x | leaves) * p1 / (1 - p1)

The likelihood ratio stays the same as long as buyers and other visitors keep their behaviour and only their shares
change. "The session has at least n events" is part of x, so this holds at every n, and

    logit(live) = logit(log) + logit(p1) - logit(p0)

has the same constant at every prefix (Elman, 2001, "The Foundations of Cost-Sensitive Learning"; Saerens, Latinne &
Decaestecker, 2002, "Adjusting the Outputs of a Classifier to New a Priori Probabilities"). If behaviour itself has
changed, for example by a redesign or a sale, no constant corrects that: train on newer sessions.
"""

import math


def logit_shift(trained: float, live: float) -> float:
    """Return the constant to add to the calibrated logit of every prefix.

    Args:
        trained: share of buying sessions in the log on which the model was calibrated.
        live: share of buying sessions in the live shop.

    Raises:
        ValueError: a share is not between 0 and 1, both excluded.
    """
    for name, share in (("the artifact's base rate", trained), ("base_rate", live)):
        if not 0.0 < share < 1.0:
            raise ValueError(f"{name}: expected a share of sessions above 0 and below 1, not {share}")
    return math.log(live / (1.0 - live)) - math.log(trained / (1.0 - trained))
