"""The OpenAPI document: FastAPI's, and the bodies that routes read and write as bytes, which FastAPI does not see."""

from functools import partial
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from app.schemas import EventIn, OutcomeIn, Problem


def complete_openapi(app: FastAPI) -> None:
    """Let the app's document define `EventIn`, `OutcomeIn`, `Problem` and what they are made of."""
    # FastAPI offers no hook but this method, see https://fastapi.tiangolo.com/how-to/extending-openapi/.
    app.openapi = partial(_document, app, app.openapi)  # type: ignore[method-assign]


def _document(app: FastAPI, build: Any) -> dict[str, Any]:  # noqa: ANN401 - the method that was replaced
    document: dict[str, Any] = app.openapi_schema or build()
    _, definitions = models_json_schema(
        [(EventIn, "validation"), (OutcomeIn, "validation"), (Problem, "serialization")],
        ref_template="#/components/schemas/{model}",
    )
    document.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
    return document
