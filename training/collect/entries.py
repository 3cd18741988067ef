"""From the JSON of ended sessions to canonical events.

Events keep the order and the times with which the service folded them. The service treats a late event as if it had
the time of the latest event before it, so that time is written here: the encoder computes the same features, and
sorting by time keeps the order. A purchase gets a time at least a millisecond after the last event, as preparation cuts
everything at or after the purchase.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import polars as pl

from model.events import FIELD_NAMES, PURCHASE
from model.text_rules import category_text
from training.collect.errors import CollectError
from training.data.interventions import ALL, OF_RULE
from training.data.sources.conversion import EVENT_COLUMNS, PROPERTY_PREFIX, SOURCE_LINE

FORMAT: Final = 1
_COLUMNS: Final = tuple(name for name in EVENT_COLUMNS if name != SOURCE_LINE)


class EntryId(NamedTuple):
    """Position of an entry: the shard of its stream, and its id there."""

    shard: int
    entry: str

    @property
    def text(self) -> str:
        """The two as one text: `a7:1795402578422-0`."""
        return f"{self.shard:02x}:{self.entry}"


@dataclass(frozen=True, slots=True)
class Ended:
    """A session that ended.

    Attributes:
        entry: where it was read.
        session_id: unique: the shop's id and the time of the first event, as a shop may reuse an id.
        bought: whether it bought.
        closed_ms: time at which the service closed it.
        rows: its events as values of the event table's columns; properties under their own names.
    """

    entry: EntryId
    session_id: str
    bought: bool
    closed_ms: int
    rows: Sequence[dict[str, Any]]


def ended_session(entry: EntryId, text: bytes) -> Ended | None:
    """Return the session of an entry; None if its outcome is unknown, as of a session that Redis has evicted in part.

    Raises:
        CollectError: the text is not JSON of the format that docs/outcomes.md describes.
    """
    try:
        session = json.loads(text)
        if session["format"] != FORMAT:
            raise CollectError(
                f"entry {entry.text}: format {session['format']}, this release reads format {FORMAT}; "
                "collect with the release that serves"
            )
        if session["outcome"] == "unknown":
            return None
        bought = {"purchase": True, "none": False}[session["outcome"]]
        latest_ms = session["events"][0]["timestamp_ms"] if session["events"] else 0
        first_ms = latest_ms or session["outcome_ms"] or session["closed_ms"]
        session_id = f"{session['session_id']}@{first_ms}"
        rows = []
        for event in session["events"]:
            latest_ms = max(latest_ms, event["timestamp_ms"])
            fields = {name: event.get(name) for name in FIELD_NAMES}
            properties = {PROPERTY_PREFIX + name: value for name, value in event.get("properties", {}).items()}
            rows.append(_row(session_id, latest_ms, event["event_name"], bought) | fields | properties)
        _add_interventions(rows, session.get("interventions", ()))
        if bought:
            bought_ms = max(latest_ms + 1, session["outcome_ms"] or 0)
            worth = {"value": session.get("value"), "currency": session.get("currency")}
            rows.append(_row(session_id, bought_ms, PURCHASE, bought) | worth)
        return Ended(entry, session_id, bought, session["closed_ms"], rows)
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as exc:
        raise CollectError(f"entry {entry.text}: not a session as docs/outcomes.md describes it ({exc!r})") from exc


def _add_interventions(rows: Sequence[dict[str, Any]], decisions: Sequence[dict[str, Any]]) -> None:
    """Add the properties of `training.data.interventions` to the rows of a session's events."""
    groups = {decision["rule"]: decision["group"] for decision in decisions}
    if not groups:
        return
    text = " ".join(f"{rule}={group}" for rule, group in sorted(groups.items()))
    for row in rows:
        row[PROPERTY_PREFIX + ALL] = text
    for decision in decisions:
        # The decision follows the score of its event, so the next event is the first that can know of it.
        for row in rows[decision["event"] :]:
            row[PROPERTY_PREFIX + OF_RULE + decision["rule"]] = decision["group"]


def events_of(sessions: Iterable[Ended]) -> pl.DataFrame:
    """Return the canonical events of sessions, each whole and in order."""
    rows = [row for session in sessions for row in session.rows]
    names = [*_COLUMNS, *dict.fromkeys(name for row in rows for name in row if name.startswith(PROPERTY_PREFIX))]
    columns = {name: [row.get(name) for row in rows] for name in names}
    return pl.DataFrame(
        [
            pl.Series(name, values, dtype=EVENT_COLUMNS[name]) if name in _COLUMNS else _property(name, values)
            for name, values in columns.items()
        ]
    )


def _row(session_id: str, timestamp_ms: int, event_name: str, bought: bool) -> dict[str, Any]:
    return {"session_id": session_id, "timestamp_ms": timestamp_ms, "event_name": event_name, "outcome": bought}


def _property(name: str, values: Sequence[Any]) -> pl.Series:
    """Return a property's values: as numbers where all of them are numbers, else as their category texts."""
    given = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in given):
        return pl.Series(name, values, dtype=pl.Boolean)
    if all(isinstance(value, bool | int | float) for value in given):
        return pl.Series(name, [None if value is None else float(value) for value in values], dtype=pl.Float64)
    return pl.Series(name, [category_text(value) for value in values], dtype=pl.String)
