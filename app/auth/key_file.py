"""The keys' file, read again when it has changed, so that keys come and go without a restart."""

import asyncio
from pathlib import Path
from typing import Final

from structlog.typing import FilteringBoundLogger

from app.auth.access import Access
from app.auth.keys import AccessError, read_keys

LOOK_EVERY_S: Final = 1.0

_Stamp = tuple[int, int, int] | None


class KeyFile:
    """Watches the file.

    What cannot be used is an error in the log and changes nothing: a slip must not lock the shop out.

    Args:
        path: the file.
        access: what is told of its keys.
        logger: where it is said.
    """

    def __init__(self, path: Path, access: Access, logger: FilteringBoundLogger) -> None:
        self._path = path
        self._access = access
        self._logger = logger
        # As if it were never read: it may have changed since the service did.
        self._stamp: _Stamp = None
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch; call inside the event loop."""
        self._watching = asyncio.create_task(self._watch_for_ever())

    async def close(self) -> None:
        """Stop watching."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    async def look(self) -> None:
        """Take over what the file says, if it is another than at the last look."""
        # In a thread: it may lie on a file system that hangs.
        stamp = await asyncio.to_thread(_stamp_of, self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            keys = await asyncio.to_thread(read_keys, self._path)
        except AccessError as exc:
            self._logger.error("api_keys_refused", reason=str(exc))  # noqa: TRY400 - a slip needs no traceback
            return
        if self._access.replace(keys):
            self._logger.info("api_keys_read", names=sorted({key.name for key in keys}), count=len(keys))

    async def _watch_for_ever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self.look()
            except Exception:
                self._logger.exception("api_keys_watch_failed")


def _stamp_of(path: Path) -> _Stamp:
    """Return what changes with the file's content; None when there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
