"""A session as the store keeps it, and its bytes.

Little endian, first byte the codec's version. Version 2 begins with

    offset  bytes  field
         0      1  codec version, 2
         1      8  version: random, new with every commit; `commit.lua` compares it
         9      8  fingerprint of the model that made the state
        17      1  0 for a compact record; else bit 2 set, bits 0 and 1 the outcome: 0 open, 1 purchase, 2 none;
                   bit 3 set if the answers are wide

and goes on, if the session is open, its answers are compact, its probability is that of the last of them, and all fits,

        18      2  events folded
        20      8  first seen, server's clock, ms since the epoch
        28      4  last seen, ms after it
        32      4  largest event time folded, ms after it or, negative, before
        36      1  a, number of answers
        37      2  s, size of the state
        39      8  code of the last folded event's properties; 0: not known

or else, in a wide one,

        18      8  probability, float64; NaN: nothing was folded yet
        26      4  events folded
        30     32  first seen, last seen, largest event time, outcome (0 while open): ms since the epoch, 8 each
        62      1  a
        63      4  s
        67      8  code of the properties

then the answers: compact ones all of the record's model, wide ones behind the number of their models (1) and the
fingerprints of those (8 each); `app.store.answers_codec` has their bytes. Then s bytes of the model's state.

Version 1 had one header, wide answers, and knew nothing of properties. It is still read.
"""

import math
import struct
from typing import Final

import msgspec

from app.errors import CorruptRecordError
from app.store.answers_codec import OUTCOMES, Answer, Answers, Outcome, answer_size, answers_of

__all__ = ["CODEC_VERSION", "VERSION_BYTES", "Answer", "Answers", "Outcome", "Record", "decode_record", "encode_record"]

CODEC_VERSION: Final = 2
VERSION_BYTES: Final = 8
_COMPACT: Final = struct.Struct("<B8s8sBHqIiBHQ")
_WIDE: Final = struct.Struct("<B8s8sBdIqqqqBIQ")
_VERSION_1: Final = struct.Struct("<B8s8sdIqqqBqBBI")
_FLAGS_AT: Final = 17
_FINGERPRINT_BYTES: Final = 8
_OUTCOME_BITS: Final = 0b0011
_IS_WIDE: Final = 0b0100
_HAS_WIDE_ANSWERS: Final = 0b1000
_LARGEST_FLAGS: Final = 0b1111


class Record(msgspec.Struct, frozen=True):
    """A session between two events.

    Attributes:
        version: 8 random bytes, new with every commit.
        model: fingerprint of the model that made `state`, 16 hex characters.
        probability: of a purchase, after the last folded event; None when nothing was folded.
        events: number of events folded; also the length of the history.
        first_seen_ms: server's clock at the session's first event.
        last_seen_ms: server's clock at its last.
        last_event_ms: largest time among the folded events; 0 when nothing was folded.
        outcome: open, purchase or none; a closed session folds nothing more.
        outcome_ms: time of the purchase, or when it was known that there is none; 0 while open.
        answers: the last answers given.
        state: the model's state, opaque; empty when nothing was folded.
        properties_code: code of the last folded event's properties, see `app.store.history`; 0: not known.
    """

    version: bytes
    model: str
    probability: float | None
    events: int
    first_seen_ms: int
    last_seen_ms: int
    last_event_ms: int
    outcome: Outcome
    outcome_ms: int
    answers: Answers
    state: bytes
    properties_code: int = 0


def encode_record(record: Record) -> bytes:
    """Return the bytes of a record, in the newest codec version."""
    answers = record.answers.of_record(record.model, record.events)
    header = _compact_header(record, answers) or _wide_header(record, answers)
    if not answers.is_wide:
        return b"".join((header, answers.packed, record.state))
    models = b"".join(map(bytes.fromhex, answers.models))
    return b"".join((header, bytes((len(answers.models),)), models, answers.packed, record.state))


def decode_record(data: bytes) -> Record:
    """Return the record that `encode_record` wrote in any version; raise `CorruptRecordError` for any other bytes."""
    try:
        if data[0] == CODEC_VERSION:
            return _wide(data) if data[_FLAGS_AT] else _compact(data)
        if data[0] == 1:
            return _version_1(data)
    except (struct.error, IndexError) as exc:
        found = f"ends after {len(data)} bytes" if data else "is empty"
        raise CorruptRecordError(f"The record {found}, within its header.") from exc
    raise CorruptRecordError(
        f"The record starts with codec version {data[0]}; this release reads versions 1 to {CODEC_VERSION}."
    )


