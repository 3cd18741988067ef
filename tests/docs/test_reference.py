"""What `make reference` writes is committed: pages in docs/reference, and the JavaScript client's types."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
TYPES = ROOT / "clients/js/src/types.ts"
# Written by people and by a benchmark.
OTHERS = {"files.md", "hot-path.md", "levers.md", "log.md", "metrics.md"}
WRITE = """
import json
from docs.generate import api, typescript
from docs.generate.__main__ import PAGES, TYPES, render
print(json.dumps({name: render(name) for name in PAGES} | {TYPES.name: typescript.module(api.document())}))
"""


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """All pages by name, generated in a process without settings, which the API page would show as defaults."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WILLBUY_")}
    done = subprocess.run(
        [sys.executable, "-c", WRITE],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in REFERENCE.glob("*.md") if path.name not in OTHERS))
def test_a_reference_page_is_what_the_code_says(name: str, pages: dict[str, str]) -> None:
    assert pages[name] == (REFERENCE / name).read_text("utf-8"), "run `make reference` and commit"


@pytest.mark.slow
def test_every_generated_page_is_committed(pages: dict[str, str]) -> None:
    assert {path.name for path in REFERENCE.glob("*.md")} == pages.keys() - {TYPES.name} | OTHERS


@pytest.mark.slow
def test_the_javascript_clients_types_are_those_of_the_openapi_document(pages: dict[str, str]) -> None:
    assert pages[TYPES.name] == TYPES.read_text("utf-8"), "run `make reference` and commit"
