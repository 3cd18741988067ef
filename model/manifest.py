"""An artifact's manifest, and the errors of artifacts.

ArtifactError
├── ArtifactMissingError    no such file
├── ArtifactCorruptError    damaged, or another program's file
├── ArtifactVersionError    written in another format version
├── ArtifactDigestError     its SHA-256 is not the expected one
├── BaseRateUnknownError    its base rate is to be shifted and is not recorded
└── ScriptMismatchError     the script differs from the eager model; nothing was written
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from model.events import PURCHASE
from model.properties import PropertySpec

FORMAT_VERSION: Final = 1


class ArtifactError(ValueError):
    """An artifact cannot be used; the message names the reason and the remedy."""


class ArtifactMissingError(ArtifactError):
    """There is no such file."""


class ArtifactCorruptError(ArtifactError):
    """The file is damaged or not an artifact."""


class ArtifactVersionError(ArtifactError):
    """The file was written in another format version."""


class ArtifactDigestError(ArtifactError):
    """The SHA-256 of the file is not the expected one."""


class BaseRateUnknownError(ArtifactError):
    """The artifact does not record its training base rate, so it cannot be shifted to another."""


class ScriptMismatchError(ArtifactError):
    """The scripted model computes different probabilities than the eager one; nothing was written."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The description of a model inside its artifact.

    Attributes:
        fingerprint: 16 hexadecimal digits over weights, buffers, configuration and code; equal only for equal models.
        event_names, items, item_categories: vocabularies in the encoder's order; index 0 is no value, 1 is other.
        properties: declared properties, in the order of their columns.
        property_values: vocabulary of each category property.
        calendar: whether training had calendar time; without it, hour and weekday are not inputs.
        sizes: the network's sizes (`model.network.NetworkSizes`).
        state: widths of the state's parts: hidden, carry, memory.
        features: names of the encoder's features, in order.
        calibration: temperature and bias on the logit.
        metrics: quality on hold-out sessions by prefix length, as printed by `willbuy train`.
        data: counts of the training data; `base_rate` is the share of buying sessions that the probabilities are
            calibrated to, `purchase_names` what the log called a purchase, `event_renames` its other own names.
        training: settings of the run.
        model_card: purpose, quality and limits, for people (`training.report.model_card`).
        versions: versions of the project, torch and Python.
        created: time of export, RFC 3339.
        format_version: version of the file format.
        code: digest of the archive's code (`model.code_digest`); empty before `save`, and in artifacts of releases that
            recorded none.
    """

    fingerprint: str
    event_names: list[str]
    items: list[str]
    item_categories: list[str]
    properties: list[PropertySpec]
    property_values: dict[str, list[str]]
    calendar: bool
    sizes: dict[str, Any]
    state: dict[str, int]
    features: list[str]
    calibration: dict[str, float]
    metrics: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    model_card: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""
    format_version: int = FORMAT_VERSION
    code: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as JSON-ready values."""
        return asdict(self)

    @property
    def base_rate(self) -> float | None:
        """Share of buying sessions that the probabilities are calibrated to; None if it is not recorded."""
        share = self.data.get("base_rate")
        return float(share) if isinstance(share, int | float) and 0.0 < share < 1.0 else None

    @property
    def text_rules(self) -> int:
        """Version of `model.text_rules` that the training data followed; 0 for artifacts that record none."""
        return int(self.data.get("text_rules", 0))

    @property
    def event_renames(self) -> dict[str, str]:
        """Event names that the log has other than by aliases, with what each means; the log's purchases among them."""
        purchases = dict.fromkeys(self.data.get("purchase_names", ()), PURCHASE)
        return {**purchases, **self.data.get("event_renames", {})}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Manifest":
        """Return the manifest of a result of `to_dict`.

        Raises:
            ArtifactCorruptError: a field is missing, unknown or of the wrong type.
        """
        try:
            specs = [PropertySpec(**spec) for spec in values["properties"]]
            return cls(**{**values, "properties": specs})
        except (KeyError, TypeError, ValueError) as exc:
            raise ArtifactCorruptError(f"the artifact's manifest is not readable: {exc}") from exc
