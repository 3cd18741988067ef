"""An answer that is serialised once and sent to many callers, with its entity tag."""

from hashlib import blake2b
from typing import Final, NamedTuple

from fastapi import Response
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

_TAG_BYTES: Final = 12
_JSON: Final = (b"content-type", b"application/json")
# Only browsers may cache, and they validate each time: with the tag, an unchanged answer has no body.
_CACHE_CONTROL: Final = (b"cache-control", b"private, no-cache")


class Content(NamedTuple):
    """A body in JSON and its entity tag, quotes included."""

    body: bytes
    tag: bytes


def content_of(answer: BaseModel, *, leave_out_unset: bool = False) -> Content:
    """Return an answer as JSON; the tag is its hash, so equal answers have equal tags on every replica."""
    body = answer.model_dump_json(exclude_unset=leave_out_unset, by_alias=True).encode()
    return Content(body, b'"' + blake2b(body, digest_size=_TAG_BYTES).hexdigest().encode() + b'"')


class ContentResponse(Response):
    """Sends content, or 304 without a body when `If-None-Match` has its tag (RFC 9110, section 13.1.2)."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        """Answer one request."""
        body, tag = self._content
        tags = next((value for name, value in scope["headers"] if name == b"if-none-match"), b"")
        headers = [(b"etag", tag), _CACHE_CONTROL]
        if tags and (tag in tags or tags.strip() == b"*"):
            self.status_code = 304
            await send({"type": "http.response.start", "status": 304, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        self.status_code = 200
        headers += [_JSON, (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
