"""Bytes against what reads bytes: whatever they are, an error that is declared or a value, and soon.

That it is soon is pytest's own limit, and that a value is one is checked by writing it again.
"""

import io
import json
import zipfile

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.access.keys import AccessError, parse_keys
from app.errors import CorruptRecordError, InvalidJsonError, InvalidRequestError, TooManyEventsError, WillbuyError
from app.intake import parse_event, parse_events, parse_outcome
from app.schemas import EVENT_EXAMPLE, EventIn
from app.stores.history import decode_entry, encode_event
from app.stores.records import Answer, Answers, Outcome, Record, decode_record, encode_record
from fuzz.cases import tried
from model.artifact import load, read_manifest
from model.events import Event
from model.manifest import ArtifactError

ANSWER = Answer(0.25, 2, "0011223344556677", Outcome.OPEN, folded=True)
RECORD = encode_record(
    Record(
        version=bytes(range(1, 9)),
        model="0011223344556677",
        probability=0.25,
        events=2,
        first_seen_ms=1_000_000_000_000,
        last_seen_ms=1_000_000_000_001,
        last_event_ms=1_000_000_000_002,
        outcome=Outcome.PURCHASE,
        outcome_ms=1_000_000_000_003,
        answers=Answers().with_answer(7, ANSWER, 64).with_answer(8, ANSWER, 64),
        state=b"state" * 20,
    )
)
ENTRY = encode_event(
    Event("view_item", 1_795_392_006_224, "SKU-1", "shoes", 59.5, 2.0, {"device": "mobile", "new": True}),
    0.75,
    "9f86d081884c7d65",
)
EVENTS = json.dumps([EVENT_EXAMPLE, EVENT_EXAMPLE | {"timestamp": 1_795_392_006_224}]).encode()
LINES = b"\n".join(json.dumps(EVENT_EXAMPLE).encode() for _ in range(3))


@st.composite
def changed(draw: st.DrawFn, data: bytes) -> bytes:
    """The bytes with some of them others, gone, doubled, or with something between."""
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(data)))
        to = draw(st.integers(at, min(len(data), at + 40)))
        put = draw(st.just(b"") | st.binary(max_size=40) | st.just(data[at:to] * 2))
        data = data[:at] + put + data[to:]
    return data


def bytes_like(*whole: bytes) -> st.SearchStrategy[bytes]:
    return st.one_of(st.binary(max_size=300), *map(changed, whole))


@given(data=bytes_like(RECORD))
@tried(500)
def test_a_record_is_one_or_is_refused(data) -> None:
    try:
        record = decode_record(data)
    except CorruptRecordError:
        return
    assert decode_record(encode_record(record)) == record
    for code in (7, 8, 0):
        record.answers.find(code)


@given(data=bytes_like(ENTRY))
@example(data=b"\x9a\x02" + b"\x91" * 100_000)
@example(data=b"\x98\x01\x00\xa1a\xc0\xc0\xc0\xc0" + b"\x81\xa1a" * 100_000)
@tried(500)
def test_an_entry_of_a_history_is_one_or_is_refused(data) -> None:
    try:
        entry = decode_entry(data)
    except CorruptRecordError:
        return
    written = encode_event(entry.event, entry.probability, entry.model)
    # NaN is no other NaN, so the bytes are compared.
    again = decode_entry(written)
    assert encode_event(again.event, again.probability, again.model) == written


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
events = st.fixed_dictionaries(
    {},
    optional={
        "session_id": st.just("s-1") | values,
        "event_name": st.just("view_item") | values,
        "event_id": values,
        "timestamp": st.integers() | st.just("2026-11-22T10:15:00Z") | values,
        "price": values,
        "quantity": values,
        "properties": st.dictionaries(st.text(max_size=70), values, max_size=5) | values,
        "unknown": values,
    },
)
bodies = (
    bytes_like(EVENTS, LINES)
    | st.lists(events | values, max_size=6).map(lambda each: json.dumps(each).encode())
    | st.lists(events | values, max_size=6).map(lambda each: b"\n".join(json.dumps(one).encode() for one in each))
)
DEEP = [
    b"[" * 200_000,
    b'{"a":' * 100_000,
    b"[" + b'{"properties":' * 50_000,
    b'[{"session_id": "s-1", "event_name": "page_view", "properties": {"a": ' + b"[" * 900 + b"]" * 900 + b"}}]",
    b"[" + b"9" * 10_000 + b"]",
    b"[1e999, -1e999, NaN, Infinity]",
    b'["\\ud800"]',
    b"\xef\xbb\xbf[]",
]


