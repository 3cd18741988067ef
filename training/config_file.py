"""The TOML file of a run's configuration: `--config` reads it, `--print-config` prints it, every run writes it.

The top level and its tables `[fit]`, `[sizes]` and so on are `training.config.TrainSettings`; `[log]` is `LogSettings`
and `[compute]` is `ComputeSettings`. A missing key has its default. Flags override the file, the file the defaults.
"""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, get_type_hints

import tomli_w
from pydantic import TypeAdapter, ValidationError

from training.config import ComputeSettings, LogSettings, RunConfig, TrainSettings

_HEADER: Final = (
    "# Settings of a willbuy training run; `willbuy train DATA --config THIS_FILE --out MODEL` repeats it.\n"
)
# In TOML's terms, where pydantic's messages have objects and tuples.
_EXPECTED: Final = {
    "bool_type": "true or false",
    "dataclass_type": "a table",
    "float_type": "a number",
    "int_type": "a whole number",
    "path_type": "a text",
    "string_type": "a text",
    "tuple_type": "a list",
}


class ConfigError(ValueError):
    """An invalid configuration; the message names the field and the expected value."""


def to_toml(config: RunConfig) -> str:
    """Return the configuration as the text of a TOML file; `read_config` gives the same configuration back."""
    return _HEADER + tomli_w.dumps(config.to_dict())


def read_config(
    path: Path | None, flags: Mapping[str, Any] | None = None, assignments: Sequence[str] = ()
) -> RunConfig:
    """Return the configuration of file, assignments and flags; later ones override earlier ones and the defaults.

    Args:
        path: TOML file, if any.
        flags: values by dotted key; None restores the key's default, even against the file.
        assignments: `KEY=VALUE` with a dotted key and a TOML value; a bare word is a text.

    Raises:
        ConfigError: the file is not readable, a key is unknown, or a value is invalid.
    """
    document = {} if path is None else _read(path)
    if path is not None:
        # The file is validated alone first, so that the message can name it.
        try:
            _checked(document)
        except ConfigError as exc:
            raise ConfigError(f"{path}: {exc}") from exc
    given = dict(map(_assignment, assignments)) | dict(flags or {})
    for key, value in given.items():
        _put(document, key.split("."), value)
    return _checked(document)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as exc:
        raise ConfigError(f"{path}: no such file; `willbuy train --print-config` writes one to start from") from exc
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path}: not a readable TOML file: {exc}") from exc


def _assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key.strip() and equals):
        raise ConfigError(f"--set {text}: expected KEY=VALUE, as in fit.bucket_batches=8")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def _put(document: dict[str, Any], path: list[str], value: Any) -> None:  # noqa: ANN401  # whatever a flag holds
    *tables, last = path
    for name in tables:
        document = document.setdefault(name, {})
        if not isinstance(document, dict):
            raise ConfigError(f"{'.'.join(path)}: {name} is not a table")
    if value is None:
        document.pop(last, None)
    else:
        document[last] = value


def _checked(document: Mapping[str, Any]) -> RunConfig:
    rest = dict(document)
    parts: dict[str, Any] = {
        name: _validated(kind, rest.pop(name, {}), f"{name}.")
        for name, kind in (("log", LogSettings), ("compute", ComputeSettings))
    }
    return RunConfig(_validated(TrainSettings, rest, ""), **parts, chosen=frozenset(_leaves(document)))


def _validated(kind: type[Any], document: Any, prefix: str) -> Any:  # noqa: ANN401  # any of the dataclasses
    if isinstance(document, dict):
        _refuse_unknown(kind, document, prefix)
    try:
        # As JSON, because strict Python values would have tuples where TOML has lists.
        return TypeAdapter(kind).validate_json(json.dumps(document, default=str), strict=True)
    except ValidationError as exc:
        raise ConfigError("; ".join(_message(error, prefix) for error in exc.errors())) from exc


def _message(error: Any, prefix: str) -> str:  # noqa: ANN401  # pydantic's ErrorDetails
    where = prefix + "".join(f"{part}." for part in error["loc"])
    if error["type"] == "value_error":
        # Raised by a dataclass's own check, which names the field.
        return f"{where}{error['ctx']['error']}"
    message = str(error["msg"]).removeprefix("Input should be ")
    return f"{where[:-1] or 'the file'}: expected {_EXPECTED.get(error['type'], message)}, not {error['input']!r}"


def _refuse_unknown(kind: type[Any], document: Mapping[str, Any], prefix: str) -> None:
    hints = get_type_hints(kind)
    names = [each.name for each in fields(kind)]
    # The top level also has the tables of the other two dataclasses.
    known = names if prefix else [*names, "log", "compute"]
    for key, value in document.items():
        if key not in names:
            close = get_close_matches(key, known, 1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"expected one of {', '.join(known)}"
            raise ConfigError(f"{prefix}{key}: unknown; {hint}")
        if is_dataclass(hints[key]) and isinstance(value, dict):
            _refuse_unknown(hints[key], value, f"{prefix}{key}.")


def _leaves(document: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
