"""`willbuy key`: makes API keys."""

import os
import tempfile
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console

from app.auth.keys import AccessError, ApiKey, all_different, digest_of, new_key, read_keys
from app.auth.scopes import Scope

_ERR: Final = Console(stderr=True)

cli = typer.Typer(name="key", no_args_is_help=True, help="Make API keys (docs/security.md).")


@cli.callback()
def _key() -> None:
    # Typer drops the name of a single command unless there is a callback.
    pass


@cli.command()
def new(
    name: Annotated[str, typer.Option("--name", help="Name of the key's user, for the log.")],
    scopes: Annotated[
        list[Scope],
        typer.Option("--scope", help="A permission; may be given several times.", case_sensitive=True),
    ],
    events_per_s: Annotated[
        float | None,
        typer.Option(help="Rate limit: events and other requests a second, over ten seconds.", show_default=False),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", help="Add the entry to this file, and print only the key.", show_default=False),
    ] = None,
) -> None:
    """Print a new key, and its entry for the key file.

    The entry has only the key's hash; the key itself is stored nowhere.
    """
    key = new_key()
    try:
        entry = _entry(name, sorted(set(scopes)), key, events_per_s)
        if file is not None:
            _add(file, entry)
    except AccessError as exc:
        _ERR.print("error:", style="bold red", end=" ")
        _ERR.print(str(exc), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    if file is not None:
        typer.echo(key)
        return
    typer.echo(f"The key, which is shown only once; give it to its user:\n\n{key}\n")
    typer.echo(f"Its entry in the file that WILLBUY_API_KEYS_FILE names:\n\n{_toml(entry)}", nl=False)


def _entry(name: str, scopes: list[Scope], key: str, events_per_s: float | None) -> ApiKey:
    members = {"name": name, "scopes": scopes, "sha256": digest_of(key.encode()).hex()}
    try:
        return msgspec.convert(members if events_per_s is None else members | {"events_per_s": events_per_s}, ApiKey)
    except msgspec.ValidationError as exc:
        raise AccessError(str(exc)) from exc


def _toml(entry: ApiKey) -> str:
    scopes = ", ".join(f'"{scope}"' for scope in entry.scopes)
    lines = ["[[keys]]", f'name = "{entry.name}"', f"scopes = [{scopes}]", f'sha256 = "{entry.sha256}"']
    if entry.events_per_s is not None:
        lines.append(f"events_per_s = {entry.events_per_s!r}")
    return "\n".join(lines) + "\n"


def _add(file: Path, entry: ApiKey) -> None:
    """Add an entry to a file, atomically: the service may be reading the file."""
    target = file.resolve()
    try:
        before = ""
        if target.exists():
            all_different((*read_keys(target), entry))
            before = target.read_text("utf-8").rstrip("\n") + "\n\n"
        handle, written = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(before + _toml(entry))
        if before:
            Path(written).chmod(target.stat().st_mode & 0o777)
        Path(written).replace(target)
    except OSError as exc:
        raise AccessError(f"{file}: {exc.strerror}") from exc
