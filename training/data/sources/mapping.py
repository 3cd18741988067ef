"""Column mappings: from a foreign log's columns to the fields of the canonical event table.

The same mapping expresses the built-in formats and whatever a shop has; see docs/event-table.md for the TOML file.
"""

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, Self, cast

from model.events import FIELD_NAMES
from training.data.sources.errors import SourceError
from training.data.sources.text import UTF_8, TextLayout
from training.data.sources.time_patterns import check_pattern, check_time_zone

Clock = Literal["calendar", "date", "session"]
"""Meaning of times: calendar times; a day and the time since the session's start; or only the latter."""

PropertyKind = Literal["number", "category"]

TIME_UNITS: Final = ("s", "ms", "us", "ns")
EPOCH_FORMATS: Final = tuple(f"epoch_{unit}" for unit in TIME_UNITS)
TIME_FORMATS: Final = ("iso", *EPOCH_FORMATS, "elapsed_s", "elapsed_ms")
ELAPSED_FORMATS: Final = frozenset({"elapsed_s", "elapsed_ms"})
KINDS: Final = ("number", "category")
COLUMN_FIELDS: Final = (
    "session_id",
    "visitor_id",
    "timestamp",
    "date",
    "event_name",
    "event_id",
    *FIELD_NAMES,
    "outcome",
)
_TABLES: Final = ("columns", "events", "properties", "constants")
_SETTINGS: Final = (
    "constant_event_name",
    "time_format",
    "time_zone",
    "separator",
    "encoding",
    "has_header",
    "missing_values",
    "drop",
    "session_key",
    "decimal_comma",
)
_TRUTHS: Final = ("has_header", "decimal_comma")
_LISTS: Final = ("missing_values", "drop", "session_key")
# Joins the columns of one value: `timestamp=Date+Time`.
JOIN: Final = "+"
_REQUIRED: Final = frozenset({"session_id", "visitor_id", "timestamp", "date", "event_name"})


@dataclass(frozen=True, slots=True)
class PropertyColumn:
    """A declared property: its name, its column, and its kind (None: inferred from its values)."""

    name: str
    column: str
    kind: PropertyKind | None = None


