"""Invariant 1 from end to end: train, serve on a real Redis, replay unseen sessions over HTTP, compare every answer."""

import http.server
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from support.artifacts import write_artifact
from threadpoolctl import threadpool_limits
from typer.testing import CliRunner

from model.events import FIELD_NAMES, Event
from model.predictor import load_predictor
from model.sizes import NetworkSizes
from training.cli import cli
from training.commands.predict import run_predict
from training.commands.replay import (
    TOLERANCE,
    ReplayError,
    ReplayResult,
    client_of,
    ending_now,
    event_body,
    post_event,
    read_events,
    replay,
    run_replay,
)
from training.commands.train import run_training
from training.config import (
    FitSettings,
    PredictSettings,
    PretrainingSettings,
    ReplaySettings,
    TeacherSettings,
    TrainSettings,
)
from training.data.prepare import prepare
from training.data.prepared import PreparedDataset
from training.data.sources.canonical import write_events
from training.fit.train import parts_of
from training.synthetic import PRESETS, generate, write

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
SESSIONS = 60
SETTINGS = TrainSettings(
    fit=FitSettings(epochs=2, patience=2, batch_sessions=64, learning_rate=1e-2),
    sizes=NetworkSizes(hidden_size=16, head_size=16, dropout=0.1, input_dropout=0.0),
    pretraining=PretrainingSettings(epochs=1),
    teacher=TeacherSettings(folds=0),
    lightgbm=False,
)


@dataclass(frozen=True)
class Shop:
    """A shop that trained a model on its log."""

    log: Path
    dataset: PreparedDataset
    artifact: Path

    def unseen(self, count: int) -> dict[str, list[Event]]:
        ids = sorted(parts_of(self.dataset, SETTINGS.fractions, SETTINGS.split_seed)["test"])
        return read_events(self.dataset, ids[:count])


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    log = folder / "shop.parquet"
    write(generate(PRESETS["default"], 1000, seed=8), log)
    dataset = prepare(log, folder / "prepared")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1), pytest.MonkeyPatch.context() as patch:
        # The report's charts take longer than the training.
        patch.setattr("training.commands.train.write_html", lambda _path, _report: None)
        run_training(dataset, SETTINGS, folder / "model.pt")
    yield Shop(log, dataset, folder / "model.pt")
    torch.set_num_threads(before)


async def replayed(url: str, artifact: Path, sessions: dict[str, list[Event]], state_dtype: Any) -> ReplayResult:
    predictor = load_predictor(artifact, state_dtype=state_dtype)
    async with client_of(url, 16) as client:
        return await replay(client, predictor, sessions, concurrency=16, progress=lambda _: None)


@pytest.mark.parametrize(("state_dtype", "limit"), [("float16", 2e-3), ("float32", 1e-5)])
async def test_every_answer_is_the_offline_models(shop: Shop, valkey, service, state_dtype, limit, tmp_path) -> None:
    # Given the trained model in a service on a real Redis
    running = service(artifact=shop.artifact, redis_url=valkey.url, state_dtype=state_dtype)
    sessions = shop.unseen(SESSIONS)
    # When sessions that training did not see are posted event by event, many at once
    result = await replayed(running.base_url, shop.artifact, sessions, state_dtype)
    # Then there is an answer to every event, each within the promised distance
    assert TOLERANCE[state_dtype] == limit
    assert result.sessions == len(sessions) == SESSIONS
    assert result.events == sum(map(len, sessions.values())) == len(result.latency_s)
    assert [len(answers) for answers in result.answers] == [len(events) for events in sessions.values()]
    assert result.largest_difference <= limit
    # And they are answers, not one number
    said = [answer for answers in result.answers for answer in answers]
    assert max(said) - min(said) > 0.2
    # And `willbuy predict` writes the same numbers for a log of what was posted
    posted = {f"posted-{name}": ending_now(events, now_ms()) for name, events in list(sessions.items())[:8]}
    answers: dict[str, list[float]] = {}
    async with client_of(running.base_url, 4) as client:
        for name, events in posted.items():
            bodies = [event_body(name, f"e{number}", event) for number, event in enumerate(events)]
            answers[name] = [(await post_event(client, body))[0]["probability"] for body in bodies]
    assert predicted(shop, posted, tmp_path) == {
        name: pytest.approx(probabilities, abs=limit) for name, probabilities in answers.items()
    }


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def predicted(shop: Shop, sessions: dict[str, list[Event]], folder: Path) -> dict[str, list[float]]:
    """Each session's probabilities as `willbuy predict` writes them."""
    rows = [
        {"session_id": name, "timestamp_ms": event.timestamp_ms, "event_name": event.event_name}
        | {field: getattr(event, field) for field in FIELD_NAMES}
        | {f"property.{key}": event.properties.get(key) for key in (spec.name for spec in shop.dataset.properties)}
        for name, events in sessions.items()
        for event in events
    ]
    write_events(pl.DataFrame(rows, infer_schema_length=None), folder / "posted.parquet", clock="calendar")
    run_predict(shop.artifact, folder / "posted.parquet", folder / "table.parquet", PredictSettings())
    table = pl.read_parquet(folder / "table.parquet")
    return dict(table.group_by("session_id", maintain_order=True).agg("probability").iter_rows())


