"""`willbuy webhooks`: the queues of a running service's webhooks, and its dead messages."""

import json
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from app.runtime.service_call import Key, Url, call

_ERR: Final = Console(stderr=True)
_OUT: Final = Console()

cli = typer.Typer(name="webhooks", no_args_is_help=True, help="Look at webhooks, and send given-up messages again.")

Name = Annotated[str, typer.Argument(metavar="WEBHOOK", help="Its name, as `willbuy webhooks list` has it.")]


@cli.command("list")
def list_webhooks(url: Url = "http://127.0.0.1:8000", api_key: Key = None) -> None:
    """Show each webhook with the messages that wait and those that were given up."""
    table = Table("webhook", "rules")
    for heading in ("waiting", "given up"):
        table.add_column(heading, justify="right")
    for webhook in call(url, api_key, "GET", "/v1/interventions")["webhooks"]:
        rules = "all" if webhook["rules"] is None else ", ".join(webhook["rules"])
        table.add_row(webhook["name"], rules, str(webhook["waiting"]), str(webhook["dead"]))
    _OUT.print(table)


@cli.command()
def dead(
    name: Name,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most messages, latest first.")] = 100,
    url: Url = "http://127.0.0.1:8000",
    api_key: Key = None,
) -> None:
    """Print the messages that were given up, one JSON object a line."""
    found = call(url, api_key, "GET", f"/v1/webhooks/{name}/dead", params={"limit": limit})
    for message in found["messages"]:
        typer.echo(json.dumps(message))
    _ERR.print(f"{len(found['messages']):,} of {found['dead']:,} given-up messages", markup=False)


@cli.command()
def resend(
    name: Name,
    ids: Annotated[
        list[str] | None, typer.Option("--id", help="Id of a message; may be repeated. None: all.", show_default=False)
    ] = None,
    url: Url = "http://127.0.0.1:8000",
    api_key: Key = None,
) -> None:
    """Send given-up messages again, with the same ids."""
    found = call(url, api_key, "POST", f"/v1/webhooks/{name}/resend", json={"ids": ids} if ids else {})
    typer.echo(f"{found['resent']:,} messages wait to be sent again")
