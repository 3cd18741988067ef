"""Sessions made through the batch route, as many and as long as a measurement needs."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from typing import Final

import httpx
import msgspec

from benchmarks.hotpath.processes import BenchmarkError
from benchmarks.hotpath.servers import BATCH_PATH, Server
from benchmarks.hotpath.traffic import batch_body, session_id

EVENTS_A_REQUEST: Final = 200
_AT_ONCE: Final = 4
_OK: Final = 200
_TIMEOUT_S: Final = 30.0
_ATTEMPTS: Final = 8


class _Item(msgspec.Struct):
    status: int


class _Answer(msgspec.Struct):
    results: list[_Item]


_DECODER: Final = msgspec.json.Decoder(_Answer)


def fill(
    server: Server,
    prefix: str,
    sessions: range,
    events: int,
    show: Callable[[int], None] = lambda _events: None,
    *,
    at_once: int = _AT_ONCE,
) -> int:
    """Post so many events to each of the sessions, a whole pass over all of them after another; return how many.

    Args:
        server: willbuy.
        prefix: of the sessions' ids.
        sessions: their numbers, from 1 on.
        events: a session.
        show: told how many events were answered so far.
        at_once: requests at a time.

    Raises:
        BenchmarkError: an event was refused.
    """
    for _ in range(events):
        # One after another, so that no session's events overtake each other.
        asyncio.run(_pass(server, prefix, sessions, show, at_once))
    return events * len(sessions)


_event_numbers: Final = itertools.count(step=EVENTS_A_REQUEST)


async def _pass(server: Server, prefix: str, sessions: range, show: Callable[[int], None], at_once: int) -> None:
    groups: Iterator[range] = (
        sessions[first : first + EVENTS_A_REQUEST] for first in range(0, len(sessions), EVENTS_A_REQUEST)
    )
    limits = httpx.Limits(max_connections=at_once)
    url = f"http://127.0.0.1:{server.port}"
    headers = {"Content-Type": "application/json"} | server.headers
    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=_TIMEOUT_S) as client:

        async def work() -> None:
            # All of them take from one iterator.
            for group in groups:
                body = batch_body([session_id(prefix, number) for number in group], next(_event_numbers))
                await _post(client, body)
                show(len(group))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(at_once):
                tasks.create_task(work())


async def _post(client: httpx.AsyncClient, body: bytes) -> None:
    for attempt in range(1, _ATTEMPTS + 1):
        answer = await client.post(BATCH_PATH, content=body)
        refused = -1
        if answer.status_code == _OK:
            refused = sum(item.status != _OK for item in _DECODER.decode(answer.content).results)
            if not refused:
                return
        # Sending it again is safe: what was folded is answered from the session's record.
        await asyncio.sleep(0.1 * attempt)
    told = f"{refused} events" if refused > 0 else f"it, with {answer.status_code}"
    raise BenchmarkError(f"A batch was sent {_ATTEMPTS} times and the service refused {told}: {answer.text[:500]}")
