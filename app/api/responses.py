"""How answers and problems leave, and how OpenAPI documents them."""

from typing import Any

from fastapi import Response

from app.errors import PROBLEM_JSON, WillbuyError


def json_response(content: bytes) -> Response:
    """Return JSON that is serialised already."""
    return Response(content, media_type="application/json")


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
