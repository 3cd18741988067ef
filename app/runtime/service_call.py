"""A call of a running service from the command line, with errors for people."""

from typing import Annotated, Any, Final

import httpx
import typer
from rich.console import Console

_ERR: Final = Console(stderr=True)
_TIMEOUT_S: Final = 30.0

Url = Annotated[str, typer.Option(help="URL of the service.")]
Key = Annotated[
    str | None,
    typer.Option("--api-key", help="API key.", envvar="WILLBUY_API_KEY", show_default=False, show_envvar=True),
]


def call(url: str, api_key: str | None, method: str, path: str, **options: Any) -> Any:  # noqa: ANN401 - JSON
    """Return the JSON of an answer; where there is none, print why and exit with status 1."""
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
