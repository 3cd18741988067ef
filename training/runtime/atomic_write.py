"""Atomic writes: a file has its old or its new content, never a part."""

from pathlib import Path


def atomic_write(path: Path, text: str) -> None:
    """Replace a text file atomically: an interrupted write leaves the old content."""
    temporary = path.with_name(f".{path.name}.writing")
    try:
        # No newline translation: a CSV table has its own line ends.
        temporary.write_text(text, "utf-8", newline="")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
