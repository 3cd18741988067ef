"""Prior correction: what a model says in a shop whose share of buyers differs from its training log's.

By Bayes' rule, for the prefix x = (x_1 ... x_n) of a session, p0 the share of sessions that buy in the log and p1 in
the live shop:

    odds(buys | x; log)  = P(x | buys) / P(x | leaves) * p0 / (1 - p0)
    odds(buys | x; live) = P(x | buys) / P(x | leaves) * p1 / (1 - p1)

The likelihood ratio is the same as long as buyers go on behaving like buyers and the others like the others: there are
more of the ones and fewer of the others, and that is all that changed. "The session got as far as n events" is part of
x, so this holds at every n, and

    logit(live) = logit(log) + logit(p1) - logit(p0)

has the same constant at every prefix (Elman, 2001, "The Foundations of Cost-Sensitive Learning"; Saerens, Latinne &
Decaestecker, 2002, "Adjusting the Outputs of a Classifier to New a Priori Probabilities"). Where behaviour itself
changed, with a redesign or a sale, no constant helps: train on newer sessions.
"""

import math


def logit_shift(trained: float, live: float) -> float:
    """Return what is added to the calibrated logit of every prefix.

    Args:
        trained: share of sessions that buy, where the model's probabilities were calibrated.
        live: share of sessions that buy, where it is asked.

    Raises:
        ValueError: a share is not between 0 and 1, both excluded.
    """
    for name, share in (("the artifact's base rate", trained), ("base_rate", live)):
        if not 0.0 < share < 1.0:
            raise ValueError(f"{name}: expected a share of sessions above 0 and below 1, not {share}")
    return math.log(live / (1.0 - live)) - math.log(trained / (1.0 - trained))
