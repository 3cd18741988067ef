"""The OpenAPI document: FastAPI's, plus the bodies that routes handle as bytes and the checks of `app.auth`."""

from collections.abc import Collection
from functools import partial
from typing import Any, Final

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app.auth.scopes import Rules
from app.errors import (
    PROBLEM_JSON,
    ForbiddenError,
    HeadTooLargeError,
    MalformedRequestError,
    RateLimitedError,
    UnauthorizedError,
    UnknownPathError,
    WillbuyError,
    problem_codes,
)
from app.schemas.events import EventIn, OutcomeIn
from app.schemas.problems import Problem
from app.schemas.tokens import TokenIn

_SCHEMES: Final[dict[str, dict[str, str]]] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key; `willbuy key new` makes one."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same, where that is easier."},
}


def complete_openapi(app: FastAPI, rules: Rules) -> None:
    """Let the app's document define the bodies that routes read themselves, and say which key a call needs."""
    # FastAPI offers no hook but this method, see https://fastapi.tiangolo.com/how-to/extending-openapi/.
    app.openapi = partial(_document, app, rules, app.openapi)  # type: ignore[method-assign]


def _document(app: FastAPI, rules: Rules, build: Any) -> dict[str, Any]:  # noqa: ANN401 - the method that was replaced
    if app.openapi_schema is not None:
        return app.openapi_schema
    document: dict[str, Any] = build()
    _, definitions = models_json_schema(
        [(EventIn, "validation"), (OutcomeIn, "validation"), (TokenIn, "validation"), (Problem, "serialization")],
        ref_template="#/components/schemas/{model}",
    )
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(definitions["$defs"])
    # Not `enum`: a client of today must take a code of tomorrow.
    components["schemas"]["Problem"]["properties"]["code"]["x-extensible-enum"] = problem_codes()
    components["securitySchemes"] = _SCHEMES
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _document_access(operation, (rules.methods(path) or {}).get(method.upper()))
    app.openapi_schema = document
    return document


def _document_access(operation: dict[str, Any], needed: str | None) -> None:
    """Add to an operation which scope its key must have, and how it is refused."""
    refusals: list[type[WillbuyError]] = [MalformedRequestError, UnknownPathError, HeadTooLargeError]
    if needed is not None:
        operation["security"] = [{name: [needed]} for name in _SCHEMES]
        refusals += [UnauthorizedError, ForbiddenError, RateLimitedError]
    for status, response in documented(*refusals).items():
        known = operation["responses"].setdefault(str(status), response)
        if known is not response:
            known["description"] = f"{known['description']}; {response['description']}"


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


def documented_query(parameters: type[BaseModel], *, without: Collection[str] = ()) -> list[dict[str, Any]]:
    """Return OpenAPI's `parameters` for the fields of a model, but for those left out."""
    schema = parameters.model_json_schema()
    documented = []
    for name, field in schema["properties"].items():
        if name in without:
            continue
        definition = schema["$defs"][field["$ref"].rpartition("/")[2]] if "$ref" in field else {}
        described = {key: value for key, value in (definition | field).items() if key not in {"$ref", "description"}}
        documented.append(
            {
                "name": name,
                "in": "query",
                "required": name in schema.get("required", ()),
                "description": field["description"],
                "schema": described,
            }
        )
    return documented
