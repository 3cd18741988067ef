"""Where the browser of the tests is."""

import shutil


def find_chromium() -> str | None:
    """Return the path of Chromium: rather the one without windows, which takes half of the processor's time."""
    return shutil.which("chromium-headless-shell") or shutil.which("chromium")