@given(body=bodies, is_lines=st.booleans())
@example(body=DEEP[0], is_lines=False)
@example(body=DEEP[1], is_lines=True)
@example(body=DEEP[2], is_lines=False)
@example(body=DEEP[3], is_lines=False)
@example(body=DEEP[4], is_lines=False)
@example(body=DEEP[5], is_lines=False)
@example(body=DEEP[6], is_lines=True)
@example(body=DEEP[7], is_lines=False)
@tried(150)
def test_a_batch_is_events_and_problems_or_is_refused(body, is_lines) -> None:
    try:
        parsed = parse_events(body, is_lines=is_lines, max_events=100)
    except (InvalidJsonError, InvalidRequestError, TooManyEventsError):
        return
    assert all(isinstance(one, EventIn | WillbuyError) for one in parsed)
    if is_lines:
        assert len(parsed) == sum(1 for line in body.split(b"\n") if line.strip())


@given(body=bodies)
@example(body=DEEP[0])
@example(body=DEEP[3])
@example(body=DEEP[4])
@tried(100)
def test_an_event_and_an_outcome_are_ones_or_are_refused(body) -> None:
    for parse in (parse_event, parse_outcome):
        status = 200
        try:
            parse(body)
        except WillbuyError as exc:
            status = exc.status
        assert status in {200, 400, 422}


@given(text=st.text(max_size=100) | values.map(json.dumps))
@tried(300)
def test_a_list_of_keys_is_one_or_is_refused(text) -> None:
    try:
        keys = parse_keys(text)
    except AccessError:
        return
    assert keys


@pytest.fixture(scope="module")
def whole(artifact) -> bytes:
    content: bytes = artifact.read_bytes()
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("artifacts")


@given(data=st.data())
@tried(60)
def test_a_damaged_artifact_is_refused_and_a_whole_one_is_loaded(whole, folder, data) -> None:
    path = folder / "model.pt"
    path.write_bytes(data.draw(changed(whole) | st.integers(0, len(whole)).map(lambda end: whole[:end])))
    refusal = None
    try:
        module, manifest = load(path)
    except ArtifactError as exc:
        refusal = str(exc)
    if refusal is not None:
        assert str(path) in refusal
        return
    # What was changed means nothing: an archive holds such bytes.
    assert read_manifest(path) == manifest
    assert not module.training


@given(data=st.data())
@tried(60)
def test_an_artifact_that_says_something_else_of_itself_is_refused_or_read(whole, folder, data) -> None:
    path = folder / "manifest.pt"
    with zipfile.ZipFile(io.BytesIO(whole)) as old:
        (name,) = [entry for entry in old.namelist() if entry.endswith("manifest.json")]
        manifest = json.loads(old.read(name))
    key = data.draw(st.sampled_from(sorted(manifest)))
    said = data.draw(
        changed(json.dumps(manifest).encode())
        | values.map(lambda value: json.dumps(manifest | {key: value}).encode())
        | values.map(lambda value: json.dumps(value).encode())
        | st.just(b"[" * 200_000)
    )
    with zipfile.ZipFile(path, "w") as new:
        new.writestr(name, said)
    refusal = None
    try:
        read_manifest(path)
    except ArtifactError as exc:
        refusal = str(exc)
    assert refusal is None or str(path) in refusal
