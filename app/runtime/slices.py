"""Long pieces of work in slices, so that the event loop serves other requests in between."""

import asyncio
import time
from typing import Final

_SLICE_S: Final = 0.004


class Slices:
    """Lets the event loop serve other requests during a long piece of work."""

    def __init__(self) -> None:
        self._began_s = time.perf_counter()

    async def pause(self) -> None:
        """Return at once, or after a turn of the event loop if a slice of time has passed."""
        if time.perf_counter() - self._began_s > _SLICE_S:
            await asyncio.sleep(0)
            self._began_s = time.perf_counter()
