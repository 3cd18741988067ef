"""How a log may lie on disk: folders, compression, encodings; and files that are refused by name."""

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import zstandard

from training.data.prepare import prepare
from training.data.sources import ColumnMapping, SourceError, detect, open_source
from training.data.sources.files import partition_values, plain_name, table_files

TEXT = "sid,ts,what\na,1,view\nä,2,purchase\n"
MAPPING = ColumnMapping(session_id="sid", timestamp="ts", event_name="what", time_format="elapsed_s")
ROWS = [("a", 1000), ("ä", 2000)]


def zipped(members: dict[str, bytes]) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return memory.getvalue()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "zip": lambda data: zipped({"events.csv": data}),
}


@pytest.mark.parametrize("kind", COMPRESS)
def test_compression_is_known_by_the_content_whatever_the_name(
    write: Callable[..., Path], read: Callable[..., Any], kind: str
) -> None:
    reading = read(write("log.bin", COMPRESS[kind](TEXT.encode())), mapping=MAPPING)
    assert reading.rows("session_id", "timestamp_ms") == ROWS
    assert reading.rejected == []


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz", "zstd"])
def test_streams_one_after_another_are_one_text(
    write: Callable[..., Path], read: Callable[..., Any], kind: str
) -> None:
    head, rest = TEXT.encode()[:20], TEXT.encode()[20:]
    data = COMPRESS[kind](head) + COMPRESS[kind](rest)
    assert read(write("log.csv", data), mapping=MAPPING).rows("session_id", "timestamp_ms") == ROWS


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("kept", [0.5, 0.98])
def test_a_cut_compressed_file_is_an_error_that_says_so(
    write: Callable[..., Path], read: Callable[..., Any], kind: str, kept: float
) -> None:
    lines = "".join(f"s{number},{number * 7919 % 1009},view\n" for number in range(3000))
    data = COMPRESS[kind](("sid,ts,what\n" + lines).encode())
    path = write("log.csv", data[: int(len(data) * kept)])
    with pytest.raises(SourceError, match=f"the {kind} stream is damaged or cut"):
        read(path, mapping=MAPPING)


def test_what_lies_beside_the_table_in_a_zip_does_not_matter(
    write: Callable[..., Path], read: Callable[..., Any]
) -> None:
    members = {"data/README.txt": b"terms", "__MACOSX/data/._events.csv": b"\x00", "data/events.csv": TEXT.encode()}
    assert read(write("log.zip", zipped(members)), mapping=MAPPING).rows("session_id", "timestamp_ms") == ROWS


def test_a_zip_of_several_tables_is_refused_with_what_to_do(
    write: Callable[..., Path], read: Callable[..., Any]
) -> None:
    path = write("log.zip", zipped({"a.csv": TEXT.encode(), "b.csv": TEXT.encode()}))
    with pytest.raises(SourceError, match=r"holds a\.csv, b\.csv: unpack it, and give the folder"):
        read(path, mapping=MAPPING)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_encodings_are_read(write: Callable[..., Path], read: Callable[..., Any], encoding: str) -> None:
    reading = read(write("log.csv", TEXT.encode(encoding)), mapping=MAPPING, block_bytes=9)
    assert reading.rows("session_id", "timestamp_ms") == ROWS
    assert read(write("log.csv.gz", TEXT.encode(encoding)), mapping=MAPPING).rows("session_id") == [("a",), ("ä",)]


def test_a_cut_wide_text_costs_its_last_row(write: Callable[..., Path], read: Callable[..., Any]) -> None:
    reading = read(write("log.csv", TEXT.encode("utf-16")[:-3]), mapping=MAPPING)
    assert reading.rows("session_id") == [("a",)]
    assert [row[1:] for row in reading.rejected] == [(3, "what", "not valid UTF-8")]


@pytest.mark.parametrize("name", ["LOG.CSV", "Log.Csv.GZ", "log.TSV", "part-0.TXT"])
def test_suffixes_may_be_of_upper_case(write: Callable[..., Path], read: Callable[..., Any], name: str) -> None:
    content = gzip.compress(TEXT.encode()) if name.endswith("GZ") else TEXT.encode()
    folder = write(f"folder/{name}", content).parent
    assert read(folder, mapping=MAPPING).rows("session_id", "timestamp_ms") == ROWS


def test_the_suffix_of_a_compression_is_no_part_of_the_name() -> None:
    names = ("A.CSV.GZ", "a.csv.zst", "a.zip", "a", "gz")
    assert [plain_name(Path(name)) for name in names] == ["a.csv", "a.csv", "a.zip", "a", "gz"]


def test_known_formats_are_found_compressed_in_nested_folders_and_in_upper_case(
    write: Callable[..., Path], read: Callable[..., Any]
) -> None:
    write("cup/data/YooChoose-Clicks.DAT", zstandard.compress(b"1,2014-04-07T10:51:09.277Z,214536502,0\n"))
    write("cup/data/yoochoose-buys.dat.bz2", bz2.compress(b"1,2014-04-07T11:00:00.000Z,214536502,5,1\n"))
    write("cup/__MACOSX/yoochoose-buys.dat", b"junk")
    reading = read(write("cup/README.md", "about").parent)
    assert reading.source.format == "yoochoose"
    assert reading.rows("event_name") == [("view_item",), ("purchase",)]


