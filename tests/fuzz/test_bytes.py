"""Bytes against what reads bytes: whatever they are, an error that is declared or a value, and soon.

That it is soon is pytest's own limit, and that a value is one is checked by writing it again.
"""

import asyncio
import io
import json
import zipfile

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace
from support.keys import toml

from app.auth.keys import AccessError, read_keys
from app.errors import CorruptRecordError, InvalidJsonError, InvalidRequestError, TooManyEventsError, WillbuyError
from app.schemas.events import EVENT_EXAMPLE, EventBody, OutcomeIn
from app.scoring.parsing import parse_event, parse_events, parse_object
from app.store.history_codec import Entry, decode_history, decode_joined, encode_event, properties_code
from app.store.interface import Commit
from app.store.record_codec import Answer, Answers, Outcome, Record, decode_record, encode_record
from fuzz.cases import tried
from model.artifact import load, read_manifest
from model.events import Event
from model.manifest import ArtifactError

MODEL = "0011223344556677"
ANSWER = Answer(0.25, 1, MODEL, Outcome.OPEN, folded=True)
OPEN_RECORD = Record(
    version=bytes(range(1, 9)),
    model=MODEL,
    probability=0.25,
    events=2,
    first_seen_ms=1_000_000_000_000,
    last_seen_ms=1_000_000_000_001,
    last_event_ms=1_000_000_000_002,
    outcome=Outcome.OPEN,
    outcome_ms=0,
    answers=Answers().with_answer(7, ANSWER, 64).with_answer(8, replace(ANSWER, events=2), 64),
    state=b"state" * 20,
)
CLOSED_RECORD = replace(
    OPEN_RECORD,
    outcome=Outcome.PURCHASE,
    outcome_ms=1_000_000_000_003,
    answers=OPEN_RECORD.answers.with_answer(9, replace(ANSWER, outcome=Outcome.PURCHASE, folded=False), 64),
)
OLDER_RECORD = bytes.fromhex(
    "0101020304050607080011223344556677000000000000d03f020000000010a5d4e80000000110a5d4e80000000210a5d4e80000"
    "0000000000000000000001010500000000112233445566770700000000000000000000000000d03f020000000000017374617465"
)
VIEWED = Event("view_item", 1_795_392_006_224, "SKU-1", "shoes", 59.5, 2.0, {"device": "mobile", "new": True})
ENTRIES = [
    encode_event(VIEWED, 0.75, "9f86d081884c7d65"),
    encode_event(VIEWED, 0.5, after_ms=1_795_392_006_224, repeats_properties=True),
    encode_event(Event("wheel", 1_795_392_006_223, price=1 / 3), 0.25, MODEL, after_ms=1_795_392_006_224),
    # Versions 2 and 1
    bytes.fromhex("940201a9706167655f76696577ce3e800000"),
    bytes.fromhex("930101a9706167655f76696577"),
]
HISTORY = b"\xdd" + len(ENTRIES).to_bytes(4, "big") + b"".join(ENTRIES)
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


@given(data=bytes_like(encode_record(OPEN_RECORD), encode_record(CLOSED_RECORD), OLDER_RECORD))
@tried(1000)
def test_a_record_is_one_or_is_refused(data) -> None:
    try:
        record = decode_record(data)
    except CorruptRecordError:
        return
    assert decode_record(encode_record(record)) == record
    for code in (7, 8, 0):
        found = record.answers.find(code)
        assert record.answers.with_answer(1, ANSWER, 64).find(code) == found or code == 1
    assert record.answers.with_answer(1, ANSWER, 64).find(1) == ANSWER


@given(history=st.lists(st.sampled_from(ENTRIES) | bytes_like(*ENTRIES), max_size=6))
@example(history=[b"\x9a\x02" + b"\x91" * 100_000])
@example(history=[b"\x98\x01\x00\xa1a\xc0\xc0\xc0\xc0" + b"\x81\xa1a" * 100_000])
@example(history=[b"\x99\x03\x00\x00\xc0\xc0\xc0\xc0\xc0" + b"\x81\xa1a" * 100_000])
@tried(1000)
def test_a_history_is_one_or_is_refused(history) -> None:
    try:
        entries = decode_history(history)
    except CorruptRecordError:
        return
    assert len(entries) == len(history)
    written = written_again(entries)
    # NaN is no other NaN, so the bytes are compared.
    assert written_again(decode_history(written)) == written


@given(data=bytes_like(HISTORY))
@tried(500)
def test_a_history_in_one_piece_is_one_or_is_refused(data) -> None:
    try:
        entries = decode_joined(data)
    except CorruptRecordError:
        return
    assert len(decode_history(written_again(entries))) == len(entries)


def written_again(entries: list[Entry]) -> list[bytes]:
    """The entries as this release appends them, one commit each."""
    written: list[bytes] = []
    previous = None
    for number, entry in enumerate(entries, start=1):
        event = entry.event
        record = replace(
            OPEN_RECORD,
            events=number,
            last_event_ms=max(previous.last_event_ms if previous else 0, event.timestamp_ms),
            properties_code=properties_code(event.properties),
        )
        scores = [] if entry.probability is None else [entry.probability]
        written += Commit(
            "a", None, record, [event], scores, entry.model if previous is None else None, previous=previous
        ).entries()
        previous = record
    return written


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
        parsed = asyncio.run(parse_events(body, is_lines=is_lines, max_events=100, max_event_bytes=65536))
    except (InvalidJsonError, InvalidRequestError, TooManyEventsError):
        return
    assert all(isinstance(one, EventBody | WillbuyError) for one in parsed)
    if is_lines:
        assert len(parsed) == sum(1 for line in body.split(b"\n") if line.strip())


@given(body=bodies)
@example(body=DEEP[0])
@example(body=DEEP[3])
@example(body=DEEP[4])
@tried(100)
def test_an_event_and_an_outcome_are_ones_or_are_refused(body) -> None:
    for parse in (parse_event, lambda body: parse_object(body, OutcomeIn)):
        status = 200
        try:
            parse(body)
        except WillbuyError as exc:
            status = exc.status
        assert status in {200, 400, 422}


@given(text=st.text(max_size=100) | values.map(lambda value: f"keys = {toml(value)}"))
@tried(300)
def test_a_list_of_keys_is_one_or_is_refused(folder, text) -> None:
    path = folder / "keys.toml"
    path.write_text(text, "utf-8", errors="surrogatepass")
    try:
        keys = read_keys(path)
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
