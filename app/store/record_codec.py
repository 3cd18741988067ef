"""A session's record and the answers in it, as bytes.

Little endian; the first byte is the codec's version. Version 4 begins with

    offset  bytes  field
         0      1  codec version, 4; or 3 without facts and decisions
         1      8  version: random, new with every commit; `commit.lua` compares it
         9      8  fingerprint of the model that made the state
        17      1  0 for a compact record; else bit 2 set, bits 0 and 1 the outcome: 0 open, 1 purchase, 2 none;
                   bit 3 set if the answers are wide

A record is compact if the session is open, its answers are compact, its probability is that of the last answer, and
every value fits. It continues with

        18      2  events folded
        20      8  first seen, server's clock, ms since the epoch
        28      4  last seen, ms after it
        32      4  largest event time folded, ms after first seen; negative if before
        36      1  a, number of answers
        37      2  s, size of the state
        39      8  code of the last folded event's properties; 0: not known
        47      4  bytes of the history's entries

Any other record is wide and continues with

        18      8  probability, float64; NaN: nothing was folded yet
        26      4  events folded
        30     32  first seen, last seen, largest event time, outcome (0 while open): ms since the epoch, 8 each
        62      1  a
        63      4  s
        67      8  code of the properties
        75      4  bytes of the history's entries

Then follow the answers, oldest first, so that a repeated event gets the same answer again. Compact answers are all of
the record's model. Wide answers follow the number of their models (1) and those fingerprints (8 each). The s bytes of
the model's state come last.

While a session is open and has one model, each answer counts one folded event more than the answer before it:

    bytes  compact answer
        8  event code
        4  probability, float32

Six bytes of a code are a hash of the event's id, two a digest of its body. Releases before version 4 had eight of the
id's.
The number of folded events derives from the answer's position. All other lists of answers, as of a session that has
bought or that two models have answered, have the wide form, which is that of version 1:

    bytes  wide answer
        8  event code
        8  probability, float64; NaN: nothing was folded yet
        4  events folded
        1  index of the model
        1  outcome
        1  whether the event was folded

The facts and decisions of rules (`model.interventions`) follow the state in version 4. Version 3 ends with the state; a
record without them is still written so, since most shops have no rules:

    bytes  field
        2  f, size of the facts; 0: not known
        f  the facts
           the decisions, as a MessagePack array of arrays, up to the end

Answers stay packed in memory, so that a step costs the same for any number of them.

Version 2 ended its headers before the bytes of the history. Version 1 had one header, wide answers, and no code of
properties. Both are still read; the bytes of their histories count as 0.
"""

import math
import struct
from enum import IntEnum
from typing import Final, Literal, Self

import msgspec

from app.errors import CorruptRecordError
from model.interventions.decide import NO_DECISIONS, Decision, Decisions, decoded_decisions

CODEC_VERSION: Final = 4
_WITHOUT_RULES: Final = 3
VERSION_BYTES: Final = 8
# Of an event's code; the others are of its body.
ID_BYTES: Final = 6
_COMPACT: Final = struct.Struct("<B8s8sBHqIiBHQI")
_WIDE: Final = struct.Struct("<B8s8sBdIqqqqBIQI")
_COMPACT_2: Final = struct.Struct("<B8s8sBHqIiBHQ")
_WIDE_2: Final = struct.Struct("<B8s8sBdIqqqqBIQ")
_HEADERS: Final = {CODEC_VERSION: (_COMPACT, _WIDE), _WITHOUT_RULES: (_COMPACT, _WIDE), 2: (_COMPACT_2, _WIDE_2)}
_VERSION_1: Final = struct.Struct("<B8s8sdIqqqBqBBI")
_FLAGS_AT: Final = 17
_FINGERPRINT_BYTES: Final = 8
_FACTS_SIZE: Final = struct.Struct("<H")
_NO_RULES: Final = (b"", NO_DECISIONS)
_OUTCOME_BITS: Final = 0b0011
_IS_WIDE: Final = 0b0100
_HAS_WIDE_ANSWERS: Final = 0b1000
_LARGEST_FLAGS: Final = 0b1111

