"""`willbuy demo`: a whole shop in one terminal, from past sessions to live shoppers.

The service runs as a process of its own, started by `willbuy serve`; this program talks HTTP to it.
"""

import asyncio
import contextlib
import itertools
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import httpx
from rich.live import Live

from model.clock import now_ms
from model.events import PURCHASE, Event
from training.commands.console import OUT, print_line
from training.commands.demo_screen import Shop, Shopper, screen
from training.commands.replay import ReplayError, UnreachableError, client_of, ending_now, event_body, post_event
from training.commands.stages import prepare_progress
from training.commands.train import QUICK, run_training
from training.config import QUICK_SETTINGS, DemoSettings
from training.config_file import read_config
from training.data.prepare import prepare
from training.synthetic import PRESETS, generate, sessions, write

if TYPE_CHECKING:
    from training.commands.demo_kafka import Topics

_START_TIMEOUT_S: Final = 60.0
_STOP_TIMEOUT_S: Final = 15.0
_LONGEST_PAUSE_S: Final = 4.0
_Ask = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
_UNREACHABLE_PAUSE_S: Final = 1.0
# The quick recipe with a small network: half a minute of one core instead of a minute and a half. The AUC is 0.767, and
# 0.774 with pre-training and distillation.
_SETTINGS: Final = (
    *QUICK_SETTINGS,
    *("fit.epochs=6", "sizes.hidden_size=32", "sizes.head_size=32", "sizes.dropout=0.1", "sizes.input_dropout=0.0"),
)
# Shoppers pause for seconds instead of minutes. So a visit is over after half a minute, and its outcome counts a minute
# later: the figures of model quality appear while people watch.
_FAST_SHOP: Final = {"WILLBUY_SESSION_IDLE_S": "30", "WILLBUY_TRUST_WINDOW_S": "1440"}


class DemoError(RuntimeError):
    """The service did not start; the message holds its output."""


DEMO_ERRORS: Final = (DemoError, ReplayError, ValueError, OSError)


def run_demo(settings: DemoSettings) -> None:
    """Train, serve and play shoppers until Ctrl-C or for `settings.seconds`; with a URL, only play there.

    Raises:
        DemoError: the service does not start.
        ReplayError: the service cannot be reached, or refuses an event.
    """
    if settings.url is not None:
        print_line(f"the dashboard     {settings.url}/dashboard/")
        with _terminated_like_interrupted():
            _play_until_interrupted(settings.url, settings)
        return
    folder = settings.folder
    OUT.rule("1. past sessions, and a model of them")
    artifact = _train(folder, settings.sessions)
    OUT.rule("2. Redis and the service")
    with (
        _terminated_like_interrupted(),
        _topics(settings.kafka) as topics,
        _service(artifact, settings.port or _free_port(), topics) as url,
    ):
        OUT.print(f"[green]ready[/green] at {url}")
        OUT.rule("3. shoppers")
        if topics is not None:
            print_line(f"topics            {topics.events}, {topics.scores} at {topics.brokers}")
        print_line(f"the dashboard     {url}/dashboard/")
        print_line(f"API description   {url}/openapi.json")
        print_line(f"one session       curl {url}/v1/sessions/SESSION")
        print_line(f"the model         curl {url}/v1/model")
        print_line(f"metrics           curl {url}/metrics")
        print_line(f"training report   {folder / 'model.report.html'}")
        OUT.print("[bold]Ctrl-C stops everything.[/bold]\n")
        _play_until_interrupted(url, settings, topics)
    OUT.print("\nStopped the service and its Redis.")
    print_line(f"Serve this model again: willbuy serve --artifact {artifact} --open")
    print_line("Train on your own log:  willbuy train LOG --out model.pt")


def _play_until_interrupted(url: str, settings: DemoSettings, topics: "Topics | None" = None) -> None:
    # Ctrl-C is the regular end of a demo, not an error.
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_play(url, settings, topics))


@contextmanager
def _topics(brokers: str | None) -> "Iterator[Topics | None]":
    if brokers is None:
        yield None
        return
    try:
        from training.commands.demo_kafka import Topics  # noqa: PLC0415  # an extra
    except ModuleNotFoundError as exc:
        raise ValueError("--kafka: needs confluent-kafka: install the extra `kafka`") from exc
    topics = Topics(brokers)
    with topics.created():
        yield topics


