"""`willbuy replay`: unseen sessions at a running service, each answer compared with the offline model's.

The service folds one event a request and stores its packed state in Redis in between; the offline model runs over whole
sessions in float32. Both must give the same probability for every prefix.
"""

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import polars as pl
from msgspec import structs
from rich.table import Table

from model.artifact import ArtifactError
from model.clock import now_ms
from model.events import FIELD_NAMES, Event
from model.predictor import Predictor, load_predictor
from training.commands.console import ERR, OUT
from training.commands.prepare import prepared_sessions
from training.commands.stages import stage
from training.config import ReplaySettings
from training.data.prepare import prepare
from training.data.prepared import PreparedDataset
from training.data.provenance import cuts_of
from training.data.sources.errors import SourceError
from training.evaluation.metrics import score
from training.fit.train import parts_of

# Largest difference between answer and offline model, by the dtype in which the service stores h and c.
TOLERANCE: Final = {"float16": 2e-3, "float32": 1e-5}
_ATTEMPTS: Final = 8
_RETRY_STATUS: Final = frozenset({429, 503})
_LONGEST_WAIT_S: Final = 2.0


class ReplayError(RuntimeError):
    """The service could not be reached, or refused an event; the message has its answer."""


class UnreachableError(ReplayError):
    """The service could not be reached, or was busy, in each attempt."""


REPLAY_ERRORS: Final = (ReplayError, ArtifactError, SourceError, ValueError, OSError)


@dataclass(slots=True)
class ReplayResult:
    """The service's answers, and their differences from the offline model's.

    Attributes:
        sessions, events: how many were replayed.
        largest_difference: between an answer and the offline model's on the same prefix.
        worst: session and prefix length of that difference.
        latency_s: of each event, from the first attempt to the answer.
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


async def run_replay(data: Path, artifact: Path, settings: ReplaySettings) -> bool:
    """Replay sessions at a service, print the result, and return whether all answers agree with the offline model.

    Args:
        data: the data that the artifact was trained on.
        artifact: the file that the service runs.
        settings: of the replay.

    Raises:
        ReplayError: there is no service, it runs another model, or it refused an event.
    """
    async with client_of(settings.url, settings.concurrency, settings.api_key) as client:
        served = await served_model(client)
        state_dtype = served["state_dtype"]
        # By default the service's own base rate, so that the offline model is shifted alike.
        live = served.get("base_rate") if settings.base_rate is None else settings.base_rate
        predictor = load_predictor(artifact, state_dtype=state_dtype, base_rate=live)
        if served["fingerprint"] != predictor.fingerprint:
            raise ReplayError(f"the service runs model {served['fingerprint']}, {artifact} is {predictor.fingerprint}")
        limit = TOLERANCE[state_dtype] if settings.tolerance is None else settings.tolerance
        format_, cuts = predictor.manifest.data.get("source_format", "auto"), cuts_of(predictor.manifest)
        with prepared_sessions(data, lambda folder: prepare(data, folder, format=format_, **cuts)) as dataset:
            training = predictor.manifest.training
            chosen = sorted(parts_of(dataset, tuple(training["fractions"]), training["split_seed"])[settings.part])
            if not chosen:
                raise ReplayError(f"the {settings.part} part of {data} holds no session")
            chosen = _sample(chosen, settings.sessions)
            events = read_events(dataset, chosen)
            outcomes = dict(dataset.sessions().select("session_id", "outcome").iter_rows())
        with stage("replaying", sum(map(len, events.values()))) as show:
            result = await replay(client, predictor, events, concurrency=settings.concurrency, progress=show)
    agreed = result.largest_difference <= limit
    _print_replay(result, limit, state_dtype, [outcomes[session_id] for session_id in events])
    return agreed


def read_events(dataset: PreparedDataset, session_ids: Sequence[str]) -> dict[str, list[Event]]:
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
    """Return the events with all times shifted so that the last is now: the service refuses old events."""
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
    """Yield a client for the service at `url`; proxies of the environment are ignored."""
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    try:
        client = httpx.AsyncClient(base_url=url, headers=headers, timeout=10.0, limits=limits, trust_env=False)
    except httpx.InvalidURL as exc:
        raise ReplayError(f"{url} is no URL of a service: {exc}") from exc
    async with client:
        yield client


async def post_event(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Post one event and retry with the same event id where the service is busy; return answer and retries.

    Raises:
        UnreachableError: the service cannot be reached, or is busy.
        ReplayError: it refuses the event.
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
            raise ReplayError(_failure(client, body, problem))
    raise UnreachableError(_failure(client, body, problem))


def _failure(client: httpx.AsyncClient, body: Mapping[str, Any], problem: str) -> str:
    return f"POST {client.base_url}/v1/events for session {body['session_id']}: {problem}"


async def served_model(client: httpx.AsyncClient) -> dict[str, Any]:
    """Return the answer of `GET /v1/model`.

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
    """Post sessions event by event, several sessions at once, and compare every answer with the offline model.

    Args:
        client: of the service.
        predictor: of the same artifact.
        sessions: events by session id; ids get a fresh prefix, so that a second replay starts new sessions.
        concurrency: sessions replayed at the same time.
        progress: called with the number of events answered.
    """
    started_ms = now_ms()
    prefix = f"replay-{secrets.token_hex(4)}-"
    played = {prefix + session_id: ending_now(events, started_ms) for session_id, events in sessions.items()}
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
                progress(result.events)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(shopper())
    result.seconds = time.perf_counter() - started
    result.answers = list(answers.values())
    return result


def _sample(session_ids: Sequence[str], count: int) -> list[str]:
    """Return at most `count` of the ids, evenly spread and always the same."""
    if count >= len(session_ids):
        return list(session_ids)
    positions = np.linspace(0, len(session_ids) - 1, count).round().astype(int)
    return [session_ids[position] for position in positions]


def _print_replay(result: ReplayResult, limit: float, state_dtype: str, outcomes: list[bool]) -> None:
    latency_ms = np.array(result.latency_s) * 1000
    answers = np.concatenate([np.array(answers) for answers in result.answers])
    bought = np.repeat(np.array(outcomes, dtype=np.float64), [len(answers) for answers in result.answers])
    quality = score(bought, answers)
    table = Table(title="replay", title_justify="left", show_header=False)
    table.add_row("sessions", f"{result.sessions:,}")
    table.add_row("events, each answered", f"{result.events:,}")
    table.add_row("retries", f"{result.retries:,}")
    table.add_row("events a second", f"{result.events / result.seconds:,.0f}")
    table.add_row("latency p50, p99", f"{np.percentile(latency_ms, 50):.1f} ms, {np.percentile(latency_ms, 99):.1f} ms")
    if quality.auc is not None:
        table.add_row("AUC, log loss of the answers", f"{quality.auc:.3f}, {quality.log_loss:.4f}")
    table.add_row("largest difference", f"{result.largest_difference:.2g} (limit {limit:.0e} with {state_dtype} state)")
    OUT.print(table)
    if result.largest_difference <= limit:
        OUT.print("[bold green]every answer equals the offline model's[/bold green]")
    elif result.worst is not None:
        session_id, length = result.worst
        ERR.print(f"error: session {session_id} differs most, after {length} events", style="bold red", markup=False)