_COMPACT_ANSWER: Final = struct.Struct("<qf")
_WIDE_ANSWER: Final = struct.Struct("<qdIBBB")
_CODE: Final = struct.Struct("<q")
_PROBABILITY: Final = struct.Struct("<f")
_MOST_MODELS: Final = 255


class Outcome(IntEnum):
    """A session's outcome so far.

    The shop sets `NONE` by a call. A session that ends by idle time has no record any more.
    """

    OPEN = 0
    PURCHASE = 1
    NONE = 2

    @property
    def word(self) -> Literal["open", "purchase", "none"]:
        """Its name in the API."""
        return _WORDS[self]


# By number: a tuple's index is faster than the enum's call, and every record that is read has an outcome.
_OUTCOMES: Final = tuple(Outcome)
_WORDS: Final[tuple[Literal["open"], Literal["purchase"], Literal["none"]]] = ("open", "purchase", "none")


class Answer(msgspec.Struct, frozen=True):
    """The answer to an event, given again if the event is repeated.

    Attributes:
        probability: None when the session had no folded event.
        events: events folded at the time of the answer.
        model: fingerprint of the model that answered, 16 hex characters.
        outcome: the session's outcome at that time.
        folded: whether the event became part of the session's score.
    """

    probability: float | None
    events: int
    model: str
    outcome: Outcome
    folded: bool


class Answers(msgspec.Struct, frozen=True):
    """The last answers of a session, each under its event's code.

    Attributes:
        models: fingerprints of the models that gave them; one in the compact form, none if there are no answers.
        packed: the answers' bytes.
        events: events folded after the last of them; used in the compact form only.
        is_wide: whether they have the wide form.
    """

    models: tuple[str, ...] = ()
    packed: bytes = b""
    events: int = 0
    is_wide: bool = False

    def __len__(self) -> int:
        return len(self.packed) // _answer_size(is_wide=self.is_wide)

    @property
    def last_probability(self) -> float:
        """Probability of the newest compact answer; NaN: there is none."""
        if self.is_wide or not self.packed:
            return math.nan
        (probability,) = _PROBABILITY.unpack_from(self.packed, len(self.packed) - _PROBABILITY.size)
        return float(probability)

    @property
    def last_model(self) -> str | None:
        """Fingerprint of the model that gave the newest answer; None: there is none."""
        if not self.packed:
            return None
        if not self.is_wide:
            return self.models[0]
        _, _, _, model, _, _ = _WIDE_ANSWER.unpack_from(self.packed, len(self.packed) - _WIDE_ANSWER.size)
        return self.models[int(model)]

    def find(self, code: int) -> Answer | None:
        """Return the answer to the event of a code's id, the newest if there are two, or None; bodies do not matter."""
        offset = self._place(code)
        if offset < 0:
            return None
        return self._wide_answer(offset) if self.is_wide else self._compact_answer(offset)

    def stored_code(self, code: int) -> int | None:
        """Return the whole code of the answer that `find` returns, with the digest of its own event's body."""
        offset = self._place(code)
        return None if offset < 0 else int(_CODE.unpack_from(self.packed, offset)[0])

    def _place(self, code: int) -> int:
        """Return the offset of the newest answer to the event of a code's id, or -1."""
        wanted = _CODE.pack(code)[:ID_BYTES]
        packed, size = self.packed, _WIDE_ANSWER.size if self.is_wide else _COMPACT_ANSWER.size
        end = len(packed)
        while (offset := packed.rfind(wanted, 0, end)) >= 0:
            if offset % size == 0:
                return offset
            # The code's bytes were found inside another answer.
            end = offset + len(wanted) - 1
        return -1

    def with_answer(self, code: int, answer: Answer, window: int) -> Self:
        """Return these answers and one more, of which the last `window` (1 to 255) are kept."""
        if self.is_wide:
            return self._with_wide(code, answer, window)
        packed, models = self.packed, self.models
        is_next = answer.folded and not answer.outcome
        if not packed:
            models = (answer.model,)
            is_next = is_next and answer.events > 0
        else:
            is_next = is_next and answer.events == self.events + 1 and answer.model == models[0]
        probability = _packable(answer.probability)
        entry = _COMPACT_ANSWER.pack(code, probability)
        # A repeated answer must be exactly the same number, so float32 is only for numbers that it holds exactly.
        if not is_next or _PROBABILITY.unpack_from(entry, _CODE.size)[0] != probability:
            return self._widened().with_answer(code, answer, window)
        kept = packed[max(0, len(packed) - (window - 1) * _COMPACT_ANSWER.size) :]
        return type(self)(models, kept + entry, answer.events)

    def of_record(self, model: str, events: int) -> Self:
        """Return them in the form in which a record of that model and that many events can store them."""
        if self.is_wide or not self.packed or (self.events == events and self.models[0] == model):
            return self
        return self._widened()

    def _compact_answer(self, offset: int) -> Answer:
        _, probability = _COMPACT_ANSWER.unpack_from(self.packed, offset)
        later = (len(self.packed) - offset) // _COMPACT_ANSWER.size - 1
        return Answer(_none_for_nan(probability), self.events - later, self.models[0], Outcome.OPEN, folded=True)

    def _wide_answer(self, offset: int) -> Answer:
        _, probability, events, model, outcome, folded = _WIDE_ANSWER.unpack_from(self.packed, offset)
        return Answer(_none_for_nan(probability), events, self.models[model], _OUTCOMES[outcome], folded=bool(folded))

    def _widened(self) -> Self:
        """Return the same answers in the wide form."""
        packed = [
            _WIDE_ANSWER.pack(code, probability, events, 0, Outcome.OPEN, 1)
            for events, (code, probability) in enumerate(
                _COMPACT_ANSWER.iter_unpack(self.packed), start=self.events - len(self) + 1
            )
        ]
        return type(self)(self.models, b"".join(packed), is_wide=True)

    def _with_wide(self, code: int, answer: Answer, window: int) -> Self:
        kept = self.packed[max(0, len(self.packed) - (window - 1) * _WIDE_ANSWER.size) :]
        models = self.models
        if answer.model not in models:
            models, kept = _with_model(models, kept, answer.model)
        entry = _WIDE_ANSWER.pack(
            code,
            _packable(answer.probability),
            answer.events,
            models.index(answer.model),
            answer.outcome,
            answer.folded,
        )
        return type(self)(models, kept + entry, is_wide=True)


