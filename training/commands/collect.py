"""`willbuy collect`: ended sessions into a folder, with a progress line and final counts."""

from pathlib import Path
from typing import Final

from redis.exceptions import RedisError
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from model.own_redis import running_url
from training.collect.collector import Collected, Collector, collect, locked
from training.collect.connection import open_client
from training.collect.errors import CollectError
from training.collect.streams import Streams
from training.commands.console import ERR, OUT, print_line
from training.config import CollectSettings
from training.data.sources.errors import SourceError

COLLECT_ERRORS: Final = (CollectError, SourceError, RedisError, OSError)


def run_collect(out: Path, settings: CollectSettings) -> Collected:
    """Collect ended sessions into a folder and print the counts.

    Args:
        out: the folder.
        settings: of the collection.

    Raises:
        CollectError: the URL or the prefix is invalid, the folder is in use, or an entry cannot be read.
        SourceError: a file in the folder is damaged.
        RedisError: Redis is unavailable.
    """
    url = settings.redis_url or running_url()
    if not url:
        raise CollectError(
            "no Redis: no `willbuy serve` with an embedded one runs here; give --redis-url or set WILLBUY_REDIS_URL"
        )
    client = open_client(url, settings.redis_ca_file, settings.redis_cert_file, settings.redis_key_file)
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

            streams = Streams(
                client, prefix=settings.redis_key_prefix, group=settings.group, consumer=settings.consumer
            )
            collector = Collector(streams, out, sessions_a_file=settings.sessions_a_file, progress=show)
            collect(collector, follow=settings.follow, every_s=settings.every_s, on_outage=tell_outage)
    finally:
        client.close()
    _print_counts(collector.collected, out)
    return collector.collected


def _print_counts(collected: Collected, out: Path) -> None:
    print_line(
        f"{collected.sessions:,} sessions, {collected.buyers:,} of them bought, {collected.events:,} events "
        f"in {collected.files:,} new files of {out}"
    )
    if collected.repeated:
        print_line(f"{collected.repeated:,} sessions were in the folder already, from an interrupted run")
    if collected.gone:
        ERR.print(f"{collected.gone:,} sessions were erased or trimmed before they could be written", style="yellow")
    if collected.unknown:
        ERR.print(f"{collected.unknown:,} sessions have no known outcome: Redis evicted keys of theirs", style="yellow")
    if any(out.glob("*.parquet")):
        OUT.print(f"\nNext: [bold]willbuy train {out} --out model.pt[/bold]", soft_wrap=True)
