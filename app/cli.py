"""The `willbuy` command: `serve` from here, and what the installed packages add as entry points.

`app` knows nothing of `training`: sub-commands are found under the entry-point group `willbuy.commands`, so that the
serving image, which carries no training package, has the same command.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console

from app.auth.cli import cli as key_cli

if TYPE_CHECKING:
    from app.settings import Settings

_ERR: Final = Console(stderr=True)
_GRACE_S: Final = 10

cli = typer.Typer(
    name="willbuy",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Real-time purchase prediction: train on past sessions, then score running ones after every page view.",
    epilog="Start with [bold]willbuy demo[/bold]. Each command explains itself: willbuy COMMAND --help.",
)


def _print_version(wanted: bool) -> None:  # typer calls it so
    if wanted:
        typer.echo(f"willbuy {version('willbuy')}")
        raise typer.Exit


@cli.callback()
def _main(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,  # typer's way to say a flag
) -> None:
    pass


@cli.command(rich_help_panel="Serving")
def serve(
    artifact: Annotated[
        Path | None, typer.Option("--artifact", help="The model; otherwise WILLBUY_ARTIFACT.", show_default=False)
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    redis_url: Annotated[
        str | None,
        typer.Option(
            "--redis-url",
            help="Redis or Valkey; otherwise WILLBUY_REDIS_URL, otherwise a server of its own that keeps nothing.",
            show_default=False,
        ),
    ] = None,
    open_access: Annotated[
        bool,
        typer.Option("--open", help="Let in everybody without an API key, for trying out: WILLBUY_OPEN_ACCESS."),
    ] = False,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 1,
) -> None:
    """Serve an artifact over HTTP.

    Every other setting is an environment variable; docs/settings.md lists them.
    """
    import uvicorn  # noqa: PLC0415  # `willbuy --help` need not wait for it
    from pydantic import ValidationError  # noqa: PLC0415  # same

    from app.auth.keys import AccessError  # noqa: PLC0415  # same
    from app.auth.setup import read_access  # noqa: PLC0415  # same
    from app.monitoring.logging import server_log_config  # noqa: PLC0415  # same
    from app.monitoring.worker_metrics import metrics_of_workers  # noqa: PLC0415  # same
    from app.runtime.embedded_redis import EmbeddedServerError  # noqa: PLC0415  # same
    from app.settings import Settings  # noqa: PLC0415  # same
    from model.artifact import ArtifactError, read_manifest  # noqa: PLC0415  # same: torch

    # Workers are processes of their own and read the environment, so options go there.
    if artifact is not None:
        os.environ["WILLBUY_ARTIFACT"] = str(artifact)
    if redis_url is not None:
        os.environ["WILLBUY_REDIS_URL"] = redis_url
    if open_access:
        os.environ["WILLBUY_OPEN_ACCESS"] = "true"
    try:
        settings = Settings()
        manifest = read_manifest(settings.artifact, sha256=settings.artifact_sha256)
        # Each worker looks again; here it is said once, and before anything is started.
        read_access(settings)
        tell = _teller(settings)
        with _redis(tell), metrics_of_workers() if workers > 1 else nullcontext():
            tell("starting", f"willbuy {version('willbuy')}: model {manifest.fingerprint} of {manifest.created}")
            tell("listening", f"listening on http://{host}:{port}; the API is described at /openapi.json")
            uvicorn.run(
                "app.main:create_app",
                factory=True,
                host=host,
                port=port,
                workers=workers,
                # Nothing here asks for a caller's address, and reading it costs every request.
                proxy_headers=False,
                # By its name, as workers are told of it too.
                http="app.runtime.http_protocol:BoundedHttp",
                # The service writes its own log, one line a request at most and no session ids in paths.
                access_log=False,
                log_config=server_log_config(settings.log_format),
                timeout_graceful_shutdown=_GRACE_S,
            )
    except ValidationError as exc:
        for error in exc.errors(include_input=False, include_url=False):
            name = "_".join(str(part) for part in error["loc"]).upper()
            _fail(f"WILLBUY_{name}: {error['msg']}" if name else str(error["msg"]))
        raise typer.Exit(1) from None
    except (AccessError, ArtifactError, EmbeddedServerError) as exc:
        _fail(str(exc))
        raise typer.Exit(1) from None


def _teller(settings: "Settings") -> Callable[[str, str], None]:
    """Return what tells of the start: to people in words, to a log collector in lines like all others of the log."""
    from app.monitoring.logging import build_logger  # noqa: PLC0415  # `willbuy --help` need not wait for it

    if settings.log_format == "console" or _ERR.is_terminal:
        return lambda _event, text: _ERR.print(text, markup=False)
    logger = build_logger(log_format=settings.log_format, log_level=settings.log_level)
    return lambda event, text: logger.info(event, detail=text)


@contextmanager
def _redis(tell: Callable[[str, str], None]) -> Iterator[None]:
    """Start an embedded server when no Redis was named, for as long as the service runs."""
    from app.runtime.embedded_redis import EmbeddedRedis  # noqa: PLC0415  # `willbuy --help` need not wait for it

    if os.environ.get("WILLBUY_REDIS_URL"):
        yield
        return
    with EmbeddedRedis() as redis:
        os.environ["WILLBUY_REDIS_URL"] = redis.url
        tell(
            "embedded_redis",
            "no WILLBUY_REDIS_URL: started a Redis-compatible server of its own, which forgets everything at the end",
        )
        yield


def _fail(message: str) -> None:
    _ERR.print("error:", style="bold red", end=" ")
    _ERR.print(message, markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Run `willbuy` with the sub-commands of everything that is installed."""
    for entry_point in sorted(entry_points(group="willbuy.commands"), key=lambda found: found.name):
        cli.add_typer(entry_point.load())
    cli.add_typer(key_cli, rich_help_panel="Serving")
    cli()
