"""Sessions that a rule treated: what a collected log says of them, and what training does about them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from model.properties import PropertySpec
from training.collect.entries import EntryId, ended_session, events_of
from training.config import PARTS, TrainSettings
from training.data.index import index_sessions
from training.data.interventions import ALL, OF_RULE, leave_out, possible_inputs
from training.data.prepare import prepare
from training.data.prepared import PreparedDataset
from training.data.sources.canonical import write_events
from training.data.training_set import TrainingError, load

FRACTIONS = (0.5, 0.2, 0.1, 0.2)
DAY_MS = 86_400_000
START_MS = 1_767_225_600_000


def ended(number: int, *decisions: dict, events: int = 4):
    bought = number % 2 == 0
    first_ms = START_MS + number * 60_000
    session = {
        "format": 1,
        "session_id": f"s-{number}",
        "outcome": "purchase" if bought else "none",
        "closed_by": "event" if bought else "idle",
        "outcome_ms": first_ms + 10_000 if bought else None,
        "closed_ms": first_ms + 20_000,
        "last_seen_ms": first_ms + 9_000,
        "value": 30.0 if bought else None,
        "events": [{"event_name": "page_view", "timestamp_ms": first_ms + at * 1_000} for at in range(events)],
        "interventions": list(decisions),
    }
    return ended_session(EntryId(1, f"{number}-0"), json.dumps(session).encode())


def decision(rule: str, group: str, event: int) -> dict:
    return {"rule": rule, "group": group, "event": event, "probability": 0.4, "decided_ms": 1, "idle": False}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> PreparedDataset:
    """120 sessions: of three, one is treated, one is held out, and one has no decision."""
    folder: Path = tmp_path_factory.mktemp("collected")
    sessions = [
        ended(number, *([[decision("voucher", "treatment", 2)], [decision("voucher", "control", 2)], []][number % 3]))
        for number in range(120)
    ]
    write_events(events_of([one for one in sessions if one is not None]), folder / "log.parquet", clock="calendar")
    return prepare(folder / "log.parquet", folder / "prepared", keep_open_sessions=True)


def test_a_group_is_known_from_the_event_after_the_decision_on() -> None:
    session = ended(0, decision("voucher", "treatment", 2), decision("chat", "control", 4))
    assert session is not None
    *events, purchase = session.rows
    assert [row.get("property.willbuy.intervention.voucher") for row in events] == [
        None,
        None,
        "treatment",
        "treatment",
    ]
    assert [row.get("property.willbuy.intervention.chat") for row in events] == [None] * 4
    assert {row["property.willbuy.interventions"] for row in events} == {"chat=control voucher=treatment"}
    assert purchase["value"] == 30.0
    assert not any("willbuy" in name for name in purchase)


def test_a_session_without_decisions_has_no_such_column() -> None:
    session = ended(1)
    assert session is not None
    assert not any("willbuy" in name for row in session.rows for name in row)


def test_treated_sessions_are_counted_and_left_out_where_that_is_chosen(dataset) -> None:
    index = index_sessions(dataset, FRACTIONS, 0)
    (kept,) = leave_out(index, dataset, "keep")
    assert kept.startswith("rules treated 40 of 120 sessions and held 40 out as control; all are kept")
    assert sum(index.sessions(part) for part in PARTS) == 120
    (said,) = leave_out(index, dataset, "leave-out")
    assert "left out of all parts" in said
    assert sum(index.sessions(part) for part in PARTS) == 80
    left = {name for part in PARTS for name in index.ids(part)}
    assert {int(name.partition("@")[0].removeprefix("s-")) % 3 for name in left} == {1, 2}


def test_decisions_are_inputs_only_where_that_is_chosen(dataset) -> None:
    device = PropertySpec("device", "category")
    group, everything = PropertySpec(f"{OF_RULE}voucher", "category"), PropertySpec(ALL, "category")
    properties = [device, group, everything]
    assert possible_inputs(properties, "keep") == possible_inputs(properties, "leave-out") == [device]
    assert possible_inputs(properties, "property") == [device, group]


@pytest.mark.parametrize(
    ("interventions", "inputs", "sessions"),
    [("keep", [], 120), ("leave-out", [], 80), ("property", [f"{OF_RULE}voucher"], 120)],
)
def test_training_sees_what_was_chosen_and_says_so(dataset, interventions, inputs, sessions) -> None:
    settings = TrainSettings(fractions=FRACTIONS, interventions=interventions)
    data = load(dataset, settings)
    assert [spec.name for spec in data.encoder.properties] == inputs
    assert sum(data.sessions.values()) == sessions
    assert "rules treated 40 of 120 sessions" in data.warnings[0]


def test_what_knows_the_future_cannot_be_chosen_by_name(dataset) -> None:
    settings = TrainSettings(fractions=FRACTIONS, interventions="property", properties=(ALL,))
    with pytest.raises(TrainingError, match=r"willbuy\.interventions"):
        load(dataset, settings)
    with pytest.raises(TrainingError, match=r"willbuy\.intervention\.voucher"):
        load(dataset, replace(settings, interventions="keep", properties=(f"{OF_RULE}voucher",)))
