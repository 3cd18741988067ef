"""Finding and opening a log's files: folders, compression, encodings of text, and files that hold no readable table."""

import bz2
import codecs
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import IO, Any, Final, cast

import zstandard

from training.data.sources.errors import SourceError

COMPRESSED_SUFFIXES: Final = (".gz", ".zst", ".zstd", ".bz2", ".xz", ".zip")
TABLE_SUFFIXES: Final = (".csv", ".tsv", ".psv", ".txt", ".dat", ".parquet", ".pq", ".json", ".jsonl", ".ndjson")
SPREADSHEET_SUFFIXES: Final = (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods")
HEAD_BYTES: Final = 4096
# Files that lie beside tables and describe them.
_NO_TABLES: Final = ("readme*", "license*", "licence*", "terms*", "schema.json", "manifest.json")
_COMPRESSION_MAGIC: Final[Mapping[bytes, str]] = MappingProxyType(
    {
        b"\x1f\x8b": "gzip",
        b"\x28\xb5\x2f\xfd": "zstd",
        b"BZh": "bzip2",
        b"\xfd7zXZ\x00": "xz",
        b"PK\x03\x04": "zip",
        b"PK\x05\x06": "zip",
    }
)
_EXCEL: Final = "an Excel workbook: save the sheet with the events as CSV UTF-8, and give that file"
_FOREIGN_MAGIC: Final[Mapping[bytes, str]] = MappingProxyType(
    {
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": _EXCEL,
        b"ARROW1": "an Arrow or Feather file: write the table as Parquet, and give that file",
        b"ORC": "an ORC file: write the table as Parquet, and give that file",
        b"Obj\x01": "an Avro file: export the table as Parquet or as JSON Lines, and give that file",
        b"SQLite format 3\x00": "an SQLite database: export the table with the events as CSV, and give that file",
        b"\x89HDF\r\n\x1a\n": "an HDF5 file: write the table as Parquet, and give that file",
        b"%PDF-": "a PDF: export the table with the events as CSV, and give that file",
        b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it, and give the folder",
        b"Rar!\x1a\x07": "a RAR archive: unpack it, and give the folder",
    }
)
_DAMAGE: Final = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, zipfile.BadZipFile, zstandard.ZstdError)
_TAR_MAGIC: Final = slice(257, 262)
# Longest first, as the mark of UTF-32 begins with that of UTF-16.
_BYTE_ORDER_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# zstd expands 4 bytes to at most 128 KiB: a small piece of the file bounds what one call makes of it.
_ZSTD_PIECE_BYTES: Final = 4096
_BUFFER_BYTES: Final = 1 << 20


def every_table(path: Path, is_ours: Callable[[Path], bool]) -> bool:
    """Return whether every table below a path is of one format; a table that cannot be read is of none."""
    try:
        return all(map(is_ours, table_files(path)))
    except (SourceError, OSError):
        return False


def table_files(path: Path) -> list[Path]:
    """Return the file itself, or every table below a folder in the order of their names.

    Hidden files, and files and folders that begin with `_` (`_SUCCESS`, `_delta_log`), are left out.

    Raises:
        SourceError: the folder has no table.
    """
    if not path.is_dir():
        return [path]
    inside = sorted(file for file in path.rglob("*") if file.is_file() and not _is_hidden(file.relative_to(path)))
    tables = [file for file in inside if _is_table(file)]
    if not tables:
        for file in inside:
            if file.suffix.lower() in SPREADSHEET_SUFFIXES:
                raise SourceError(f"{file}: this is {_EXCEL}")
        raise SourceError(f"{path}: no table in this folder; looked for {', '.join(TABLE_SUFFIXES)}, also compressed")
    return tables


def matching(folder: Path, pattern: str) -> list[Path]:
    """Return the tables below `folder` whose name, in lower case and without the suffix of a compression, matches."""
    if not folder.is_dir():
        return []
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return [file for file in files if fnmatch(plain_name(file), pattern) and not _is_hidden(file.relative_to(folder))]


