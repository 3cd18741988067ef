"""A synthetic shop's log as other systems would export it."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

SEGMENT_NAMES = {
    "page_view": "page",
    "search": "Products Searched",
    "view_item_list": "Product List Viewed",
    "view_item": "Product Viewed",
    "add_to_cart": "Product Added",
    "remove_from_cart": "Product Removed",
    "view_cart": "Cart Viewed",
    "begin_checkout": "Checkout Started",
    "purchase": "Order Completed",
}
PAGES = {"purchase": "/thank-you", "view_cart": "/cart"}


def export_ga4(events: pl.DataFrame, folder: Path) -> None:
    """Write BigQuery's export of Google Analytics 4, one file of JSON Lines a day, numbers as texts."""
    folder.mkdir(parents=True)
    starts = dict(events.group_by("session_id").agg(pl.col("timestamp_ms").min()).iter_rows())
    days: dict[str, list[str]] = {}
    for row in events.iter_rows(named=True):
        day = f"{_time(row['timestamp_ms']):%Y%m%d}"
        event: dict[str, Any] = {
            "event_date": day,
            "event_timestamp": str(row["timestamp_ms"] * 1000),
            "event_name": row["event_name"],
            "user_pseudo_id": f"{row['session_id']}.1",
            "event_params": [
                {"key": "ga_session_id", "value": {"int_value": str(starts[row["session_id"]] // 1000)}},
                {"key": "page_location", "value": {"string_value": "https://shop.example/"}},
            ],
            "device": {"category": row["property.device"]},
        }
        if row["item_id"] is not None:
            item = {"item_id": row["item_id"], "item_category": row["item_category"], "price": row["price"]}
            event["items"] = [item, {"item_id": "SKU-0"}]
        days.setdefault(day, []).append(json.dumps(event))
    for day, lines in days.items():
        (folder / f"events_{day}.json").write_text("\n".join(lines) + "\n")


def export_segment(events: pl.DataFrame, folder: Path) -> None:
    """Write the tables of Segment's warehouse: tracks, pages, and one for each event."""
    folder.mkdir(parents=True)
    times = [f"{_time(ms):%Y-%m-%d %H:%M:%S.%f}+00" for ms in events["timestamp_ms"]]
    table = events.select(
        id=pl.int_range(pl.len()).cast(pl.String),
        received_at=pl.Series(times),
        timestamp=pl.Series(times),
        anonymous_id="session_id",
        user_id=pl.lit(None, pl.String),
        event_text=pl.col("event_name").replace(SEGMENT_NAMES),
        product_id="item_id",
        category="item_category",
        price="price",
        context_device_type="property.device",
    ).with_columns(event=pl.col("event_text").str.to_lowercase().str.replace_all(" ", "_"))
    general = ["id", "received_at", "timestamp", "anonymous_id", "user_id", "context_device_type"]
    calls = table.filter(pl.col("event_text") != "page")
    calls.select(*general, "event", "event_text").write_csv(folder / "tracks.csv")
    table.filter(pl.col("event_text") == "page").select(*general, path=pl.lit("/")).write_csv(folder / "pages.csv")
    for (name,), rows in calls.group_by("event"):
        rows.write_csv(folder / f"{name}.csv")


def export_pages(events: pl.DataFrame, path: Path) -> None:
    """Write a page log: `;` between fields, date and time apart, and the purchase as a page."""
    times = [_time(ms) for ms in events["timestamp_ms"]]
    pl.DataFrame(
        {
            "Cookie": events["session_id"],
            "Date": [f"{time:%Y-%m-%d}" for time in times],
            "Time": [f"{time:%H:%M:%S.%f}" for time in times],
            "Page": events["event_name"].replace(PAGES),
        }
    ).write_csv(path, separator=";")


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
