"""Reading a text table block by block, with the line number of every row and of every malformed one.

Text is read as lines, never as one CSV document. So a truncated row, a stray quote or invalid UTF-8 affects one row
only, and its line number is exact. Lines that a line break inside quotes divides are joined where they make one row.

Separator and encoding are found out where the layout leaves them open, and said in the notes of a block.
"""

import csv
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from model.text_rules import BLANKS, stripped
from training.data.sources.blocks import (
    DAMAGED,
    LINE,
    MAX_LINE_BYTES,
    MAX_REPORTED_CHARACTERS,
    REJECTED_SCHEMA,
    Block,
    BrokenRows,
    line_blocks,
    rejections,
)
from training.data.sources.errors import SourceError
from training.data.sources.files import opened

SEPARATORS: Final = (",", ";", "\t", "|")
UTF_8: Final = "utf-8"
_EIGHT_BIT: Final = "windows-1252"
# A first line that spreadsheets write and read.
_SAID_SEPARATOR: Final = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
# Begins lines that some exports have before the header.
_COMMENT: Final = "#"
_SEPARATOR_WORDS: Final = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
# Descriptions and addresses have fewer; after a stray quote, no more lines than these are looked at together.
_MOST_LINES_OF_A_ROW: Final = 100
_MOST_BYTES_OF_A_HEADER: Final = 64 * 1024
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class TextLayout:
    """How a text table is laid out.

    Attributes:
        separator: between fields; None: found out from the first line.
        has_header: whether the first line names the columns.
        column_names: those of a file without a header, where they are known.
        required: columns that a row must have; rows may end before others. None: every needed column.
        encoding: name of a codec that has line feeds as ASCII has; None: UTF-8, or windows-1252 where no line with
            other characters is UTF-8.
        has_quotes: whether a field may be quoted; otherwise a quote is a character like others.
    """

    separator: str | None = None
    has_header: bool = True
    column_names: tuple[str, ...] | None = None
    required: frozenset[str] | None = None
    encoding: str | None = UTF_8
    has_quotes: bool = True


def header(path: Path, separator: str | None = None) -> list[str]:
    """Return the fields of the first row, without comments; raises decoding errors where the file is not text."""
    with opened(path) as (stream, _):
        first = stream.readline(MAX_LINE_BYTES).decode("utf-8-sig")
        while first.startswith(_COMMENT) and (line := stream.readline(MAX_LINE_BYTES)):
            first = line.decode()
        more = stream.readlines(_MOST_BYTES_OF_A_HEADER) if '"' in first else []
    lines = [line.rstrip("\r\n") for line in (first, *(line.decode(errors="replace") for line in more))]
    row, _ = _first_row(lines, separator)
    return _names(row, separator or sniffed_separator(row))


def _first_row(lines: Sequence[str], separator: str | None) -> tuple[str, int]:
    """Return the first row and how many lines it has: more than one where there are line breaks inside its quotes."""
    text = ""
    for count, line in enumerate(lines[:_MOST_LINES_OF_A_ROW], 1):
        text = f"{text} {line}" if text else line
        if split_quoted(text, separator or sniffed_separator(text)) is not None:
            return text, count
    return lines[0], 1


def sniffed_separator(line: str, needed: Collection[str] = (), width: int | None = None) -> str:
    """Return the separator of a first line.

    Args:
        line: the line.
        needed: names that must be among the fields, if the line has any of them.
        width: the number of fields, where it is known.
    """
    split = {separator: _names(line, separator) for separator in SEPARATORS}
    return max(
        SEPARATORS,
        key=lambda separator: (
            sum(name in split[separator] for name in needed),
            len(split[separator]) == width,
            len(split[separator]),
        ),
    )


def _names(line: str, separator: str) -> list[str]:
    return [stripped(name) for name in split_quoted(line, separator) or ()]


def check_columns(path: Path, found: Sequence[str], needed: Mapping[str, str]) -> None:
    """Raise `SourceError` unless every needed column is there once."""
    for column, field in needed.items():
        if found.count(column) != 1:
            problem = "two columns are" if column in found else "no column is"
            raise SourceError(f"{path}: {problem} called {column!r} (for {field}); found: {', '.join(found)}")