def plain_name(path: PurePath) -> str:
    """Return the file's name in lower case, without the suffix of a compression."""
    name = path.name.lower()
    for suffix in COMPRESSED_SUFFIXES:
        if name.endswith(suffix) and "." in name.removesuffix(suffix):
            return name.removesuffix(suffix)
    return name


def partition_values(file: Path, root: Path) -> dict[str, str]:
    """Return the values that the folders between `root` and `file` give, as Hive lays them out: `country=de`."""
    if not root.is_dir():
        return {}
    pairs = (part.partition("=") for part in file.relative_to(root).parts[:-1])
    return {name: value for name, equals, value in pairs if name and equals}


def _is_hidden(relative: PurePath) -> bool:
    return any(part.startswith((".", "_")) for part in relative.parts)


def _is_table(file: Path) -> bool:
    name = plain_name(file)
    if any(fnmatch(name, pattern) for pattern in _NO_TABLES):
        return False
    if name.endswith((*TABLE_SUFFIXES, ".zip")):
        return True
    # Exports of warehouses and Hive name their parts by numbers alone, or give them only the compression's suffix.
    return "." not in name.removesuffix(".gz").removesuffix(".snappy") and head(file)[:4] in {b"PAR1", b'{"ev', b'{"'}


def compression(path: Path) -> str | None:
    """Return the name of the compression by the file's first bytes; None where it is not compressed."""
    with path.open("rb") as file:
        first = file.read(8)
    return next((name for magic, name in _COMPRESSION_MAGIC.items() if first.startswith(magic)), None)


