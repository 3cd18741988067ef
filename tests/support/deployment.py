"""The deployment files as data, and the names of all settings."""

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

from app.settings import Settings

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETTINGS = {f"WILLBUY_{name.upper()}" for name in Settings.model_fields}


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]


def environment_of_settings(text: str) -> set[str]:
    """Return every name in a text that looks like a setting."""
    return set(re.findall(r"\bWILLBUY_[A-Z0-9_]+", text))


def seconds(duration: str) -> float:
    """Return the seconds of a duration in compose's syntax, such as `20s`."""
    found = re.fullmatch(r"(\d+)s", duration)
    assert found is not None, duration
    return float(found[1])
