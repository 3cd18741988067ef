"""The generated pages in docs/reference are committed as `make reference` writes them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WRITE = "import sys; from docs.generate.__main__ import render; sys.stdout.write(render(sys.argv[1]))"


@pytest.mark.parametrize("name", ["api.md", "commands.md", "event-names.md", "problems.md", "stored-formats.md"])
def test_a_reference_page_is_what_the_code_says(name: str) -> None:
    # Given no settings of this machine, which the API page would show as defaults
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WILLBUY_")}
    # When the page is generated in a process of its own
    done = subprocess.run(
        [sys.executable, "-c", WRITE, name],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    # Then it is the committed one
    assert done.stdout == (ROOT / "docs" / "reference" / name).read_text("utf-8"), "run `make reference` and commit"
