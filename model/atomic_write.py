"""Atomic writes: a file has its old or its new content, never a part."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex


@contextmanager
def replacing(path: Path, *, mode: int | None = None) -> Iterator[Path]:
    """Yield a temporary file beside a path. It takes the file's place at the end; after an error it is removed.

    Args:
        path: the file to write.
        mode: its permissions; None: those of any new file.
    """
    temporary = path.with_name(f".{path.name}.{token_hex(4)}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666 if mode is None else 0o600))
    try:
        yield temporary
        if mode is not None:
            temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: Path, text: str) -> None:
    """Replace a text file."""
    with replacing(path) as temporary:
        # No newline translation: a CSV table has its own line ends.
        temporary.write_text(text, "utf-8", newline="")
