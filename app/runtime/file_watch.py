"""Watch of one file: calls back when it changes, so that no restart is needed."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from app.runtime.periodic import Background, PeriodicTask

Stamp = tuple[int, int, int]
"""Modification time in ns, size in bytes, inode: another file under the same name differs in one of them."""


def stamp_of(path: Path) -> Stamp | None:
    """Return the stamp of a file; None when there is none. Follows links."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class FileWatch(Background):
    """Calls `on_change` when a file has changed and settled: its stamp is another one, and the same at two checks.

    A file that changed since the last check may still be written to. Each stamp is reported once, so a file that cannot
    be used is tried again when it changes.

    Args:
        path: the file.
        on_change: called with the new stamp; None: the file is gone. An exception is logged, and the watch continues.
        every_s: interval of the checks, in seconds.
        name: of the watch's task.
        logger: where exceptions are logged.
        failed: name of that log event.
        known: stamp of the file as it was last used.
    """

    def __init__(
        self,
        path: Path,
        on_change: Callable[[Stamp | None], Awaitable[None]],
        *,
        every_s: float,
        name: str,
        logger: FilteringBoundLogger,
        failed: str,
        known: Stamp | None = None,
    ) -> None:
        self._path = path
        self._on_change = on_change
        self._known = self._last = known
        self._task = PeriodicTask(
            self.check, name=name, every_s=every_s, logger=logger, failed=failed, pause_first=True
        )

    async def mark_known(self) -> None:
        """Record the current stamp as known. Call it just before other code reads the file."""
        self._known = await self._stamp()

    async def check(self) -> None:
        """Look at the file once."""
        stamp = await self._stamp()
        is_settled, self._last = stamp == self._last, stamp
        if is_settled and stamp != self._known:
            self._known = stamp
            await self._on_change(stamp)

    async def _stamp(self) -> Stamp | None:
        # In a thread: the file may be on a network file system that hangs.
        return await asyncio.to_thread(stamp_of, self._path)
