"""The text of `reference/api.md`: the HTTP interface, from the OpenAPI document of the app."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

from app.main import create_app
from app.settings import Settings
from model.interface import Model

Json = Mapping[str, Any]

_INTRODUCTION: Final = """# API

This page lists every call of the service's `/openapi.json`; client generators read that document directly. Bodies are
JSON. A body with an unknown field or a field of another type is refused. Errors are `application/problem+json`
(RFC 9457), and [each code](problems.md) is stable. Send [the key](../security.md) as `Authorization: Bearer` or
`X-API-Key`. The files of [the dashboard](../dashboard.md) below `/dashboard` are not listed.
"""


def document() -> dict[str, Any]:
    """Return the OpenAPI document of the service without starting the service."""
    # Only fingerprint and engine of a model are read before the service starts.
    model = cast("Model", SimpleNamespace(fingerprint="none", engine="torchscript"))
    settings = Settings(artifact=Path("none.pt"), open_access=True, log_level="error")
    return create_app(settings, model=model).openapi()


def page(document: Json) -> str:
    """Return the Markdown of an OpenAPI document: its calls in order, then their bodies by name."""
    parts = [_INTRODUCTION]
    calls = ((method, path, call) for path, methods in document["paths"].items() for method, call in methods.items())
    parts.extend("\n".join(_call(*one)) for one in calls)
    parts.append("## Bodies\n")
    schemas = document["components"]["schemas"]
    parts.extend("\n".join(_body(name, schemas[name])) for name in sorted(schemas))
    return "\n".join(parts)


def _call(method: str, path: str, call: Json) -> Iterator[str]:
    yield f"## `{method.upper()} {path}`\n"
    yield f"{call['summary']}\n" if "summary" in call else ""
    yield f"{call['description']}\n" if "description" in call else ""
    scopes = {scope for one in call.get("security", []) for needed in one.values() for scope in needed}
    yield f"Needs a key with `{'`, `'.join(sorted(scopes))}`, unless access is open.\n" if scopes else "Needs no key.\n"
    parameters = call.get("parameters", [])
    if parameters:
        yield "| parameter | in | type | default | |\n|---|---|---|---|---|"
        for parameter in parameters:
            schema = parameter["schema"]
            needed = "required" if parameter.get("required") else _code(schema.get("default"))
            text = parameter.get("description") or schema.get("description") or ""
            yield f"| `{parameter['name']}` | {parameter['in']} | {_type(schema)} | {needed} | {_cell(text)} |"
        yield ""
    for media_type, content in call.get("requestBody", {}).get("content", {}).items():
        yield f"Body, `{media_type}`: {_type(content['schema'])}\n"
    yield "| status | body | |\n|---|---|---|"
    for status, response in sorted(call["responses"].items()):
        bodies = [_type(content.get("schema", {})) for content in response.get("content", {}).values()]
        yield f"| {status} | {', '.join(dict.fromkeys(bodies))} | {_cell(response.get('description', ''))} |"
    yield ""


def _body(name: str, schema: Json) -> Iterator[str]:
    yield f"### {name}\n"
    yield f"{schema['description']}\n" if "description" in schema else ""
    if "properties" not in schema:
        yield f"{_type(schema)}\n"
        return
    required = schema.get("required", [])
    yield "| field | type | default | |\n|---|---|---|---|"
    for field, facts in schema["properties"].items():
        default = "required" if field in required else _code(facts.get("default"))
        yield f"| `{field}` | {_type(facts)} | {default} | {_cell(facts.get('description', ''))} |"
    yield ""


def _type(schema: Json) -> str:  # noqa: PLR0911 - one line a kind
    """Return a schema's type in words, with a link where it is a body of its own."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return " or ".join(_type(one) for one in schema[choice])
    if "allOf" in schema:
        return _type(schema["allOf"][0])
    if "const" in schema:
        return _code(schema["const"])
    if "enum" in schema:
        return " or ".join(map(_code, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if isinstance(schema.get("additionalProperties"), Mapping):
        return f"object of {_type(schema['additionalProperties'])}"
    return f"{schema.get('type', 'any')}{_bounds(schema)}"


def _bounds(schema: Json) -> str:
    words = {"minimum": "at least {:g}", "exclusiveMinimum": "above {:g}", "maximum": "at most {:g}"}
    words |= {"minLength": "{:g} characters or more", "maxLength": "at most {:g} characters"}
    found = [text.format(schema[key]) for key, text in words.items() if key in schema]
    found += [schema["format"]] if "format" in schema else []
    return f" ({', '.join(found)})" if found else ""


def _code(value: object) -> str:
    return "" if value is None else f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