class _Decoder:
    """Decodes blocks of whole lines; finds out the encoding at the first block that has other characters than ASCII."""

    def __init__(self, encoding: str | None) -> None:
        self.encoding = encoding
        self.found = False

    def lines(self, block: bytes) -> tuple[pl.Series, pl.Series | None]:
        """Return the block's lines without their ends, and which are damaged; None: none is."""
        try:
            texts = block.decode(self.encoding or UTF_8).removesuffix("\n").split("\n")
            if self.encoding is None and not block.isascii():
                self.encoding = UTF_8
            damaged = None
        except UnicodeDecodeError:
            raw = block.removesuffix(b"\n").split(b"\n")
            if self.encoding is None:
                self.encoding = self._sniffed(raw)
                return self.lines(block)
            texts = [line.decode(self.encoding, "replace") for line in raw]
            damaged = pl.Series([not self._is_sound(line) for line in raw], dtype=pl.Boolean)
        return pl.Series(texts, dtype=pl.String).str.strip_suffix("\r"), damaged

    def _sniffed(self, lines: Sequence[bytes]) -> str:
        unusual = [line for line in lines if not line.isascii()]
        if any(_is_utf8(line) for line in unusual):
            return UTF_8
        self.found = True
        return _EIGHT_BIT

    def _is_sound(self, line: bytes) -> bool:
        try:
            line.decode(self.encoding or UTF_8)
        except UnicodeDecodeError:
            return False
        return True


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode(UTF_8)
    except UnicodeDecodeError:
        return False
    return True


def read_text(path: Path, needed: Mapping[str, str], layout: TextLayout, block_bytes: int) -> Iterator[Block]:
    """Yield the rows of a text table; see `training.data.sources.tables.read_table`."""
    table_head = _Head(path, needed, layout)
    decoder = _Decoder(layout.encoding)
    next_line = 1
    held = pl.DataFrame()
    with opened(path) as (stream, file):
        for block in line_blocks(path, stream, block_bytes):
            lines, damaged = decoder.lines(block.removeprefix(_BYTE_ORDER_MARK) if next_line == 1 else block)
            table = pl.DataFrame({LINE: pl.int_range(next_line, next_line + len(lines), eager=True), "text": lines})
            next_line += len(lines)
            if damaged is not None:
                table = table.with_columns(damaged.alias(DAMAGED))
            table = table.filter(pl.col("text").str.strip_chars() != "")
            if not table.height and table_head.names is None:
                continue
            table = table_head.below(table)
            if decoder.found:
                decoder.found = False
                example = next((text for text in table["text"] if not text.isascii()), "")[:MAX_REPORTED_CHARACTERS]
                table_head.notes.append(
                    f"{path.name}: read as {_EIGHT_BIT}, since its lines are not UTF-8, such as {example!r}; if "
                    "letters are wrong, --encoding names another encoding"
                )
            if table_head.names is not None:
                splitter = _Splitter(table_head.names, list(needed), table_head.separator, layout)
                table, held = splitter.joined(pl.concat([held, table], how="diagonal") if held.height else table)
                if splitter.first_joined is not None and not table_head.has_breaks:
                    table_head.has_breaks = True
                    table_head.notes.append(
                        f"{path.name}: line breaks inside quotes, first in line {splitter.first_joined:,}, are read as "
                        "blanks"
                    )
                yield splitter.block(table, file.tell(), tuple(table_head.notes))
                table_head.notes.clear()
        if held.height:
            yield splitter.block(held, file.tell(), ())
    if table_head.names is None:
        raise SourceError(f"{path}: the file is empty")


