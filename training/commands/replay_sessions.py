"""Play sessions that training did not see at a running service, and hold each answer against the offline model.

The service folds one event a request, with its state packed into bytes and kept in Redis in between; the offline model
runs over whole sessions in float32. Both must say the same of every prefix.
"""

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import polars as pl
from msgspec import structs

from model.events import FIELD_NAMES, Event
from model.predictor import Predictor
from training.data.prepared import PreparedDataset

# An answer may differ from the offline model's by so much, by what the service keeps h and c in.
TOLERANCE: Final = {"float16": 2e-3, "float32": 1e-5}
_ATTEMPTS: Final = 8
_RETRY_STATUS: Final = frozenset({429, 503})
_LONGEST_WAIT_S: Final = 2.0


class ReplayError(RuntimeError):
    """The service could not be reached, or refused an event; the message says what it answered."""


@dataclass(slots=True)
class ReplayResult:
    """What came back.

    Attributes:
        sessions, events: how many were played.
        largest_difference: between an answer and the offline model's on the same prefix.
        worst: session and prefix length of that.
        latency_s: of each request that was answered, retries not counted.
        retries: requests that were sent again.
        seconds: the whole replay.
        answers: per session, the service's probability after each event.
    """

    sessions: int = 0
    events: int = 0
    largest_difference: float = 0.0
    worst: tuple[str, int] | None = None
    latency_s: list[float] = field(default_factory=list)
    retries: int = 0
    seconds: float = 0.0
    answers: list[list[float]] = field(default_factory=list)


def read_sessions(dataset: PreparedDataset, session_ids: Sequence[str]) -> dict[str, list[Event]]:
    """Return the events of some prepared sessions, in order."""
    frame = dataset.scan().filter(pl.col("session_id").is_in(list(session_ids))).collect()
    names = [declared.name for declared in dataset.properties]
    sessions: dict[str, list[Event]] = {session_id: [] for session_id in session_ids}
    for row in frame.iter_rows(named=True):
        properties = {name: row[f"property.{name}"] for name in names if row[f"property.{name}"] is not None}
        sessions[row["session_id"]].append(
            Event(
                row["event_name"],
                row["timestamp_ms"],
                **{name: row.get(name) for name in FIELD_NAMES},
                properties=properties,
            )
        )
    return sessions


def ending_now(events: Sequence[Event], now_ms: int) -> list[Event]:
    """Return the events with all times shifted so that the last is now: a service refuses events of last year."""
    shift = now_ms - events[-1].timestamp_ms
    return [structs.replace(event, timestamp_ms=event.timestamp_ms + shift) for event in events]


def event_body(session_id: str, event_id: str, event: Event) -> dict[str, Any]:
    """Return the JSON body of `POST /v1/events` for an event."""
    body = {
        "event_id": event_id,
        "session_id": session_id,
        "timestamp": event.timestamp_ms,
        "event_name": event.event_name,
        **{name: getattr(event, name) for name in FIELD_NAMES},
        "properties": dict(event.properties),
    }
    return {key: value for key, value in body.items() if value is not None}


@asynccontextmanager
async def client_of(url: str, connections: int, api_key: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client for the service at `url`; proxies of the environment are not asked."""
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    try:
        client = httpx.AsyncClient(base_url=url, headers=headers, timeout=10.0, limits=limits, trust_env=False)
    except httpx.InvalidURL as exc:
        raise ReplayError(f"{url} is no URL of a service: {exc}") from exc
    async with client:
        yield client


async def post_event(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Post one event, again with the same event id where the service is busy; return its answer and the retries.

    Raises:
        ReplayError: the service cannot be reached, or answers something else than a score.
    """
    problem = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            await asyncio.sleep(min(_LONGEST_WAIT_S, 0.05 * 2**attempt))
        try:
            response = await client.post("/v1/events", json=body)
        except httpx.TransportError as exc:
            problem = f"{type(exc).__name__}: {exc}"
            continue
        if response.status_code == httpx.codes.OK:
            answer: dict[str, Any] = response.json()
            return answer, attempt
        problem = f"{response.status_code}: {response.text[:500]}"
        if response.status_code not in _RETRY_STATUS:
            break
    raise ReplayError(f"POST {client.base_url}/v1/events for session {body['session_id']}: {problem}")


async def served_model(client: httpx.AsyncClient) -> dict[str, Any]:
    """Return what `GET /v1/model` says.

    Raises:
        ReplayError: there is no willbuy service at the client's URL.
    """
    try:
        response = await client.get("/v1/model")
        response.raise_for_status()
        model: dict[str, Any] = response.json()
    except (httpx.HTTPError, ValueError) as exc:
        raise ReplayError(f"no willbuy service answers at {client.base_url}: {type(exc).__name__}: {exc}") from exc
    if not isinstance(model, dict) or not {"fingerprint", "state_dtype"} <= model.keys():
        raise ReplayError(f"no willbuy service answers at {client.base_url}: GET /v1/model gave something else")
    return model


async def replay(
    client: httpx.AsyncClient,
    predictor: Predictor,
    sessions: dict[str, list[Event]],
    *,
    concurrency: int,
    progress: Callable[[int], None],
) -> ReplayResult:
    """Post sessions event by event, many at once, and compare every answer with the offline model.

    Args:
        client: of the service.
        predictor: the same artifact, here.
        sessions: events by session id; ids get a fresh prefix, so that a second replay starts new sessions.
        concurrency: sessions that are played at the same time.
        progress: called with the number of events answered since the last call.
    """
    now_ms = time.time_ns() // 1_000_000
    prefix = f"replay-{secrets.token_hex(4)}-"
    played = {prefix + session_id: ending_now(events, now_ms) for session_id, events in sessions.items()}
    expected = dict(zip(played, predictor.score_sessions(list(played.values())), strict=True))
    result = ReplayResult(sessions=len(played))
    answers: dict[str, list[float]] = {session_id: [] for session_id in played}
    waiting = iter(played.items())

    async def shopper() -> None:
        for session_id, events in waiting:
            for index, event in enumerate(events):
                body = event_body(session_id, f"{session_id}/{index}", event)
                started = time.perf_counter()
                answer, retries = await post_event(client, body)
                result.latency_s.append(time.perf_counter() - started)
                result.retries += retries
                result.events += 1
                if answer["events"] != index + 1:
                    raise ReplayError(f"session {session_id}: {answer['events']} events folded, expected {index + 1}")
                probability = float(answer["probability"])
                answers[session_id].append(probability)
                difference = abs(probability - expected[session_id][index])
                if math.isnan(difference):
                    difference = math.inf
                if difference > result.largest_difference:
                    result.largest_difference, result.worst = difference, (session_id, index + 1)
                progress(1)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(shopper())
    result.seconds = time.perf_counter() - started
    result.answers = list(answers.values())
    return result
