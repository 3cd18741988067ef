"""Files that appear whole or not at all."""

from pathlib import Path


def atomic_write(path: Path, text: str) -> None:
    """Write a text file so that under its name there is the old content or the new, however the writing ends."""
    temporary = path.with_name(f".{path.name}.writing")
    try:
        # Line ends as they are: a table has its own.
        temporary.write_text(text, "utf-8", newline="")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
