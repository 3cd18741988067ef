"""The text of `reference/commands.md`: every command of `willbuy` with its arguments and options."""

from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any, Final

import typer
from typer.main import get_group

from app.auth.cli import cli as keys
from app.cli import cli, readable
from app.interventions.cli import cli as webhooks

_INTRODUCTION: Final = """# Commands

`willbuy COMMAND --help` prints the same text in the terminal.
"""


def page() -> str:
    """Return the Markdown of all commands that are installed."""
    groups = [get_group(cli), *(get_group(found.load()) for found in entry_points(group="willbuy.commands"))]
    named = [*_commands(f"willbuy {keys.info.name}", [get_group(keys)])]
    named += _commands(f"willbuy {webhooks.info.name}", [get_group(webhooks)])
    commands = dict(sorted([*_commands("willbuy", groups), *named]))
    return "\n".join([_INTRODUCTION, *("\n".join(_section(name, command)) for name, command in commands.items())])


def _commands(prefix: str, groups: list[Any]) -> Iterator[tuple[str, Any]]:
    for group in groups:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from _commands(f"{prefix} {name}", [command])
            else:
                yield f"{prefix} {name}", command


def _section(name: str, command: Any) -> Iterator[str]:  # noqa: ANN401 - typer carries click inside and shows no types of it
    context = typer.Context(readable(command), info_name=name)
    yield f"## `{name}`\n"
    yield f"    {' '.join([name, *command.collect_usage_pieces(context)])}\n"
    yield f"{(command.help or '').strip()}\n"
    records = [(one, one.get_help_record(context)) for one in command.get_params(context) if one.name != "help"]
    if any(record for _, record in records):
        yield "| | |\n|---|---|"
    yield from (f"| `{record[0].strip()}` | {_cell(record[1])} |" for _, record in records if record)
    yield ""


def _cell(text: str) -> str:
    """Return help text for a table's cell, without the terminal's markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("[required]", "(required)")
