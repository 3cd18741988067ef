"""API keys for tests, and their key files."""

import json
from dataclasses import dataclass
from pathlib import Path

import msgspec

from app.auth.keys import ApiKey, digest_of, new_key
from app.auth.scopes import Scope


@dataclass(frozen=True)
class Made:
    """A key and its stored form."""

    key: str
    entry: ApiKey

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}


def make_key(
    *scopes: str, name: str = "shop", events_per_s: float | None = None, segment_secret: str | None = None
) -> Made:
    """Return a new key with these scopes."""
    key = new_key()
    kinds = [Scope(scope) for scope in scopes]
    return Made(key, ApiKey(name, kinds, digest_of(key.encode()).hex(), events_per_s, segment_secret))


def toml(value: object) -> str:
    """Return JSON-like data as TOML: tables inline, without values that are None."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {toml(one)}" for name, one in value.items() if one is not None) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value)


def write_keys(path: Path, *made: Made) -> Path:
    """Write a key file with these keys, replacing an existing one, and return its path."""
    text = f"keys = {toml([msgspec.to_builtins(one.entry) for one in made])}\n"
    written = path.with_suffix(".new")
    written.write_text(text)
    written.replace(path)
    return path