def _compact_header(record: Record, answers: Answers) -> bytes | None:
    """Return the compact header, None where it does not hold what the record says."""
    # With no answers there is no probability of the last one.
    if record.outcome or record.outcome_ms or record.probability is None:
        return None
    if answers.last_probability != record.probability:
        return None
    try:
        return _COMPACT.pack(
            CODEC_VERSION,
            record.version,
            bytes.fromhex(record.model),
            0,
            record.events,
            record.first_seen_ms,
            record.last_seen_ms - record.first_seen_ms,
            record.last_event_ms - record.first_seen_ms,
            len(answers),
            len(record.state),
            record.properties_code,
        )
    except struct.error:
        return None


def _wide_header(record: Record, answers: Answers) -> bytes:
    return _WIDE.pack(
        CODEC_VERSION,
        record.version,
        bytes.fromhex(record.model),
        record.outcome | _IS_WIDE | (_HAS_WIDE_ANSWERS if answers.is_wide else 0),
        math.nan if record.probability is None else record.probability,
        record.events,
        record.first_seen_ms,
        record.last_seen_ms,
        record.last_event_ms,
        record.outcome_ms,
        len(answers),
        len(record.state),
        record.properties_code,
    )


def _compact(data: bytes) -> Record:
    _, version, model, _, events, first_seen_ms, seen_ms, event_ms, answer_count, state_size, properties_code = (
        _COMPACT.unpack_from(data)
    )
    state_start = _COMPACT.size + answer_count * answer_size(is_wide=False)
    _check(data, state_start + state_size)
    fingerprint = model.hex()
    answers = answers_of((fingerprint,), data[_COMPACT.size : state_start], events, is_wide=False)
    return Record(
        version=version,
        model=fingerprint,
        probability=_known(answers.last_probability),
        events=events,
        first_seen_ms=first_seen_ms,
        last_seen_ms=first_seen_ms + seen_ms,
        last_event_ms=first_seen_ms + event_ms,
        outcome=Outcome.OPEN,
        outcome_ms=0,
        answers=answers,
        state=data[state_start:],
        properties_code=properties_code,
    )


def _wide(data: bytes) -> Record:
    _, version, model, flags, probability, events, first_seen_ms, last_seen_ms, last_event_ms, outcome_ms, *rest = (
        _WIDE.unpack_from(data)
    )
    answer_count, state_size, properties_code = rest
    if not flags & _IS_WIDE or flags > _LARGEST_FLAGS:
        raise CorruptRecordError("The record says neither that it is compact nor that it is wide.")
    start, fingerprint = _WIDE.size, model.hex()
    models: tuple[str, ...] = (fingerprint,)
    has_wide_answers = bool(flags & _HAS_WIDE_ANSWERS)
    if has_wide_answers:
        models, start = _models(data, start + 1, data[start])
    state_start = start + answer_count * answer_size(is_wide=has_wide_answers)
    _check(data, state_start + state_size)
    return Record(
        version=version,
        model=fingerprint,
        probability=_known(probability),
        events=events,
        first_seen_ms=first_seen_ms,
        last_seen_ms=last_seen_ms,
        last_event_ms=last_event_ms,
        outcome=_outcome(flags & _OUTCOME_BITS),
        outcome_ms=outcome_ms,
        answers=answers_of(models, data[start:state_start], events, is_wide=has_wide_answers),
        state=data[state_start:],
        properties_code=properties_code,
    )


def _version_1(data: bytes) -> Record:
    _, version, model, probability, events, first_seen_ms, last_seen_ms, last_event_ms, outcome, outcome_ms, *rest = (
        _VERSION_1.unpack_from(data)
    )
    model_count, answer_count, state_size = rest
    models, start = _models(data, _VERSION_1.size, model_count)
    state_start = start + answer_count * answer_size(is_wide=True)
    _check(data, state_start + state_size)
    return Record(
        version=version,
        model=model.hex(),
        probability=_known(probability),
        events=events,
        first_seen_ms=first_seen_ms,
        last_seen_ms=last_seen_ms,
        last_event_ms=last_event_ms,
        outcome=_outcome(outcome),
        outcome_ms=outcome_ms,
        answers=answers_of(models, data[start:state_start], events, is_wide=True),
        state=data[state_start:],
    )


def _models(data: bytes, start: int, count: int) -> tuple[tuple[str, ...], int]:
    """Return the fingerprints of models that begin at a place, and where they end."""
    end = start + count * _FINGERPRINT_BYTES
    places = range(start, end, _FINGERPRINT_BYTES)
    return tuple(data[place : place + _FINGERPRINT_BYTES].hex() for place in places), end


def _check(data: bytes, size: int) -> None:
    if len(data) != size:
        raise CorruptRecordError(f"The record has {len(data)} bytes where its header says {size}.")


def _outcome(number: int) -> Outcome:
    if number >= len(OUTCOMES):
        raise CorruptRecordError(f"The record has an outcome that is none, {number}.")
    return OUTCOMES[number]


def _known(probability: float) -> float | None:
    if 0.0 <= probability <= 1.0:
        return probability
    if math.isnan(probability):
        return None
    raise CorruptRecordError(f"The record has a probability that is none, {probability}.")
