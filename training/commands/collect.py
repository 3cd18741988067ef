"""Collecting ended sessions as the command does it: a line that tells how far it is, and counts at its end."""

from pathlib import Path
from typing import Final

from redis.exceptions import RedisError
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from training.collect.collector import Collected, Collector, collect, locked
from training.collect.connection import open_client
from training.collect.errors import CollectError
from training.collect.streams import Streams
from training.commands.console import ERR, OUT, tell
from training.data.sources.errors import SourceError

COLLECT_ERRORS: Final = (CollectError, SourceError, RedisError, OSError)


def run_collect(
    redis_url: str,
    out: Path,
    *,
    redis_ca_file: Path | None,
    group: str,
    consumer: str,
    follow: bool,
    sessions_a_file: int,
    every_s: float,
) -> Collected:
    """Collect ended sessions into a folder and say how many they were.

    Args:
        redis_url: the service's Redis.
        out: the folder.
        redis_ca_file: certificate authorities that TLS to Redis trusts beside the system's.
        group: the consumer group to read as.
        consumer: name within the group.
        follow: whether to go on until it is interrupted.
        sessions_a_file: sessions of one file at most, about.
        every_s: with `follow`, how often a file is written at least, while sessions come.

    Raises:
        CollectError: the URL is none, the folder is in use, or an entry cannot be read.
        SourceError: a file in the folder is damaged.
        RedisError: Redis is away.
    """
    client = open_client(redis_url, redis_ca_file)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    try:
        with locked(out), Progress(*columns, console=ERR, transient=True) as progress:
            task = progress.add_task("collecting")

            def show(collected: Collected) -> None:
                text = f"collecting: {collected.sessions:,} sessions, {collected.files:,} files"
                progress.update(task, description=text)

            def tell_outage(error: RedisError) -> None:
                progress.console.print(
                    f"Redis is away ({type(error).__name__}); trying again", style="yellow", markup=False
                )

            collector = Collector(
                Streams(client, group=group, consumer=consumer), out, sessions_a_file=sessions_a_file, progress=show
            )
            collect(collector, follow=follow, every_s=every_s, on_outage=tell_outage)
    finally:
        client.close()
    _print_counts(collector.collected, out)
    return collector.collected


def _print_counts(collected: Collected, out: Path) -> None:
    tell(
        f"{collected.sessions:,} sessions, {collected.buyers:,} of them bought, {collected.events:,} events "
        f"in {collected.files:,} new files of {out}"
    )
    if collected.repeated:
        tell(f"{collected.repeated:,} sessions were in the folder already, from a run that was broken off")
    if collected.gone:
        ERR.print(f"{collected.gone:,} sessions were erased or trimmed before they could be written", style="yellow")
    if any(out.glob("*.parquet")):
        OUT.print(f"\nNext: [bold]willbuy train {out} --out model.pt[/bold]", soft_wrap=True)
