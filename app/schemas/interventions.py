"""Bodies of rules, their experiments, and webhooks."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_CONFIG = ConfigDict(use_attribute_docstrings=True)


class IntervalOut(BaseModel):
    """An interval of 95 %."""

    model_config = _CONFIG

    low: float
    """Lower end."""
    high: float
    """Upper end."""


class GroupOut(BaseModel):
    """The ended sessions of one group of a rule."""

    model_config = _CONFIG

    fired_today: int
    """Decisions of the group since midnight, UTC; their sessions may not have ended."""
    sessions: int
    """Ended sessions with a known outcome, from one and a half idle times after the decision on."""
    pending: int
    """Ended sessions that do not count yet, since buyers end first."""
    buyers: int
    """The buyers among them."""
    conversion: float | None
    """Buyers by session."""
    conversion_interval: IntervalOut
    """Wilson's score interval of the conversion, for one look."""
    revenue: float
    """Sum of the values of their purchases in `currency`; a purchase in another one counts without revenue."""
    currency: str | None
    """The currency of most purchases of both groups; null: the shop sends none."""
    revenue_per_session: float | None
    """Revenue by session, buyers or not."""


class ExperimentOut(BaseModel):
    """Treatment minus control: what the rule changed."""

    model_config = _CONFIG

    difference: float | None
    """Of the conversions."""
    interval: IntervalOut | None
    """Confidence sequence of the difference: it may be read every day. Null: too few buyers."""
    interval_once: IntervalOut | None
    """Newcombe's interval of the difference: valid for one look, at a time that was chosen before."""
    revenue_difference: float | None
    """Of the revenue per session."""
    revenue_interval: IntervalOut | None
    """Confidence sequence of that. Null: too few buyers."""
    minimum_detectable_effect: float | None
    """Least true difference of the conversions that the interval shows at so many sessions with 80 % probability."""
    sample_ratio_p: float | None
    """p-value of the test that the groups have the sizes that `control` asks for; below 0.001 something is broken."""
    days_left: int | None
    """Until the interval excludes zero, if difference and traffic stay as they are; 0: it does; null: not known."""
    finding: Literal["no_control", "too_few", "mismatch", "unknown", "more", "less"]
    """The verdict in a word: purchases are `more` or `less` with the rule, or it is not known yet, and why."""
    verdict: str
    """The verdict in words."""


class RuleOut(BaseModel):
    """A rule, its switch, and its experiment."""

    model_config = _CONFIG

    name: str
    """Its name."""
    on: bool
    """Whether it may fire: it is in the file and not switched off."""
    in_file: bool
    """Whether the file has it; a rule that was removed keeps its counts."""
    switched_off: datetime | None
    """When it was switched off."""
    control: float
    """Share that is held out."""
    rule: dict[str, Any]
    """Its fields in the file."""
    fired_today: int
    """Decisions since midnight, UTC, of both groups."""
    treatment: GroupOut
    """Sessions that were treated."""
    control_group: GroupOut
    """Sessions that were held out."""
    experiment: ExperimentOut
    """The difference between them."""


class WebhookOut(BaseModel):
    """A receiver of decisions."""

    model_config = _CONFIG

    name: str
    """Host, and a digest of the address."""
    rules: list[str] | None
    """Rules whose decisions it gets; null: all."""
    waiting: int
    """Messages that wait for an attempt."""
    next_attempt: datetime | None
    """When the first of them is due."""
    dead: int
    """Messages that are not sent any more."""


class InterventionsOut(BaseModel):
    """All rules and webhooks."""

    model_config = ConfigDict(use_attribute_docstrings=True, json_schema_extra={"title": "Interventions"})

    as_of: datetime
    """When the answer was read, by the server's clock."""
    rules: list[RuleOut]
    """In the order of the file; removed ones last."""
    webhooks: list[WebhookOut]
    """In the order of the file."""


class SwitchIn(BaseModel):
    """A rule's switch."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    on: bool
    """false: the rule fires nowhere any more, within two seconds."""


class SwitchOut(BaseModel):
    """A rule's switch as it is now."""

    model_config = _CONFIG

    name: str
    """The rule."""
    on: bool
    """Whether it may fire."""


class DeadMessageOut(BaseModel):
    """A message that is not sent any more."""

    model_config = _CONFIG

    id: str
    """The id that its receiver knows it by (`webhook-id`)."""
    cause: str
    """Why its last attempt failed; `queue_full`: it was never sent."""
    attempts: int
    """How often it was sent."""
    died: datetime
    """When it was given up."""
    body: str
    """What was sent, JSON."""


class DeadMessagesOut(BaseModel):
    """The dead messages of a webhook."""

    model_config = _CONFIG

    webhook: str
    """Its name."""
    dead: int
    """How many there are."""
    messages: list[DeadMessageOut]
    """The latest ones, latest first."""


class ResendIn(BaseModel):
    """Which dead messages to send again."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    ids: list[str] | None = Field(default=None, min_length=1, max_length=1000)
    """Their ids; absent: all."""


class ResendOut(BaseModel):
    """What is sent again."""

    model_config = _CONFIG

    webhook: str
    """Its name."""
    resent: int
    """How many messages wait for their first attempt again."""
