"""A run's whole configuration as a TOML file: what `--config` reads, `--print-config` writes and every run leaves.

The file's top level and the tables `[fit]`, `[sizes]` and `[vocabulary]` are `training.settings.TrainSettings`; `[log]`
says how a raw log is read and `[compute]` where to compute. A key that is left out has its default. Flags win over the
file, the file over the defaults.
"""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal, get_type_hints

import tomli_w
from pydantic import TypeAdapter, ValidationError

from training.data.prepare import DEFAULT_IDLE_TIMEOUT_S
from training.data.sessions import DEFAULT_FRACTIONS, fractions_for
from training.data.sources import AUTO
from training.settings import TrainSettings

_HEADER: Final = (
    "# Settings of a willbuy training run; `willbuy train DATA --config THIS_FILE --out MODEL` repeats it.\n"
)
# In the words of TOML; pydantic speaks of objects and tuples.
_EXPECTED: Final = {
    "bool_type": "true or false",
    "dataclass_type": "a table",
    "float_type": "a number",
    "int_type": "a whole number",
    "string_type": "a text",
    "tuple_type": "a list",
}

Device = Literal["auto", "cpu", "cuda"]


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the field and what was expected."""


@dataclass(frozen=True, slots=True)
class LogSettings:
    """How a raw log is read; prepared sessions have been read already.

    Attributes:
        format: a known format, `auto` or `mapping`.
        mapping: path of a TOML file that says which column is what.
        idle_timeout_s: idle seconds that end a session.
        keep_open_sessions: keep sessions that the log's end cuts off.
    """

    format: str = AUTO
    mapping: str | None = None
    idle_timeout_s: float = DEFAULT_IDLE_TIMEOUT_S
    keep_open_sessions: bool = False


@dataclass(frozen=True, slots=True)
class ComputeSettings:
    """Where to compute; the last digits of a result depend on it.

    Attributes:
        device: `auto` takes a GPU where there is one.
        threads: CPU threads; one is quickest for a small network.
    """

    device: Device = "auto"
    threads: int = 1

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"threads: expected a whole number from 1 up, not {self.threads}")


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything that decides what `willbuy train` makes of its data.

    Attributes:
        train: what is computed.
        log: how a raw log is read.
        compute: where.
        chosen: dotted keys that file or flags set, as opposed to defaults.
    """

    train: TrainSettings = field(default_factory=TrainSettings)
    log: LogSettings = field(default_factory=LogSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    chosen: frozenset[str] = frozenset()

    def for_sessions(self, sessions: int) -> "RunConfig":
        """Return this configuration with the parts' shares for a log of so many sessions, unless others were chosen."""
        if "fractions" in self.chosen or self.train.fractions != DEFAULT_FRACTIONS:
            return self
        return replace(self, train=replace(self.train, fractions=fractions_for(sessions)))

    def to_dict(self) -> dict[str, Any]:
        """Return what the file holds: JSON-ready, without the keys that have no value."""
        document = {**asdict(self.train), "log": asdict(self.log), "compute": asdict(self.compute)}
        plain: dict[str, Any] = json.loads(json.dumps(document))
        return _without_none(plain)

    def to_toml(self) -> str:
        """Return the file's text; `read_config` gives the same configuration back."""
        return _HEADER + tomli_w.dumps(self.to_dict())


def read_config(
    path: Path | None, flags: Mapping[str, Any] | None = None, assignments: Sequence[str] = ()
) -> RunConfig:
    """Return the configuration of file, assignments and flags; the later of these win, all over the defaults.

    Args:
        path: TOML file, if any.
        flags: values by dotted key; None means the key's default, whatever the file says.
        assignments: `KEY=VALUE` with a dotted key and a TOML value, a bare word counting as a text.

    Raises:
        ConfigError: the file is not readable, or a key is unknown or its value is not what was expected.
    """
    document = {} if path is None else _read(path)
    if path is not None:
        # By itself first, so that the message can tell the file from the flags.
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
            raise ConfigError(f"{'.'.join(path)}: {name} is no table")
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
        raise ConfigError("; ".join(_said(error, prefix) for error in exc.errors())) from exc


def _said(error: Any, prefix: str) -> str:  # noqa: ANN401  # pydantic's ErrorDetails
    where = prefix + "".join(f"{part}." for part in error["loc"])
    if error["type"] == "value_error":
        # Raised by a dataclass that looks at its own fields: it names the field itself.
        return f"{where}{error['ctx']['error']}"
    message = str(error["msg"]).removeprefix("Input should be ")
    return f"{where[:-1] or 'the file'}: expected {_EXPECTED.get(error['type'], message)}, not {error['input']!r}"


def _refuse_unknown(kind: type[Any], document: Mapping[str, Any], prefix: str) -> None:
    hints = get_type_hints(kind)
    names = [each.name for each in fields(kind)]
    # At the top level the other tables are at home too.
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


def _without_none(document: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in document.items()
        if value is not None
    }
