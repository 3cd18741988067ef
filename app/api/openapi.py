"""The OpenAPI document: FastAPI's, and what FastAPI does not see.

That are the bodies which routes read and write as bytes, and the door that all requests pass before any route
(`app.auth`).
"""

from functools import partial
from typing import Any, Final

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from app.api.responses import documented
from app.auth.scopes import Rules
from app.errors import ForbiddenError, HeadTooLargeError, RateLimitedError, UnauthorizedError, WillbuyError
from app.schemas.events import EventIn, OutcomeIn, Problem

_SCHEMES: Final[dict[str, dict[str, str]]] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key; `willbuy key new` makes one."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same, where that is easier."},
}


def complete_openapi(app: FastAPI, rules: Rules) -> None:
    """Let the app's document define the bodies `EventIn`, `OutcomeIn` and `Problem`, and say which key a call needs."""
    # FastAPI offers no hook but this method, see https://fastapi.tiangolo.com/how-to/extending-openapi/.
    app.openapi = partial(_document, app, rules, app.openapi)  # type: ignore[method-assign]


def _document(app: FastAPI, rules: Rules, build: Any) -> dict[str, Any]:  # noqa: ANN401 - the method that was replaced
    if app.openapi_schema is not None:
        return app.openapi_schema
    document: dict[str, Any] = build()
    _, definitions = models_json_schema(
        [(EventIn, "validation"), (OutcomeIn, "validation"), (Problem, "serialization")],
        ref_template="#/components/schemas/{model}",
    )
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(definitions["$defs"])
    components["securitySchemes"] = _SCHEMES
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _document_access(operation, (rules.methods(path) or {}).get(method.upper()))
    app.openapi_schema = document
    return document


def _document_access(operation: dict[str, Any], needed: str | None) -> None:
    """Add to an operation which scope its key must have, and how it is refused."""
    refusals: list[type[WillbuyError]] = [HeadTooLargeError]
    if needed is not None:
        operation["security"] = [{name: [needed]} for name in _SCHEMES]
        refusals += [UnauthorizedError, ForbiddenError, RateLimitedError]
    for status, response in documented(*refusals).items():
        known = operation["responses"].setdefault(str(status), response)
        if known is not response:
            known["description"] = f"{known['description']}; {response['description']}"
