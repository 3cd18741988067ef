"""Ended sessions out of the service's Redis into the canonical event table, which `willbuy train` reads as it is.

    streams `wb:{00}:outcomes` to `wb:{ff}:outcomes`  ->  Parquet files in one folder

At least once, and each session once in the folder: entries are acknowledged after the file that holds them stands
under its name, and a file names its entries, so that whatever was not acknowledged is recognised when it comes again.
docs/outcomes.md describes the streams.
"""
