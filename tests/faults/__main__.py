"""The long run: `PYTHONPATH=tests python -m faults`, or `make faults`."""

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console
from support.redis_servers import BINARIES, find_binary

from faults import report
from faults.campaign import Campaign, run
from faults.schedule import CLUSTER, CONSUMERS, CONTROLS, FAIL_OVER, FAIL_OVER_STALLED, LONG, RESTART
from model.predictor import StateDtype

_CONSOLE = Console()


def main(
    sessions: Annotated[int, typer.Option(help="Fewest sessions of each run.")] = 2000,
    rounds: Annotated[int, typer.Option(help="How often the schedule is gone through.")] = 1,
    seed: Annotated[int, typer.Option(help="Of visitors, think times and choices of replicas.")] = 1,
    only: Annotated[str, typer.Option(help="Run just what has this in its title.")] = "",
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = Path("artifacts/faults.json"),
) -> None:
    """Run the long schedule on each server, then the runs in which Redis may lose data, then the negative controls."""
    binaries = {name: binary for name in sorted(BINARIES) if (binary := find_binary(name)) is not None}
    if not binaries:
        _CONSOLE.print("no Redis or Valkey server is installed: make setup")
        raise typer.Exit(2)
    campaigns = [*_long(binaries, sessions, rounds, seed), *_of_redis(binaries, seed), *_controls(binaries, seed)]
    chosen = [campaign for campaign in campaigns if only in campaign.title]
    reports = []
    unexpected = []
    for campaign in chosen:
        with TemporaryDirectory(prefix="willbuy-faults-") as directory:
            found = asyncio.run(run(campaign, Path(directory)))
        report.show(found, _CONSOLE)
        reports.append(found)
        if not campaign.may_lose and found.passed == (campaign.breakage is not None):
            unexpected.append(campaign.title)
    report.write(reports, out)
    _CONSOLE.print(f"wrote {out}")
    if unexpected:
        _CONSOLE.print(f"not as it must be: {', '.join(unexpected)}", style="bold red")
        sys.exit(1)


def _long(binaries: Mapping[str, Path], sessions: int, rounds: int, seed: int) -> list[Campaign]:
    dtypes: tuple[StateDtype, ...] = ("float32", "float16")
    return [
        Campaign(
            f"all faults: {name}, {dtype}", binary, [*LONG] * rounds, sessions, seed=seed + number, state_dtype=dtype
        )
        for number, ((name, binary), dtype) in enumerate(zip(binaries.items(), dtypes, strict=False))
    ]


def _of_redis(binaries: Mapping[str, Path], seed: int) -> list[Campaign]:
    binary = list(binaries.values())[-1]
    return [
        Campaign("cluster, slots and primaries move", binary, CLUSTER, 1000, seed=seed, has_cluster=True),
        Campaign("restart, append-only file", binary, RESTART, 200, seed=seed),
        Campaign("restart, nothing on disk", binary, RESTART, 200, seed=seed, appendonly=False, may_lose=True),
        Campaign("consumers of a topic", binary, CONSUMERS, 1000, seed=seed, has_kafka=True),
        *(
            Campaign(
                f"fail-over, {link} link, redis_wait_replicas={confirmations}",
                binary,
                schedule,
                200,
                seed=seed,
                has_standby=True,
                # Waiting for the replica prevents the losses of asynchronous replication.
                may_lose=confirmations == 0,
                settings={"redis_wait_replicas": confirmations},
            )
            for link, schedule in (("slow", FAIL_OVER), ("stalled", FAIL_OVER_STALLED))
            for confirmations in (0, 1)
        ),
    ]


def _controls(binaries: Mapping[str, Path], seed: int) -> list[Campaign]:
    binary = list(binaries.values())[-1]
    return [
        Campaign(f"control: without {guarantee}", binary, faults, 200, seed=seed, think_s=0.05, breakage=guarantee)
        for guarantee, faults in CONTROLS.items()
    ]


if __name__ == "__main__":
    typer.run(main)
