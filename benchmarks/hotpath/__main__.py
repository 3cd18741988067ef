"""Measure the hot path: `make bench`, or a part of it by name.

python -m benchmarks.hotpath all

Writes figures into benchmarks/results/hotpath.json, and tables into docs/reference/hot-path.md. Needs an otherwise idle
machine, wrk, and the peers' packages (benchmarks/requirements-peers.txt), which `make bench` installs.
"""

import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from benchmarks.hotpath import commits, compare, flat, fronts, memory, tails
from benchmarks.hotpath.artifact import train_artifact
from benchmarks.hotpath.load import wrk_version
from benchmarks.hotpath.machine import machine_of_servers
from benchmarks.hotpath.processes import BenchmarkError
from benchmarks.hotpath.redis_server import running_redis
from benchmarks.hotpath.results import DOCUMENT, JSON_FILE, machine_line, write_markdown, write_section
from benchmarks.hotpath.servers import BEFORE, Contestant, front, peers, willbuy
from benchmarks.hotpath.traffic import Traffic
from training.commands.console import errors_for_people
from training.commands.stages import stage

_HIDDEN_SIZE: Final = 128
_EVENTS_A_REQUEST: Final = 200
_CONNECTIONS: Final = (1, 2, 4, 8, 16, 32, 64)
_MANY: Final = "33000,300000,1000000"
_FRONT: Final = "empty,nothing,willbuy,front"
_OUT: Final = Console()

cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