@dataclass(frozen=True, slots=True)
class ColumnMapping:
    """Column names by field, and how to read them.

    Attributes:
        timestamp: column with the time; `Date+Time` joins two columns with a blank.
        session_id: column with the session. With `visitor_id` too, a session is what both together name.
        visitor_id: column with the visitor. Without a session, a visitor's events are split at idle times.
        date: column with the day (`YYYY-MM-DD`) of an event whose `timestamp` counts from the session's start.
        event_name: column with the event's name; needed without `constant_event_name`.
        constant_event_name: the name of every event, or, beside `event_name`, of those whose name is blank.
        item_id, item_category, price, quantity, value, currency, outcome: optional columns.
        events: the log's event names to those of `model.events`; other names are kept. A name given to itself is kept
            although it is, or looks like, a purchase.
        properties: further columns to keep.
        time_format: one of `TIME_FORMATS`, or a strptime pattern.
        time_zone: zone of times without an offset, such as `Europe/Berlin`; None: UTC.
        separator: one character between fields; None: found out.
        encoding: codec of text; None: UTF-8, or windows-1252 where no line is UTF-8.
        has_header: without a header, columns are called `column_1`, `column_2`, and so on.
        missing_values: texts that mean "no value", in addition to the empty text.
        event_id: column with the event's id; rows of a session with one id are one event.
        equal_rows_are_duplicates: False where equal rows are distinct events; None: as ids and times suggest.
        also_needed: further columns that an adapter reads.
        session_key: columns that together name a session, in place of `session_id`.
        drop: event names whose rows are left out.
        constants: values of optional fields without a column, the same in every row.
        must_occur: event names of the options or the file; one that never occurs is a mistake.
        has_quotes: whether fields of text may be quoted.
        decimal_comma: whether texts of numbers have decimal commas, and points between thousands: `1.299,50`.
    """

    timestamp: str
    session_id: str | None = None
    visitor_id: str | None = None
    date: str | None = None
    event_name: str | None = None
    constant_event_name: str | None = None
    item_id: str | None = None
    item_category: str | None = None
    price: str | None = None
    quantity: str | None = None
    outcome: str | None = None
    events: Mapping[str, str] = field(default_factory=dict)
    properties: tuple[PropertyColumn, ...] = ()
    time_format: str = "iso"
    time_zone: str | None = None
    separator: str | None = None
    encoding: str | None = UTF_8
    has_header: bool = True
    missing_values: tuple[str, ...] = ()
    event_id: str | None = None
    equal_rows_are_duplicates: bool | None = True
    also_needed: tuple[str, ...] = ()
    session_key: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    constants: Mapping[str, str] = field(default_factory=dict)
    must_occur: tuple[str, ...] = ()
    has_quotes: bool = True
    decimal_comma: bool = False
    value: str | None = None
    currency: str | None = None

    def __post_init__(self) -> None:
        if not self.timestamp:
            raise SourceError("a mapping needs the column of timestamp")
        if not (self.session_id or self.visitor_id or self.session_key):
            raise SourceError("a mapping needs the column of session_id or of visitor_id, or a session_key of several")
        if self.session_id and self.session_key:
            raise SourceError("a mapping needs session_id or session_key, and not both")
        if self.event_name is None and self.constant_event_name is None:
            raise SourceError("a mapping needs the column of event_name or a constant_event_name")
        self._check_times()
        if self.separator is not None and (len(self.separator) != 1 or self.separator in '"\r\n'):
            raise SourceError(f"separator must be one character, not {self.separator!r}")
        _check_encoding(self.encoding)
        for name in self.constants:
            if name not in FIELD_NAMES:
                raise SourceError(f"constants.{name}: expected event_name or one of {', '.join(FIELD_NAMES)}")
            if getattr(self, name) is not None:
                raise SourceError(f"{name} has a column and a constant; give one of them")
        names = [declared.name for declared in self.properties]
        if len(set(names)) != len(names):
            raise SourceError(f"a property is declared twice: {', '.join(names)}")

    def _check_times(self) -> None:
        if self.time_format not in TIME_FORMATS and "%" not in self.time_format:
            known = ", ".join(TIME_FORMATS)
            raise SourceError(f"unknown time_format {self.time_format!r}; known: {known}, or a strptime pattern")
        if self.time_format not in TIME_FORMATS:
            check_pattern(self.time_format)
        if self.time_zone is not None:
            check_time_zone(self.time_zone)
            if self.time_format in EPOCH_FORMATS or self.clock == "session":
                raise SourceError(f"a time zone does not go with times in the format {self.time_format}")
        if self.date is not None and self.time_format not in ELAPSED_FORMATS:
            raise SourceError("a date column goes with time_format elapsed_s or elapsed_ms")
        if self.by_visitor and self.time_format in ELAPSED_FORMATS:
            raise SourceError("visitors cannot be split into sessions by times that count from a session's start")

    @property
    def session_columns(self) -> tuple[str, ...]:
        """Return the columns that together name a session, or the visitor to be split."""
        return self.session_key or tuple(column for column in (self.visitor_id, self.session_id) if column)

    @property
    def by_visitor(self) -> bool:
        """Whether the log knows visitors only, whose events must be split into sessions."""
        return self.session_id is None and not self.session_key

    @property
    def time_columns(self) -> tuple[str, ...]:
        """Return the columns whose texts make the time, joined by blanks."""
        parts = tuple(self.timestamp.split(JOIN))
        return parts if all(parts) else (self.timestamp,)

    @property
    def clock(self) -> Clock:
        """Meaning of the times."""
        if self.date is not None:
            return "date"
        return "session" if self.time_format in ELAPSED_FORMATS else "calendar"

    def event_fields(self) -> list[str | None]:
        """Return the column of each of `model.events.FIELDS`; None: the log has none."""
        return [getattr(self, name) for name in FIELD_NAMES]

    def needed_columns(self) -> dict[str, str]:
        """Return the columns that must be there, each with the field that needs it."""
        columns = {getattr(self, name): name for name in COLUMN_FIELDS if getattr(self, name) is not None}
        columns.pop(self.timestamp)
        columns |= dict.fromkeys(self.time_columns, "timestamp") | dict.fromkeys(self.session_columns, "session_id")
        for declared in self.properties:
            columns.setdefault(declared.column, f"property {declared.name}")
        for column in self.also_needed:
            columns.setdefault(column, column)
        return columns

    def layout(self, column_names: tuple[str, ...] | None = None) -> TextLayout:
        """Return how the text of such a file is laid out."""
        return TextLayout(
            self.separator,
            has_header=self.has_header,
            column_names=column_names,
            required=frozenset(column for column, of in self.needed_columns().items() if of in _REQUIRED),
            encoding=self.encoding,
            has_quotes=self.has_quotes,
        )

    @classmethod
    def from_toml(cls, path: Path) -> Self:
        """Read a mapping file.

        Raises:
            SourceError: the file is missing, no TOML, or holds an unknown key or a value of the wrong kind.
        """
        try:
            document = tomllib.loads(path.read_text("utf-8"))
        except OSError as exc:
            raise SourceError(f"{path}: {exc.strerror}") from exc
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise SourceError(f"{path}: not a TOML file: {exc}") from exc
        try:
            return cls._from_document(document)
        except SourceError as exc:
            raise SourceError(f"{path}: {exc}") from exc

    @classmethod
    def from_options(
        cls,
        columns: Iterable[str],
        events: Iterable[str] = (),
        properties: Iterable[str] = (),
        **settings: object,
    ) -> Self:
        """Make a mapping from `name=value` pairs as the command line gives them.

        A property is `name=column` or `name:kind=column`. `settings` are those of the TOML file's top level; None
        means the default.

        Raises:
            SourceError: a pair is malformed, or a key unknown.
        """
        declared: dict[str, object] = {}
        for name, column in _pairs(properties, "property").items():
            stem, _, kind = name.rpartition(":")
            declared[stem if kind in KINDS and stem else name] = (
                {"column": column, "kind": kind} if kind in KINDS and stem else column
            )
        given = {name: value for name, value in settings.items() if value is not None}
        constants = _pairs(cast("Iterable[str]", given.pop("constants", ())), "constant")
        return cls._from_document(
            {
                **given,
                "columns": _pairs(columns, "column"),
                "events": _pairs(events, "event", _event_pair),
                "properties": declared,
                "constants": constants,
            }
        )

    @classmethod
    def _from_document(cls, document: Mapping[str, Any]) -> Self:
        _known_keys(document, (*_TABLES, *_SETTINGS), "")
        tables = {name: document.get(name, {}) for name in _TABLES}
        for name, table in tables.items():
            if not isinstance(table, Mapping):
                raise SourceError(f"{name} must be a table")
        columns, events = tables["columns"], tables["events"]
        _known_keys(columns, COLUMN_FIELDS, "columns.")
        constants = dict(tables["constants"])
        for table_name, table in (("columns", columns), ("events", events), ("constants", constants)):
            for name, value in table.items():
                if not isinstance(value, str) or not value:
                    raise SourceError(f"{table_name}.{name} must be a text that is not empty, not {value!r}")
        properties = tuple(_property(name, value) for name, value in tables["properties"].items())
        settings = {name: document[name] for name in _SETTINGS if name in document}
        for name, value in settings.items():
            _check_setting(name, value)
        for name in _LISTS:
            if name in settings:
                settings[name] = tuple(settings[name])
        if "event_name" in constants:
            settings["constant_event_name"] = constants.pop("event_name")
        return cls(
            **{"timestamp": "", **columns},
            events=dict(events),
            properties=properties,
            constants=constants,
            must_occur=(*events, *settings.get("drop", ())),
            equal_rows_are_duplicates=None,
            **{"encoding": None, **settings},
        )


