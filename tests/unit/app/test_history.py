import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import CorruptRecordError
from app.stores.history import Entry, decode_entries, decode_entry, decode_event, encode_event
from model.events import Event

FULL = Event(
    "view_item", 1_795_392_006_224, "SKU-1", "shoes", 59.5, 2.0, {"device": "mobile", "visits": 3.0, "new": True}
)
GOLDEN_ENTRIES = [
    (Entry(Event("page_view", 1)), bytes.fromhex("930201a9706167655f76696577")),
    (Entry(Event("page_view", 1), 0.25), bytes.fromhex("940201a9706167655f76696577ce3e800000")),
    (
        Entry(FULL, 0.75, "9f86d081884c7d65"),
        bytes.fromhex(
            "9a02cf000001a205b3e850a9766965775f6974656dce3f400000a5534b552d31a573686f6573cb404dc00000000000cb4000000000"
            "00000083a6646576696365a66d6f62696c65a6766973697473cb4008000000000000a36e6577c3c4089f86d081884c7d65"
        ),
    ),
]
GOLDEN = {
    1: [
        (Event("page_view", 1), bytes.fromhex("930101a9706167655f76696577")),
        (
            FULL,
            bytes.fromhex(
                "9801cf000001a205b3e850a9766965775f6974656da5534b552d31a573686f6573cb404dc00000000000cb4000000000000000"
                "83a6646576696365a66d6f62696c65a6766973697473cb4008000000000000a36e6577c3"
            ),
        ),
    ]
}

amounts = st.none() | st.floats(0, 1e12)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
events = st.builds(
    Event,
    event_name=texts,
    timestamp_ms=st.integers(-(2**53), 2**53),
    item_id=st.none() | texts,
    item_category=st.none() | texts,
    price=amounts,
    quantity=amounts,
    properties=st.dictionaries(texts, texts | st.booleans() | st.floats(-1e12, 1e12), max_size=4),
)


@pytest.mark.parametrize(("event", "data"), GOLDEN[1])
def test_version_1_is_still_read(event, data):
    assert decode_entry(data) == Entry(event)


@pytest.mark.parametrize(("entry", "data"), GOLDEN_ENTRIES)
def test_version_2_reads_and_writes_its_golden_bytes(entry, data):
    assert encode_event(entry.event, entry.probability, entry.model).hex() == data.hex()
    assert decode_entry(data) == entry


@given(events, st.floats(0, 1, width=32))
def test_a_score_comes_back_to_the_last_bit_of_a_float32(event, probability):
    assert decode_entry(encode_event(event, probability)) == Entry(event, probability)


def test_a_score_and_its_model_cost_few_bytes():
    event = Event("page_view", 1_795_392_006_224)
    without, with_score = encode_event(event), encode_event(event, 0.3)
    assert len(with_score) - len(without) == 5
    assert len(encode_event(event, 0.3, "9f86d081884c7d65")) - len(with_score) == 15


def test_a_history_in_one_piece_names_the_model_of_each_entry():
    one, other = "9f86d081884c7d65", "0011223344556677"
    entries = [GOLDEN[1][0][1], encode_event(FULL, 0.5, one), encode_event(FULL, 0.25), encode_event(FULL, 1.0, other)]
    head = b"\xdd" + len(entries).to_bytes(4, "big")
    assert decode_entries(head + b"".join(entries)) == [
        Entry(Event("page_view", 1)),
        Entry(FULL, 0.5, one),
        Entry(FULL, 0.25, one),
        Entry(FULL, 1.0, other),
    ]
    for other_bytes in (b"", head + b"".join(entries[1:]), head + b"".join(entries) + b"\x00", b"\x91\x01"):
        with pytest.raises(CorruptRecordError):
            decode_entries(other_bytes)


@given(events)
def test_every_event_comes_back_as_it_was(event):
    decoded = decode_event(encode_event(event))
    assert decoded == event
    # True == 1.0, so types are compared beside values.
    assert {k: type(v) for k, v in decoded.properties.items()} == {k: type(v) for k, v in event.properties.items()}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        GOLDEN[1][1][1][:-1],
        GOLDEN[1][0][1] + b"\x00",
        msgspec.msgpack.encode([1, "yesterday", "page_view"]),
        msgspec.msgpack.encode([1, 1]),
        msgspec.msgpack.encode({"codec_version": 1}),
        b"\x93\x01\x01\xa2\xff\xfe",
        # Scores that are no probabilities: -1, not a number, more than 32 bits
        msgspec.msgpack.encode([2, 1, "page_view", 0xBF800000]),
        msgspec.msgpack.encode([2, 1, "page_view", 0x7FC00000]),
        msgspec.msgpack.encode([2, 1, "page_view", 2**32]),
        msgspec.msgpack.encode([2, 1, "page_view", -1]),
    ],
)
def test_other_bytes_are_corrupt(data):
    with pytest.raises(CorruptRecordError):
        decode_event(data)


def test_another_codec_version_is_named():
    with pytest.raises(CorruptRecordError, match="codec version 3"):
        decode_event(msgspec.msgpack.encode([3, 1, "page_view"]))
