"""Where a running `willbuy serve` without a Redis URL says which server it has started, for `willbuy collect`."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_FILE: Final = "redis-url"


@contextmanager
def announced(url: str) -> Iterator[None]:
    """Name the server to this user's other commands while the context lasts; of several services, the last one's."""
    folder = _folder()
    with suppress(OSError):
        folder.mkdir(mode=0o700)
    file = folder / _FILE if _is_ours(folder) else None
    # Without such a folder `willbuy collect` needs a URL.
    with suppress(OSError):
        if file is not None:
            file.write_text(url)
    try:
        yield
    finally:
        with suppress(OSError):
            if file is not None and file.read_text() == url:
                file.unlink()


def running_url() -> str | None:
    """Return the URL of the server that a running `willbuy serve` of this user has started; None: there is none."""
    folder = _folder()
    if not _is_ours(folder):
        return None
    with suppress(OSError):
        return (folder / _FILE).read_text()
    return None


def _folder() -> Path:
    return Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"willbuy-{os.getuid()}"


def _is_ours(folder: Path) -> bool:
    """Whether no other user can have written into the folder, which may be in a directory of all users."""
    with suppress(OSError):
        found = folder.lstat()
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return False
