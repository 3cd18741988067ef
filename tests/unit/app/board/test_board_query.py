from dataclasses import replace
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from app.board.query import BoardQuery, InvalidCursorError, decode_cursor, encode_cursor, parse_query
from app.errors import InvalidRequestError
from app.store.board import Order, Position, Selection

positions = st.builds(
    Position,
    st.floats(0, 1) | st.integers(0, 2**53).map(float),
    st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=256),
)
selections = st.builds(
    Selection,
    st.sampled_from(Order),
    st.floats(0, 0.5),
    st.floats(0.5, 1),
    st.integers(0, 2_000_000_000_000),
    st.text(max_size=3),
)
queries = st.builds(
    BoardQuery,
    selections,
    min_events=st.integers(0, 5),
    rule=st.none() | st.text("ab", min_size=1, max_size=2),
    active_s=st.none() | st.integers(1, 5),
    wanted_property=st.none() | st.tuples(st.text(max_size=2), st.text(max_size=2)),
    min_cart_value=st.floats(0, 3),
    crossed=st.none() | st.floats(0.1, 1),
)


@given(positions, queries, st.integers(10_000, 2_000_000_000_000))
def test_a_cursor_says_where_a_page_ended_and_since_when_its_sessions_are_active(position, query, now_ms):
    first = query.begun(now_ms)
    following = decode_cursor(encode_cursor(position, first), query)
    assert following == replace(first, after=position)
    # Whenever the next page is read, it has the same sessions
    assert following.begun(now_ms + 60_000).narrowed == first.narrowed


@given(positions, queries, queries)
def test_a_cursor_of_another_question_is_refused(position, query, other):
    assume(query != other)
    with pytest.raises(InvalidCursorError):
        decode_cursor(encode_cursor(position, query), other)


def test_a_cursor_of_another_prefix_is_refused():
    asked, other = (BoardQuery(Selection(id_prefix=prefix)) for prefix in ("s-", "t-"))
    with pytest.raises(InvalidCursorError):
        decode_cursor(encode_cursor(Position(0.5, "s-1"), asked), other)


@pytest.mark.parametrize(("active_s", "since_ms"), [(1, 98_000), (59, 40_000), (90, 9_000)])
def test_active_sessions_are_those_of_the_last_seconds_at_least(active_s, since_ms):
    # Rounded down by at most a sixtieth, but a second at least
    assert BoardQuery(active_s=active_s).begun(99_999).narrowed.seen_since_ms == since_ms


def test_the_later_of_both_bounds_of_time_counts():
    query = BoardQuery(Selection(seen_since_ms=95_000), active_s=60).begun(100_000)
    assert query.narrowed.seen_since_ms == 95_000
    assert BoardQuery(Selection(seen_since_ms=5_000), active_s=60).begun(100_000).narrowed.seen_since_ms == 40_000


@given(positions, selections, st.data())
def test_a_cursor_that_was_changed_is_refused(position, selection, data):
    cursor = encode_cursor(position, BoardQuery(selection))
    place = data.draw(st.integers(0, len(cursor) - 1))
    changed = data.draw(
        st.sampled_from(
            [
                cursor[:place],
                cursor[:place] + ("A" if cursor[place] != "A" else "B") + cursor[place + 1 :],
                cursor + "A",
                cursor + "=",
                cursor[:place] + "!" + cursor[place:],
                cursor[:place] + "ä" + cursor[place:],
            ]
        )
    )
    with pytest.raises(InvalidCursorError):
        decode_cursor(changed, BoardQuery(selection))


@given(st.text(max_size=60))
def test_what_is_no_cursor_is_refused(text):
    with pytest.raises(InvalidCursorError):
        decode_cursor(text, BoardQuery())


def test_without_parameters_the_highest_fifty_are_asked_for():
    assert parse_query(b"") == BoardQuery(Selection(Order.PROBABILITY, 0.0, 1.0, 0), 0, 50, 0, None)


def test_every_parameter_is_understood():
    selection = Selection(Order.LAST_SEEN, 0.25, 0.75, 1_795_342_600_000, "Ä ")
    asked = BoardQuery(selection, 3, rule="voucher", active_s=300)
    cursor = encode_cursor(Position(5.0, "s-1"), replace(asked, active_since_ms=7))
    since = quote("2026-11-22T10:16:40+00:00")
    query = parse_query(
        f"order=last_seen&limit=7&min_probability=.25&max_probability=0.75&min_events=3&seen_since={since}&recent=16"
        f"&rule=voucher&active_s=300&id_prefix=%C3%84+&cursor={cursor}".encode()
    )
    assert query == BoardQuery(selection, 3, 7, 16, Position(5.0, "s-1"), "voucher", 300, 7)
    assert parse_query(b"seen_since=1795342600000").selection.seen_since_ms == 1_795_342_600_000


@pytest.mark.parametrize(
    ("query", "field"),
    [
        (b"order=alphabet", "order"),
        (b"limit=0", "limit"),
        (b"limit=201", "limit"),
        (b"limit=many", "limit"),
        (b"limit=", "limit"),
        (b"recent=33", "recent"),
        (b"min_probability=1.1", "min_probability"),
        (b"max_probability=nan", "max_probability"),
        (b"min_probability=0.6&max_probability=0.5", "min_probability"),
        (b"min_events=-1", "min_events"),
        (b"seen_since=yesterday", "seen_since"),
        (b"seen_since=99999999999999999999", "seen_since"),
        (b"active_s=0", "active_s"),
        (b"active_s=1.5", "active_s"),
        (b"id_prefix=", "id_prefix"),
        (b"id_prefix=" + 257 * b"x", "id_prefix"),
        (b"cursor=", "cursor"),
        (b"cursor=abc", "cursor"),
        (b"limits=5", "limits"),
        (b"limit=5&limit=6", "limit"),
        (b"&".join(b"a%d=1" % number for number in range(40)), "query"),
    ],
)
def test_what_cannot_be_understood_is_named(query, field):
    with pytest.raises(InvalidRequestError) as caught:
        parse_query(query)
    assert [error["field"] for error in caught.value.errors] == [field]
    assert field in caught.value.detail


def test_a_stream_has_no_cursor():
    cursor = encode_cursor(Position(0.5, "s"), BoardQuery())
    assert parse_query(f"cursor={cursor}".encode()).after == Position(0.5, "s")
    with pytest.raises(InvalidRequestError, match="leave it out"):
        parse_query(f"cursor={cursor}".encode(), with_cursor=False)
