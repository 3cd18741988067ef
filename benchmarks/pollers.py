"""CPU cost of dashboards: `python -m benchmarks.pollers` starts Redis, the service, callers and pollers.

Callers post events at the same steady rate in all rounds. In half of the rounds, 200 dashboards poll
`GET /v1/sessions?recent=16` and `GET /v1/stats` each second, each on a separate connection, with `If-None-Match`.
Service, callers and pollers are separate processes. Rounds of both kinds alternate, so that other work on the machine
affects both.

The measure is the service's CPU time. A service process uses one core, so a share of the core is the same share of the
throughput. Answered events a second would be equivalent only if callers, pollers and Redis had separate cores. With
`--events-per-s 0` the callers post as fast as they get answers, to measure that as well.
"""

import asyncio
import itertools
import json
import multiprocessing
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from multiprocessing.synchronize import Event as Flag
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.hotpath.artifact import train_artifact
from benchmarks.hotpath.redis_server import RedisServer, running_redis
from benchmarks.hotpath.servers import Server, running, willbuy

_NAMES: Final = ("page_view", "view_item_list", "view_item", "search", "add_to_cart", "view_cart", "begin_checkout")
_START_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Offered:
    """The load of the callers.

    Attributes:
        callers: how many they are.
        events_per_s: of all of them; 0: as many as are answered.
        sessions: of how many sessions.
    """

    callers: int
    events_per_s: float
    sessions: int


@dataclass(frozen=True, slots=True)
class Round:
    """One round.

    Attributes:
        events_per_s: events that were answered.
        service_s: processor's time of the service in a second of the round.
        redis_s: the same of the server.
        polls_per_s: polls that were answered; 0 without pollers.
        not_modified: share of them without a body.
    """

    events_per_s: float
    service_s: float
    redis_s: float
    polls_per_s: float
    not_modified: float


def head_of(server: Server) -> bytes:
    """Return the headers of each request: host and API key."""
    return b"".join(f"{name}: {value}\r\n".encode() for name, value in ({"Host": "x"} | server.headers).items())


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Return status and ETag of the next response on a connection."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    headers = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
    await reader.readexactly(int(headers.get(b"content-length", b"0")))
    return int(head.split(b" ", 2)[1]), headers.get(b"etag", b"")