def _train(folder: Path, sessions: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "shop.parquet"
    posterior = write(generate(PRESETS["default"], sessions, seed=1), log)
    with prepare_progress() as progress:
        dataset = prepare(log, folder / "prepared", progress=progress)
    artifact = folder / "model.pt"
    run_training(
        dataset, read_config(None, assignments=_SETTINGS).train, artifact, posterior=posterior, warnings=[QUICK]
    )
    return artifact


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _service(artifact: Path, port: int, topics: "Topics | None") -> Iterator[str]:
    """Run `willbuy serve` or `consume` and yield its URL once it is ready; stop it by its pid."""
    url = f"http://127.0.0.1:{port}"
    way = ["serve"] if topics is None else topics.command()
    command = [sys.executable, "-m", "app", *way, "--open", "--artifact", str(artifact), "--port", str(port)]
    log = artifact.with_name("service.log")
    process: subprocess.Popen[bytes] | None = None
    try:
        with log.open("wb") as output, _deferred_signals():
            process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches this program only, which then stops the service.
                start_new_session=True,
                env={**_FAST_SHOP, **os.environ, "PYTHONUNBUFFERED": "1"},
            )
        _wait_until_ready(url, process, log)
        yield url
    finally:
        if process is not None:
            _stop(process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    with _ignore_signals():
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    answer = "no answer"
    while time.monotonic() < deadline and process.poll() is None:
        try:
            response = httpx.get(f"{url}/readyz", timeout=2.0, trust_env=False)
        except httpx.HTTPError as exc:
            answer = str(exc)
        else:
            if response.is_success:
                return
            answer = response.text
        time.sleep(0.1)
    raise DemoError(f"the service did not start ({answer}); it printed:\n{log.read_text('utf-8', 'replace')[-2000:]}")


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C, so that `kill` stops the service too."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        del signum, frame
        # Not `raise KeyboardInterrupt`: asyncio handles SIGINT between two callbacks, an exception would hit one.
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _deferred_signals() -> Iterator[None]:
    """Deliver signals only at the end: an exception in the middle of `Popen` would leave an orphaned process."""
    received: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        del frame
        received.append(signum)

    # The new process does not inherit handlers; it would inherit a mask or SIG_IGN.
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for signum in received:
            signal.raise_signal(signum)


@contextmanager
def _ignore_signals() -> Iterator[None]:
    """Ignore signals while the service stops: a second Ctrl-C must not leave it running."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def _play(url: str, settings: DemoSettings, topics: "Topics | None") -> None:
    shop = Shop()
    visits = sessions(PRESETS["default"], seed=secrets.randbits(32))
    numbers = itertools.count(1)
    with Live(console=OUT, refresh_per_second=4, transient=False) as live:
        async with (
            client_of(url, settings.shoppers, settings.api_key) as client,
            _asking(client, shop, topics, waits=settings.url is not None) as ask,
            asyncio.timeout(settings.seconds) as limit,
        ):
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(settings.shoppers):
                        group.create_task(_shopper(ask, shop, visits, numbers, settings.speed))
                    group.create_task(_redraw(live, shop))
            except asyncio.CancelledError:
                live.update(screen(shop))
                if not limit.expired():
                    raise
                # The time limit of `seconds`, a regular end.
                task = asyncio.current_task()
                if task is not None:
                    task.uncancel()


async def _redraw(live: Live, shop: Shop) -> None:
    while True:
        live.update(screen(shop))
        await asyncio.sleep(0.25)


@asynccontextmanager
async def _asking(
    client: httpx.AsyncClient, shop: Shop, topics: "Topics | None", *, waits: bool
) -> "AsyncIterator[_Ask]":
    """Yield what answers an event: the service at a URL, or the one behind topics."""
    if topics is None:
        yield partial(_answered, client, shop, waits=waits)
        return
    from training.commands.demo_kafka import TopicClient  # noqa: PLC0415  # an extra

    topic_client = TopicClient(topics)
    try:
        yield topic_client.answered
    finally:
        topic_client.close()


async def _shopper(
    ask: "_Ask", shop: Shop, visits: Iterator[list[Event]], numbers: Iterator[int], speed: float
) -> None:
    """Play sessions one after another."""
    while True:
        session_id = f"demo-{secrets.token_hex(3)}-{next(numbers)}"
        events = ending_now(next(visits), now_ms())
        shopper = Shopper(session_id, events[0])
        previous_ms = events[0].timestamp_ms
        await asyncio.sleep(secrets.randbelow(1000) / 1000 * _LONGEST_PAUSE_S)
        shop.shoppers[session_id] = shopper
        for number, event in enumerate(events):
            pause_s = (event.timestamp_ms - previous_ms) / 1000 / speed
            previous_ms = event.timestamp_ms
            await asyncio.sleep(min(_LONGEST_PAUSE_S, pause_s))
            started = time.perf_counter()
            body = event_body(session_id, f"{session_id}/{number}", event)
            answer = await ask(body)
            latency_ms = (time.perf_counter() - started) * 1000
            shop.latency_ms = latency_ms if not shop.events else 0.98 * shop.latency_ms + 0.02 * latency_ms
            shop.events += 1
            shopper.last_event, shopper.seen_s = event, time.monotonic()
            if event.event_name != PURCHASE:
                shopper.probabilities.append(float(answer["probability"]))
        bought = events[-1].event_name == PURCHASE
        shopper.outcome = "bought" if bought else "left"
        last = shopper.probabilities[-1] if shopper.probabilities else 0.0
        shop.ended += 1
        shop.bought += bought
        if bought:
            shop.score_of_buyers += last
        else:
            shop.score_of_others += last
        await asyncio.sleep(1.5)
        del shop.shoppers[session_id]


async def _answered(client: httpx.AsyncClient, shop: Shop, body: dict[str, Any], *, waits: bool) -> dict[str, Any]:
    """Return the answer to an event; with `waits`, try until there is one, and show meanwhile what is wrong."""
    while True:
        try:
            answer, _ = await post_event(client, body)
        except UnreachableError as exc:
            if not waits:
                raise
            shop.problem = str(exc)
            await asyncio.sleep(_UNREACHABLE_PAUSE_S)
        else:
            shop.problem = ""
            return answer
