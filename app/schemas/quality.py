"""What the service says of how far its model can be trusted today; part of `GET /v1/stats`.

Each figure stands beside the number of sessions it rests on, and is null where those are too few to say anything.
"""

from pydantic import BaseModel, ConfigDict, Field

_CONFIG = ConfigDict(use_attribute_docstrings=True, protected_namespaces=())


class AnswersOut(BaseModel):
    """Answers to events of sessions that have ended, against what became of the sessions."""

    model_config = _CONFIG

    sessions: int
    """Ended sessions with such an answer."""
    buyers: int
    """Those of them that bought."""
    predictions: int
    """Answers, one an event."""
    base_rate: float | None
    """Share of the answers whose session bought: what a calibrated model says on average."""
    mean_probability: float | None
    """What the model said on average."""
    log_loss: float | None
    """Mean negative logarithm of the probability given to what happened, in nats."""
    auc: float | None
    """Chance that an answer in a session that bought was higher than one in a session that did not, ties half."""
    calibration_error: float | None
    """Mean distance between what was said and what happened, over ten bins of equally many answers."""


class PrefixAnswersOut(AnswersOut):
    """Answers after so many events of a session."""

    model_config = ConfigDict(populate_by_name=True)

    from_: int = Field(alias="from", serialization_alias="from")
    """Fewest events."""
    to: int | None
    """Most events; null: no end."""


class ReliabilityOut(BaseModel):
    """Answers that were about equally high."""

    model_config = _CONFIG

    mean_probability: float
    """What the model said on average."""
    purchase_rate: float
    """Share of them whose session bought."""
    predictions: int
    """How many there were."""


class FeatureDriftOut(BaseModel):
    """One input of the model, then and now."""

    model_config = _CONFIG

    name: str
    """The feature."""
    psi: float
    """Population stability index against the training sessions."""


class DriftOut(BaseModel):
    """Whether today's sessions look like those that the model was trained on."""

    model_config = _CONFIG

    sessions: int
    """Ended sessions that were looked at."""
    unseen_name_share: float | None
    """Share of their events whose name the model does not know."""
    trained_unseen_name_share: float | None
    """The same share of the training sessions."""
    features: list[FeatureDriftOut]
    """The features that differ most, the most different first."""
    max_psi: float | None
    """The largest index of all features."""


class ModelQualityOut(BaseModel):
    """How the model that is in use did on the sessions that ended within the window."""

    model_config = _CONFIG

    window_s: int
    """Length of the window in seconds."""
    sessions: int
    """Ended sessions with an answer of this model."""
    buyers: int
    """Those of them that bought."""
    predictions: int
    """Answers, one an event."""
    by_prefix_length: list[PrefixAnswersOut]
    """By how many events had come."""
    overall: AnswersOut
    """All answers."""
    reliability: list[ReliabilityOut]
    """What was said against what happened, at most ten bins of equally many answers, lowest first."""
    drift: DriftOut | None
    """The inputs; null where the artifact does not say what it was trained on."""
