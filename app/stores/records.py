"""A session as the store keeps it, and its bytes.

Little endian, first byte the codec's version. Version 1:

    offset  bytes  field
         0      1  codec version, 1
         1      8  version: random, new with every commit; `commit.lua` compares it
         9      8  fingerprint of the model that made the state
        17      8  probability, float64; NaN: nothing was folded yet
        25      4  events folded
        29      8  first seen, server's clock, ms since the epoch
        37      8  last seen, the same
        45      8  largest event time folded, ms since the epoch
        53      1  outcome: 0 open, 1 purchase, 2 none
        54      8  time of the outcome, ms since the epoch; 0 while open
        62      1  m, number of models that gave the answers below
        63      1  a, number of answers
        64      4  s, size of the state
        68     8m  fingerprints of those models
       ...    23a  answers, oldest first: event code (8), probability (8), events folded (4), index of the model (1),
                   outcome (1), whether the event was folded (1)
       ...      s  the model's state

The answers stay packed in memory, so that a step costs the same however many are kept.
"""

import math
import struct
from enum import IntEnum
from typing import Final, Literal, Self

import msgspec

from app.errors import CorruptRecordError

CODEC_VERSION: Final = 1
VERSION_BYTES: Final = 8
_HEADER: Final = struct.Struct("<B8s8sdIqqqBqBBI")
_ANSWER: Final = struct.Struct("<qdIBBB")
_CODE: Final = struct.Struct("<q")
_FINGERPRINT_BYTES: Final = 8
_LARGEST_COUNT: Final = 255


class Outcome(IntEnum):
    """What became of a session so far.

    `NONE` is what the shop said; a session that ends by idling out has no record any more that could say it.
    """

    OPEN = 0
    PURCHASE = 1
    NONE = 2

    @property
    def word(self) -> Literal["open", "purchase", "none"]:
        """Its name towards callers."""
        return _WORDS[self]


# By its number, as every record read asks for one.
_OUTCOMES: Final = tuple(Outcome)
_LARGEST_OUTCOME: Final = len(_OUTCOMES) - 1
_WORDS: Final[tuple[Literal["open"], Literal["purchase"], Literal["none"]]] = ("open", "purchase", "none")


class Answer(msgspec.Struct, frozen=True):
    """What an event was answered, to be given again when the event comes again.

    Attributes:
        probability: None when the session had no folded event.
        events: events folded when it was answered.
        model: fingerprint of the model that answered, 16 hex characters.
        outcome: the session's outcome then.
        folded: whether the event became part of the session's score.
    """

    probability: float | None
    events: int
    model: str
    outcome: Outcome
    folded: bool


class Answers(msgspec.Struct, frozen=True):
    """The last answers of a session, each under its event's code; packed."""

    models: tuple[str, ...] = ()
    packed: bytes = b""

    def __len__(self) -> int:
        return len(self.packed) // _ANSWER.size

    def find(self, code: int) -> Answer | None:
        """Return the answer kept under an event's code, the newest if there are two, or None."""
        wanted = _CODE.pack(code)
        end = len(self.packed)
        while (offset := self.packed.rfind(wanted, 0, end)) >= 0:
            if offset % _ANSWER.size == 0:
                _, probability, events, model, outcome, folded = _ANSWER.unpack_from(self.packed, offset)
                return Answer(_known(probability), events, self.models[model], _OUTCOMES[outcome], folded=bool(folded))
            # The bytes of the code turned up inside another answer.
            end = offset + len(wanted) - 1
        return None

    def with_answer(self, code: int, answer: Answer, window: int) -> Self:
        """Return these answers and one more; of all, the last `window` (1 to 255) stay."""
        kept = self.packed[max(0, len(self.packed) - (window - 1) * _ANSWER.size) :]
        models = self.models
        if answer.model not in models:
            models, kept = _with_model(models, kept, answer.model)
        entry = _ANSWER.pack(
            code,
            _packable(answer.probability),
            answer.events,
            models.index(answer.model),
            answer.outcome,
            answer.folded,
        )
        return type(self)(models, kept + entry)


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


