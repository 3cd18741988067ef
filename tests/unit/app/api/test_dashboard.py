"""The dashboard's files over HTTP, without a browser."""

import hashlib
import re
from importlib.resources import files
from pathlib import Path

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient

from app.api.dashboard import build_router

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client():
    app = FastAPI(redirect_slashes=False)
    app.include_router(build_router())
    async with AsyncClient(transport=ASGITransport(app), base_url="http://shop") as client:
        yield client


def page_files() -> dict[str, bytes]:
    folder = Path(str(files("app") / "api" / "static"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def test_the_page_redirects_to_its_folder_by_a_relative_location(client) -> None:
    redirect = await client.get("/dashboard")
    assert (redirect.status_code, redirect.headers["location"]) == (308, "dashboard/")
    page = await client.get("/dashboard/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "<title>willbuy</title>" in page.text


async def test_every_file_is_served_with_its_media_type_and_head_returns_the_same_headers(client) -> None:
    types = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    for path, content in page_files().items():
        answer = await client.get(f"/dashboard/{path}")
        assert answer.content == content
        ending = path.rpartition(".")[2]
        assert answer.headers["content-type"].startswith(types.get(ending, "text/"))
        head = await client.head(f"/dashboard/{path}")
        assert head.headers == answer.headers


async def test_a_matching_etag_gives_304_and_only_versioned_files_are_immutable(client) -> None:
    for path, caching in [("main.js", "no-cache"), ("vendor/uplot-1.6.32/uPlot.iife.min.js", "immutable")]:
        first = await client.get(f"/dashboard/{path}")
        assert caching in first.headers["cache-control"]
        tag = first.headers["etag"]
        for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            again = await client.get(f"/dashboard/{path}", headers={"If-None-Match": known})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        other = await client.get(f"/dashboard/{path}", headers={"If-None-Match": '"other"'})
        assert other.status_code == 200


@pytest.mark.parametrize("path", ["", "/", "/main.js", "/vendor/uplot-1.6.32/uPlot.min.css"])
async def test_every_answer_carries_the_policy(client, path) -> None:
    answer = await client.get(f"/dashboard{path}")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["nothing.js", "../routes/dashboard.py", "%2e%2e/settings.py", "vendor", "vendor/"])
async def test_nothing_else_is_served(client, path) -> None:
    answer = await client.get(f"/dashboard/{path}")
    assert answer.status_code == 404


def test_the_page_names_no_other_host_and_has_no_inline_script_or_style() -> None:
    own = {path: content.decode() for path, content in page_files().items() if not path.startswith("vendor/")}
    for path, text in own.items():
        # The SVG namespace is an identifier; the browser does not request it.
        assert re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text.replace("http://www.w3.org/2000/svg", "")) == [], path
        assert "innerHTML" not in text
    page = own["index.html"]
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]*\ssrc=)", page)


def test_the_vendored_uplot_equals_the_published_package() -> None:
    # SHA-256 of the files in `dist/` of the npm package.
    published = {
        "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
        "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    }
    vendored = page_files()
    for name, digest in published.items():
        assert hashlib.sha256(vendored[f"vendor/uplot-1.6.32/{name}"]).hexdigest() == digest
    assert b"MIT" in vendored["vendor/uplot-1.6.32/LICENSE"]
