"""What an artifact says of itself, and what can be wrong with one.

ArtifactError
├── ArtifactMissingError    no such file
├── ArtifactCorruptError    damaged, or another program's file
├── ArtifactVersionError    written in another format version
├── ArtifactDigestError     not the file whose SHA-256 was asked for
├── BaseRateUnknownError    asked to shift its base rate, and does not tell it
└── ScriptMismatchError     the script differs from the eager model; nothing was written
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from model.columns import PropertySpec

FORMAT_VERSION: Final = 1


class ArtifactError(ValueError):
    """An artifact that cannot be used; the message says why and what to do."""


class ArtifactMissingError(ArtifactError):
    """There is no such file."""


class ArtifactCorruptError(ArtifactError):
    """The file is damaged or is no artifact at all."""


class ArtifactVersionError(ArtifactError):
    """The file was written in another format version."""


class ArtifactDigestError(ArtifactError):
    """The file is not the one whose SHA-256 was asked for."""


class BaseRateUnknownError(ArtifactError):
    """The artifact does not tell the base rate that it was trained at, so it cannot be shifted to another."""


class ScriptMismatchError(ArtifactError):
    """The scripted model does not compute what the eager one does; nothing was written."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an artifact says of itself.

    Attributes:
        fingerprint: 16 hexadecimal digits over weights, buffers and configuration: equal if and only if the model is.
        event_names, items, item_categories: vocabularies in the encoder's order; index 0 is no value, 1 is other.
        properties: declared properties, in the order of their columns.
        property_values: vocabulary of each category property.
        calendar: whether training had calendar time; without it, hour and weekday are not looked at.
        sizes: the network's sizes (`model.network.NetworkSizes`).
        state: widths of the state's parts: hidden, carry, memory.
        features: names of the encoder's features, in order.
        calibration: temperature and bias on the logit.
        metrics: quality on held-out sessions by prefix length, as `willbuy train` printed it.
        data: what it was trained on, in counts; `base_rate` is the share of sessions that buy as its
            probabilities have it.
        training: the settings of the run.
        model_card: what it is for, how good it is and what it is not, for people (`training.report.model_card`).
        versions: of the project, torch and Python.
        created: time of export, RFC 3339.
        format_version: of this file.
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

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as JSON-ready values."""
        return asdict(self)

    @property
    def base_rate(self) -> float | None:
        """Share of sessions that buy, as the probabilities have it; None in an artifact that does not tell."""
        told = self.data.get("base_rate")
        return float(told) if isinstance(told, int | float) and 0.0 < told < 1.0 else None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Manifest":
        """Return the manifest that `to_dict` gave.

        Raises:
            ArtifactCorruptError: a field is missing, unknown or not of its kind.
        """
        try:
            specs = [PropertySpec(**spec) for spec in values["properties"]]
            return cls(**{**values, "properties": specs})
        except (KeyError, TypeError, ValueError) as exc:
            raise ArtifactCorruptError(f"the artifact's manifest is not readable: {exc}") from exc