def test_the_folders_of_a_partitioned_log_give_their_values(tmp_path: Path) -> None:
    mapping = ColumnMapping.from_options(
        ["session_id=sid", "timestamp=ts", "event_name=what"], properties=["country=country"], time_format="elapsed_s"
    )
    for country, session in (("de", "a"), ("fr", "b")):
        folder = tmp_path / "log" / f"country={country}" / "day=2026-05-01"
        folder.mkdir(parents=True)
        rows = {"sid": [session] * 2, "ts": [1, 2], "what": ["view", "purchase" if session == "a" else "view"]}
        pl.DataFrame(rows).write_parquet(folder / "part-0.parquet")
        (folder / "_SUCCESS").touch()
        (folder / ".part-0.parquet.crc").write_bytes(b"\x00")
    dataset = prepare(tmp_path / "log", tmp_path / "out", mapping=mapping)
    events = dataset.scan().select("session_id", "property.country", "outcome").unique().sort("session_id").collect()
    assert events.rows() == [("a", "de", True), ("b", "fr", False)]
    assert dataset.settings["files"][0] == "country=de/day=2026-05-01/part-0.parquet"


def test_only_folders_with_a_name_and_a_value_are_columns(tmp_path: Path) -> None:
    file = tmp_path / "raw" / "country=de" / "=x" / "day=" / "part=1.csv"
    assert partition_values(file, tmp_path) == {"country": "de", "day": ""}
    assert partition_values(file, file) == {}


def test_a_column_of_the_file_wins_over_the_folder(tmp_path: Path, read: Callable[..., Any]) -> None:
    folder = tmp_path / "log" / "what=other"
    folder.mkdir(parents=True)
    (folder / "part.csv").write_text(TEXT)
    assert read(tmp_path / "log", mapping=MAPPING).rows("event_name") == [("view",), ("purchase",)]


def test_parts_without_a_suffix_are_tables(tmp_path: Path, read: Callable[..., Any]) -> None:
    (tmp_path / "log").mkdir()
    pl.DataFrame({"sid": ["a"], "ts": [1], "what": ["view"]}).write_parquet(tmp_path / "log" / "000000000000")
    (tmp_path / "log" / "Makefile").write_text("all:\n")
    assert [file.name for file in table_files(tmp_path / "log")] == ["000000000000"]
    assert read(tmp_path / "log", mapping=MAPPING).rows("session_id") == [("a",)]


FOREIGN = {
    "shop.xlsx": (
        zipped({"[Content_Types].xml": b"<x/>", "xl/workbook.xml": b"<x/>"}),
        "Excel workbook: save the sheet",
    ),
    "SHOP.XLSX": (b"PK\x03\x04damaged", "Excel workbook"),
    "shop.xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "Excel workbook"),
    "renamed.csv": (zipped({"[Content_Types].xml": b"<x/>", "xl/workbook.xml": b"<x/>"}), "Excel workbook"),
    "shop.ods": (zipped({"mimetype": b"x", "content.xml": b"<x/>"}), "save the sheet"),
    "shop.feather": (b"ARROW1\x00\x00", "Arrow or Feather"),
    "shop.orc": (b"ORC\x00", "ORC"),
    "shop.avro": (b"Obj\x01", "Avro"),
    "shop.sqlite": (b"SQLite format 3\x00", "SQLite"),
    "shop.tar.gz": (gzip.compress(bytes(257) + b"ustar\x0000" + bytes(300), mtime=0), "tar archive"),
    "shop.parquet.gz": (gzip.compress(b"PAR1....", mtime=0), "compressed Parquet"),
    "shop.csv": (b"<!DOCTYPE html><title>Sign in</title>", "web page"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_kinds_of_file_are_refused_by_name_with_what_to_do(tmp_path: Path, name: str) -> None:
    content, message = FOREIGN[name]
    path = tmp_path / name
    path.write_bytes(content)
    for mapping in (None, MAPPING):
        with pytest.raises(SourceError, match=message):
            list(open_source(path, mapping=mapping).batches())


def test_a_text_that_only_calls_itself_xls_is_read(write: Callable[..., Path], read: Callable[..., Any]) -> None:
    assert read(write("log.xls", TEXT), mapping=MAPPING).rows("session_id", "timestamp_ms") == ROWS


def test_a_folder_with_a_workbook_and_no_table_says_so(write: Callable[..., Path]) -> None:
    folder = write("folder/shop.xlsx", FOREIGN["shop.xlsx"][0]).parent
    with pytest.raises(SourceError, match="Excel workbook"):
        open_source(folder, mapping=MAPPING)


def test_a_password_or_an_unknown_method_of_a_zip_says_what_to_do(tmp_path: Path) -> None:
    data = bytearray(zipped({"events.csv": TEXT.encode()}))
    local, central = data.index(b"PK\x03\x04"), data.index(b"PK\x01\x02")
    data[local + 6] |= 1
    data[central + 8] |= 1
    path = tmp_path / "log.zip"
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"cannot be opened .*unpack it"):
        detect(path)
