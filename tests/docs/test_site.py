"""The documentation as a site: it builds without a warning, asks no other host for anything, and tells the code."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import missing
from playwright.sync_api import sync_playwright
from support.chromium import find_chromium

from app.auth.scopes import Rules
from app.errors import WillbuyError
from model.events import ALIASES
from model.manifest import Manifest
from training.cli import cli as training_commands

ROOT = Path(__file__).parents[2]
# Attributes by which a page makes a browser ask for something without a click.
LOADING = {
    ("link", "href"),
    ("img", "src"),
    ("script", "src"),
    ("iframe", "src"),
    ("source", "src"),
    ("source", "srcset"),
}


class Loads(HTMLParser):
    """Collects what a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if (tag, name) in LOADING]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        # The theme's advice on what may follow mkdocs is no fault of a page.
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "WARNING" not in done.stderr
    return folder


def text_of(page: Path) -> str:
    return re.sub(r"<[^>]+>", "", page.read_text("utf-8"))


def test_every_page_of_the_folder_is_in_the_site(site: Path) -> None:
    docs = ROOT / "docs"
    expected = {path.relative_to(docs).with_suffix(".html") for path in docs.rglob("*.md")}
    assert expected <= {path.relative_to(site) for path in site.rglob("*.html")}
    assert not (site / "hooks").exists()
    assert not (site / "generate").exists()


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        loads = Loads()
        loads.feed(page.read_text("utf-8"))
        assert loads.found
        outside = [target for target in loads.found if re.match(r"(https?:)?//", target)]
        assert outside == [], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", sheet.read_text("utf-8")), sheet


def test_a_browser_asks_no_other_host_for_anything(site: Path) -> None:
    path = find_chromium()
    if path is None:
        raise missing("chromium")
    asked: list[str] = []
    # Closed before the test ends: its loop would be the running one in everybody else's.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: asked.append(request.url))
        # Pages with code in several languages, with a picture, and with long tables
        for name in ("connect-your-shop", "dashboard", "reference/api"):
            page.goto((site / f"{name}.html").as_uri())
            page.locator("h1").wait_for()
        browser.close()
    assert len(asked) > 3
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


def test_links_out_of_the_folder_become_names_and_others_stay(site: Path) -> None:
    # A page of the repository that the site does not hold, and one that it does
    assert "training/fit/recipe.py" in text_of(site / "recipe.html")
    assert 'href="../training/' not in (site / "recipe.html").read_text("utf-8")
    assert 'href="../security.html"' in (site / "reference/api.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("call", "scope"),
    [
        ("POST /v1/events", "events:write"),
        ("GET /v1/sessions", "sessions:read"),
        ("POST /v1/model/reload", "model:admin"),
    ],
)
def test_the_api_page_says_which_key_a_call_needs(site: Path, call: str, scope: str) -> None:
    # Given the rule that the service goes by
    method, path = call.split()
    methods = Rules(metrics_public=True).methods(path)
    assert methods is not None
    assert methods[method] == scope
    # Then the page has it right below the call
    _, _, section = text_of(site / "reference/api.html").rpartition(f"{call}&para;")
    assert f"Needs a key with {scope}" in section[:2000]


def test_the_api_page_has_every_body_with_its_fields(site: Path) -> None:
    page = (site / "reference/api.html").read_text("utf-8")
    for name in ("eventin", "scoreout", "batchout", "tracedsessionout", "boardout", "statsout", "problem"):
        assert f'id="{name}"' in page
    for field in ("event_id", "item_category", "next_cursor", "recent_probabilities"):
        assert f"<code>{field}</code>" in page


def test_the_page_of_problems_has_every_code(site: Path) -> None:
    def codes(kind: type[WillbuyError]) -> set[str]:
        return {kind.code} | {code for below in kind.__subclasses__() for code in codes(below)}

    page = (site / "reference/problems.html").read_text("utf-8")
    missing = {code for code in codes(WillbuyError) if f"<code>{code}</code>" not in page}
    assert missing == set()
    assert len(codes(WillbuyError)) > 20


def test_the_page_of_commands_has_every_command_and_option(site: Path) -> None:
    page = text_of(site / "reference/commands.html")
    for command in training_commands.registered_commands:
        name = command.name or getattr(command.callback, "__name__", "")
        assert f"willbuy {name}&para;" in page
    for option in ("--workers", "--keep-open-sessions", "--alarm-share", "--tolerance", "--scope"):
        assert option in page


def test_the_page_of_event_names_has_every_alias(site: Path) -> None:
    page = (site / "reference/event-names.html").read_text("utf-8")
    assert [alias for alias in ALIASES if f"<code>{alias}</code>" not in page] == []


def test_the_page_of_formats_has_every_field_of_the_manifest(site: Path) -> None:
    page = (site / "reference/stored-formats.html").read_text("utf-8")
    assert [name for name in Manifest.__dataclass_fields__ if f"<code>{name}</code>" not in page] == []
    assert "wb:{&lt;shard&gt;}:s:&lt;session id&gt;" in page
