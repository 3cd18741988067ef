"""Measure the hot path: `make bench`, or a part of it by name.

python -m benchmarks.hotpath all

Writes figures into benchmarks/results/hotpath.json, and tables into docs/reference/hot-path.md and docs/scaling.md.
Needs an otherwise idle machine, wrk, and the peers' packages (benchmarks/requirements-peers.txt), which `make bench`
installs.
"""

import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from benchmarks import gpu_step, scaling
from benchmarks.hotpath import commits, compare, flat, memory, tails, targets
from benchmarks.hotpath.artifact import train_artifact, with_compiled_step
from benchmarks.hotpath.load import wrk_version
from benchmarks.hotpath.machine import machine_of_servers
from benchmarks.hotpath.processes import BenchmarkError
from benchmarks.hotpath.results import DOCUMENT, JSON_FILE, machine_line, write_markdown, write_section
from benchmarks.hotpath.servers import BEFORE, Contestant, front, peers, willbuy
from training.commands.console import errors_for_people
from training.commands.stages import stage

_HIDDEN_SIZE: Final = 128
_EVENTS_A_REQUEST: Final = 200
_CONNECTIONS: Final = (1, 2, 4, 8, 16, 32, 64)
# Of which targets compare willbuy with another state of its code; more rounds, as they differ more.
_FEW_CONNECTIONS: Final = (8, 1)
_ROUNDS_OF_FEW: Final = 2
_ROUNDS: Final = 4
_SECONDS: Final = 3.0
_FLAT_SECONDS: Final = 4.0
_REPLAYS: Final = 9
_MANY: Final = "33000,300000"
_SESSIONS_OF_MEMORY: Final = 50_000
_EVENTS_OF_LEAK: Final = 1_000_000
_SAMPLES_OF_LEAK: Final = 6
_OUT: Final = Console()

cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

