"""Any bytes for a log: `prepare` makes sessions of it or says in words why not, and never ends in a traceback."""

import bz2
import gzip
import lzma
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from fuzz.cases import tried
from training.data.prepare import prepare
from training.data.prepared import PreparedDatasetError
from training.data.sources import ColumnMapping, SourceError
from training.data.sources.mapping import PropertyColumn

pytestmark = pytest.mark.slow
LOGS = Path(__file__).parents[1] / "sources" / "logs"
FILES = sorted(path.relative_to(LOGS) for path in LOGS.rglob("*") if path.is_file())
MAPPING = ColumnMapping(
    session_id="sid",
    timestamp="ts",
    event_name="what",
    price="price",
    properties=(PropertyColumn("device", "device"),),
)
TABLE = (
    b'sid,ts,what,price,device\na,2026-05-10T08:00:00Z,view,1.5,phone\na,2026-05-10T08:00:09Z,"pur""chase",,phone\n'
    b"b,2026-05-10T08:01:00Z,purchase,2,desk\n"
)
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.compress,
    "utf-16": lambda data: data.decode().encode("utf-16"),
}


@st.composite
def damage(draw: st.DrawFn, size: int) -> list[tuple[int, int, bytes]]:
    """Draw some cuts: a place, how many bytes go there, and what stands there instead."""
    place = st.integers(0, max(size - 1, 0))
    instead = st.one_of(
        st.binary(max_size=4),
        st.sampled_from(
            [b"\x00", b"\xff", b'"', b"\n", b"{", b"[", b"}", b",", b"\t", b"1e999", b"null", b"-1", b"\\"]
        ),
    )
    return draw(st.lists(st.tuples(place, st.integers(0, 9), instead), min_size=1, max_size=4))


def damaged(data: bytes, cuts: list[tuple[int, int, bytes]]) -> bytes:
    for place, gone, instead in cuts:
        data = data[:place] + instead + data[place + gone :]
    return data


def prepare_or_refuse(path: Path, mapping: ColumnMapping | None = None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            dataset = prepare(path, Path(folder) / "out", mapping=mapping)
        except (SourceError, PreparedDatasetError):
            return
        counts = dataset.counts
        rows = counts.sessions
        assert counts.rows_read == (
            counts.rows_lookup
            + counts.rows_rejected
            + getattr(counts, "rows_dropped", 0)
            + rows.rows_duplicate
            + rows.rows_in_open_sessions
            + rows.rows_at_or_after_purchase
            + getattr(rows, "rows_without_label", 0)
            + rows.events
        )


@pytest.mark.parametrize("name", FILES, ids=str)
@tried(12)
@given(data=st.data())
def test_a_damaged_file_of_a_known_format(name: Path, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / name.parts[0]
        if (LOGS / name.parts[0]).is_dir():
            shutil.copytree(LOGS / name.parts[0], copy)
        else:
            shutil.copy(LOGS / name, copy)
        file = Path(folder) / name
        whole = file.read_bytes()
        file.write_bytes(damaged(whole, data.draw(damage(len(whole)))))
        prepare_or_refuse(copy)


@pytest.mark.parametrize("kind", COMPRESS)
@tried(12)
@given(data=st.data())
def test_a_damaged_table_of_any_compression(kind: str, data: st.DataObject) -> None:
    whole = COMPRESS[kind](TABLE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.csv"
        path.write_bytes(damaged(whole, data.draw(damage(len(whole)))))
        prepare_or_refuse(path, MAPPING)


@tried(60)
@given(content=st.binary(max_size=300))
def test_any_bytes_at_all(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.bin"
        path.write_bytes(content)
        prepare_or_refuse(path)
        prepare_or_refuse(path, MAPPING)