async def test_a_model_of_other_weights_is_noticed(shop: Shop, valkey, service, tmp_path) -> None:
    # Given a service with one model and an offline model of the same kind with other weights
    served = write_artifact(tmp_path / "served.pt", seed=1)
    other = write_artifact(tmp_path / "other.pt", seed=2)
    running = service(artifact=served, redis_url=valkey.url)
    # When the answers of the one are held against the other
    result = await replayed(running.base_url, other, shop.unseen(10), "float16")
    # Then they differ by far more than any tolerance, and it is told where
    assert result.largest_difference > 10 * TOLERANCE["float16"]
    assert result.worst is not None
    session_id, length = result.worst
    assert session_id.startswith("replay-")
    assert length >= 1


def command(*arguments: object) -> tuple[int, str, str]:
    """Run `willbuy replay` and return its status and what it printed."""
    result = CliRunner().invoke(cli, ["replay", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result.exit_code, result.stdout, result.stderr


def test_the_command_prepares_the_log_as_training_did_and_judges_by_the_tolerance(shop: Shop, valkey, service) -> None:
    running = service(artifact=shop.artifact, redis_url=valkey.url)
    options = ("--artifact", shop.artifact, "--url", running.base_url, "--sessions")
    # When the log itself is replayed
    code, out, _ = command(shop.log, *options, 50)
    # Then all agrees within the tolerance of float16
    assert code == 0
    assert "every answer equals the offline model's" in out
    assert "limit 2e-03 with float16 state" in out
    # And with a tolerance that no rounding keeps, it fails and says where
    code, out, err = command(shop.dataset.path, *options, 5, "--tolerance", 1e-9)
    assert code == 1
    assert "differs most, after" in err
    assert "every answer equals" not in out


async def test_a_service_that_runs_another_artifact_is_refused(shop: Shop, valkey, service, artifact) -> None:
    running = service(artifact=artifact, redis_url=valkey.url)
    with pytest.raises(ReplayError, match=r"the service runs model [0-9a-f]{16}, .*model\.pt is [0-9a-f]{16}"):
        await run_replay(shop.log, shop.artifact, ReplaySettings(running.base_url, sessions=10, concurrency=4))


async def test_no_service_is_told_with_the_url(shop: Shop) -> None:
    with pytest.raises(ReplayError, match=r"no willbuy service answers at http://127\.0\.0\.1:9.*ConnectError"):
        await run_replay(shop.log, shop.artifact, ReplaySettings("http://127.0.0.1:9", sessions=10, concurrency=4))


@pytest.fixture
def another_service() -> Iterator[Any]:
    """Start an HTTP server that answers every GET with the same body."""
    servers = []

    def start(status: int, body: bytes) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body"),
    [(404, b"no"), (200, b"<html>"), (200, b"{}"), (200, b"[]")],
)
async def test_another_program_at_the_url_is_no_willbuy_service(shop: Shop, another_service, status, body) -> None:
    url = another_service(status, body)
    with pytest.raises(ReplayError, match="no willbuy service"):
        await run_replay(shop.log, shop.artifact, ReplaySettings(url, sessions=10, concurrency=4))


async def test_a_refused_event_is_told_with_its_session_and_the_answer(valkey, service) -> None:
    running = service(redis_url=valkey.url)
    async with client_of(running.base_url, 1) as client:
        with pytest.raises(ReplayError, match=r"session s1: 4\d\d: .*timestamp"):
            await post_event(client, event_body("s1", "e1", Event("page_view", 0)))


async def test_a_service_that_is_busy_for_a_moment_is_asked_again(service, valkey) -> None:
    # Given a Redis that hangs, so that the service answers 503
    running = service(redis_url=valkey.url, redis_timeout_s=0.1)
    valkey.pause()
    resume = threading.Timer(0.5, valkey.resume)
    resume.start()
    try:
        # When an event is posted
        async with client_of(running.base_url, 1) as client:
            (event,) = ending_now([Event("page_view", 0)], time.time_ns() // 1_000_000)
            answer, retries = await post_event(client, event_body("s1", "e1", event))
    finally:
        resume.join()
    # Then it is sent again until it is answered, and was folded once
    assert retries >= 1
    assert answer["events"] == 1


def test_events_that_end_now_keep_their_gaps() -> None:
    shifted = ending_now([Event("a", 1000), Event("b", 4000)], 1_000_000)
    assert [(event.event_name, event.timestamp_ms) for event in shifted] == [("a", 997_000), ("b", 1_000_000)]


def test_a_body_holds_what_an_event_has_and_no_more() -> None:
    full = event_body("s", "e", Event("view_item", 5, "SKU", "hats", 0.0, 2.0, {"device": "phone"}))
    assert full == {
        "event_id": "e",
        "session_id": "s",
        "timestamp": 5,
        "event_name": "view_item",
        "item_id": "SKU",
        "item_category": "hats",
        "price": 0.0,
        "quantity": 2.0,
        "properties": {"device": "phone"},
    }
    bare = event_body("s", "e", Event("page_view", 5))
    assert bare.keys() == {"event_id", "session_id", "timestamp", "event_name", "properties"}
