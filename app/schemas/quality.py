"""Bodies of model quality: calibration, AUC and drift over ended sessions; part of `GET /v1/stats`.

Each figure comes with its number of sessions, and is null for too few sessions.
"""

from pydantic import BaseModel, ConfigDict, Field

_CONFIG = ConfigDict(use_attribute_docstrings=True, protected_namespaces=())


class AnswersOut(BaseModel):
    """Answers to events of ended sessions, compared with the outcomes of the sessions."""

    model_config = _CONFIG

    sessions: int
    """Ended sessions with such an answer."""
    buyers: int
    """The buyers among them."""
    predictions: int
    """Answers, one an event."""
    base_rate: float | None
    """Share of the answers whose session bought: the mean probability of a calibrated model."""
    mean_probability: float | None
    """Mean probability of the answers."""
    log_loss: float | None
    """Mean negative logarithm of the probability of the actual outcome, in nats."""
    auc: float | None
    """Chance that an answer in a session that bought was higher than one in a session that did not, ties half."""
    calibration_error: float | None
    """Mean difference between mean probability and purchase rate, over ten bins of equally many answers."""


class PrefixAnswersOut(AnswersOut):
    """Answers by the number of the session's events."""

    model_config = ConfigDict(populate_by_name=True)

    from_: int = Field(alias="from", serialization_alias="from")
    """Fewest events."""
    to: int | None
    """Most events; null: no end."""


class ReliabilityOut(BaseModel):
    """One bin of answers with similar probabilities."""

    model_config = _CONFIG

    mean_probability: float
    """Mean probability of the answers."""
    purchase_rate: float
    """Share of them whose session bought."""
    predictions: int
    """Number of answers."""


class FeatureDriftOut(BaseModel):
    """One feature, live against training."""

    model_config = _CONFIG

    name: str
    """The feature."""
    psi: float
    """Population stability index against the training sessions."""


class DriftOut(BaseModel):
    """Drift of the inputs: live sessions against the training sessions."""

    model_config = _CONFIG

    sessions: int
    """Ended sessions whose inputs were counted."""
    unseen_name_share: float | None
    """Share of their events whose name is not in the model's vocabulary."""
    trained_unseen_name_share: float | None
    """The same share of the training sessions."""
    features: list[FeatureDriftOut]
    """The features with the largest indices, in descending order."""
    max_psi: float | None
    """The largest index of all features."""


class ModelQualityOut(BaseModel):
    """Quality of the model in use on the sessions that began with it within the window, `pending_s` or longer ago."""

    model_config = _CONFIG

    window_s: int
    """Length of the window in seconds."""
    pending: int
    """Ended sessions that do not count yet, as in `OutcomesOut`."""
    pending_s: float
    """Age, in seconds since its begin, from which a session counts."""
    sessions: int
    """Ended sessions with an answer of this model."""
    buyers: int
    """The buyers among them."""
    predictions: int
    """Answers, one an event."""
    by_prefix_length: list[PrefixAnswersOut]
    """Answers by the number of events before."""
    overall: AnswersOut
    """All answers."""
    reliability: list[ReliabilityOut]
    """Mean probability and purchase rate of at most ten bins of equally many answers, in ascending order."""
    drift: DriftOut | None
    """Drift of the inputs; null for an artifact without a summary of its training data."""
