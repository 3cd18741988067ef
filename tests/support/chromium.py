"""Where the browser of the tests is."""

import shutil


def find_chromium() -> str | None:
    """Return the path of Chromium. The headless shell is preferred, since it takes half of the CPU time."""
    return shutil.which("chromium-headless-shell") or shutil.which("chromium")
