"""Logistic regression, on n-grams of event types and on the running aggregates.

Both choose the strength of their penalty by the log loss of the validation sessions.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.compose import make_column_transformer
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from model.encoder import Encoder
from training.data.encoded import Encoded

_Floats = NDArray[np.float64]

MOST_PREFIXES: Final = 100_000
"""Most prefixes that a regression is fitted on; a random sample of more."""

_STRENGTHS: Final = (0.01, 0.1, 1.0)
_ITERATIONS: Final = 1000
# Most words of a column with a coefficient of their own; rarer ones share one.
_MOST_WORDS: Final = 40
_LONGEST_GRAM: Final = 3
# Last events of a prefix that n-grams are taken from: bounds the cost of a prefix.
_WINDOW: Final = 30
# N-grams in fewer prefixes than this would be noise.
_LEAST_PREFIXES: Final = 20


def ngram_regression(train: Encoded, validation: Encoded, test: Encoded, *, seed: int) -> _Floats:
    """Predict for each test event by the 1- to 3-grams of its prefix's last 30 event types, and its position, [N]."""
    vectorizer = CountVectorizer(
        analyzer="word",
        tokenizer=str.split,
        token_pattern=None,
        lowercase=False,
        ngram_range=(1, _LONGEST_GRAM),
        min_df=_LEAST_PREFIXES,
        dtype=np.float32,
    )
    documents = [_documents(data, rows) for data, rows in _rows(train, validation, test, seed=seed)]
    counts = FunctionTransformer(np.log1p, accept_sparse=True)
    return _best_regression(make_pipeline(vectorizer, counts), documents, train, validation, seed=seed, solver="lbfgs")


def aggregate_regression(encoder: Encoder, train: Encoded, validation: Encoded, test: Encoded, *, seed: int) -> _Floats:
    """Predict for each test event by a linear function of the encoder's features and indices, [N]."""
    features = len(encoder.feature_names)
    columns = make_column_transformer(
        (StandardScaler(), slice(0, features)),
        (
            OneHotEncoder(
                handle_unknown="infrequent_if_exist", min_frequency=_LEAST_PREFIXES, max_categories=_MOST_WORDS
            ),
            slice(features, features + len(encoder.index_names)),
        ),
        sparse_threshold=0,
    )
    matrices = [
        np.concatenate([data.features.numpy()[rows], data.indices.numpy()[rows].astype(np.float32)], axis=1)
        for data, rows in _rows(train, validation, test, seed=seed)
    ]
    # With many prefixes and few columns, a Newton solver takes a tenth of the time.
    return _best_regression(columns, matrices, train, validation, seed=seed, solver="newton-cholesky")


def _best_regression(
    inputs: Any,  # noqa: ANN401  # scikit-learn ships no types
    parts: list[Any],
    train: Encoded,
    validation: Encoded,
    *,
    seed: int,
    solver: str,
) -> _Floats:
    """Fit a regression for each penalty on `parts[0]`; predict `parts[2]` with the one that is best on `parts[1]`."""
    (_, fitted_on), (_, chosen_by) = _rows(train, validation, seed=seed)
    label, validation_label = _label(train)[fitted_on], _label(validation)[chosen_by]
    fitted = inputs.fit_transform(parts[0])
    validation_inputs, best, least = inputs.transform(parts[1]), None, np.inf
    for strength in _STRENGTHS:
        regression = LogisticRegression(C=strength, max_iter=_ITERATIONS, solver=solver).fit(fitted, label)
        loss = log_loss(validation_label, regression.predict_proba(validation_inputs)[:, 1], labels=[False, True])
        if loss < least:
            best, least = regression, loss
    assert best is not None  # noqa: S101  # a log loss is finite, there is a strength, so one was the least
    probability: _Floats = best.predict_proba(inputs.transform(parts[2]))[:, 1].astype(np.float64)
    return probability


def _rows(train: Encoded, validation: Encoded, *others: Encoded, seed: int) -> list[tuple[Encoded, NDArray[np.int64]]]:
    """Return the prefixes to use of each part: some of the first two, all of the others."""
    rng = np.random.default_rng(seed)
    chosen = []
    for data in (train, validation):
        total = len(data.columns.timestamp_ms)
        chosen.append((data, np.sort(rng.choice(total, min(total, MOST_PREFIXES), replace=False))))
    return [*chosen, *((data, np.arange(len(data.columns.timestamp_ms))) for data in others)]


def _label(data: Encoded) -> NDArray[np.bool_]:
    label: NDArray[np.bool_] = data.columns.outcome.numpy()[data.columns.session_index().numpy()] > 0
    return label


def _documents(data: Encoded, rows: NDArray[np.int64]) -> list[str]:
    """Return the last event types of each prefix as words, plus a word for its position."""
    words = np.array([str(index) for index in range(int(data.indices[:, 0].max()) + 1)], dtype=object)
    types = words[data.indices[:, 0].numpy()].tolist()
    length = data.columns.prefix_length().numpy()[rows]
    return [
        " ".join([f"position{min(n, _WINDOW)}", *types[row + 1 - min(n, _WINDOW) : row + 1]])
        for row, n in zip(rows.tolist(), length.tolist(), strict=True)
    ]
