"""Raw event columns: the tensors that go into the artifact, and the only way from events to them.

A batch of B events is three tensors:

* ``timestamp_ms`` int64 [B]
* ``codes`` int64 [B, 3 + C]: `CODE_FIELDS`, then the C category properties, each as its `fingerprint`; 0 where there
  is no value
* ``numbers`` float32 [B, 2 + N]: `NUMBER_FIELDS`, then the N number properties; NaN where there is no value

No feature is computed here: counts, gaps, vocabularies and scaling are in the artifact (`model.encoder`).
"""

import math
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.events import FIELDS, Event, PropertyValue, identifier_code
from model.properties import PropertySpec
from model.text_rules import TEXT_RULES, canonical_text, category_text, is_placeholder_id

_Numbers = np.ndarray[Any, Any]

# A model reads these of every event, in this order. A further input changes the columns that artifacts take.
CODE_FIELDS = ("event_name", *(field.name for field in FIELDS if field.kind == "text" and field.is_input))
NUMBER_FIELDS = tuple(field.name for field in FIELDS if field.kind == "amount" and field.is_input)
_TIMESTAMP_MS = attrgetter("timestamp_ms")
_NUMBERS = tuple(map(attrgetter, NUMBER_FIELDS))
FIXED_CODES = len(CODE_FIELDS)
FIXED_NUMBERS = len(NUMBER_FIELDS)
_FINGERPRINT_MASK = 0x7FFFFFFF
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_TRUTHS: dict[str | None, float] = {"true": 1.0, "false": 0.0}


def unruled_text(value: PropertyValue | None) -> str | None:
    """Return a category property's value as text, as artifacts without text rules have it; None for no value.

    Booleans and whole numbers get one spelling, so that a log's `1` and a POST's `1.0` are the same category.
    """
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, bool):
        return "true" if value else "false"
    if math.isnan(value):
        return None
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def number_value(value: PropertyValue | None) -> float:
    """Return a number property's value as a float, 1 and 0 for true and false; NaN where there is none or no number."""
    if value is None:
        return math.nan
    if not isinstance(value, str):
        return float(value)
    text = canonical_text(value) or ""
    # Python's `float` also takes 1_000 and digits of other scripts, which a log's reader does not.
    number = float(text) if _NUMBER.fullmatch(text) else _TRUTHS.get(text, math.nan)
    return number if math.isfinite(number) else math.nan


@lru_cache(maxsize=65536)
def fingerprint(identifier: str | None) -> int:
    """Return a string's number in the artifact: 31 bits of its `identifier_code`, 0 for no value.

    The number takes four bytes of a stored state. Two strings share one with a probability of 2**-31 a pair.
    """
    if not identifier:
        return 0
    return identifier_code(identifier) & _FINGERPRINT_MASK or 1


@lru_cache(maxsize=65536, typed=True)
def category_code(value: PropertyValue | None) -> int:
    """Return the fingerprint of a category's canonical text; 0 where it is a word for no value."""
    return fingerprint(category_text(value))


@lru_cache(maxsize=65536, typed=True)
def _canonical_code(value: PropertyValue | None) -> int:
    """Return the fingerprint of a value's canonical text: of ids, and of categories before text rules 2."""
    return fingerprint(canonical_text(value))


@lru_cache(maxsize=65536)
def item_code(item_id: str | None) -> int:
    """Return the fingerprint of an item's id; 0 where the id stands for nothing."""
    return 0 if item_id is None or is_placeholder_id(item_id) else _canonical_code(item_id)


@lru_cache(maxsize=65536, typed=True)
def _unruled_category_code(value: PropertyValue | None) -> int:
    return fingerprint(unruled_text(value))


# By the version of the text rules; later versions have `category_code`.
_CATEGORY_CODERS: dict[int, Callable[[PropertyValue | None], int]] = {0: _unruled_category_code, 1: _canonical_code}
# Event names are canonical already (`model.events.EventNames`).
_CODERS: dict[str, Callable[[str | None], int]] = {"event_name": fingerprint, "item_id": item_code}


def code_of(field: str) -> Callable[[str | None], int]:
    """Return the function that makes the code of a field of `CODE_FIELDS`."""
    return _CODERS.get(field, category_code)


class ColumnReader:
    """Reads events into columns, for an artifact's declared properties; ignores other properties.

    Args:
        properties: the declared ones.
        text_rules: the version of `model.text_rules` that the artifact was trained with; 0: none.

    Attributes:
        categories, numbers: names of the properties of each kind.
        category_code: the code of a category's value.
    """

    def __init__(self, properties: Sequence[PropertySpec], text_rules: int = TEXT_RULES) -> None:
        self.category_code = _CATEGORY_CODERS.get(text_rules, category_code)
        coders: dict[str, Callable[[str | None], int]] = {**dict.fromkeys(CODE_FIELDS, self.category_code), **_CODERS}
        self._codes = tuple((attrgetter(name), coders[name] if text_rules else fingerprint) for name in CODE_FIELDS)
        self.categories = tuple(spec.name for spec in properties if spec.kind == "category")
        self.numbers = tuple(spec.name for spec in properties if spec.kind == "number")

    def read(self, events: Sequence[Event], rows: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return `(timestamp_ms [B], codes [B, 3 + C], numbers [B, 2 + N])` of the events, on the CPU.

        Args:
            events: may be none.
            rows: B, at least as many as there are events, the last ones zeros; None: as many as events.
        """
        # Column by column into flat lists, filled by `map` without Python bytecode an event. NumPy reads None as NaN;
        # torch takes several times as long to read nested lists.
        codes: list[int] = []
        for field, code in self._codes:
            codes += map(code, map(field, events))
        numbers: list[float | None] = []
        for field in _NUMBERS:
            numbers += map(field, events)
        if self.categories or self.numbers:
            given = [event.properties for event in events]
            for name in self.categories:
                codes += map(self.category_code, [properties.get(name) for properties in given])
            for name in self.numbers:
                numbers += map(number_value, [properties.get(name) for properties in given])
        with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite; the encoder bounds it
            number_rows = np.array(numbers, np.float32).reshape(FIXED_NUMBERS + len(self.numbers), len(events))
        code_rows = np.array(codes, np.int64).reshape(FIXED_CODES + len(self.categories), len(events))
        stamps = np.array([*map(_TIMESTAMP_MS, events)], np.int64)
        if rows is not None and rows > len(events):
            stamps, code_rows, number_rows = (_widened(values, rows) for values in (stamps, code_rows, number_rows))
        # Transposed views: in memory, the values of one column are adjacent, as the encoder takes them.
        return torch.from_numpy(stamps), torch.from_numpy(code_rows).t(), torch.from_numpy(number_rows).t()


def columns_from_events(events: Sequence[Event], properties: Sequence[PropertySpec]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the columns of events as a `ColumnReader` of the properties reads them."""
    return ColumnReader(properties).read(events)


def _widened(values: _Numbers, width: int) -> _Numbers:
    """Return an array [..., B] with zeros at the end of its last axis, [..., width]."""
    wide = np.zeros((*values.shape[:-1], width), values.dtype)
    wide[..., : values.shape[-1]] = values
    return wide