ArtifactOption = Annotated[
    Path | None, typer.Option("--artifact", help="The model to serve; without it a small one is trained.")
]
RoundsOption = Annotated[int, typer.Option(min=1, help="Rounds; each has everything once.")]
SecondsOption = Annotated[float, typer.Option(min=1, help="How long each is measured in a round.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="Short, to see that it works; nothing is written.")]
WriteOption = Annotated[bool, typer.Option("--write/--no-write", help="Write figures into JSON file and document.")]


@cli.callback()
def _main() -> None:
    # So that the servers end with this program, however that is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


@cli.command("compare")
@errors_for_people(BenchmarkError)
def compare_command(
    artifact: ArtifactOption = None,
    rounds: RoundsOption = 5,
    seconds: SecondsOption = 10.0,
    only: Annotated[str, typer.Option(help="Names of servers, with commas between; empty: all.")] = "",
    quick: QuickOption = False,
    write: WriteOption = True,
) -> None:
    """Compare willbuy with its peers and with Redis alone, under 64 connections."""
    with _artifact(artifact) as served:
        chosen = _chosen(served, only)
        samples = compare.compare(
            chosen, rounds=1 if quick else rounds, seconds=3 if quick else seconds, warm_up_s=1 if quick else 3
        )
        figures = {"servers": compare.figures(chosen, samples)}
        lines = compare.tables(chosen, samples)
        batched = next((one for one in chosen if one.batch and not one.on_cluster), None)
        if batched is not None:
            with _OUT.status("Redis alone, on the same commits"):
                alone = commits.redis_alone(batched, replays=2 if quick else 9)
            figures["redis_alone"] = commits.figures(alone)
            if batches := compare.valid(samples[batched.name]):
                lines += ["", *commits.table(alone, median(sample.events_per_s for sample in batches))]
    _finish("compare", figures, lines, write=write and not quick)


@cli.command("front")
@errors_for_people(BenchmarkError)
def front_command(
    artifact: ArtifactOption = None,
    rounds: RoundsOption = 6,
    seconds: SecondsOption = 4.0,
    only: Annotated[str, typer.Option(help="Names of servers, with commas between.")] = _FRONT,
    before: Annotated[
        Path | None, typer.Option(help="Checkout of another state of the code, to compare with.", show_default=False)
    ] = None,
    before_artifact: Annotated[
        Path | None, typer.Option(help="Its model, where it cannot read this one's.", show_default=False)
    ] = None,
    connections: Annotated[int, typer.Option(min=1, help="Connections at a time.")] = compare.CONNECTIONS,
    compiled: Annotated[
        Path | None, typer.Option(help="The artifact with its compiled step, to compare with.", show_default=False)
    ] = None,
    varied: Annotated[bool, typer.Option(help="Whether each request has a head of its own.")] = True,
    quick: QuickOption = False,
) -> None:
    """Compare servers that all run all the time, in turn: two that do nothing, willbuy, and its front alone."""
    with _artifact(artifact) as served, _stage("front") as show:
        chosen = _chosen(served, only)
        if before is not None:
            ours = [contestant for contestant in chosen if contestant.with_key]
            others = _chosen(before_artifact or served, ",".join(one.name for one in ours), before)
            chosen += others
        if compiled is not None:
            chosen.append(replace(willbuy(compiled), name="willbuy-compiled", title="willbuy, compiled step"))
        found = fronts.in_turn(
            chosen,
            rounds=1 if quick else rounds,
            seconds=2 if quick else seconds,
            connections=connections,
            traffic=Traffic(varied=varied),
            show=show,
        )
    lines = compare.tables(chosen, found)
    if fronts.REFERENCE in found:
        lines += ["", *fronts.table(chosen, found)]
    with running_redis() as redis:
        lines += ["", machine_line(machine_of_servers(redis))]
    for line in lines:
        _OUT.print(line, markup=False, highlight=False, soft_wrap=True)


@cli.command("tails")
@errors_for_people(BenchmarkError)
def tails_command(
    artifact: ArtifactOption = None,
    rounds: RoundsOption = 5,
    seconds: SecondsOption = 10.0,
    quick: QuickOption = False,
    write: WriteOption = True,
) -> None:
    """Measure latencies at shares of the highest rate, and of the first requests after readiness."""
    taken = 1 if quick else rounds
    with _artifact(artifact) as served, _stage("tails") as show:
        first = []
        for number in range(taken):
            show(f"first requests, start {number + 1} of {taken}")
            first.append(tails.first_requests(willbuy(served)))
        runs = tails.at_shares(willbuy(served), rounds=taken, seconds=3 if quick else seconds, show=show)
    _finish("tails", tails.figures(first, runs), tails.tables(first, runs), write=write and not quick)


@cli.command("connections")
@errors_for_people(BenchmarkError)
def connections_command(
    artifact: ArtifactOption = None, seconds: SecondsOption = 8.0, quick: QuickOption = False, write: WriteOption = True
) -> None:
    """Measure what batches cost by their size: 1 to 64 connections. `benchmarks.scaling` reckons with it."""
    with _artifact(artifact) as served, _stage("connections") as show:
        found = tails.by_connections(willbuy(served), _CONNECTIONS, 2 if quick else seconds, show)
    lines = tails.connections_table(found)
    _finish("connections", tails.connections_figures(found), lines, write=write and not quick)


@cli.command("flat")
@errors_for_people(BenchmarkError)
def flat_command(
    artifact: ArtifactOption = None,
    rounds: RoundsOption = 5,
    seconds: SecondsOption = 10.0,
    many: Annotated[str, typer.Option(help="Live sessions of the full Redis servers, with commas between.")] = _MANY,
    huge_pages: Annotated[bool, typer.Option(help="Whether the largest number is also measured in huge pages.")] = True,
    quick: QuickOption = False,
    write: WriteOption = True,
) -> None:
    """Measure cost by live sessions, by the length of a session, and by the size of a batch."""
    taken = 1 if quick else rounds
    sizes = [20_000] if quick else [*map(int, many.split(","))]
    with _artifact(artifact) as served, _stage("flat") as show:
        service = willbuy(served)
        lengths = flat.by_length(service, 100 if quick else 1000, show)
        batches = flat.by_batch(service, 4000 if quick else 20_000, show)
        live = flat.by_live_sessions(
            service, sizes, rounds=taken, seconds=3 if quick else seconds, show=show, huge_pages=huge_pages
        )
    figures, lines = flat.figures(live, lengths, batches), flat.tables(live, lengths, batches)
    _finish("flat", figures, lines, write=write and not quick)


@cli.command("memory")
@errors_for_people(BenchmarkError)
def memory_command(
    artifact: ArtifactOption = None,
    sessions: Annotated[int, typer.Option(min=1000, help="Live sessions.")] = 100_000,
    quick: QuickOption = False,
    write: WriteOption = True,
) -> None:
    """Measure what a live session of ten events takes in Redis."""
    with _artifact(artifact) as served, _stage("memory") as show:
        found = memory.session_memory(willbuy(served), 2000 if quick else sessions, show)
    _finish("memory", memory.memory_figures(found), memory.memory_table(found), write=write and not quick)


@cli.command("leak")
@errors_for_people(BenchmarkError)
def leak_command(
    artifact: ArtifactOption = None,
    events: Annotated[int, typer.Option(min=1000, help="After the first 100,000.")] = 1_000_000,
    quick: QuickOption = False,
    write: WriteOption = True,
) -> None:
    """Measure the service's resident memory over a million events."""
    with _artifact(artifact) as served, _stage("leak") as show:
        found = memory.leak(willbuy(served), 100_000 if quick else events, 4 if quick else 10, show)
    _finish("leak", memory.leak_figures(found), memory.leak_table(found), write=write and not quick)


@cli.command("workers")
@errors_for_people(BenchmarkError)
def workers_command(
    artifact: ArtifactOption = None,
    rounds: RoundsOption = 5,
    seconds: SecondsOption = 10.0,
    quick: QuickOption = False,
    write: WriteOption = True,
) -> None:
    """Compare two worker processes with one."""
    with _artifact(artifact) as served:
        chosen = [willbuy(served), willbuy(served, workers=2)]
        samples = compare.compare(
            chosen, rounds=1 if quick else rounds, seconds=3 if quick else seconds, warm_up_s=1 if quick else 3
        )
    figures, lines = compare.figures(chosen, samples), compare.workers_table(chosen, samples)
    _finish("workers", figures, lines, write=write and not quick)


@cli.command("all")
@errors_for_people(BenchmarkError)
def all_command(artifact: ArtifactOption = None, quick: QuickOption = False, write: WriteOption = True) -> None:
    """Measure everything, one part after another; half an hour and more."""
    with _artifact(artifact) as served:
        for command in (
            compare_command,
            tails_command,
            connections_command,
            workers_command,
            flat_command,
            memory_command,
            leak_command,
        ):
            command(artifact=served, quick=quick, write=write)


def _chosen(artifact: Path, only: str, checkout: Path | None = None) -> list[Contestant]:
    """Return the servers of these names; all that `compare` compares, if there are none.

    Args:
        artifact: the model to serve.
        only: names with commas between.
        checkout: folder of another state of the code, for willbuy's own.
    """
    batch = _EVENTS_A_REQUEST
    everyone = [
        willbuy(artifact, checkout=checkout),
        willbuy(artifact, workers=2, checkout=checkout),
        willbuy(artifact, batch=batch, checkout=checkout),
        *peers(artifact),
        willbuy(artifact, on_cluster=True, checkout=checkout),
        willbuy(artifact, batch=batch, on_cluster=True, checkout=checkout),
    ]
    if not only:
        return everyone
    names = [name.strip() for name in only.split(",")]
    suffix = "" if checkout is None else BEFORE
    known = {one.name.removesuffix(suffix): one for one in [*everyone, front(artifact, checkout)]}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BenchmarkError(f"--only: no server {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in names]


def _finish(name: str, figures: Mapping[str, Any], lines: Sequence[str], *, write: bool) -> None:
    """Print the figures, and put them where they belong."""
    with running_redis() as redis:
        where = machine_of_servers(redis)
    for line in [*lines, "", machine_line(where)]:
        _OUT.print(line, markup=False, highlight=False, soft_wrap=True)
    if write:
        write_section(name, where, figures)
        write_markdown(name, [*lines, "", machine_line(where)])
        _OUT.print(f"written: {JSON_FILE}, {DOCUMENT}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _stage(name: str) -> Iterator[Callable[[str], None]]:
    """Show what a part is at; yields what takes a note of it."""
    with stage(name, 1) as show:
        yield lambda note: show(0, note)


@contextmanager
def _artifact(given: Path | None) -> Iterator[Path]:
    wrk_version()  # before anything takes long
    if given is not None:
        if not given.is_file():
            raise BenchmarkError(f"--artifact: there is no file {given}")
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="willbuy-") as folder:
        with _OUT.status("training a model to serve"):
            artifact = train_artifact(Path(folder), _HIDDEN_SIZE)
        yield artifact


if __name__ == "__main__":
    cli()