@contextmanager
def opened(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Open for reading; yields the uncompressed content, text as UTF-8, and the file on disk, for its position.

    Raises:
        SourceError: the file is of a kind that holds no readable table; or what is compressed is damaged, also when
            it is read later.
    """
    kind = compression(path)
    if path.suffix.lower() in SPREADSHEET_SUFFIXES and (kind == "zip" or path.suffix.lower() != ".xls"):
        raise SourceError(f"{path}: this is {_EXCEL}")
    with ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        try:
            content = stack.enter_context(io.BufferedReader(_uncompressed(path, file, kind), _BUFFER_BYTES))
            first = content.peek(HEAD_BYTES)[:HEAD_BYTES]
            _refuse_foreign(path, first)
            encoding = _wide_encoding(first)
            if encoding is not None:
                recoded = _Pieces(_recoded(content, encoding))
                content = stack.enter_context(io.BufferedReader(recoded, _BUFFER_BYTES))
                first = content.peek(HEAD_BYTES)[:HEAD_BYTES]
            if b"\r" in first and b"\n" not in first and b"\0" not in first:
                lines = _Pieces(_with_line_feeds(content))
                content = stack.enter_context(io.BufferedReader(lines, _BUFFER_BYTES))
            yield content, file
        except _DAMAGE as exc:
            raise SourceError(f"{path}: the {kind or 'file'} stream is damaged or cut: {exc}") from exc
        except OSError as exc:
            # bz2 has no error of its own.
            if kind != "bzip2" or exc.errno is not None:
                raise
            raise SourceError(f"{path}: the {kind} stream is damaged or cut: {exc}") from exc


def head(path: Path, size: int = HEAD_BYTES) -> bytes:
    """Return the first bytes of the uncompressed content, text as UTF-8; raise `SourceError` as `opened` does."""
    with opened(path) as (content, _):
        return content.read(size)


def _uncompressed(path: Path, file: IO[bytes], kind: str | None) -> io.RawIOBase:
    stream: object = file
    if kind == "gzip":
        stream = gzip.GzipFile(fileobj=file)
    elif kind == "bzip2":
        stream = bz2.BZ2File(file)
    elif kind == "xz":
        stream = lzma.LZMAFile(file)  # noqa: SIM115  # `opened` closes it
    elif kind == "zstd":
        stream = _Pieces(_zstd(file))
    elif kind == "zip":
        stream = _zip_member(path, file)
    # All of them have `readinto`, which is all that a buffered reader asks for.
    return cast("io.RawIOBase", stream)


class _Pieces(io.RawIOBase):
    """A stream over pieces of bytes as an iterator makes them."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401  # `Buffer` has no name before Python 3.12
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = piece
        view = memoryview(buffer)
        size = min(len(view), len(self._rest))
        view[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _zstd(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the content of all frames; the library's own reader does not tell a cut file from a whole one."""
    frame = zstandard.ZstdDecompressor().decompressobj()
    rest = b""
    while piece := rest or file.read(_ZSTD_PIECE_BYTES):
        if frame.eof:
            frame = zstandard.ZstdDecompressor().decompressobj()
        yield frame.decompress(piece)
        rest = frame.unused_data if frame.eof else b""
    if not frame.eof:
        raise EOFError("the last frame has no end")


def _zip_member(path: Path, file: IO[bytes]) -> IO[bytes]:
    archive = zipfile.ZipFile(file)
    names = archive.namelist()
    if "[Content_Types].xml" in names or any(name.startswith("xl/") for name in names):
        raise SourceError(f"{path}: this is {_EXCEL}")
    inside = [
        info for info in archive.infolist() if not info.is_dir() and not _is_hidden(PurePath(info.filename.lstrip("/")))
    ]
    tables = [info for info in inside if _has_table_name(info.filename)] or inside
    if len(tables) != 1:
        listed = ", ".join(info.filename for info in tables[:20]) or "nothing"
        raise SourceError(f"{path}: the archive holds {listed}: unpack it, and give the folder")
    try:
        return archive.open(tables[0])
    except (RuntimeError, NotImplementedError) as exc:
        raise SourceError(f"{path}: the archive cannot be opened ({exc}): unpack it, and give the file") from exc


def _has_table_name(name: str) -> bool:
    plain = plain_name(PurePath(name))
    return plain.endswith(TABLE_SUFFIXES) and not any(fnmatch(plain, pattern) for pattern in _NO_TABLES)


def _refuse_foreign(path: Path, first: bytes) -> None:
    for magic, what in _FOREIGN_MAGIC.items():
        if first.startswith(magic):
            raise SourceError(f"{path}: this is {what}")
    if first[_TAR_MAGIC] == b"ustar":
        raise SourceError(f"{path}: this is a tar archive: unpack it, and give the folder")
    if first.startswith(b"PAR1") and compression(path):
        raise SourceError(f"{path}: this is a compressed Parquet file: unpack it, and give the file")
    markup = first.lstrip(codecs.BOM_UTF8 + b" \t\r\n")[:14].lower()
    if markup.startswith((b"<!doctype html", b"<html", b"<?xml")):
        raise SourceError(f"{path}: this is a web page or XML, not a table; was the download complete?")


def _wide_encoding(first: bytes) -> str | None:
    """Return UTF-16 or UTF-32 where the first bytes say so: by their mark, or as every second byte is zero."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if first.startswith(mark):
            return encoding
    pairs = len(first) // 2
    even, odd = first[0 : 2 * pairs : 2].count(0), first[1 : 2 * pairs : 2].count(0)
    most = 0.4 * pairs
    if pairs > 8 and min(even, odd) == 0 and max(even, odd) > most:  # noqa: PLR2004  # too few bytes to tell
        return "utf-16-be" if even else "utf-16-le"
    return None


def _with_line_feeds(content: IO[bytes]) -> Iterator[bytes]:
    """Yield text whose lines end with carriage returns alone, as spreadsheets on old Macs write, with line feeds."""
    while piece := content.read(_BUFFER_BYTES):
        yield piece.replace(b"\r", b"\n")


def _recoded(content: IO[bytes], encoding: str) -> Iterator[bytes]:
    """Yield UTF-8; what the encoding does not allow becomes bytes that are no UTF-8, so that its row is reported."""
    decode: Callable[..., str] = codecs.getincrementaldecoder(encoding)("surrogatepass").decode
    try:
        while piece := content.read(_BUFFER_BYTES):
            yield decode(piece).encode("utf-8", "surrogatepass")
        decode(b"", final=True)
    except UnicodeDecodeError:
        yield b"\xff"