ArtifactOption = Annotated[
    Path | None, typer.Option("--artifact", help="The model to serve; without it a small one is trained.")
]
BeforeOption = Annotated[
    Path | None, typer.Option("--before", help="Checkout of another state of the code, to compare with.")
]
BeforeArtifactOption = Annotated[
    Path | None, typer.Option("--before-artifact", help="Its model, where it cannot read this one's.")
]
RoundsOption = Annotated[int, typer.Option(min=1, help="Rounds; each has everything once.")]
SecondsOption = Annotated[float, typer.Option(min=1, help="How long each is measured in a round.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="Short, to see that it works; nothing is written.")]
WriteOption = Annotated[
    bool | None, typer.Option("--write/--no-write", help="Write figures into JSON file and documents.")
]


@cli.callback()
def _main() -> None:
    # So that the servers end with this program, however that is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


@cli.command("compare")
@errors_for_people(BenchmarkError)
def compare_command(
    artifact: ArtifactOption = None,
    before: BeforeOption = None,
    before_artifact: BeforeArtifactOption = None,
    rounds: RoundsOption = _ROUNDS,
    seconds: SecondsOption = _SECONDS,
    only: Annotated[str, typer.Option(help="Names of servers, with commas between; empty: all.")] = "",
    connections: Annotated[int, typer.Option(min=1, help="Connections at a time.")] = compare.CONNECTIONS,
    quick: QuickOption = False,
) -> None:
    """Compare servers that all run all the time, in turn; nothing is written."""
    with _artifact(artifact) as served, _stage("compare") as show:
        chosen = _chosen(served, only)
        if before is not None:
            chosen += _before(chosen, before, before_artifact or served)
        found = compare.in_turn(
            chosen,
            rounds=1 if quick else rounds,
            seconds=2 if quick else seconds,
            show=show,
            connections=connections,
        )
        where = machine_of_servers(served)
    _finish("compare", where, {}, compare.tables(chosen, found), write=False)


@cli.command("tails")
@errors_for_people(BenchmarkError)
def tails_command(
    artifact: ArtifactOption = None,
    rounds: RoundsOption = _ROUNDS,
    seconds: SecondsOption = _SECONDS,
    quick: QuickOption = False,
    write: WriteOption = None,
) -> None:
    """Measure latencies at shares of the highest rate, and of the first requests after readiness."""
    taken = 1 if quick else rounds
    with _artifact(artifact) as served, _stage("tails") as show:
        first = []
        for number in range(taken):
            show(f"first requests, start {number + 1} of {taken}")
            first.append(tails.first_requests(willbuy(served)))
        runs = tails.at_shares(willbuy(served), rounds=taken, seconds=2 if quick else seconds, show=show)
        where = machine_of_servers(served)
    figures, lines = tails.figures(first, runs), tails.tables(first, runs)
    _finish("tails", where, figures, lines, write=_writes(write, quick=quick))


@cli.command("connections")
@errors_for_people(BenchmarkError)
def connections_command(
    artifact: ArtifactOption = None,
    seconds: SecondsOption = _SECONDS,
    quick: QuickOption = False,
    write: WriteOption = None,
) -> None:
    """Measure what batches cost by their size: 1 to 64 connections. `benchmarks.scaling` reckons with it."""
    with _artifact(artifact) as served, _stage("connections") as show:
        found = tails.by_connections(willbuy(served), _CONNECTIONS, 1 if quick else seconds, show)
        where = machine_of_servers(served)
    figures, lines = tails.connections_figures(found), tails.connections_table(found)
    _finish("connections", where, figures, lines, write=_writes(write, quick=quick))


@cli.command("flat")
@errors_for_people(BenchmarkError)
def flat_command(
    artifact: ArtifactOption = None,
    rounds: RoundsOption = _ROUNDS,
    seconds: SecondsOption = _FLAT_SECONDS,
    many: Annotated[str, typer.Option(help="Live sessions of the full Redis servers, with commas between.")] = _MANY,
    huge_pages: Annotated[
        bool, typer.Option(help="Whether the largest number is also measured in huge pages.")
    ] = False,
    quick: QuickOption = False,
    write: WriteOption = None,
) -> None:
    """Measure cost by live sessions, by the length of a session, and by the size of a batch."""
    with _artifact(artifact) as served:
        _flat(
            served,
            machine_of_servers(served),
            rounds=rounds,
            seconds=seconds,
            sizes=[*map(int, many.split(","))],
            huge_pages=huge_pages,
            quick=quick,
            write=_writes(write, quick=quick),
        )


@cli.command("memory")
@errors_for_people(BenchmarkError)
def memory_command(
    artifact: ArtifactOption = None,
    sessions: Annotated[int, typer.Option(min=1000, help="Live sessions.")] = _SESSIONS_OF_MEMORY,
    quick: QuickOption = False,
    write: WriteOption = None,
) -> None:
    """Measure what a live session of ten events takes in Redis."""
    with _artifact(artifact) as served, _stage("memory") as show:
        found = memory.session_memory(willbuy(served), 2000 if quick else sessions, show)
        where = machine_of_servers(served)
    figures, lines = memory.memory_figures(found), memory.memory_table(found)
    _finish("memory", where, figures, lines, write=_writes(write, quick=quick))


@cli.command("leak")
@errors_for_people(BenchmarkError)
def leak_command(
    artifact: ArtifactOption = None,
    events: Annotated[int, typer.Option(min=1000, help="After the first 100,000.")] = _EVENTS_OF_LEAK,
    quick: QuickOption = False,
    write: WriteOption = None,
) -> None:
    """Measure the service's resident memory while events come."""
    with _artifact(artifact) as served, _stage("leak") as show:
        found = memory.leak(willbuy(served), 40_000 if quick else events, 2 if quick else _SAMPLES_OF_LEAK, show)
        where = machine_of_servers(served)
    figures, lines = memory.leak_figures(found), memory.leak_table(found)
    _finish("leak", where, figures, lines, write=_writes(write, quick=quick))


@cli.command("all")
@errors_for_people(BenchmarkError)
def all_command(
    artifact: ArtifactOption = None,
    before: BeforeOption = None,
    before_artifact: BeforeArtifactOption = None,
    rounds: RoundsOption = _ROUNDS,
    seconds: SecondsOption = _SECONDS,
    quick: QuickOption = False,
    write: WriteOption = None,
) -> None:
    """Measure everything, one part after another, and write all tables; 20 to 25 minutes."""
    rounds, seconds, writes = 1 if quick else rounds, 2 if quick else seconds, _writes(write, quick=quick)
    with _artifact(artifact) as served:
        where = machine_of_servers(served)
        chosen = _chosen(served, "")
        earlier = [] if before is None else _before(chosen, before, before_artifact or served)
        if before is not None:
            where["before"] = _state_of(before)
        chosen += earlier
        with _stage("compare") as show:
            samples = compare.in_turn(chosen, rounds=rounds, seconds=seconds, show=show)
            two = [one for one in chosen if earlier and one.name in (compare.REFERENCE, compare.REFERENCE + BEFORE)]
            few = {
                number: compare.in_turn(
                    two, rounds=rounds * _ROUNDS_OF_FEW, seconds=seconds, show=show, connections=number
                )
                for number in _FEW_CONNECTIONS
                if two
            }
            show("Redis alone, on the same commits")
            batched = next(one for one in chosen if one.name == targets.BATCH)
            alone = commits.redis_alone(batched, replays=2 if quick else _REPLAYS)
        figures = {"servers": compare.figures(chosen, samples), "redis_alone": commits.figures(alone)}
        figures |= {f"connections_{number}": compare.figures(two, found) for number, found in few.items()}
        lines = compare.tables(chosen, samples)
        if few:
            lines += ["", *compare.few_table(two, few)]
        if batches := compare.valid(samples[batched.name]):
            lines += ["", *commits.table(alone, median(sample.events_per_s for sample in batches))]
        _finish("compare", where, figures, lines, write=writes)
        tails_command(artifact=served, rounds=rounds, seconds=seconds, quick=quick, write=writes)
        connections_command(artifact=served, seconds=seconds, quick=quick, write=writes)
        with _stage("step") as show:
            steps = gpu_step.measure(served, 64 if quick else max(gpu_step.BATCHES), show)
        _finish("step", gpu_step.machine_with_gpu(), gpu_step.figures(steps), gpu_step.table(steps), write=writes)
        lives = _flat(
            served,
            where,
            rounds=rounds,
            seconds=seconds if quick else _FLAT_SECONDS,
            sizes=[*map(int, _MANY.split(","))],
            huge_pages=False,
            quick=quick,
            write=writes,
        )
        lines = targets.table(samples, few, lives, _EVENTS_A_REQUEST)
        _finish("targets", where, {}, lines, write=writes)
        memory_command(artifact=served, quick=quick, write=writes)
        leak_command(artifact=served, quick=quick, write=writes)
    if writes:
        scaling.write(scaling.USUAL)


def _flat(
    served: Path,
    where: Mapping[str, str],
    *,
    rounds: int,
    seconds: float,
    sizes: Sequence[int],
    huge_pages: bool,
    quick: bool,
    write: bool,
) -> list[flat.Live]:
    """Measure cost by live sessions, length and batch; return the samples by live sessions."""
    service = willbuy(served)
    with _stage("flat") as show:
        lengths = flat.by_length(service, 100 if quick else 1000, show)
        batches = flat.by_batch(service, 4000 if quick else 20_000, show)
        lives = flat.by_live_sessions(
            service,
            [20_000] if quick else sizes,
            rounds=1 if quick else rounds,
            seconds=2 if quick else seconds,
            show=show,
            huge_pages=huge_pages,
        )
    _finish("flat", where, flat.figures(lives, lengths, batches), flat.tables(lives, lengths, batches), write=write)
    return lives


def _chosen(artifact: Path, only: str) -> list[Contestant]:
    """Return the servers of these names, with commas between; all but the front alone, if there are none."""
    batch = _EVENTS_A_REQUEST
    everyone = [
        willbuy(artifact),
        willbuy(artifact, workers=2),
        willbuy(artifact, batch=batch),
        *peers(artifact),
        willbuy(artifact, on_cluster=True),
        willbuy(artifact, batch=batch, on_cluster=True),
    ]
    if not only:
        return everyone
    names = [name.strip() for name in only.split(",")]
    known = {one.name: one for one in [*everyone, front(artifact)]}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BenchmarkError(f"--only: no server {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in names]


def _before(chosen: Sequence[Contestant], checkout: Path, artifact: Path) -> list[Contestant]:
    """Return those of the servers that another state of the code is compared in: one process, no cluster."""
    earlier = [
        willbuy(artifact, checkout=checkout),
        willbuy(artifact, batch=_EVENTS_A_REQUEST, checkout=checkout),
        front(artifact, checkout),
    ]
    names = {one.name for one in chosen}
    return [one for one in earlier if one.name.removesuffix(BEFORE) in names]


def _state_of(checkout: Path) -> str:
    """Return the commit of a checkout and its date."""
    command = ["git", "-C", str(checkout), "log", "-1", "--format=%h of %cs"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # all ours
    if told.returncode:
        raise BenchmarkError(f"--before: {checkout} is no checkout: {told.stderr.strip()}")
    return told.stdout.strip()


def _writes(write: bool | None, *, quick: bool) -> bool:
    return not quick if write is None else write


def _finish(
    name: str, where: Mapping[str, str], figures: Mapping[str, Any], lines: Sequence[str], *, write: bool
) -> None:
    """Print the figures, and put them where they belong."""
    lines = [*lines, "", machine_line(where)]
    for line in lines:
        _OUT.print(line, markup=False, highlight=False, soft_wrap=True)
    if write:
        if figures:
            write_section(name, where, figures)
        write_markdown(name, lines)
        _OUT.print(f"written: {JSON_FILE}, {DOCUMENT}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _stage(name: str) -> Iterator[Callable[[str], None]]:
    """Show what a part is at; yields what takes a note of it."""
    with stage(name, 1) as show:
        yield lambda note: show(0, note)


@contextmanager
def _artifact(given: Path | None) -> Iterator[Path]:
    """Yield the artifact to serve, with its compiled step where there is a compiler."""
    wrk_version()  # before anything takes long
    if given is not None and not given.is_file():
        raise BenchmarkError(f"--artifact: there is no file {given}")
    with tempfile.TemporaryDirectory(prefix="willbuy-") as name:
        folder = Path(name)
        with _OUT.status("training a model to serve, compiling its step"):
            served = with_compiled_step(given or train_artifact(folder, _HIDDEN_SIZE), folder)
        yield served


if __name__ == "__main__":
    cli()
