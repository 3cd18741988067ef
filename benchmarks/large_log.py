"""Write a log of different rows in REES46's columns, of any size: for memory and speed of `willbuy prepare`.

python -m benchmarks.large_log 3e9 /tmp/large/2019-Oct.csv
"""

import argparse
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

_START_S: Final = 1_569_888_000
_DAY_S: Final = 86_400
_SESSIONS_A_BLOCK: Final = 50_000
_BLOCKS_A_DAY: Final = 3
_NAMES: Final = ("view", "cart", "remove_from_cart", "purchase")
_SHARES: Final = (0.94, 0.035, 0.01, 0.015)
_ITEMS: Final = 150_000
_BRANDS: Final = 4000
_CATEGORIES: Final = 600
_MEAN_EVENTS: Final = 5.5


def block(number: int, seed: int) -> pl.DataFrame:
    """Return the rows of some sessions of one day, in order of time."""
    rng = np.random.default_rng([seed, number])
    ids = pl.Series([rng.bytes(16).hex() for _ in range(_SESSIONS_A_BLOCK)])
    events = rng.geometric(1 / _MEAN_EVENTS, _SESSIONS_A_BLOCK)
    session = np.repeat(np.arange(_SESSIONS_A_BLOCK), events)
    rows = len(session)
    # Time passed within a session: the sum of its gaps so far.
    gaps = np.cumsum(rng.exponential(45, rows).round() + 1)
    first = np.concatenate([[0], np.cumsum(events)[:-1]])
    start = _START_S + number // _BLOCKS_A_DAY * _DAY_S + rng.uniform(0, _DAY_S, _SESSIONS_A_BLOCK)
    seconds = (start[session] + gaps - gaps[first][session]).astype(np.int64)
    item = (_ITEMS * rng.random(rows) ** 3).astype(np.int64)
    category = item * 7919 % _CATEGORIES
    frame = pl.DataFrame(
        {
            "seconds": seconds,
            "event_type": pl.Series(_NAMES).gather(rng.choice(len(_NAMES), rows, p=_SHARES)),
            "product_id": item + 1_000_000,
            "category_id": category + 2_053_013_555_631_882_655,
            "code": category,
            "brand": item * 104_729 % _BRANDS,
            "price": ((item * 31 % 90_000) + 99) / 100,
            "user_id": session + number * _SESSIONS_A_BLOCK + 512_000_000,
            "hex": ids.gather(session),
        }
    )
    part = pl.col("hex").str
    return frame.sort("seconds").select(
        event_time=pl.from_epoch("seconds").dt.strftime("%Y-%m-%d %H:%M:%S UTC"),
        event_type="event_type",
        product_id="product_id",
        category_id="category_id",
        # A third of the items has no code, and a sixth no brand, as in the public log.
        category_code=pl.when(pl.col("code") % 3 > 0).then(
            pl.format("department{}.kind{}", pl.col("code") % 13, "code")
        ),
        brand=pl.when(pl.col("brand") % 6 > 0).then(pl.format("brand{}", "brand")),
        price=pl.col("price"),
        user_id="user_id",
        user_session=pl.concat_str(
            [part.slice(0, 8), part.slice(8, 4), part.slice(12, 4), part.slice(16, 4), part.slice(20)], separator="-"
        ),
    )


def write_log(path: Path, size_bytes: float, seed: int = 0) -> None:
    """Write blocks until the file has the size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        number = 0
        while file.tell() < size_bytes:
            block(number, seed).write_csv(file, include_header=number == 0, float_precision=2)
            number += 1


def main() -> None:
    """Write the log that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size_bytes", type=float)
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    write_log(given.path, given.size_bytes, given.seed)


if __name__ == "__main__":
    main()
