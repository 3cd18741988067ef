"""The answers that a session remembers, so that an event that comes again is answered again; packed.

Little endian, oldest first. As long as a session is open and of one model, each answer is one folded event more:

    bytes  compact
        8  event code
        4  probability, float32

How many events were folded then follows from its place. Any other list of answers, as of a session that has bought or
that two models have answered, has the wide form, which is version 1's:

    bytes  wide
        8  event code
        8  probability, float64; NaN: nothing was folded yet
        4  events folded
        1  index of the model
        1  outcome
        1  whether the event was folded

They stay packed in memory, so that a step costs the same however many are kept.
"""

import math
import struct
from enum import IntEnum
from typing import Final, Literal, Self

import msgspec

from app.errors import CorruptRecordError

_COMPACT: Final = struct.Struct("<qf")
_WIDE: Final = struct.Struct("<qdIBBB")
_CODE: Final = struct.Struct("<q")
_PROBABILITY: Final = struct.Struct("<f")
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
OUTCOMES: Final = tuple(Outcome)
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
    """The last answers of a session, each under its event's code.

    Attributes:
        models: fingerprints of the models that gave them; one in the compact form, none when there are no answers.
        packed: the answers.
        events: events folded after the last of them; means something in the compact form only.
        is_wide: whether they have the wide form.
    """

    models: tuple[str, ...] = ()
    packed: bytes = b""
    events: int = 0
    is_wide: bool = False

    def __len__(self) -> int:
        return len(self.packed) // answer_size(is_wide=self.is_wide)

    @property
    def last_probability(self) -> float:
        """What the newest compact answer says; NaN: there is none."""
        if self.is_wide or not self.packed:
            return math.nan
        (probability,) = _PROBABILITY.unpack_from(self.packed, len(self.packed) - _PROBABILITY.size)
        return float(probability)

    def find(self, code: int) -> Answer | None:
        """Return the answer kept under an event's code, the newest if there are two, or None."""
        wanted = _CODE.pack(code)
        packed, size = self.packed, _WIDE.size if self.is_wide else _COMPACT.size
        end = len(packed)
        while (offset := packed.rfind(wanted, 0, end)) >= 0:
            if offset % size == 0:
                return self._wide_answer(offset) if self.is_wide else self._compact_answer(offset)
            # The bytes of the code turned up inside another answer.
            end = offset + len(wanted) - 1
        return None

    def with_answer(self, code: int, answer: Answer, window: int) -> Self:
        """Return these answers and one more; of all, the last `window` (1 to 255) stay."""
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
        entry = _COMPACT.pack(code, probability)
        # What is answered again is the very same number, so float32 is for what comes back from it.
        if not is_next or _PROBABILITY.unpack_from(entry, _CODE.size)[0] != probability:
            return self._widened().with_answer(code, answer, window)
        kept = packed[max(0, len(packed) - (window - 1) * _COMPACT.size) :]
        return type(self)(models, kept + entry, answer.events)

    def of_record(self, model: str, events: int) -> Self:
        """Return them so that they can be read again beside a record of that model and of so many events."""
        if self.is_wide or not self.packed or (self.events == events and self.models[0] == model):
            return self
        return self._widened()

    def _compact_answer(self, offset: int) -> Answer:
        _, probability = _COMPACT.unpack_from(self.packed, offset)
        later = (len(self.packed) - offset) // _COMPACT.size - 1
        return Answer(_known(probability), self.events - later, self.models[0], Outcome.OPEN, folded=True)

    def _wide_answer(self, offset: int) -> Answer:
        _, probability, events, model, outcome, folded = _WIDE.unpack_from(self.packed, offset)
        return Answer(_known(probability), events, self.models[model], OUTCOMES[outcome], folded=bool(folded))

    def _widened(self) -> Self:
        """Return the same answers in the wide form."""
        packed = [
            _WIDE.pack(code, probability, events, 0, Outcome.OPEN, 1)
            for events, (code, probability) in enumerate(
                _COMPACT.iter_unpack(self.packed), start=self.events - len(self) + 1
            )
        ]
        return type(self)(self.models, b"".join(packed), is_wide=True)

    def _with_wide(self, code: int, answer: Answer, window: int) -> Self:
        kept = self.packed[max(0, len(self.packed) - (window - 1) * _WIDE.size) :]
        models = self.models
        if answer.model not in models:
            models, kept = _with_model(models, kept, answer.model)
        entry = _WIDE.pack(
            code,
            _packable(answer.probability),
            answer.events,
            models.index(answer.model),
            answer.outcome,
            answer.folded,
        )
        return type(self)(models, kept + entry, is_wide=True)


def answer_size(*, is_wide: bool) -> int:
    """Return the bytes of one answer in a form."""
    return _WIDE.size if is_wide else _COMPACT.size


def answers_of(models: tuple[str, ...], packed: bytes, events: int, *, is_wide: bool) -> Answers:
    """Return the answers of a record, its model first or alone and with its number of events where they are compact.

    Raises:
        CorruptRecordError: one of them names a model or an outcome that does not exist, or there are more than events.
    """
    if not packed:
        return Answers()
    if is_wide:
        # Two strided slices look at the index and the outcome of every answer without unpacking one.
        indices, outcomes = packed[_WIDE.size - 3 :: _WIDE.size], packed[_WIDE.size - 2 :: _WIDE.size]
        is_sound = max(indices) < len(models) and max(outcomes) < len(OUTCOMES)
        events = 0
    else:
        is_sound = len(packed) // _COMPACT.size <= events
    if not is_sound:
        raise CorruptRecordError("The record's answers name a model, an outcome or an event that does not exist.")
    return Answers(models, packed, events, is_wide)


def _with_model(models: tuple[str, ...], packed: bytes, model: str) -> tuple[tuple[str, ...], bytes]:
    """Return the table of models with one more, and the wide answers numbered by it."""
    if len(models) < _LARGEST_COUNT:
        return (*models, model), packed
    # A table this long names mostly models whose answers are gone.
    entries = [list(entry) for entry in _WIDE.iter_unpack(packed)]
    used = tuple(dict.fromkeys(models[entry[3]] for entry in entries))
    for entry in entries:
        entry[3] = used.index(models[entry[3]])
    return (*used, model), b"".join(_WIDE.pack(*entry) for entry in entries)


def _packable(probability: float | None) -> float:
    return math.nan if probability is None else probability


def _known(probability: float) -> float | None:
    return None if math.isnan(probability) else probability
