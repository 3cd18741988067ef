"""A vendor's table, which says where each value of an event is, and the reading of one record by it.

`training.data.sources` reads columns of many records by the same tables; a test compares both readings.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Final, Literal, NamedTuple

import msgspec

from model.events import FIELDS
from model.text_rules import canonical_text, category_text, currency_code, is_placeholder_id, stripped
from model.vendors.paths import scalar_text, value_at

Record = dict[str, Any]
"""A JSON object, or a row with the columns of a table."""
Paths = tuple[str, ...]
"""Where a value may be; the first place that has one counts."""

# As spreadsheets and data frames write: 1.43322E+12. Without a sign or a point, the text may be a hexadecimal id.
EXPONENT_FORM: Final = r"^[+-]?\d(?:\.\d+)?[eE][+-]\d+$|^[+-]?\d\.\d+[eE]\d+$"
_EXPONENT: Final = re.compile(EXPONENT_FORM, re.ASCII)
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_ISO: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(:\d\d)?(?:[.,](\d+))?)?\s*(?:Z|UTC|GMT|([+-]\d\d):?(\d\d))?", re.ASCII
)
_END_OF_TIME_MS: Final = 253_402_300_800_000
_MS_PER_US: Final = 1e-3
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TRUTHS: Final = {"true": 1.0, "false": 0.0}
_encode: Final = msgspec.msgpack.Encoder().encode


class UnreadableError(ValueError):
    """A record means nothing.

    Attributes:
        field: the field of the event that is at fault.
        reason: what is wrong with it.
    """

    def __init__(self, of: str, reason: str) -> None:
        super().__init__(f"{of}: {reason}")
        self.field = of
        self.reason = reason


@dataclass(frozen=True, slots=True)
class VendorProperty:
    """A property of events.

    Attributes:
        name: its name.
        paths: where its value is.
        kind: as in `model.properties`.
        absent: its text where no place has a value; None: it is absent then.
        absent_with_item: the same for an event with an item; None: as `absent`.
    """

    name: str
    paths: Paths
    kind: Literal["number", "category"] = "category"
    absent: str | None = None
    absent_with_item: str | None = None


@dataclass(frozen=True, slots=True)
class VendorTable:
    """Where the parts of an event are in a vendor's record.

    Attributes:
        timestamp: the time.
        time_format: `iso`, or `epoch_us`: microseconds since 1970.
        event_name: the name.
        event_id: the vendor's id of the event, the same when it is sent again.
        session_id: the session; empty: the vendor has none, and a visitor's events are split at idle times.
        visitor_id: the visitor.
        needs_session: whether an event without a session means nothing.
        session_of_visitor: whether only visitor and session together name a session.
        item_id, item_category, price, quantity, value, currency: the fields of `model.events.FIELDS`.
        properties: further facts.
        names_by: columns, a value of each, and the places that have the name where the column has the value.
        events: the vendor's names that are no aliases, each with the name that it means.
        missing_values: texts that mean "no value".
    """

    timestamp: Paths
    event_name: Paths
    visitor_id: Paths
    item_id: Paths
    item_category: Paths
    price: Paths
    quantity: Paths
    event_id: Paths = ()
    session_id: Paths = ()
    needs_session: bool = False
    session_of_visitor: bool = False
    time_format: Literal["iso", "epoch_us"] = "iso"
    properties: tuple[VendorProperty, ...] = ()
    names_by: tuple[tuple[str, str, Paths], ...] = ()
    events: Mapping[str, str] = field(default_factory=dict)
    missing_values: tuple[str, ...] = ()
    value: Paths = ()
    currency: Paths = ()


class VendorEvent(NamedTuple):
    """An event of a vendor, read.

    Attributes:
        session_id: the session; None: the vendor did not say, the visitor did it.
        visitor_id: the visitor; None: not known, then there is a session.
        event_id: the vendor's id, or one of the content of an event that has a time; None: neither.
        event_name: the vendor's own name, or what its table says that it means.
        own_name: the vendor's own name.
        timestamp_ms: None: not given.
        fields: those of `model.events.FIELDS` that have a value.
        properties: those that have a value.
    """

    session_id: str | None
    visitor_id: str | None
    event_id: str | None
    event_name: str
    own_name: str
    timestamp_ms: int | None
    fields: dict[str, str | float]
    properties: dict[str, str | float]


@dataclass(frozen=True, slots=True)
class Vendor:
    """A vendor's shape.

    Attributes:
        name: in paths and metrics.
        table: where values are in a row.
        units: returns the single calls or events that a document has, each a document by itself.
        row: returns the row of one of them; None: no event. Raises `UnreadableError`.
    """

    name: str
    table: VendorTable
    units: Callable[[Any], Sequence[Any]]
    row: Callable[[Any], Record | None]

    def rows(self, document: Any) -> Iterable[Record]:  # noqa: ANN401 - any JSON
        """Yield the rows of the events in a document, for logs."""
        for unit in self.units(document):
            try:
                row = self.row(unit)
            except UnreadableError:
                continue
            if row is not None:
                yield row


class _Reader:
    """Reads the values of one row."""

    def __init__(self, table: VendorTable, row: Record, *, placeholders_count: bool) -> None:
        self._table = table
        self._row = row
        self._missing = frozenset(map(canonical_text, table.missing_values))
        self._placeholders_count = placeholders_count

    def text(self, paths: Paths, rule: Callable[[str], str | None] = canonical_text) -> str | None:
        value = rule(_given(self._row, paths) or "")
        return None if value in self._missing else value

    def item(self, paths: Paths) -> str | None:
        """Return an id; None where it stands for nothing or has lost digits."""
        text = self.text(paths)
        return None if text is None or is_placeholder_id(text) or _EXPONENT.search(text) else text

    def key(self, paths: Paths, of: str) -> str | None:
        """Return an id without which the event means nothing; raise `UnreadableError` where it stands for nothing."""
        text = self.text(paths)
        if text is not None and (_EXPONENT.search(text) or (not self._placeholders_count and is_placeholder_id(text))):
            raise UnreadableError(of, f"{text[:64]!r} stands for no id, or has lost digits")
        return text

    def session_and_visitor(self) -> tuple[str | None, str | None]:
        """Return both; one of them is not None."""
        table = self._table
        session_id = self.key(table.session_id, "session_id")
        if session_id is None and table.needs_session:
            raise UnreadableError("session_id", "missing")
        if session_id is not None and not table.session_of_visitor:
            return session_id, self.item(table.visitor_id)
        visitor_id = self.key(table.visitor_id, "visitor_id")
        if visitor_id is None:
            raise UnreadableError("visitor_id", "missing")
        return None if session_id is None else joined_key((visitor_id, session_id)), visitor_id

    def name(self) -> str:
        name = self.text(_name_paths(self._table, self._row))
        if name is None:
            raise UnreadableError("event_name", "missing")
        return name

    def time_ms(self) -> int | None:
        text = self.text(self._table.timestamp)
        return None if text is None else _time_ms(text, self._table.time_format)

    def fields(self) -> dict[str, str | float]:
        found: dict[str, str | float | None] = {}
        for known in FIELDS:
            paths: Paths = getattr(self._table, known.name)
            text = self.text(paths, category_text)
            if known.kind == "amount":
                found[known.name] = _amount(text)
            elif known.name == "currency":
                found[known.name] = None if text is None else currency_code(text)
            else:
                found[known.name] = self.item(paths) if known.name == "item_id" else text
        return {name: value for name, value in found.items() if value is not None}

    def properties(self) -> dict[str, str | float]:
        has_item = _given(self._row, self._table.item_id) is not None
        found: dict[str, str | float | None] = {}
        for declared in self._table.properties:
            text = self.text(declared.paths, category_text)
            if text is None:
                text = (declared.absent_with_item if has_item else None) or declared.absent
            found[declared.name] = _property_number(text) if text and declared.kind == "number" else text
        return {name: value for name, value in found.items() if value is not None}


def read_row(table: VendorTable, row: Record, *, placeholders_count: bool = False) -> VendorEvent:
    """Return the event of a row, as `training.data.sources.conversion` reads the row of a log.

    Args:
        table: the vendor's.
        row: its values.
        placeholders_count: whether `undefined` and its like are ids of sessions and visitors.

    Raises:
        UnreadableError: neither a session nor a visitor, no name, or a time that is none.
    """
    reader = _Reader(table, row, placeholders_count=placeholders_count)
    session_id, visitor_id = reader.session_and_visitor()
    timestamp_ms, own_name = reader.time_ms(), reader.name()
    event_name = table.events.get(own_name, own_name)
    fields, properties = reader.fields(), reader.properties()
    event_id = reader.item(table.event_id)
    if event_id is None and timestamp_ms is not None:
        # Equal rows of a log are one event, and so is a record that comes twice.
        whole = (session_id or visitor_id, event_name, timestamp_ms, sorted(fields.items()), sorted(properties.items()))
        event_id = f"row-{blake2b(_encode(whole), digest_size=16).hexdigest()}"
    return VendorEvent(session_id, visitor_id, event_id, event_name, own_name, timestamp_ms, fields, properties)


def joined_key(parts: Iterable[str]) -> str:
    """Return the parts of a key as one text, such that different keys have different texts."""
    return ":".join(part.replace("\\", "\\\\").replace(":", "\\:") for part in parts)


def iso_ms(text: str) -> int | None:
    """Return milliseconds since 1970 of an ISO 8601 date or time, in UTC without an offset; None for other texts."""
    found = _ISO.fullmatch(stripped(text))
    if found is None:
        return None
    date, minutes, seconds, fraction, hours_off, minutes_off = found.groups()
    offset = "+00:00" if hours_off is None else f"{hours_off}:{minutes_off}"
    try:
        moment = datetime.fromisoformat(f"{date}T{minutes or '00:00'}{seconds or ':00'}{offset}")
    except ValueError:
        return None
    whole_ms = round((moment - _EPOCH).total_seconds()) * 1000
    return whole_ms + int((fraction or "0")[:3].ljust(3, "0"))


def _given(row: Record, paths: Paths) -> str | None:
    """Return the text at the first path that has one."""
    for path in paths:
        text = scalar_text(value_at(row, path))
        if text is not None and not (text == "" or text.isspace()):
            return text
    return None


def _name_paths(table: VendorTable, row: Record) -> Paths:
    for column, value, paths in table.names_by:
        if _given(row, (column,)) == value:
            return (*paths, *table.event_name)
    return table.event_name


def _time_ms(text: str, time_format: str) -> int:
    if time_format == "iso":
        found: float | None = iso_ms(text)
    else:
        number = _finite(text)
        found = None if number is None else number * _MS_PER_US
    if found is None or not 0 <= found <= _END_OF_TIME_MS - 1:
        raise UnreadableError("timestamp", f"{text[:64]!r} is no time from 1970 to 9999")
    return round(found)


def _amount(text: str | None) -> float | None:
    number = None if text is None else _finite(text)
    return None if number is None or number < 0 else number


def _property_number(text: str) -> float | None:
    return _TRUTHS[text] if text in _TRUTHS else _finite(text)


def _finite(text: str) -> float | None:
    number = float(text) if _NUMBER.fullmatch(text) else math.nan
    return number if math.isfinite(number) else None
