"""The garbage collector, told that what the service is made of is no garbage.

A full collection walks every object of the process, hundreds of thousands with torch and the framework loaded, and
holds up every request meanwhile, for 130 ms: most of the latency's tail (docs/performance.md). What is there once the
service has started stays until it ends, so it is taken out of the collections, and what comes and goes with requests
is freed by its reference counts: cycles are rare, and are looked for rarely.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# Objects that are made and not yet freed before the youngest are looked at, and how many of those looks make one at
# the next older ones.
_THRESHOLDS: Final = (50_000, 20, 50)


@contextmanager
def settled_garbage_collector() -> Iterator[None]:
    """Leave what exists now out of the collections while inside; of the whole process."""
    before = gc.get_threshold()
    # Without a collection before it: what garbage the start has left is little, and walking everything takes long.
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