@dataclass(frozen=True, slots=True)
class Changes:
    """What is read otherwise than a format or a mapping has it.

    Attributes:
        time_unit: one of `TIME_UNITS`, of times that are numbers.
        time_zone: zone of times without an offset.
        events, drop, session_key: as in `ColumnMapping`.
    """

    time_unit: str | None = None
    time_zone: str | None = None
    events: Mapping[str, str] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    session_key: tuple[str, ...] = ()

    @classmethod
    def from_options(cls, events: Iterable[str], drop: Iterable[str], session_key: Iterable[str]) -> Self:
        """Make changes from options, events as `name=value` pairs; raise `SourceError` for a malformed one."""
        return cls(None, None, _pairs(events, "event", _event_pair), tuple(drop), tuple(session_key))

    def of(self, mapping: ColumnMapping) -> ColumnMapping:
        """Return the mapping with these changes.

        Raises:
            SourceError: the mapping's times are no numbers of a unit.
        """
        time_format = mapping.time_format
        if self.time_unit is not None:
            if self.time_unit not in TIME_UNITS:
                raise SourceError(f"unknown time unit {self.time_unit!r}; known: {', '.join(TIME_UNITS)}")
            if time_format not in ("iso", *EPOCH_FORMATS):
                raise SourceError(f"a time unit does not go with times in the format {time_format}")
            time_format = f"epoch_{self.time_unit}"
        return replace(
            mapping,
            time_format=time_format,
            time_zone=self.time_zone or mapping.time_zone,
            events={**mapping.events, **self.events},
            drop=(*mapping.drop, *self.drop),
            session_key=self.session_key or mapping.session_key,
            session_id=None if self.session_key else mapping.session_id,
            visitor_id=None if self.session_key else mapping.visitor_id,
            must_occur=(*mapping.must_occur, *self.events, *self.drop),
        )


