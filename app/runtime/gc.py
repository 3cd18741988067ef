"""Freezes start-up objects (`gc.freeze`), because a full collection blocks every request for about 130 ms.

A full collection visits every object of the process, hundreds of thousands with torch and the framework. That was most
of the latency's tail (docs/performance.md). Objects that exist after the start live until the end, so they are excluded
from collections. Reference counts free the objects of requests; cycles are rare, so collections are rare.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# `gc.set_threshold`: allocations between collections of the youngest generation, and collections of each generation
# between collections of the next older one.
_THRESHOLDS: Final = (50_000, 20, 50)


@contextmanager
def settled_garbage_collector() -> Iterator[None]:
    """Exclude all existing objects of the process from garbage collections inside the context."""
    before = gc.get_threshold()
    # No collection first: start-up leaves little garbage, and a full collection takes long.
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
