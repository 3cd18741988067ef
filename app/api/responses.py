"""How answers and problems leave, and how OpenAPI documents them."""

import json
from typing import Any, Final

from fastapi import Response

from app.errors import WillbuyError, to_problem

PROBLEM_JSON: Final = "application/problem+json"


def json_response(content: bytes) -> Response:
    """Return JSON that is serialised already."""
    return Response(content, media_type="application/json")


def problem_response(body: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    """Return a problem; ASCII only, so that whatever a caller sent can be named in it."""
    content = json.dumps(body, ensure_ascii=True, allow_nan=False).encode()
    return Response(content, status_code=body["status"], headers=headers, media_type=PROBLEM_JSON)


def error_response(error: WillbuyError) -> Response:
    """Return an error as a problem, with the headers that belong to it."""
    return problem_response(to_problem(error), dict(error.headers))


def documented(*errors: type[WillbuyError]) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI's `responses` for these errors, those of one status together."""
    by_status: dict[int | str, list[type[WillbuyError]]] = {}
    for error in errors:
        by_status.setdefault(error.status, []).append(error)
    return {
        status: {
            "description": "; ".join(f"`{error.code}`: {error.title}" for error in group),
            "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status, group in by_status.items()
    }
