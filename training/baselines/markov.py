"""Markov chains of event types, one for buyers and one for other visitors.

One chain of event types is learned from the training sessions of each outcome, the session's end being one more type.
By Bayes' rule, with p the share of buyers, e_m the types and P_o the chain of outcome o:

    logit P(buys | e_1 ... e_n) = logit p + sum_m log P_buys(e_m | e_{m-k} ... e_{m-1}) / P_leaves(e_m | ...)

A context that few sessions had takes its probabilities from the next shorter one (hierarchical Dirichlet smoothing;
MacKay & Peto 1995, "A hierarchical Dirichlet language model"). Real sessions are not Markov chains, so the ratio is
overconfident on long sessions: temperature and bias are fitted on the validation sessions, which also choose the weight
of the shorter context.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.data.encoded import Encoded
from training.evaluation.calibration import Calibration, fit_calibration
from training.evaluation.metrics import log_losses

_Codes = NDArray[np.int64]
_Floats = NDArray[np.float64]

# Candidate weights of the shorter context's probabilities, in events; chosen on the validation sessions.
_PRIOR_EVENTS: Final = (10.0, 100.0, 1000.0)
_END: Final = 0  # index of "no event type" in the encoder, which no event has


class MarkovChain:
    """The chain of event types of some sessions, with contexts of up to `order` types.

    Args:
        types: (N,) event types from 1 up, session after session.
        offsets: (S + 1,) where each session begins.
        order: types that the next one depends on.
        symbols: number of types, the end of a session included.
    """

    def __init__(self, types: _Codes, offsets: _Codes, order: int, symbols: int) -> None:
        self._symbols = symbols
        self._tables: list[tuple[_Codes, _Floats, _Codes, _Floats]] = []
        with_ends = np.insert(types, offsets[1:], _END)
        ends = offsets + np.arange(len(offsets))
        for length in range(order + 1):
            context = _contexts(with_ends, ends, length, symbols)
            pairs, count = np.unique(context * symbols + with_ends, return_counts=True)
            contexts, total = np.unique(context, return_counts=True)
            self._tables.append((pairs, count.astype(np.float64), contexts, total.astype(np.float64)))

    def log_probability(self, types: _Codes, offsets: _Codes, prior_events: float) -> _Floats:
        """Return (N,) the log probability of each type after those before it in its session.

        Args:
            types: (N,) session after session.
            offsets: where each session begins.
            prior_events: events that the shorter context's probabilities are worth.
        """
        probability = np.full(len(types), 1.0 / self._symbols)
        for length, (pairs, count, contexts, total) in enumerate(self._tables):
            context = _contexts(types, offsets, length, self._symbols)
            seen = _looked_up(pairs, count, context * self._symbols + types)
            probability = (seen + prior_events * probability) / (_looked_up(contexts, total, context) + prior_events)
        logarithm: _Floats = np.log(probability)
        return logarithm


def markov(train: Encoded, validation: Encoded, test: Encoded, order: int) -> _Floats:
    """Predict for each test event by the ratio of two Markov chains, one a outcome, [N].

    Args:
        train: sessions that the chains are learned from; some of each outcome.
        validation: sessions that temperature and bias are fitted on.
        test: sessions to predict.
        order: event types that the next one depends on, from 1 up.
    """
    symbols = int(max(int(data.indices[:, 0].max()) for data in (train, validation, test))) + 1
    chains = [_chain(train, order, symbols, bought=bought) for bought in (True, False)]
    outcome = train.columns.outcome.numpy() > 0
    prior = np.log(outcome.sum() / (~outcome).sum())

    def log_odds(data: Encoded, prior_events: float) -> _Floats:
        types, offsets = _sequences(data)
        buys, leaves = (chain.log_probability(types, offsets, prior_events) for chain in chains)
        total = np.concatenate([[0.0], np.cumsum(buys - leaves)])
        before = total[offsets[:-1]][data.columns.session_index().numpy()]
        ratio: _Floats = prior + total[1:] - before
        return ratio

    session = validation.columns.session_index().numpy()
    bought = validation.columns.outcome.numpy()[session]
    best, least = np.zeros(len(test.columns.timestamp_ms)), np.inf
    for prior_events in _PRIOR_EVENTS:
        raw = log_odds(validation, prior_events)
        fitted = fit_calibration(raw.astype(np.float32), bought, session, trusted=False) or Calibration()
        loss = float(log_losses(bought, _probability(raw, fitted)).mean())
        if loss < least:
            best, least = _probability(log_odds(test, prior_events), fitted), loss
    return best


def _probability(log_odds: _Floats, fitted: Calibration) -> _Floats:
    probability: _Floats = 1.0 / (1.0 + np.exp(-np.clip(log_odds / fitted.temperature + fitted.bias, -30.0, 30.0)))
    return probability


def _chain(data: Encoded, order: int, symbols: int, *, bought: bool) -> MarkovChain:
    chosen = np.flatnonzero((data.columns.outcome.numpy() > 0) == bought)
    types, offsets = _sequences(data)
    lengths = np.diff(offsets)[chosen]
    inside = np.isin(data.columns.session_index().numpy(), chosen)
    return MarkovChain(types[inside], np.concatenate([[0], np.cumsum(lengths)]), order, symbols)


def _sequences(data: Encoded) -> tuple[_Codes, _Codes]:
    return data.indices[:, 0].numpy(), data.columns.offsets.numpy()


def _contexts(types: _Codes, offsets: _Codes, length: int, symbols: int) -> _Codes:
    """Return (N,) a number for the `length` types before each; a session's start looks like its end."""
    position = np.arange(len(types)) - np.repeat(offsets[:-1], np.diff(offsets))
    context = np.zeros(len(types), dtype=np.int64)
    for back in range(length, 0, -1):
        earlier = np.where(position >= back, np.roll(types, back), _END)
        context = context * symbols + earlier
    return context


def _looked_up(keys: _Codes, values: _Floats, requested: _Codes) -> _Floats:
    """Return the value of each requested key, 0 for a missing one; `keys` are sorted."""
    at = np.minimum(np.searchsorted(keys, requested), len(keys) - 1)
    found: _Floats = np.where(keys[at] == requested, values[at], 0.0)
    return found