def encode_record(record: Record) -> bytes:
    """Return the bytes of a record, in the newest codec version."""
    header = _HEADER.pack(
        CODEC_VERSION,
        record.version,
        bytes.fromhex(record.model),
        _packable(record.probability),
        record.events,
        record.first_seen_ms,
        record.last_seen_ms,
        record.last_event_ms,
        record.outcome,
        record.outcome_ms,
        len(record.answers.models),
        len(record.answers),
        len(record.state),
    )
    models = b"".join(bytes.fromhex(model) for model in record.answers.models)
    return b"".join((header, models, record.answers.packed, record.state))


def decode_record(data: bytes) -> Record:
    """Return the record that `encode_record` wrote; raise `CorruptRecordError` for any other bytes."""
    if not data or data[0] != CODEC_VERSION:
        found = f"codec version {data[0]}" if data else "nothing"
        raise CorruptRecordError(f"The record starts with {found}; this release reads version {CODEC_VERSION}.")
    if len(data) < _HEADER.size:
        raise CorruptRecordError(f"The record ends after {len(data)} bytes, within its header.")
    (
        _codec,
        version,
        model,
        probability,
        events,
        first_seen_ms,
        last_seen_ms,
        last_event_ms,
        outcome,
        outcome_ms,
        model_count,
        answer_count,
        state_size,
    ) = _HEADER.unpack_from(data)
    answers_start = _HEADER.size + model_count * _FINGERPRINT_BYTES
    state_start = answers_start + answer_count * _ANSWER.size
    if len(data) != state_start + state_size:
        raise CorruptRecordError(f"The record has {len(data)} bytes where its header says {state_start + state_size}.")
    models = tuple(
        data[start : start + _FINGERPRINT_BYTES].hex()
        for start in range(_HEADER.size, answers_start, _FINGERPRINT_BYTES)
    )
    packed = data[answers_start:state_start]
    # Two strided slices look at the index and the outcome of every answer without unpacking one.
    indices, outcomes = packed[_ANSWER.size - 3 :: _ANSWER.size], packed[_ANSWER.size - 2 :: _ANSWER.size]
    if max(indices, default=-1) >= model_count or max(outcomes, default=0) > _LARGEST_OUTCOME:
        raise CorruptRecordError("An answer in the record names a model or an outcome that does not exist.")
    if outcome > _LARGEST_OUTCOME or not (math.isnan(probability) or 0.0 <= probability <= 1.0):
        raise CorruptRecordError("The record's outcome or probability is none.")
    return Record(
        version=version,
        model=model.hex(),
        probability=_known(probability),
        events=events,
        first_seen_ms=first_seen_ms,
        last_seen_ms=last_seen_ms,
        last_event_ms=last_event_ms,
        outcome=_OUTCOMES[outcome],
        outcome_ms=outcome_ms,
        answers=Answers(models, packed),
        state=data[state_start:],
    )


def _with_model(models: tuple[str, ...], packed: bytes, model: str) -> tuple[tuple[str, ...], bytes]:
    """Return the table of models with one more, and the answers numbered by it."""
    if len(models) < _LARGEST_COUNT:
        return (*models, model), packed
    # A table this long names mostly models whose answers are gone.
    entries = [list(entry) for entry in _ANSWER.iter_unpack(packed)]
    used = tuple(dict.fromkeys(models[entry[3]] for entry in entries))
    for entry in entries:
        entry[3] = used.index(models[entry[3]])
    return (*used, model), b"".join(_ANSWER.pack(*entry) for entry in entries)


def _packable(probability: float | None) -> float:
    return math.nan if probability is None else probability


def _known(probability: float) -> float | None:
    return None if math.isnan(probability) else probability
