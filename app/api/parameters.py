"""How OpenAPI documents query parameters that a route checks by itself."""

from collections.abc import Collection
from typing import Any

from pydantic import BaseModel


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
