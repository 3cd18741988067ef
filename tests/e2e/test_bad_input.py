"""What a shop may send by mistake and what an operator may configure by mistake, against a real process."""

import re
import zipfile
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from support.service import Service

from model.manifest import FORMAT_VERSION


@pytest.fixture(scope="module")
def running(artifact, tmp_path_factory, shared_valkey):
    service = Service(
        tmp_path_factory.mktemp("bad-input") / "service.log",
        {"artifact": artifact, "redis_url": shared_valkey.url},
    )
    service.start()
    yield service
    service.stop()
    # Whatever was sent, nothing made the service fail.
    assert service.tracebacks() == []


@pytest.fixture(scope="module")
def client(running):
    with httpx.Client(base_url=running.base_url) as client:
        yield client


def event(**changes):
    return {"session_id": "s-1", "event_name": "page_view"} | changes


def assert_refused(response, status, code, field=None):
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["code"] == code
    if field is not None:
        assert [error["field"] for error in body["errors"]] == [field]


def test_an_unknown_event_name_is_folded_as_other_with_a_warning(client):
    response = client.post("/v1/events", json=event(session_id="unknown-name", event_name="viewed_size_chart"))
    assert response.status_code == 200
    assert response.json()["folded"]
    assert response.json()["warnings"] == ['event_name: the model does not know this name; it counts as "other"']


def test_a_missing_session_id_is_refused(client):
    assert_refused(client.post("/v1/events", json={"event_name": "page_view"}), 422, "invalid_event", "session_id")


def test_a_body_of_ten_megabytes_is_refused(client):
    body = b'{"session_id": "' + b"x" * 10_000_000 + b'"}'
    headers = {"content-type": "application/json"}
    assert_refused(client.post("/v1/events", content=body, headers=headers), 413, "body_too_large")
    # And without a declared length, by counting
    parts = (body[start : start + 100_000] for start in range(0, len(body), 100_000))
    assert_refused(client.post("/v1/events", content=parts, headers=headers), 413, "body_too_large")
    # And the connection, or a new one, goes on to work
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize("price", ["NaN", "-1", "-0.01", "Infinity", "1e400"])
def test_prices_that_are_none_are_refused(client, price):
    content = '{"session_id": "s-1", "event_name": "page_view", "price": ' + price + "}"
    response = client.post("/v1/events", content=content, headers={"content-type": "application/json"})
    assert_refused(response, 422, "invalid_event", "price")


@pytest.mark.parametrize(
    "timestamp",
    ["1970-01-01T00:00:00Z", 0, 1_795_392_000, (datetime.now(UTC) + timedelta(days=365)).isoformat()],
    ids=["1970", "zero", "seconds", "next year"],
)
def test_timestamps_of_another_time_are_refused(client, timestamp):
    response = client.post("/v1/events", json=event(timestamp=timestamp))
    assert_refused(response, 422, "invalid_event", "timestamp")


def test_a_timestamp_a_minute_ahead_is_taken_as_now_with_a_warning(client):
    timestamp = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
    response = client.post("/v1/events", json=event(session_id="ahead", timestamp=timestamp))
    assert response.status_code == 200
    assert response.json()["warnings"][0].startswith("timestamp: ")


@pytest.mark.parametrize("session_id", ["x" * 5000, "a\x00b", "a\nb", "\x1b[31m", ""])
def test_session_ids_that_cannot_be_are_refused(client, session_id):
    response = client.post("/v1/events", json=event(session_id=session_id))
    assert_refused(response, 422, "invalid_event", "session_id")


def test_nested_cut_off_and_repeated_json_is_refused(client):
    for content in (b"[" * 60_000, b'{"session_id": "s', b'{"event_name": "a", "event_name": "b"}', b"\xff\xfe"):
        response = client.post("/v1/events", content=content, headers={"content-type": "application/json"})
        assert_refused(response, 400, "invalid_json")


@pytest.mark.parametrize(
    "path", [b"/v1/sessions/%ff%fe", b"/v1/sessions/%ed%a0%80", b"/v1/sessions/..%2f..", b"//v1/events"]
)
def test_paths_that_lead_nowhere_are_problems(client, path):
    response = client.get(httpx.URL(client.base_url).copy_with(raw_path=path))
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


def fails_to_start(artifact, log, **settings):
    """Start a service that must not start; return the one line that says why."""
    service = Service(log, {"artifact": artifact} | settings)
    service.launch()
    assert service.wait() != 0
    assert service.tracebacks() == []
    (line,) = [line for line in service.output().splitlines() if '"start_failed"' in line]
    return line


def test_a_corrupt_artifact_ends_the_start_with_one_line(artifact, tmp_path):
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(artifact.read_bytes()[:-2000])
    assert str(damaged) in fails_to_start(damaged, tmp_path / "log")


def test_a_missing_artifact_ends_the_start_with_one_line(tmp_path):
    missing = tmp_path / "missing.pt"
    assert str(missing) in fails_to_start(missing, tmp_path / "log")


def test_an_artifact_of_another_format_version_ends_the_start_with_one_line(artifact, tmp_path):
    # Given an artifact that is whole but says that it has the next format version
    changed = tmp_path / "next.pt"
    replaced = 0
    with zipfile.ZipFile(artifact) as old, zipfile.ZipFile(changed, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if b'"format_version"' in data:
                data, count = re.subn(rb'("format_version": ?)\d+', rb"\g<1>%d" % (FORMAT_VERSION + 1), data)
                replaced += count
            new.writestr(entry, data)
    assert replaced == 1
    assert f"artifact format {FORMAT_VERSION + 1}" in fails_to_start(changed, tmp_path / "log")


def test_another_digest_than_the_configured_ends_the_start_with_one_line(artifact, tmp_path):
    assert "SHA-256" in fails_to_start(artifact, tmp_path / "log", artifact_sha256="0" * 64)


def test_a_bad_setting_ends_the_start_with_one_line_that_names_it(artifact, tmp_path):
    assert "WILLBUY_MAX_QUEUE" in fails_to_start(artifact, tmp_path / "log", max_queue=-1)
