"""What comes later changes nothing before it: not the time of the next event, not how many are still to come.

Dwell time of the current page and length of the session are known only afterwards. Each test holds the project's own
way from events to inputs, and then ways that leak, against the same question: a leaky one must be told from ours.
"""

from collections.abc import Callable, Sequence

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from support.artifacts import EVENT_NAMES, random_model
from support.event_strategies import ALL_SCOPES, sessions
from torch import Tensor

from model.columns import columns_from_events
from model.encoder import Encoder
from model.events import Event
from training.data.prepared import PreparedDataset

Session = Sequence[Event]
# From a session to what is known after each of its events, [T, F], and the name of each column.
Inputs = Callable[[Session], Tensor]

ENCODER = Encoder(
    list(EVENT_NAMES),
    ["shoes", "hats"],
    ["SKU-1", "SKU-2"],
    list(ALL_SCOPES),
    {"device": ["mobile", "desktop"], "page": ["mobile", "desktop"]},
    calendar=True,
)
NAMES = [*ENCODER.feature_names, *(f"index of {name}" for name in ENCODER.index_names)]


def columns_of(session: Session) -> tuple[Tensor, Tensor, Tensor]:
    timestamp_ms, codes, numbers = columns_from_events(session, ALL_SCOPES)
    return timestamp_ms.unsqueeze(0), codes.unsqueeze(0), numbers.unsqueeze(0)


def inputs(session: Session) -> Tensor:
    """Every feature and index after each event, as training and serving have them."""
    features, indices = ENCODER.sequence(*columns_of(session))
    return torch.cat([features[0].double(), indices[0].double()], 1)


def changed(ways: Inputs, session: Session, other: Session, count: int) -> set[int]:
    """Return which columns differ between two sessions after their first `count` events."""
    one, two = ways(session)[:count], ways(other)[:count]
    return set((one != two).any(0).nonzero().flatten().tolist())


def moved(session: Session, count: int, delay_ms: int) -> list[Event]:
    """The session, with its events after the first `count` at another time."""
    later = [structs.replace(event, timestamp_ms=event.timestamp_ms + delay_ms) for event in session[count:]]
    return [*session[:count], *later]


# --- ways that leak, as they are found in published code


def with_column(column: Callable[[Session], Sequence[float]]) -> Inputs:
    return lambda session: torch.cat([inputs(session), torch.tensor(column(session)).double().unsqueeze(1)], 1)


def dwell_s(session: Session) -> list[float]:
    times = [event.timestamp_ms / 1000 for event in session]
    return [after - before for before, after in zip(times, [*times[1:], times[-1]], strict=True)]


def length(session: Session) -> list[float]:
    return [float(len(session))] * len(session)


def progress(session: Session) -> list[float]:
    return [(position + 1) / len(session) for position in range(len(session))]


def centred(session: Session) -> Tensor:
    """Inputs scaled over the whole session."""
    values = inputs(session)
    return values - values.mean(0)


def backwards(session: Session) -> Tensor:
    """Inputs of a network that reads in both directions."""
    values = inputs(session)
    return torch.cat([values, values.flip(0).cumsum(0).flip(0)], 1)


LAST = len(NAMES)
ORDINARY = [
    Event(name, 1_700_000_000_000 + 20_000 * number, item_id=f"SKU-{number}", price=10.0 * number)
    for number, name in enumerate(["page_view", "view_item", "add_to_cart", "view_item", "view_cart"])
]


# --- dwell of the current page


@settings(max_examples=60, deadline=None)
@given(session=sessions(min_size=2, max_size=12), data=st.data())
def test_the_time_of_the_next_event_changes_no_input_of_the_events_before_it(
    session: list[Event], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(session) - 1), label="events before")
    delay_ms = data.draw(st.integers(-3_600_000, 3_600_000), label="delay")
    assert {NAMES[column] for column in changed(inputs, session, moved(session, count, delay_ms), count)} == set()


@pytest.mark.parametrize("count", range(1, len(ORDINARY)))
def test_dwell_time_among_the_inputs_would_be_seen(count: int) -> None:
    delayed = moved(ORDINARY, count, 5_000)
    assert changed(with_column(dwell_s), ORDINARY, delayed, count) == {LAST}
    # A control of the control: the delay is an input once the event is there.
    assert "log_gap" in {NAMES[column] for column in changed(inputs, ORDINARY, delayed, count + 1)}


# --- length and progress


@settings(max_examples=60, deadline=None)
@given(session=sessions(max_size=8), future=sessions(max_size=8))
def test_events_still_to_come_change_no_input_of_the_events_before_them(
    session: list[Event], future: list[Event]
) -> None:
    found = changed(inputs, session, [*session, *future], len(session))
    assert {NAMES[column] for column in found} == set()


@pytest.mark.parametrize(
    "ways",
    [with_column(length), with_column(progress), centred, backwards],
    ids=["length", "progress", "scaling", "backwards"],
)
def test_length_progress_and_reading_backwards_among_the_inputs_would_be_seen(ways: Inputs) -> None:
    assert changed(ways, ORDINARY[:3], ORDINARY, 3)


# --- the whole model


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn", "feed-forward"])
def test_no_probability_depends_on_what_comes_after_it(cell: str) -> None:
    model = random_model(properties=ALL_SCOPES, cell=cell)

    @settings(max_examples=25, deadline=None)
    @given(
        session=sessions(min_size=1, max_size=8), future=sessions(min_size=1, max_size=8), delay_ms=st.integers(0, 9**9)
    )
    def check(session: list[Event], future: list[Event], delay_ms: int) -> None:
        with torch.inference_mode():
            alone = model(*columns_of(session))[0]
            for other in ([*session, *future], [*session, *moved(future, 0, delay_ms)]):
                # Sequences of another length are summed in another order: the last digits differ.
                torch.testing.assert_close(model(*columns_of(other))[0, : len(session)], alone, rtol=0, atol=1e-6)

    check()


# --- prepared sessions


def test_later_rows_of_a_log_change_no_earlier_row_of_its_sessions(
    log: pl.DataFrame, prepared: Callable[..., PreparedDataset]
) -> None:
    # Given a log, and the same with every third event of a session a little later and the events after it gone
    position = pl.int_range(1, pl.len() + 1).over("session_id")
    is_purchase = pl.col("event_name") == "purchase"
    late = pl.when(position == 3).then(pl.col("timestamp_ms") + 7_000).otherwise("timestamp_ms")
    other = log.with_columns(timestamp_ms=late).filter(position <= 3)
    # When sessions are made of both
    both = []
    for events in (log, other):
        rows = prepared(events).scan().drop("outcome").collect()
        both.append(rows.filter(position <= 2, ~is_purchase).sort("session_id", "timestamp_ms"))
    whole, cut = both
    # Then what was known at the second event is the same in both
    assert cut.height > 500
    assert cut.equals(
        whole.join(cut.select("session_id", "timestamp_ms"), on=["session_id", "timestamp_ms"], how="semi")
    )
