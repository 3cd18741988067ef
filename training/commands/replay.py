"""A replay as the command does it: unseen sessions at a running service, and what came back."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from model.artifact import Manifest
from model.predictor import load_predictor
from training.commands.console import ERR, OUT, progress_bars
from training.commands.replay_sessions import (
    TOLERANCE,
    ReplayError,
    ReplayResult,
    client_of,
    read_sessions,
    replay,
    served_model,
)
from training.data.prepare import prepare
from training.data.prepared import PreparedDataset, is_prepared, read_prepared
from training.data.provenance import cuts_of
from training.evaluation.metrics import score
from training.fit.train import parts_of


async def run_replay(
    data: Path,
    artifact: Path,
    url: str,
    sessions: int,
    part: str,
    concurrency: int,
    tolerance: float | None,
    base_rate: float | None = None,
    api_key: str | None = None,
) -> bool:
    """Replay sessions of a part of the data at a service, print what came back, and return whether it agreed.

    Args:
        data: what the artifact was trained on.
        artifact: the file that the service runs.
        url: the service.
        sessions: how many at most.
        part: of the split.
        concurrency: sessions played at the same time.
        tolerance: largest difference; None for what the service's state type promises.
        base_rate: what the service should shift its answers to; None for what it says that it does.
        api_key: of the service, which needs the scopes `events:write` and `sessions:read`.

    Raises:
        ReplayError: no service, another model in it, or an event that it refused.
    """
    async with client_of(url, concurrency, api_key) as client:
        served = await served_model(client)
        state_dtype = served["state_dtype"]
        # Asked of the service, so that its answers are held against the same model at the same base rate.
        live = served.get("base_rate") if base_rate is None else base_rate
        predictor = load_predictor(artifact, state_dtype=state_dtype, base_rate=live)
        if served["fingerprint"] != predictor.fingerprint:
            raise ReplayError(f"the service runs model {served['fingerprint']}, {artifact} is {predictor.fingerprint}")
        limit = TOLERANCE[state_dtype] if tolerance is None else tolerance
        with tempfile.TemporaryDirectory(prefix="willbuy-") as temporary:
            dataset = _dataset(data, Path(temporary) / "prepared", predictor.manifest)
            training = predictor.manifest.training
            chosen = sorted(parts_of(dataset, tuple(training["fractions"]), training["split_seed"])[part])
            if not chosen:
                raise ReplayError(f"the {part} part of {data} holds no session")
            chosen = _sample(chosen, sessions)
            events = read_sessions(dataset, chosen)
            outcomes = dict(dataset.sessions().select("session_id", "outcome").iter_rows())
        with progress_bars() as bars:
            task = bars.add_task("replaying", total=sum(map(len, events.values())), note="")
            result = await replay(
                client, predictor, events, concurrency=concurrency, progress=lambda count: bars.advance(task, count)
            )
    agreed = result.largest_difference <= limit
    _print_replay(result, limit, state_dtype, [outcomes[session_id] for session_id in events])
    return agreed


def _dataset(data: Path, folder: Path, manifest: Manifest) -> PreparedDataset:
    if is_prepared(data):
        return read_prepared(data)
    return prepare(data, folder, format=manifest.data.get("source_format", "auto"), **cuts_of(manifest))


def _sample(session_ids: Sequence[str], count: int) -> list[str]:
    """Return at most `count` of the ids, evenly spread, the same ones each time."""
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
