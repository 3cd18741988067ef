"""API keys of tests, and the files that let them in."""

from dataclasses import dataclass
from pathlib import Path

from app.auth.keys import ApiKey, digest_of, new_key
from app.auth.scopes import Scope


@dataclass(frozen=True)
class Made:
    """A key, and what is kept of it."""

    key: str
    entry: ApiKey

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}


def make_key(*scopes: str, name: str = "shop", events_per_s: float | None = None) -> Made:
    """Return a new key with these scopes."""
    key = new_key()
    kinds = [Scope(scope) for scope in scopes]
    return Made(key, ApiKey(name, kinds, digest_of(key.encode()).hex(), events_per_s))


def write_keys(path: Path, *made: Made) -> Path:
    """Write a file that lets these in, in the place of any before, and return its path."""
    text = ""
    for one in made:
        scopes = ", ".join(f'"{scope}"' for scope in one.entry.scopes)
        text += f'[[keys]]\nname = "{one.entry.name}"\nscopes = [{scopes}]\nsha256 = "{one.entry.sha256}"\n'
        if one.entry.events_per_s is not None:
            text += f"events_per_s = {one.entry.events_per_s}\n"
    written = path.with_suffix(".new")
    written.write_text(text)
    written.replace(path)
    return path