class Record(msgspec.Struct, frozen=True):
    """A session's state between two events.

    Attributes:
        version: 8 random bytes, new with every commit.
        model: fingerprint of the model that made `state`, 16 hex characters.
        probability: of a purchase, after the last folded event; None when nothing was folded.
        events: number of events folded; also the length of the history.
        first_seen_ms: server's clock at the session's first event.
        last_seen_ms: server's clock at its last.
        last_event_ms: largest time among the folded events; 0 when nothing was folded.
        outcome: open, purchase or none; a closed session folds nothing more.
        outcome_ms: time of the purchase, or when the shop set the outcome `NONE`; 0 while open.
        answers: the last answers given.
        state: the model's state, opaque; empty when nothing was folded.
        properties_code: code of the last folded event's properties (`history_codec.properties_code`); 0: not known.
        history_bytes: size of the history's entries; less for sessions of older releases, which did not count it.
        facts: what rules ask of the session (`model.interventions.decide`); empty: not known, as no rule asks for them.
        decisions: the decisions of rules so far; of a rule that repeats, all that stored answers or a group need.
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
    history_bytes: int = 0
    facts: bytes = b""
    decisions: Decisions = NO_DECISIONS

    def decisions_at(self, event: int) -> tuple[Decision, ...]:
        """Return the decisions that fired at the event of this number."""
        return tuple(one for one in self.decisions if one.event == event and not one.idle)


def encode_record(record: Record) -> bytes:
    """Return the bytes of a record, in the newest codec version, or in version 3 without facts and decisions."""
    answers = record.answers.of_record(record.model, record.events)
    facts, decisions = record.facts, record.decisions
    has_rules = bool(facts or decisions)
    version = CODEC_VERSION if has_rules else _WITHOUT_RULES
    header = _compact_header(record, answers, version) or _wide_header(record, answers, version)
    parts: tuple[bytes, ...] = (header, answers.packed, record.state)
    if answers.is_wide:
        models = b"".join(map(bytes.fromhex, answers.models))
        parts = (header, bytes((len(answers.models),)), models, answers.packed, record.state)
    if has_rules:
        parts += (_FACTS_SIZE.pack(len(facts)), facts, decisions.packed)
    return b"".join(parts)


def decode_record(data: bytes) -> Record:
    """Return the record that `encode_record` wrote in any version; raise `CorruptRecordError` for any other bytes."""
    try:
        if (headers := _HEADERS.get(data[0])) is not None:
            compact, wide = headers
            return _wide(data, wide) if data[_FLAGS_AT] else _compact(data, compact)
        if data[0] == 1:
            return _version_1(data)
    except (struct.error, IndexError) as exc:
        found = f"ends after {len(data)} bytes" if data else "is empty"
        raise CorruptRecordError(f"The record {found}, within its header.") from exc
    raise CorruptRecordError(
        f"The record starts with codec version {data[0]}; this release reads versions 1 to {CODEC_VERSION}."
    )


def _compact_header(record: Record, answers: Answers, version: int) -> bytes | None:
    """Return the compact header, None if the record does not fit into one."""
    if record.outcome or record.outcome_ms or record.probability is None:
        return None
    if answers.last_probability != record.probability:
        return None
    try:
        return _COMPACT.pack(
            version,
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
            record.history_bytes,
        )
    except struct.error:
        return None


def _wide_header(record: Record, answers: Answers, version: int) -> bytes:
    return _WIDE.pack(
        version,
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
        record.history_bytes,
    )


def _compact(data: bytes, header: struct.Struct) -> Record:
    _, version, model, _, events, first_seen_ms, seen_ms, event_ms, answer_count, state_size, *rest = (
        header.unpack_from(data)
    )
    state_start = header.size + answer_count * _answer_size(is_wide=False)
    state_end = state_start + state_size
    facts, decisions = _NO_RULES
    if data[0] == CODEC_VERSION:
        facts, decisions = _rules_after(data, state_end)
    elif len(data) != state_end:
        raise _wrong_size(data, state_end)
    fingerprint = model.hex()
    answers = _answers_of((fingerprint,), data[header.size : state_start], events, is_wide=False)
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
        state=data[state_start:state_end],
        properties_code=rest[0],
        history_bytes=rest[1] if len(rest) > 1 else 0,
        facts=facts,
        decisions=decisions,
    )


def _wide(data: bytes, header: struct.Struct) -> Record:
    _, version, model, flags, probability, events, first_seen_ms, last_seen_ms, last_event_ms, outcome_ms, *rest = (
        header.unpack_from(data)
    )
    answer_count, state_size, *rest = rest
    if not flags & _IS_WIDE or flags > _LARGEST_FLAGS:
        raise CorruptRecordError("The record's flags are neither those of a compact nor of a wide record.")
    start, fingerprint = header.size, model.hex()
    models: tuple[str, ...] = (fingerprint,)
    has_wide_answers = bool(flags & _HAS_WIDE_ANSWERS)
    if has_wide_answers:
        models, start = _models(data, start + 1, data[start])
    state_start = start + answer_count * _answer_size(is_wide=has_wide_answers)
    state_end = state_start + state_size
    facts, decisions = _NO_RULES
    if data[0] == CODEC_VERSION:
        facts, decisions = _rules_after(data, state_end)
    elif len(data) != state_end:
        raise _wrong_size(data, state_end)
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
        answers=_answers_of(models, data[start:state_start], events, is_wide=has_wide_answers),
        state=data[state_start:state_end],
        properties_code=rest[0],
        history_bytes=rest[1] if len(rest) > 1 else 0,
        facts=facts,
        decisions=decisions,
    )


def _version_1(data: bytes) -> Record:
    _, version, model, probability, events, first_seen_ms, last_seen_ms, last_event_ms, outcome, outcome_ms, *rest = (
        _VERSION_1.unpack_from(data)
    )
    model_count, answer_count, state_size = rest
    models, start = _models(data, _VERSION_1.size, model_count)
    state_start = start + answer_count * _answer_size(is_wide=True)
    if len(data) != state_start + state_size:
        raise _wrong_size(data, state_start + state_size)
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
        answers=_answers_of(models, data[start:state_start], events, is_wide=True),
        state=data[state_start:],
    )


def _models(data: bytes, start: int, count: int) -> tuple[tuple[str, ...], int]:
    """Return `count` fingerprints from an offset on, and the offset after them."""
    end = start + count * _FINGERPRINT_BYTES
    places = range(start, end, _FINGERPRINT_BYTES)
    return tuple(data[place : place + _FINGERPRINT_BYTES].hex() for place in places), end


def _rules_after(data: bytes, state_end: int) -> tuple[bytes, Decisions]:
    """Return the facts and decisions after the state of a record of version 4.

    Raises:
        CorruptRecordError: they cannot be read.
    """
    start = state_end + _FACTS_SIZE.size
    # Two bytes by hand: half the time of unpacking them.
    end = start + data[state_end] + 256 * data[state_end + 1]
    packed = data[end:]
    if packed == NO_DECISIONS.packed:
        return data[start:end], NO_DECISIONS
    try:
        return data[start:end], decoded_decisions(packed)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise CorruptRecordError("The record's decisions of rules are not ones that this release can read.") from exc


def _wrong_size(data: bytes, size: int) -> CorruptRecordError:
    return CorruptRecordError(f"The record has {len(data)} bytes where its header says {size}.")


def _outcome(number: int) -> Outcome:
    if number >= len(_OUTCOMES):
        raise CorruptRecordError(f"The record has an unknown outcome, {number}.")
    return _OUTCOMES[number]


def _known(probability: float) -> float | None:
    if 0.0 <= probability <= 1.0:
        return probability
    if math.isnan(probability):
        return None
    raise CorruptRecordError(f"The record has a probability that is out of range, {probability}.")


def _answer_size(*, is_wide: bool) -> int:
    """Return the bytes of one answer in a form."""
    return _WIDE_ANSWER.size if is_wide else _COMPACT_ANSWER.size


def _answers_of(models: tuple[str, ...], packed: bytes, events: int, *, is_wide: bool) -> Answers:
    """Return the answers of a record; compact ones get its model and its number of events.

    Raises:
        CorruptRecordError: an answer has an unknown model or outcome, or there are more answers than events.
    """
    if not packed:
        return Answers()
    if is_wide:
        # Two strided slices check the index and the outcome of every answer without unpacking one.
        indices, outcomes = (
            packed[_WIDE_ANSWER.size - 3 :: _WIDE_ANSWER.size],
            packed[_WIDE_ANSWER.size - 2 :: _WIDE_ANSWER.size],
        )
        is_sound = max(indices) < len(models) and max(outcomes) < len(_OUTCOMES)
        events = 0
    else:
        is_sound = len(packed) // _COMPACT_ANSWER.size <= events
    if not is_sound:
        raise CorruptRecordError("The record's answers name a model, an outcome or an event that does not exist.")
    return Answers(models, packed, events, is_wide)


def _with_model(models: tuple[str, ...], packed: bytes, model: str) -> tuple[tuple[str, ...], bytes]:
    """Return the models with one more, and the wide answers with indices into them."""
    if len(models) < _MOST_MODELS:
        return (*models, model), packed
    # Most of so many models have no answer left.
    entries = [list(entry) for entry in _WIDE_ANSWER.iter_unpack(packed)]
    used = tuple(dict.fromkeys(models[entry[3]] for entry in entries))
    for entry in entries:
        entry[3] = used.index(models[entry[3]])
    return (*used, model), b"".join(_WIDE_ANSWER.pack(*entry) for entry in entries)


def _packable(probability: float | None) -> float:
    return math.nan if probability is None else probability


def _none_for_nan(probability: float) -> float | None:
    return None if math.isnan(probability) else probability
