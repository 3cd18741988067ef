"""How session ids stand in the log."""

import io
import json

import pytest

from app.monitoring.logging import build_logger, hide_session_ids

LONG_ID = "visitor-4711@example.org"


def lines_of(form):
    """What is logged of an id, alone and inside a path."""
    stream = io.StringIO()
    logger = build_logger(log_level="info", stream=stream, fields=[hide_session_ids(form)])
    logger.info("told", session_id=LONG_ID)
    logger.info("told", path=f"/v1/sessions/{LONG_ID}/outcome")
    logger.info("told", path=f"/v1/sessions/{LONG_ID}/a\nb")
    logger.info("told", path="/v1/sessions")
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("form", ["short", "hash"])
def test_an_id_that_names_a_visitor_is_not_in_the_log(form) -> None:
    assert LONG_ID not in json.dumps(lines_of(form))
    assert "4711" not in json.dumps(lines_of(form))


def test_a_hash_is_the_same_each_time_and_leaves_the_rest_of_the_path() -> None:
    alone, in_path, other, board = lines_of("hash")
    assert in_path["path"] == f"/v1/sessions/{alone['session_id']}/outcome"
    assert len(alone["session_id"]) == 12
    assert other["path"].startswith("/v1/sessions/")
    assert other["path"] != in_path["path"]
    assert board["path"] == "/v1/sessions"


def test_a_short_id_is_its_beginning() -> None:
    assert lines_of("short")[0]["session_id"] == "visi…"


def test_whole_ids_stand_in_the_log_where_the_setting_says_so() -> None:
    alone, in_path, *_ = lines_of("full")
    assert alone["session_id"] == LONG_ID
    assert in_path["path"] == f"/v1/sessions/{LONG_ID}/outcome"


def test_half_of_a_surrogate_pair_is_hashed_like_any_other() -> None:
    stream = io.StringIO()
    logger = build_logger(log_level="info", stream=stream, fields=[hide_session_ids("hash")])
    logger.info("told", session_id="\ud800")
    assert json.loads(stream.getvalue())["session_id"].isalnum()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_traceback_does_not_carry_the_values_that_were_around_it(terminal, monkeypatch) -> None:
    def fail(key):
        event = {"session_id": LONG_ID}
        raise RuntimeError(f"{len(key)} {len(event)}")

    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    logger = build_logger(log_level="info", stream=stream)
    try:
        fail("wb_secret")
    except RuntimeError:
        logger.exception("failed")
    assert "RuntimeError" in stream.getvalue()
    assert "wb_secret" not in stream.getvalue().replace('fail("wb_secret")', "")
    assert LONG_ID not in stream.getvalue()
