"""The text of `reference/settings.md`: every setting of the service, from the docstrings in `app/settings.py`."""

import re
from collections.abc import Mapping
from typing import Final

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from app.settings import ENV_PREFIX, REMOVED_SETTINGS, Settings

_INTRODUCTION: Final = """# Settings of the service

Each setting is an environment variable, read once at start. An invalid value stops the start with one line that names
the variable. Times are in seconds, sizes in bytes.
"""
_REMOVED: Final = """
## Variables of earlier releases

A variable of this list changes nothing; the log names it at the start.

| Variable | What holds now |
|---|---|
"""
_HEAD: Final = "| Variable | Default | Meaning |\n|---|---|---|\n"

# Title and introduction of each section by its first setting, in the order of the class.
_SECTIONS: Final[Mapping[str, tuple[str, str]]] = {
    "artifact": ("Model", ""),
    "api_keys_file": ("Access", "See [security](../security.md)."),
    "redis_url": ("Redis", ""),
    "session_idle_s": ("Sessions", ""),
    "max_queue": ("Limits", ""),
    "outcomes_kept": (
        "Outcomes and model quality",
        "See [outcomes](../outcomes.md) and [model quality](../quality.md).",
    ),
    "drain_delay_s": ("Stopping", ""),
    "log_session_ids": ("Log", ""),
}
_PAGE: Final = re.compile(r"docs/(([a-z-]+)\.md(#[a-z0-9-]+)?)")


def page() -> str:
    """Return the Markdown of all settings, in the order of the class."""
    parts = [_INTRODUCTION]
    for name, field in Settings.model_fields.items():
        if name in _SECTIONS:
            title, introduction = _SECTIONS[name]
            parts.append(f"\n## {title}\n\n" + (f"{introduction}\n\n" if introduction else "") + _HEAD)
        parts.append(f"| `{ENV_PREFIX}{name.upper()}` | {_default(field)} | {_meaning(field)} |\n")
    parts.append(_REMOVED + "".join(f"| `{name}` | {hint} |\n" for name, hint in REMOVED_SETTINGS.items()))
    return "".join(parts)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
    return "none" if value is None else f"`{value}`"


def _meaning(field: FieldInfo) -> str:
    text = " ".join((field.description or "").split())
    return _PAGE.sub(r"[\2](../\1)", text)