def _known_keys(table: Mapping[str, Any], known: tuple[str, ...], prefix: str) -> None:
    for name in table:
        if name not in known:
            raise SourceError(f"unknown key {prefix}{name}; allowed: {', '.join(known)}")


def _check_setting(name: str, value: object) -> None:
    if name in _TRUTHS:
        valid, wanted = isinstance(value, bool), "true or false"
    elif name in _LISTS:
        valid = isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)
        wanted = "a list of texts"
    else:
        valid, wanted = isinstance(value, str) and bool(value), "a text that is not empty"
    if not valid:
        raise SourceError(f"{name} must be {wanted}, not {value!r}")


def _check_encoding(encoding: str | None) -> None:
    """Raise `SourceError` unless a codec exists and has line feeds as ASCII has them."""
    try:
        if encoding is None or "\n".encode(encoding) == b"\n":
            return
    except LookupError as exc:
        raise SourceError(f"unknown encoding {encoding!r}; expected a name such as {UTF_8} or latin-1") from exc
    raise SourceError(f"encoding {encoding!r} cannot be split into lines; convert the file to {UTF_8}")


def _property(name: str, value: object) -> PropertyColumn:
    if isinstance(value, str) and value:
        return PropertyColumn(name, value)
    if not isinstance(value, Mapping):
        raise SourceError(f"properties.{name} must be a column's name or a table with column and kind")
    _known_keys(value, ("column", "kind"), f"properties.{name}.")
    column, kind = value.get("column", name), value.get("kind")
    if not isinstance(column, str) or not column:
        raise SourceError(f"properties.{name}.column must be a text that is not empty")
    if kind is not None and kind not in KINDS:
        raise SourceError(f"properties.{name}.kind must be one of {', '.join(KINDS)}, not {kind!r}")
    return PropertyColumn(name, column, cast("PropertyKind | None", kind))


def _event_pair(text: str) -> tuple[str, str, str]:
    """Split `THEIRS=OURS` where THEIRS may have equals signs, as addresses have, and OURS may be THEIRS again."""
    middle = len(text) // 2
    if text[:middle] == text[middle + 1 :] and text[middle : middle + 1] == "=":
        return text[:middle], "=", text[middle + 1 :]
    return text.rpartition("=")


def _first_equals(text: str) -> tuple[str, str, str]:
    return text.partition("=")


def _pairs(
    texts: Iterable[str], what: str, split: Callable[[str], tuple[str, str, str]] = _first_equals
) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = split(text)
        if not (name and equals and value):
            raise SourceError(f"a {what} is given as name=value, not {text!r}")
        if name in pairs:
            raise SourceError(f"{what} {name} is given twice")
        pairs[name] = value
    return pairs