async def _call(port: int, head: bytes, caller: int, offered: Offered, counts: list[int]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    loop = asyncio.get_running_loop()
    gap_s = offered.callers / offered.events_per_s if offered.events_per_s else 0.0
    due_s = loop.time() + gap_s * caller / offered.callers
    for number in itertools.count():
        await asyncio.sleep(due_s - loop.time() if gap_s else 0)
        due_s += gap_s
        event = {
            "session_id": f"shopper-{(caller * 7919 + number * 104_729) % offered.sessions}",
            "event_name": _NAMES[number % len(_NAMES)],
            "item_id": f"SKU-{number % 50}",
            "price": 19.9,
        }
        body = json.dumps(event).encode()
        writer.write(
            b"POST /v1/events HTTP/1.1\r\n%bContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (head, len(body), body)
        )
        status, _ = await _answer(reader)
        counts[0] += status == 200  # noqa: PLR2004 - a status is its own name


async def _poll(port: int, head: bytes, offset_s: float, counts: list[int]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    loop = asyncio.get_running_loop()
    tags = {b"/v1/sessions?recent=16": b'""', b"/v1/stats": b'""'}
    due_s = loop.time() + offset_s
    while True:
        await asyncio.sleep(due_s - loop.time())
        due_s += 1.0
        for path, tag in tags.items():
            writer.write(b"GET %b HTTP/1.1\r\n%bIf-None-Match: %b\r\n\r\n" % (path, head, tag))
            status, tags[path] = await _answer(reader)
            counts[0] += status in {200, 304}
            counts[1] += status == 304  # noqa: PLR2004 - a status is its own name


def callers(port: int, head: bytes, offered: Offered, ready: Barrier, stop: Flag, results: "Queue[list[int]]") -> None:
    """Post events until the stop event, then report the number of answers; runs in a separate process."""

    def work(counts: list[int], one: int) -> Coroutine[Any, Any, None]:
        return _call(port, head, one, offered, counts)

    asyncio.run(_until_stopped(work, offered.callers, ready, stop, results))


def pollers(port: int, head: bytes, number: int, ready: Barrier, stop: Flag, results: "Queue[list[int]]") -> None:
    """Poll each second until the stop event, then report the number of answers and of answers with 304."""

    def work(counts: list[int], one: int) -> Coroutine[Any, Any, None]:
        return _poll(port, head, one / number, counts)

    asyncio.run(_until_stopped(work, number, ready, stop, results))


async def _until_stopped(
    work: Callable[[list[int], int], Coroutine[Any, Any, None]],
    number: int,
    ready: Barrier,
    stop: Flag,
    results: "Queue[list[int]]",
) -> None:
    counts = [0, 0]
    await asyncio.to_thread(ready.wait)
    tasks = [asyncio.create_task(work(counts, one)) for one in range(number)]
    while not stop.is_set():
        await asyncio.sleep(0.02)
        for task in tasks:
            if task.done():
                task.result()
    for task in tasks:
        task.cancel()
    results.put(counts)


def measure(server: Server, redis: RedisServer, offered: Offered, *, seconds: float, number_of_pollers: int) -> Round:
    """Return one round."""
    context, where = multiprocessing.get_context("spawn"), (server.port, head_of(server))
    stop, of_callers, of_pollers = context.Event(), context.Queue(), context.Queue()
    ready = context.Barrier(3 if number_of_pollers else 2)
    processes = [context.Process(target=callers, args=(*where, offered, ready, stop, of_callers))]
    if number_of_pollers:
        processes.append(context.Process(target=pollers, args=(*where, number_of_pollers, ready, stop, of_pollers)))
    for process in processes:
        process.start()
    ready.wait(_START_TIMEOUT_S)
    used_s = server.fine_cpu_s(), redis.cpu_s()
    began_s = time.monotonic()
    time.sleep(seconds)
    stop.set()
    events = of_callers.get(timeout=_START_TIMEOUT_S)[0]
    polls, unchanged = of_pollers.get(timeout=_START_TIMEOUT_S) if number_of_pollers else (0, 0)
    elapsed_s = time.monotonic() - began_s
    service_s, redis_s = (server.fine_cpu_s() - used_s[0]) / elapsed_s, (redis.cpu_s() - used_s[1]) / elapsed_s
    for process in processes:
        process.join()
    return Round(events / elapsed_s, service_s, redis_s, polls / elapsed_s, unchanged / polls if polls else 0.0)


def report(console: Console, without: list[Round], with_them: list[Round]) -> None:
    """Print the medians of both kinds of rounds and the cost of the pollers."""
    table = Table("medians of the rounds", "without", "with pollers")

    def row(name: str, value: Callable[[Round], float], form: str) -> None:
        table.add_row(name, *(format(statistics.median(map(value, rounds)), form) for rounds in (without, with_them)))

    row("events answered a second", lambda one: one.events_per_s, ",.0f")
    row("polls answered a second", lambda one: one.polls_per_s, ",.0f")
    row("of them not modified", lambda one: one.not_modified, ".0%")
    row("service, processor's seconds a second", lambda one: one.service_s, ".3f")
    row("service, processor's time an event, µs", lambda one: 1e6 * one.service_s / one.events_per_s, ",.0f")
    row("Redis, processor's seconds a second", lambda one: one.redis_s, ".3f")
    console.print(table)
    before_s, then_s = (statistics.median(one.service_s for one in rounds) for rounds in (without, with_them))
    console.print(f"The pollers take {then_s - before_s:.3f} of a core from one process of the service.")


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each kind.")] = 7,
    seconds: Annotated[float, typer.Option(min=2, help="Length of a round.")] = 8.0,
    number_of_pollers: Annotated[int, typer.Option("--pollers", min=1)] = 200,
    number_of_callers: Annotated[int, typer.Option("--callers", min=1)] = 16,
    events_per_s: Annotated[float, typer.Option(min=0, help="Events posted; 0: as many as are answered.")] = 100.0,
    sessions: Annotated[int, typer.Option(min=1, help="Sessions that the events are of.")] = 20_000,
    hidden_size: Annotated[int, typer.Option(min=1, help="Of the model.")] = 64,
) -> None:
    """Measure the CPU cost of polling dashboards for one service process."""
    console = Console()
    # So that the servers end with this program in every case.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory() as folder, running_redis() as redis:
        with running(willbuy(train_artifact(Path(folder), hidden_size)), redis) as server:
            offered = Offered(number_of_callers, events_per_s, sessions)
            measure(server, redis, offered, seconds=seconds, number_of_pollers=number_of_pollers)
            measured: tuple[list[Round], list[Round]] = ([], [])
            for number in track(range(2 * rounds), "Measuring", console=console):
                # a b b a, so that a machine that slows down slows both kinds equally
                kind = (number + number // 2) % 2
                polling = number_of_pollers if kind else 0
                measured[kind].append(measure(server, redis, offered, seconds=seconds, number_of_pollers=polling))
        report(console, *measured)


if __name__ == "__main__":
    typer.run(main)
