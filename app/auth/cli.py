"""`willbuy key`: makes, lists and revokes API keys."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from app.auth.keys import AccessError, ApiKey, all_different, digest_of, new_key, read_keys
from app.auth.scopes import Scope
from model.atomic_write import replacing

_ERR: Final = Console(stderr=True)
_SHOWN_DIGITS: Final = 12

cli = typer.Typer(name="key", no_args_is_help=True, help="Make, list and revoke API keys (docs/security.md).")


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
    with _errors_for_people():
        entry = _entry(name, sorted(set(scopes)), key, events_per_s)
        if file is not None:
            _add(file, entry)
    if file is not None:
        typer.echo(key)
        return
    typer.echo(f"The key, which is shown only once; give it to its user:\n\n{key}\n")
    typer.echo(f"Its entry in the file that WILLBUY_API_KEYS_FILE names:\n\n{_toml(entry)}", nl=False)


_KeyFile = Annotated[
    Path, typer.Option("--file", help="The key file.", envvar="WILLBUY_API_KEYS_FILE", show_default=False)
]


@cli.command("list")
def list_keys(file: _KeyFile) -> None:
    """Show the keys of a file: user, scopes, rate limit, and the first digits of the key's hash."""
    with _errors_for_people():
        entries = read_keys(file)
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "scopes", "events/s", "sha256"):
        table.add_column(heading, no_wrap=heading != "scopes")
    for entry in entries:
        limit = "" if entry.events_per_s is None else f"{entry.events_per_s:g}"
        table.add_row(entry.name, ", ".join(entry.scopes), limit, entry.sha256[:_SHOWN_DIGITS].lower())
    Console().print(table, highlight=False)


@cli.command()
def revoke(
    file: _KeyFile,
    name: Annotated[
        str | None, typer.Option("--name", help="Revoke all keys of this user.", show_default=False)
    ] = None,
    sha256: Annotated[
        str | None,
        typer.Option(
            "--sha256", help="Revoke one key, by the first digits that `willbuy key list` shows.", show_default=False
        ),
    ] = None,
) -> None:
    """Remove keys from a file; running services refuse them within two seconds.

    The last key of a file cannot be revoked, since a service needs one: make another first.
    """
    with _errors_for_people():
        if (name is None) == (sha256 is None):
            raise AccessError("expected either --name or --sha256")
        entries = read_keys(file)
        revoked = [
            entry
            for entry in entries
            if (entry.name == name if sha256 is None else entry.sha256.lower().startswith(sha256.lower()))
        ]
        wanted = f"the name {name!r}" if sha256 is None else f"a hash that begins with {sha256!r}"
        if not revoked or sha256 == "":
            raise AccessError(f"{file}: no key has {wanted}; it has {', '.join(sorted({one.name for one in entries}))}")
        if sha256 is not None and len(revoked) > 1:
            raise AccessError(f"{file}: {len(revoked)} keys have {wanted}; give more digits")
        if len(revoked) == len(entries):
            raise AccessError(f"{file}: a service needs a key; make another before the last one is revoked")
        _replace(file, "\n".join(_toml(entry) for entry in entries if entry not in revoked))
    typer.echo(f"Revoked {len(revoked)} of {len(entries)} keys.")


@contextmanager
def _errors_for_people() -> Iterator[None]:
    """Print an `AccessError` as one line and end with exit code 1."""
    try:
        yield
    except AccessError as exc:
        _ERR.print("error:", style="bold red", end=" ")
        _ERR.print(str(exc), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None


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
    if entry.segment_secret is not None:
        # JSON's texts are TOML's basic strings.
        lines.append(f"segment_secret = {json.dumps(entry.segment_secret)}")
    return "\n".join(lines) + "\n"


def _add(file: Path, entry: ApiKey) -> None:
    """Add an entry to a file."""
    before = ""
    if file.exists():
        all_different((*read_keys(file), entry))
        before = file.read_text("utf-8").rstrip("\n") + "\n\n"
    _replace(file, before + _toml(entry))


def _replace(file: Path, text: str) -> None:
    """Write a file atomically, with the permissions that it had: the service may be reading it."""
    target = file.resolve()
    try:
        with replacing(target, mode=target.stat().st_mode & 0o777 if target.exists() else 0o600) as temporary:
            temporary.write_text(text, "utf-8")
    except OSError as exc:
        raise AccessError(f"{file}: {exc.strerror}") from exc
