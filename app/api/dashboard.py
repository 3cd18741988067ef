"""`GET /dashboard/`: the page, as static files that a browser may run nothing beside.

Every file is read once, when the service starts, so what a request names is looked up and never opened. The page's own
requests go to this service alone, and the content security policy makes sure of that.
"""

import hashlib
import mimetypes
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

_INDEX: Final = "index.html"
# A folder whose name carries a version never changes; everything else is asked for again, which costs a 304.
_VERSIONED: Final = "vendor/"
# Trusted types without any policy: the browser itself refuses to make markup out of a string.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    media_type: str
    tag: str
    cache_control: str


def build_router() -> APIRouter:
    """Return the routes of the page, with its files read."""
    page = _read(files("app") / "api" / "static")
    router = APIRouter(tags=["dashboard"], include_in_schema=False)

    @router.api_route("/", methods=["GET", "HEAD"])
    async def root() -> Response:
        return Response(status_code=307, headers={"Location": "dashboard/", **_HEADERS})

    @router.api_route("/dashboard", methods=["GET", "HEAD"])
    async def dashboard() -> Response:
        # The page's links are relative, so that it works behind a proxy's path prefix too; they need the slash.
        return Response(status_code=308, headers={"Location": "dashboard/", **_HEADERS})

    @router.api_route("/dashboard/{path:path}", methods=["GET", "HEAD"])
    async def dashboard_file(request: Request, path: str) -> Response:
        file = page.get(path or _INDEX)
        if file is None:
            raise HTTPException(404, "The dashboard has no such file")
        headers = {"ETag": file.tag, "Cache-Control": file.cache_control, **_HEADERS}
        if _matches(request.headers.get("if-none-match", ""), file.tag):
            return Response(status_code=304, headers=headers)
        return Response(file.content, media_type=file.media_type, headers=headers)

    return router


def _matches(if_none_match: str, tag: str) -> bool:
    known = [candidate.strip().removeprefix("W/") for candidate in if_none_match.split(",")]
    return tag in known or "*" in known


def _read(folder: Traversable, prefix: str = "") -> dict[str, _File]:
    """Return the files below `folder` by their path from there, `/` between its parts."""
    found: dict[str, _File] = {}
    for entry in folder.iterdir():
        path = prefix + entry.name
        if entry.is_dir():
            found |= _read(entry, f"{path}/")
        else:
            found[path] = _file(path, entry.read_bytes())
    return found


def _file(path: str, content: bytes) -> _File:
    # Browsers run modules as nothing else than JavaScript, and some systems' tables call it plain text.
    media_type = "text/javascript" if path.endswith(".js") else mimetypes.guess_type(path)[0]
    versioned = path.startswith(_VERSIONED)
    return _File(
        content=content,
        media_type=media_type or "text/plain",
        tag=f'"{hashlib.sha256(content).hexdigest()[:32]}"',
        cache_control="public, max-age=31536000, immutable" if versioned else "no-cache",
    )
