"""The model card: a model's intended use, quality and limits, as plain JSON for the manifest.

After Mitchell et al. (2019, doi:10.1145/3287560.3287596), "Model Cards for Model Reporting". Numbers come from the
report's rows; the card also has the command, seeds and versions that repeat them.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from model.clock import utc
from model.manifest import Manifest
from training.evaluation.evaluate import Row
from training.evaluation.resampling import Estimate
from training.report.content import Report

_DIGITS: Final = 6

INTENDED_USE: Final = [
    (
        "Ranking and timing within running sessions of the shop that it was trained on: after each event, the "
        "probability that the session ends in a purchase."
    ),
    "Watching a shop: live boards, alarms, and the share of sessions that are likely to buy.",
]
NOT_INTENDED: Final = [
    "Deciding on persons: prices, credit, or access by predicted willingness to buy.",
    "Other shops, or a shop whose pages or event names have changed: train anew.",
    "Whom to persuade: a probability to buy is not the effect of a contact (see limits).",
]
NOT_AN_INPUT: Final = [
    "anything at or after the session's first purchase",
    "the outcome, or any column made from it",
    "how long the session, or the current page, is going to last: the time of an event is known, its end is not",
    "the number of events of the whole session, or how far along it is",
    "other sessions of the same visitor, unless the shop sends a property that says so",
    "identity, name, address: the session id is looked up, never looked at",
    "words, scaling and bins come from the training sessions alone",
]
LIMITS: Final = [
    (
        "Propensity is not uplift: a high probability says that a visitor will buy, not that a contact would change "
        "it. Only an experiment with a random share of sessions left alone can tell that."
    ),
    (
        "Groups of visitors were not examined: the log does not say who they are, so whether errors differ between "
        "them is unknown."
    ),
    (
        "Shops shift: campaigns, seasons and redesigns change both the base rate and behaviour. A known change of the "
        "base rate can be set; for the rest, watch live calibration and train on newer sessions."
    ),
    "Intervals tell the chance of drawing these sessions. They do not cover that next month differs from this one.",
    "The scores are of sessions of known outcome; a log with other rules for what a session is has other scores.",
]


def model_card(manifest: Manifest, report: Report) -> dict[str, Any]:
    """Return the card of the model that the report is about.

    Args:
        manifest: of the model.
        report: on sessions that its training did not see.
    """
    data, training = manifest.data, manifest.training
    return {
        "model": _model(manifest),
        "intended_use": INTENDED_USE,
        "not_intended": NOT_INTENDED,
        "data": {
            "format": data.get("source_format", "unknown"),
            "clock": data.get("clock", "unknown"),
            "from": _day(data.get("first_time_ms")),
            "to": _day(data.get("last_time_ms")),
            "events": data.get("counts", {}).get("events"),
            "sessions": data.get("sessions", {}),
            "buyers": data.get("buyers", {}),
            "properties": [f"{spec.name} ({spec.kind}, {spec.scope})" for spec in manifest.properties],
            "fingerprint": data.get("fingerprint") or "unknown",
        },
        "split": _split(data, training),
        "not_an_input": NOT_AN_INPUT,
        "calibration": _calibration(manifest, report),
        "metrics": {
            "sessions": report.sessions,
            "buyers": report.buyers,
            "resamples": report.resamples,
            "populations": [_metrics(row, report.subject) for row in report.rows],
        },
        "limits": [*LIMITS, *report.warnings],
        "how_to_repeat": {
            "command": "willbuy train DATA --config FILE, with the settings file that the run left beside the artifact",
            "seed": training.get("fit", {}).get("seed"),
            "split_seed": training.get("split_seed"),
            "epochs": f"{training.get('best_epoch')} kept of {training.get('epochs_run')}",
            "device": training.get("device"),
            "versions": manifest.versions,
        },
    }


def _model(manifest: Manifest) -> dict[str, Any]:
    sizes = manifest.sizes
    cell = sizes.get("cell", "lstm")
    return {
        "predicts": "the probability that a running session ends in a purchase, after each of its events",
        "kind": f"{cell}, {sizes.get('layers')} x {sizes.get('hidden_size')} units, one step an event",
        "running aggregates": sizes.get("aggregates", True),
        "features": len(manifest.features),
        "event names": len(manifest.event_names),
        "fingerprint": manifest.fingerprint,
        "created": manifest.created,
    }


def _split(data: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    shares = training.get("fractions")
    if shares is None:
        return "unknown"
    shares_by_part = ", ".join(
        f"{share:.0%} {part}"
        for share, part in zip(shares, ("training", "validation", "calibration", "test"), strict=True)
    )
    if data.get("clock") == "session":
        return f"whole sessions by a hash of their id, as the log has no calendar time: {shares_by_part}"
    return f"whole sessions by their start, training earliest and test latest: {shares_by_part}"


def _calibration(manifest: Manifest, report: Report) -> dict[str, Any]:
    pooled = report.pooled
    return {
        "method": "temperature and bias on the logit, by maximum likelihood on the calibration sessions",
        **{name: round(value, _DIGITS) for name, value in manifest.calibration.items()},
        "base rate": manifest.base_rate,
        "class weights": "none",
        "calibration error": _shown(pooled.scores[report.subject]["calibration_error"]),
        "of which chance explains up to": _rounded(pooled.calibration_noise[report.subject]),
    }


def _metrics(row: Row, subject: str) -> dict[str, Any]:
    return {
        "name": row.name,
        "kind": row.kind,
        "heading": row.heading,
        "prefixes": row.count,
        "base_rate": _numbers(row.base_rate),
        "scores": {name: _numbers(found) for name, found in row.scores[subject].items()},
        "log_loss_difference": {other: _numbers(found["log_loss"]) for other, found in row.differences.items()},
    }


def _numbers(found: Estimate) -> dict[str, float | None]:
    return {name: _rounded(value) for name, value in asdict(found).items()}


def _shown(found: Estimate) -> str:
    if found.value is None or found.low is None or found.high is None:
        return "unknown"
    return f"{found.value:.4f} ({found.low:.4f} to {found.high:.4f})"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)


def _day(timestamp_ms: int | None) -> str | None:
    if timestamp_ms is None:
        return None
    return utc(timestamp_ms).isoformat(timespec="seconds")
