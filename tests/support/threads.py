"""Computation in one thread, for tests of exact numbers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch and its linear algebra libraries to one thread.

    Networks as small as those of the tests only wait for each other in several, and the order of sums is part of a
    fingerprint.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)