class _Head:
    """What a table's first line says: separator and names of the columns.

    Attributes:
        names: of the columns; None before the first line.
        separator: between fields.
        notes: what was found out, for people.
        has_breaks: whether a note says that there are line breaks inside quotes.
    """

    def __init__(self, path: Path, needed: Mapping[str, str], layout: TextLayout) -> None:
        self.names: Sequence[str] | None = layout.column_names
        self.separator = layout.separator or ""
        self.notes: list[str] = []
        self.has_breaks = False
        self._path, self._needed, self._layout = path, needed, layout
        self._line: str | None = None

    def below(self, table: pl.DataFrame) -> pl.DataFrame:
        """Return the lines without those that are headers: the first one, and its copies in files that were joined."""
        table = self._without_comments(table)
        if self._line is None and table.height and (said := _SAID_SEPARATOR.fullmatch(table["text"][0])):
            self.separator, table = self.separator or said[1], table[1:]
        if table.height and not (self.separator and self.names):
            is_quoted = self._layout.has_quotes and self._layout.has_header
            first, count = (
                _first_row(table["text"].head(_MOST_LINES_OF_A_ROW).to_list(), self.separator)
                if is_quoted
                else (table["text"][0], 1)
            )
            if not self.separator:
                self._find_separator(first)
            if self.names is None:
                self._find_names(first)
                table = table[count:] if self._layout.has_header else table
        if self._line is None:
            return table
        rows = table.filter(pl.col("text") != self._line)
        if rows.height < table.height:
            self.notes.append(f"{self._path.name}: {table.height - rows.height:,} lines repeat the header")
        return rows

    def _without_comments(self, table: pl.DataFrame) -> pl.DataFrame:
        """Return the lines without comments before the header, unless one of them names a needed column."""
        if self.names is not None or not self._layout.has_header:
            return table
        count = next((at for at, line in enumerate(table["text"]) if not self._is_comment(line)), table.height)
        if count:
            self.notes.append(f"{self._path.name}: lines before the header that begin with {_COMMENT} are left out")
        return table[count:]

    def _is_comment(self, line: str) -> bool:
        names = _names(line, self.separator or sniffed_separator(line, self._needed))
        return line.startswith(_COMMENT) and self._needed.keys().isdisjoint(names)

    def _find_separator(self, line: str) -> None:
        width = len(self.names) if self.names else None
        self.separator = sniffed_separator(line, self._needed if self._layout.has_header else (), width)
        if self.separator != SEPARATORS[0]:
            self.notes.append(f"{self._path.name}: fields are separated by {_SEPARATOR_WORDS[self.separator]}")

    def _find_names(self, line: str) -> None:
        found = _names(line, self.separator)
        if self._layout.has_header:
            self._line = line
            while found and not found[-1]:
                found.pop()  # the line ends with separators
        else:
            found = [f"column_{position}" for position in range(1, len(found) + 1)]
        check_columns(self._path, found, self._needed)
        self.names = found


