import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import CorruptRecordError
from app.stores.history import decode_event, encode_event
from model.events import Event

FULL = Event(
    "view_item", 1_795_392_006_224, "SKU-1", "shoes", 59.5, 2.0, {"device": "mobile", "visits": 3.0, "new": True}
)
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
def test_version_1_reads_and_writes_its_golden_bytes(event, data):
    assert encode_event(event).hex() == data.hex()
    assert decode_event(data) == event


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
    ],
)
def test_other_bytes_are_corrupt(data):
    with pytest.raises(CorruptRecordError):
        decode_event(data)


def test_another_codec_version_is_named():
    with pytest.raises(CorruptRecordError, match="codec version 2"):
        decode_event(msgspec.msgpack.encode([2, 1, "page_view"]))
