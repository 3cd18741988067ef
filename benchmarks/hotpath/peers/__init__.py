"""What a shop would build instead of willbuy, each a program of its own, started by `benchmarks.hotpath.servers`."""