class _Splitter:
    """Splits lines into the needed columns.

    Attributes:
        first_joined: the first line of the first row that was joined; None: none was.
    """

    def __init__(self, names: Sequence[str], needed: Sequence[str], separator: str, layout: TextLayout) -> None:
        self._names, self._needed, self._separator = names, needed, separator
        self._has_quotes = layout.has_quotes
        self._positions = [names.index(name) for name in needed]
        must = needed if layout.required is None else [name for name in needed if name in layout.required]
        # A row may lack the fields after these.
        self._fewest = len(names) if layout.required is None else 1 + max(map(names.index, must), default=0)
        self.first_joined: int | None = None

    def joined(self, table: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return lines, with those joined that a line break inside quotes divides, and last ones that may be such.

        A line whose quotes do not match is joined with those up to the next line with an odd number of quotes, if that
        makes a whole row. Two stray quotes look alike. So no line inside the quotes may have the separators of a row.
        """
        if not self._has_quotes:
            return table, table.clear()
        lines, height = table["text"], table.height
        damaged = table[DAMAGED].fill_null(value=False).to_list() if DAMAGED in table.columns else [False] * height
        odd = (lines.str.count_matches('"', literal=True) % 2 == 1).arg_true().to_list()
        whole: dict[int, str] = {}
        is_joined = np.zeros(height, dtype=bool)
        open_from = height
        for start, end in pairwise([*odd, height]):
            is_open = not is_joined[start] and split_quoted(lines[start], self._separator) is None
            if not is_open or end - start >= _MOST_LINES_OF_A_ROW:
                continue
            if end == height:
                open_from = start
            elif (row := self._one_row(lines[start : end + 1].to_list())) is not None:
                whole[start] = row
                is_joined[start + 1 : end + 1] = True
                damaged[start] = any(damaged[start : end + 1])
        if whole:
            self.first_joined = table[LINE][min(whole)]
            table = table.with_columns(lines.scatter(list(whole), list(whole.values())))
        if any(damaged):
            table = table.with_columns(pl.Series(DAMAGED, damaged))
        return table[:open_from].filter(~pl.Series(is_joined[:open_from])), table[open_from:]

    def _one_row(self, lines: Sequence[str]) -> str | None:
        """Return lines as one row, with blanks between them; None where they are none."""
        values = split_quoted("\n".join(lines), self._separator)
        if values is None or len(values) != len(self._names):
            return None
        inside = (line for value in values if "\n" in value for line in value.split("\n"))
        is_one = all(line.count(self._separator) < len(self._names) - 1 for line in inside)
        return " ".join(lines) if is_one else None

    def block(self, table: pl.DataFrame, bytes_done: int, notes: tuple[str, ...]) -> Block:
        """Return the block of these lines."""
        has_damage = DAMAGED in table.columns
        if not has_damage:
            table = table.with_columns(pl.lit(value=False).alias(DAMAGED))
        quoted = pl.col("text").str.contains('"', literal=True) & pl.lit(self._has_quotes)
        last = len(self._names) - 1
        plain = table.filter(~quoted).with_columns(
            separators=pl.col("text").str.count_matches(self._separator, literal=True).cast(pl.Int64)
        )
        plain = self._trimmed(plain)
        whole = plain.filter(pl.col("separators").is_between(self._fewest - 1, last))
        fields = whole["text"].str.split_exact(self._separator, last).struct.unnest()
        columns = {name: fields[f"field_{at}"] for name, at in zip(self._needed, self._positions, strict=True)}
        rows = [pl.DataFrame({LINE: whole[LINE], DAMAGED: whole[DAMAGED], **columns})]
        short = whole.filter(pl.col("separators") < last)
        few, many = plain.filter(pl.col("separators") < self._fewest - 1), plain.filter(pl.col("separators") > last)
        shortened = [self._too_few(short, short["separators"])]
        rejected = [
            self._too_few(few, few["separators"]),
            rejections(many[LINE], "", "too many fields", many["text"]),
        ]
        broken = [text.split(self._separator) for text in (*few["text"], *many["text"])]
        for part, into in zip(self._quoted(table.filter(quoted), broken), (rows, shortened, rejected), strict=True):
            into.append(part)
        made = pl.concat(rows)
        return Block(
            rows=made if has_damage else made.drop(DAMAGED),
            rejected=pl.concat(rejected),
            rows_read=table.height,
            bytes_done=bytes_done,
            broken=self._broken(broken) if broken else None,
            shortened=pl.concat(shortened),
            notes=notes,
        )

    def _trimmed(self, plain: pl.DataFrame) -> pl.DataFrame:
        """Return lines without separators at their end that are more than there are columns."""
        extra = pl.col("separators") - (len(self._names) - 1)
        text = pl.col("text")
        empty = text.str.len_chars() - text.str.strip_chars_end(self._separator).str.len_chars()
        if not plain.select((extra > 0).any()).item():
            return plain
        is_trimmed = (extra > 0) & (empty >= extra)
        return plain.with_columns(
            text=pl.when(is_trimmed).then(text.str.slice(0, text.str.len_chars() - extra)).otherwise("text"),
            separators=pl.when(is_trimmed).then(len(self._names) - 1).otherwise("separators"),
        )

    def _too_few(self, lines: pl.DataFrame, separators: pl.Series) -> pl.DataFrame:
        missing = [self._names[count + 1] for count in separators]
        return rejections(lines[LINE], missing, "too few fields", lines["text"])

    def _quoted(self, quoted: pl.DataFrame, broken: list[list[str]]) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
        """Return rows, shortened and rejected ones of lines with quotes; append the fields of the last to `broken`."""
        accepted: list[tuple[object, ...]] = []
        shortened: list[tuple[int, str, str, str]] = []
        refused: list[tuple[int, str, str, str]] = []
        width = len(self._names)
        for line, text, damaged in quoted.select(LINE, "text", DAMAGED).iter_rows():
            values = split_quoted(text, self._separator)
            short = text[:MAX_REPORTED_CHARACTERS]
            if values is None:
                refused.append((line, "", "quotes do not match", short))
                broken.append([_unquoted(value) for value in text.split(self._separator)])
                continue
            while len(values) > width and not values[-1].strip():
                values.pop()
            padded: list[str | None] = [*values]
            if len(values) < width:
                is_enough = len(values) >= self._fewest
                (shortened if is_enough else refused).append((line, self._names[len(values)], "too few fields", short))
                if is_enough:
                    padded += [None] * (width - len(values))
            elif len(values) > width:
                refused.append((line, "", "too many fields", short))
            if len(padded) == width:
                accepted.append((line, damaged, *(padded[position] for position in self._positions)))
            else:
                broken.append(values)
        schema = {LINE: pl.Int64, DAMAGED: pl.Boolean, **dict.fromkeys(self._needed, pl.String)}
        return (
            pl.DataFrame(accepted, schema=schema, orient="row"),
            pl.DataFrame(shortened, schema=REJECTED_SCHEMA, orient="row"),
            pl.DataFrame(refused, schema=REJECTED_SCHEMA, orient="row"),
        )

    def _broken(self, lines: list[list[str]]) -> BrokenRows:
        width = len(self._names)
        both = [
            {
                name: [
                    line[at + shift * (len(line) - width)]
                    if 0 <= at + shift * (len(line) - width) < len(line)
                    else None
                    for line in lines
                ]
                for name, at in zip(self._needed, self._positions, strict=True)
            }
            for shift in (0, 1)
        ]
        schema = dict.fromkeys(self._needed, pl.String)
        return BrokenRows(lines, pl.DataFrame(both[0], schema=schema), pl.DataFrame(both[1], schema=schema))


def split_quoted(text: str, separator: str) -> list[str] | None:
    """Split one line as CSV; None where its quotes do not match.

    A field is read as quoted despite blanks around its quotes.
    """
    values = _csv(text, separator)
    if values is None or any(map(_has_lost_its_quotes, values)):
        bound, blank = re.escape(separator), f"[{BLANKS.replace(separator, '')}]"
        tidied = re.sub(rf'"{blank}+(?={bound}|$)', '"', text)
        values = _csv(re.sub(rf'(^|{bound}){blank}+"(?!")', r'\1"', tidied), separator) or values
    if values is None and '\\"' in text:
        values = _csv(text, separator, escapechar="\\", doublequote=False)
    return values if values is None else [_unquoted(value) for value in values]


def _csv(text: str, separator: str, *, escapechar: str | None = None, doublequote: bool = True) -> list[str] | None:
    try:
        reader = csv.reader(
            [text],
            delimiter=separator,
            strict=True,
            skipinitialspace=separator != " ",
            escapechar=escapechar,
            doublequote=doublequote,
        )
        return list(chain.from_iterable(reader))
    except csv.Error:
        return None


def _has_lost_its_quotes(value: str) -> bool:
    """Return whether a field begins with a quote after blanks and does not end with one: a separator divided it."""
    inner = stripped(value)
    return inner.startswith('"') and not value.startswith('"') and not (len(inner) > 1 and inner.endswith('"'))


def _unquoted(value: str) -> str:
    """Return a field without the quotes around it that blanks, or a second writer, have left there."""
    if '"' not in value:
        return value
    inner = stripped(value)
    is_wrapped = len(inner) > 1 and inner[0] == inner[-1] == '"'
    return inner[1:-1].replace('""', '"') if is_wrapped else value
