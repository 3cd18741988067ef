"""The hot path measured against what a shop would build instead: `make bench`, or `python -m benchmarks.hotpath`."""
