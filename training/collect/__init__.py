"""Ended sessions out of the service's Redis into the canonical event table, which `willbuy train` reads as it is.

    streams `wb:{00}:outcomes` to `wb:{ff}:outcomes`  ->  Parquet files in one folder

Delivery is at least once, and the folder has each session once: entries are acknowledged after their file has its final
name, and each file lists its entries, so that an entry that is delivered again is recognised.
docs/outcomes.md describes the streams.
"""
