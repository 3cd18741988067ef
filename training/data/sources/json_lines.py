"""Reading JSON in blocks: one object a line (JSON Lines), a JSON array of objects, or objects over several lines.

A malformed line costs that line only. In an array, or in an object over several lines, nothing tells where the next
object begins, so that damage ends the reading with an error.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final

import msgspec
import polars as pl

from model.vendors.paths import scalar_text, steps, value_at
from training.data.sources.blocks import LINE, MAX_LINE_BYTES, Block, BrokenRows, line_blocks, no_rejections, rejections
from training.data.sources.errors import SourceError
from training.data.sources.files import HEAD_BYTES, head, opened

Record = dict[str, Any]
Records = Callable[[Record], Iterable[Record]]
"""Makes records of the object on one line, for formats that put several events into it."""

_TEXTS: Final = re.compile(r'"([^"\\]{1,100})"')
_NO_VALUE: Final = re.compile(r"[\s,\[\]]*")
_SPACE: Final = b" \t\r\n"
_SAMPLE: Final = 200
_PIECE_BYTES: Final = 1 << 20
_decode: Final = msgspec.json.Decoder().decode


def is_json(path: Path) -> bool:
    """Return whether the content begins as JSON does."""
    return head(path, HEAD_BYTES).removeprefix(codecs.BOM_UTF8).lstrip(_SPACE)[:1] in {b"{", b"["}


def sample(path: Path) -> list[Record]:
    """Return the first objects of the file; for format detection."""
    with opened(path) as (content, _):
        objects = (value for _, value, _ in _objects(path, content, _PIECE_BYTES) if isinstance(value, dict))
        return list(islice(objects, _SAMPLE))


def keys(path: Path) -> tuple[str, ...]:
    """Return the keys of the first objects, those of the first one first."""
    return tuple(dict.fromkeys(key for record in sample(path) for key in record))


@dataclass(slots=True)
class _Rows:
    """Collects the rows of a block."""

    needed: Sequence[str]
    lines: list[int] = field(default_factory=list)
    values: list[list[str | None]] = field(default_factory=list)
    refused: list[tuple[int, str, str]] = field(default_factory=list)
    absent: set[str] = field(init=False)
    lookups: int = 0

    def __post_init__(self) -> None:
        self.absent = set(self.needed)

    def add(self, line: int, value: Any, text: bytes | str, records: Records | None) -> None:  # noqa: ANN401  # any JSON
        if not isinstance(value, dict):
            reason = "not valid JSON" if isinstance(value, Exception) else "not a JSON object"
            shown = text if isinstance(text, str) else text.decode("utf-8", "replace")
            self.refused.append((line, reason, shown))
            return
        made = [value] if records is None else list(records(value))
        self.lookups += not made
        for record in made:
            self.lines.append(line)
            self.values.append([scalar_text(value_at(record, column)) for column in self.needed])
            if self.absent:
                self.absent -= {name for name in self.absent if name in record or (steps(name) or ("",))[0] in record}

    def block(self, bytes_done: int) -> Block:
        columns = zip(*self.values, strict=True) if self.values else ([] for _ in self.needed)
        table = pl.DataFrame(
            {
                LINE: pl.Series(self.lines, dtype=pl.Int64),
                **{name: pl.Series(values, dtype=pl.String) for name, values in zip(self.needed, columns, strict=True)},
            }
        )
        refused = no_rejections()
        if self.refused:
            lines, reasons, texts = (list(each) for each in zip(*self.refused, strict=True))
            made = pl.DataFrame({"line": lines, "reason": reasons, "value": texts})
            refused = pl.concat(
                rejections(part["line"], "", str(reason), part["value"]) for (reason,), part in made.group_by("reason")
            )
        rows_read = len(self.lines) + len(self.refused) + self.lookups
        return Block(
            table,
            refused,
            rows_read,
            bytes_done,
            absent=frozenset(self.absent),
            broken=self._broken() if self.refused else None,
            rows_lookup=self.lookups,
        )

    def _broken(self) -> BrokenRows:
        """Return the texts inside of refused lines, since one of them may say purchase; whose it is is unknown."""
        nobody = pl.DataFrame(
            {name: pl.repeat(None, len(self.refused), dtype=pl.String, eager=True) for name in self.needed}
        )
        return BrokenRows([_TEXTS.findall(text) for _, _, text in self.refused], nobody, nobody)


def read_json(path: Path, needed: Mapping[str, str], records: Records | None, block_bytes: int) -> Iterator[Block]:
    """Yield the values at the needed paths as text; see `training.data.sources.tables.read_table`."""
    columns = list(needed)
    rows, size, seen = _Rows(columns), 0, False
    with opened(path) as (content, file):
        for line, value, text in _objects(path, content, block_bytes):
            rows.add(line, value, text, records)
            size, seen = size + len(text), True
            if size >= block_bytes:
                yield rows.block(file.tell())
                rows, size = _Rows(columns), 0
        if not seen:
            raise SourceError(f"{path}: the file is empty")
        yield rows.block(file.tell())


def _objects(path: Path, content: IO[bytes], block_bytes: int) -> Iterator[tuple[int, Any, bytes | str]]:
    """Yield line, value (an exception where there is none) and text of every object."""
    first = content.peek(HEAD_BYTES) if hasattr(content, "peek") else b""
    begin = first.removeprefix(codecs.BOM_UTF8).lstrip(_SPACE)
    line = begin.partition(b"\n")[0].rstrip(_SPACE)
    # A cut first line of JSON Lines ends anywhere; that of an object over several lines ends where more must follow.
    if begin.startswith(b"[") or (b"\n" in begin and line[-1:] in {b"{", b"[", b",", b":"}):
        yield from _documents(path, content)
    else:
        yield from _lines(path, content, block_bytes)


def _lines(path: Path, content: IO[bytes], block_bytes: int) -> Iterator[tuple[int, Any, bytes | str]]:
    number = 0
    for block in line_blocks(path, content, block_bytes):
        for raw in block.removesuffix(b"\n").split(b"\n"):
            number += 1
            stripped = (raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw).strip(_SPACE)
            if not stripped:
                continue
            yield number, _value(stripped), stripped


def _value(text: bytes) -> Any:  # noqa: ANN401  # any JSON
    try:
        return _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            # Also reads NaN and Infinity, which Python and others write though JSON has neither.
            return json.loads(text)
        except (ValueError, RecursionError) as exc:
            return exc


def _documents(path: Path, content: IO[bytes]) -> Iterator[tuple[int, Any, str]]:
    """Yield the objects of an array, or objects one after another, that may run over several lines."""
    decoder, parse = codecs.getincrementaldecoder("utf-8-sig")("replace"), json.JSONDecoder().raw_decode
    text, position, line, ended = "", 0, 1, False
    while True:
        begin = _between(text, position)
        line += text.count("\n", position, begin)
        position = begin
        if position == len(text) and ended:
            return
        try:
            value, end = parse(text, position)
        except RecursionError as exc:
            raise SourceError(f"{path}: line {line}: nested too deeply") from exc
        except ValueError as exc:
            if ended or len(text) - position > MAX_LINE_BYTES:
                raise SourceError(f"{path}: line {line}: not valid JSON: {exc}") from exc
            end = -1
        if end < 0 or (end == len(text) and not ended):
            # The value may continue in what was not read yet.
            piece = content.read(_PIECE_BYTES)
            text, position = text[position:] + decoder.decode(piece, final=not piece), 0
            ended = not piece
            continue
        yield line, value, text[position:end]
        line += text.count("\n", position, end)
        position = end


def _between(text: str, position: int) -> int:
    """Return where the next value begins: after blanks, commas and the brackets of the array."""
    found = _NO_VALUE.match(text, position)
    return found.end() if found else position
