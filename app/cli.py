"""The `willbuy` command: `serve` and `key`, and the sub-commands that installed packages add.

`app` does not import `training`. Further sub-commands come from the entry-point group `willbuy.commands`, so that the
serving image, which has no training package, has the same command.
"""

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from typer.main import get_command

from app.auth.cli import cli as key_cli
from app.interventions.cli import cli as webhooks_cli
from app.runtime.service_call import Key, Url, call
from model.own_redis import announced

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from app.settings import Settings

_ERR: Final = Console(stderr=True)
_GRACE_S: Final = 10
_STYLES: Final = {"ok": "green", "warning": "yellow", "error": "bold red"}
# As uvicorn has it.
_STARTUP_FAILURE: Final = 3

cli = typer.Typer(
    name="willbuy",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Real-time purchase prediction: train on past sessions, then score running ones after every page view.",
    epilog="Start with [bold]willbuy demo[/bold]. Each command explains itself: willbuy COMMAND --help.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"willbuy {version('willbuy')}")
        raise typer.Exit


@cli.callback()
def _main(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


_ARTIFACT = Annotated[Path | None, typer.Option(help="The model; otherwise WILLBUY_ARTIFACT.", show_default=False)]
_HOST = Annotated[str, typer.Option(help="Address to listen on; `::` is IPv6 and IPv4.")]
_PORT = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")]
_REDIS_URL = Annotated[
    str | None,
    typer.Option(
        help="Redis or Valkey; otherwise WILLBUY_REDIS_URL, otherwise an embedded server whose data ends with it.",
        show_default=False,
    ),
]
_OPEN = Annotated[
    bool, typer.Option("--open", help="Accept requests without an API key, for trials: WILLBUY_OPEN_ACCESS.")
]


@cli.command(rich_help_panel="Serving")
def serve(
    artifact: _ARTIFACT = None,
    host: _HOST = "127.0.0.1",
    port: _PORT = 8000,
    redis_url: _REDIS_URL = None,
    open_access: _OPEN = False,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 1,
    uds: Annotated[
        Path | None, typer.Option(help="Unix socket to listen on instead of host and port.", show_default=False)
    ] = None,
    root_path: Annotated[
        str, typer.Option(help="Path prefix that a proxy in front removes: /willbuy.", show_default=False)
    ] = "",
) -> None:
    """Serve an artifact over HTTP.

    Every other setting is an environment variable; docs/reference/settings.md lists them.
    """
    _set_environment(artifact=artifact, redis_url=redis_url, open_access=open_access)
    # By name: worker processes import it.
    _run("app.main:create_app", host=host, port=port, uds=uds, root_path=root_path, workers=workers)


@cli.command(rich_help_panel="Serving")
def consume(
    topic: Annotated[str, typer.Option(help="Topic of the events, keyed by session.")],
    brokers: Annotated[
        str | None,
        typer.Option(help="HOST:PORT,...; otherwise `bootstrap.servers` of the properties.", show_default=False),
    ] = None,
    scores: Annotated[
        str | None, typer.Option(help="Topic of the answers, keyed by session; without it, none.", show_default=False)
    ] = None,
    dead_letters: Annotated[
        str | None,
        typer.Option(
            help="Topic for messages that are no event or cannot be folded; otherwise TOPIC-dead-letters.",
            show_default=False,
        ),
    ] = None,
    group: Annotated[str, typer.Option(help="Consumer group, unless the properties name one.")] = "willbuy",
    properties: Annotated[
        Path | None,
        typer.Option(help="File of name=value lines for librdkafka: TLS, SASL, limits.", show_default=False),
    ] = None,
    artifact: _ARTIFACT = None,
    host: _HOST = "127.0.0.1",
    port: _PORT = 8000,
    redis_url: _REDIS_URL = None,
    open_access: _OPEN = False,
) -> None:
    """Score the events of a Kafka topic; needs the extra `kafka`.

    The process is a replica of the service besides: it answers the same requests, metrics and checks of health on its
    port. Every other setting is an environment variable, as for `serve`.
    """
    from functools import partial  # noqa: PLC0415  # `willbuy --help` starts faster without these

    from app.main import create_app  # noqa: PLC0415  # same

    try:
        from app.kafka.consumer import KafkaFeed  # noqa: PLC0415  # same, and an extra
        from app.kafka.options import kafka_options  # noqa: PLC0415  # same
    except ModuleNotFoundError as exc:
        if exc.name != "confluent_kafka":
            raise
        _fail("needs confluent-kafka: install the extra `kafka`")
        raise typer.Exit(1) from None
    _set_environment(artifact=artifact, redis_url=redis_url, open_access=open_access)
    try:
        feed = KafkaFeed(
            kafka_options(
                topic=topic, brokers=brokers, group=group, scores=scores, dead_letters=dead_letters, file=properties
            )
        )
    except ValueError as exc:
        _fail(str(exc))
        raise typer.Exit(1) from None
    _run(partial(create_app, feed=feed), host=host, port=port)
    if feed.failure is not None:
        _fail(f"Kafka: {feed.failure}")
        raise typer.Exit(1)


def _run(
    app: "str | Callable[[], FastAPI]",
    *,
    host: str,
    port: int,
    uds: Path | None = None,
    root_path: str = "",
    workers: int = 1,
) -> None:
    """Check the settings, start an embedded Redis if there is none, and serve an application until a signal."""
    import uvicorn  # noqa: PLC0415  # `willbuy --help` starts faster without these
    from pydantic import ValidationError  # noqa: PLC0415  # same

    from app.auth.setup import read_access  # noqa: PLC0415  # same
    from app.monitoring.logging import server_log_config  # noqa: PLC0415  # same
    from app.monitoring.worker_metrics import metrics_of_workers  # noqa: PLC0415  # same
    from app.runtime.addresses import AddressError, check_address, check_unix_socket  # noqa: PLC0415  # same
    from app.runtime.embedded_redis import EmbeddedServerError  # noqa: PLC0415  # same
    from app.settings import Settings, faults_of  # noqa: PLC0415  # same
    from app.wiring import check_redis_options, read_artifact_manifest  # noqa: PLC0415  # same: torch

    try:
        settings = Settings()
        manifest = read_artifact_manifest(settings)
        # Each worker checks again; here an error shows once, and before anything is started.
        read_access(settings)
        check_redis_options(settings)
        host = host.removeprefix("[").removesuffix("]")
        if uds is None:
            check_address(host, port)
        else:
            check_unix_socket(uds)
        announce = _announcer(settings)
        with _redis(announce), metrics_of_workers() if workers > 1 else nullcontext():
            announce("starting", f"willbuy {version('willbuy')}: model {manifest.fingerprint} of {manifest.created}")
            _serve(
                uvicorn.Config(
                    app,
                    factory=True,
                    host=host,
                    port=port,
                    uds=None if uds is None else str(uds),
                    root_path=root_path.rstrip("/"),
                    workers=workers,
                    # The service does not use the caller's address, and reading it costs time in every request.
                    proxy_headers=False,
                    # By name: worker processes import it.
                    http="app.runtime.http_protocol:BoundedHttp",
                    ws="none",
                    # The service writes its own log, one line a request at most and no session ids in paths.
                    access_log=False,
                    log_config=server_log_config(),
                    timeout_graceful_shutdown=_GRACE_S,
                ),
                lambda where: announce("listening", f"listening on {where}; the API is described at /openapi.json"),
            )
    except ValidationError as exc:
        for fault in faults_of(exc):
            _fail(fault)
        raise typer.Exit(1) from None
    except (ValueError, AddressError, EmbeddedServerError) as exc:  # ArtifactError and AccessError among them
        _fail(str(exc))
        raise typer.Exit(1) from None


@cli.command(rich_help_panel="Serving")
def rejects(
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most records to print, latest first.")] = 20,
    url: Url = "http://127.0.0.1:8000",
    api_key: Key = None,
) -> None:
    """Print the last records of vendors that could not become events, one JSON object a line (docs/vendors.md)."""
    for record in call(url, api_key, "GET", "/v1/ingest/rejects", params={"limit": limit})["rejects"]:
        typer.echo(json.dumps(record))


@cli.command(rich_help_panel="Serving")
def doctor(
    artifact: _ARTIFACT = None,
    redis_url: _REDIS_URL = None,
    open_access: _OPEN = False,
    sessions: Annotated[
        int | None, typer.Option(min=1, help="Live sessions to expect; checks Redis' memory.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check settings, key file, artifact, rules and Redis before the service starts, and say what to do.

    Give it the environment and options of `willbuy serve`. The exit status is 1 where something is wrong.
    """
    from app.doctor import examine  # noqa: PLC0415  # `willbuy --help` starts faster without torch

    _set_environment(artifact=artifact, redis_url=redis_url, open_access=open_access)
    findings = asyncio.run(examine(sessions))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        out = Console()
        for finding in findings:
            out.print(f"{finding.state:8}", style=_STYLES[finding.state], end="")
            out.print(f"{finding.check}: {finding.detail}", markup=False, highlight=False, soft_wrap=True)
            if finding.advice:
                out.print(f"        -> {finding.advice}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(any(finding.state == "error" for finding in findings))


def _serve(config: "uvicorn.Config", on_listening: Callable[[str], None]) -> None:
    """Run the server, or several worker processes; as `uvicorn.run` does, but `::` is IPv4 as well."""
    from uvicorn.supervisors import Multiprocess  # noqa: PLC0415  # `willbuy --help` starts faster without these

    from app.runtime.server import Server, address_of, listening_socket  # noqa: PLC0415  # same

    server = Server(config, on_listening)
    try:
        if config.workers > 1:
            shared = listening_socket(config)
            on_listening(address_of(config, [shared]))
            Multiprocess(config, sockets=[shared]).run()
        else:
            config.load_app()
            # The event loop's own socket for `::` would refuse IPv4.
            server.run(sockets=[config.bind_socket()] if ":" in config.host and config.uds is None else None)
    except KeyboardInterrupt:
        pass
    finally:
        if config.uds:
            Path(config.uds).unlink(missing_ok=True)
    if not server.started and config.workers == 1:
        raise typer.Exit(_STARTUP_FAILURE)


def _set_environment(**options: object) -> None:
    """Put options that stand for settings of the same name into the environment, where worker processes read them.

    An option that was not given changes nothing: its default is the variable's, and then the one of the setting.
    """
    for name, value in options.items():
        if value:
            os.environ[f"WILLBUY_{name.upper()}"] = str(value)


def _announcer(settings: "Settings") -> Callable[[str, str], None]:
    """Return what announces the steps of the start: as text on a console, as lines of the log elsewhere."""
    from app.monitoring.logging import build_logger, writes_text  # noqa: PLC0415  # `willbuy --help` starts faster

    if writes_text():
        return lambda _event, text: _ERR.print(text, markup=False)
    logger = build_logger(log_level=settings.log_level)
    return lambda event, text: logger.info(event, detail=text)


@contextmanager
def _redis(announce: Callable[[str, str], None]) -> Iterator[None]:
    """Run an embedded server while the service runs, unless the environment names a Redis."""
    from app.runtime.embedded_redis import EmbeddedRedis  # noqa: PLC0415  # `willbuy --help` starts faster without it

    if os.environ.get("WILLBUY_REDIS_URL"):
        yield
        return
    with EmbeddedRedis() as redis, announced(redis.url):
        os.environ["WILLBUY_REDIS_URL"] = redis.url
        announce(
            "embedded_redis",
            "no WILLBUY_REDIS_URL: started an embedded Redis-compatible server, whose data is lost at the end",
        )
        yield


def _fail(message: str) -> None:
    from app.monitoring.logging import start_error, writes_text  # noqa: PLC0415  # `willbuy --help` starts faster

    if not writes_text():
        typer.echo(start_error(message), err=True)
        return
    _ERR.print("error:", style="bold red", end=" ")
    _ERR.print(message, markup=False, highlight=False, soft_wrap=True)


def complete_cli() -> typer.Typer:
    """Return the command with the sub-commands of everything that is installed."""
    for entry_point in sorted(entry_points(group="willbuy.commands"), key=lambda found: found.name):
        cli.add_typer(entry_point.load())
    cli.add_typer(key_cli, rich_help_panel="Serving")
    cli.add_typer(webhooks_cli, rich_help_panel="Serving")
    return cli


def readable(command: Any) -> Any:  # noqa: ANN401 - typer carries click inside and shows no types of it
    """Return the command, and its sub-commands, with plain help: `DATA`, not `{DATA}`, and no `<bool>` at a flag."""
    for child in getattr(command, "commands", {}).values():
        readable(child)
    pieces, params = command.collect_usage_pieces, command.get_params

    def params_of(context: Any) -> list[Any]:  # noqa: ANN401 - same
        found: list[Any] = params(context)
        for one in found:
            if getattr(one, "is_bool_flag", False):
                one.metavar = ""
        return found

    command.collect_usage_pieces = lambda context: [piece.strip("{}") for piece in pieces(context)]
    command.get_params = params_of
    return command


def main() -> None:
    """Run `willbuy`."""
    readable(get_command(complete_cli()))()
