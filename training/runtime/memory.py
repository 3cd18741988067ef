"""Memory between the stages of a run."""

import ctypes
import sys


def return_free_memory() -> None:
    """Return the allocator's free memory to the system, where the C library is glibc.

    LightGBM frees many small blocks, which glibc keeps; the next stage would add its own memory to them.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
