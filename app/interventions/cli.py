"""`willbuy webhooks`: the queues of a running service's webhooks, and its dead messages."""

import json
from typing import Annotated, Any, Final

import httpx
import typer
from rich.console import Console
from rich.table import Table

_ERR: Final = Console(stderr=True)
_OUT: Final = Console()
_TIMEOUT_S: Final = 30.0

cli = typer.Typer(name="webhooks", no_args_is_help=True, help="Look at webhooks, and send given-up messages again.")

Url = Annotated[str, typer.Option(help="The service.")]
Key = Annotated[
    str | None,
    typer.Option("--api-key", help="API key.", envvar="WILLBUY_API_KEY", show_default=False, show_envvar=True),
]
Name = Annotated[str, typer.Argument(metavar="WEBHOOK", help="Its name, as `willbuy webhooks list` has it.")]


@cli.command("list")
def list_webhooks(url: Url = "http://127.0.0.1:8000", api_key: Key = None) -> None:
    """Show each webhook with the messages that wait and those that were given up."""
    table = Table("webhook", "rules")
    for heading in ("waiting", "given up"):
        table.add_column(heading, justify="right")
    for webhook in _call(url, api_key, "GET", "/v1/interventions")["webhooks"]:
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
    found = _call(url, api_key, "GET", f"/v1/webhooks/{name}/dead", params={"limit": limit})
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
    found = _call(url, api_key, "POST", f"/v1/webhooks/{name}/resend", json={"ids": ids} if ids else {})
    typer.echo(f"{found['resent']:,} messages wait to be sent again")


def _call(url: str, api_key: str | None, method: str, path: str, **options: Any) -> Any:  # noqa: ANN401 - JSON
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        response = httpx.request(method, f"{url.rstrip('/')}{path}", headers=headers, timeout=_TIMEOUT_S, **options)
        body = response.json()
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise _failed(f"{url}: {exc}") from None
    except ValueError:
        raise _failed(f"{url}: the answer is not JSON; is it a willbuy service?") from None
    if not response.is_success:
        raise _failed(f"{url}: {body.get('detail', response.status_code) if isinstance(body, dict) else body}")
    return body


def _failed(message: str) -> typer.Exit:
    _ERR.print("error:", style="bold red", end=" ")
    _ERR.print(message, markup=False, highlight=False, soft_wrap=True)
    return typer.Exit(1)
