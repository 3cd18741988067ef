"""The service without one of its guarantees: `broken compare_and_set serve --port 8001`, see `support.warm_process`.

Only for the harness, to prove that it detects the violation. The product has no such switch: this program replaces
parts of it before the command starts.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

import uvicorn
from msgspec.structs import replace

from app import cli
from app.errors import StoreError
from app.kafka.consumer import KafkaFeed
from app.scoring import scorer
from app.store.interface import Commit
from app.store.record_codec import Answers, Record
from app.store.sessions import RedisStore


def break_compare_and_set() -> None:
    """The last writer wins: each commit expects the version that is stored when it arrives."""
    commit = RedisStore.commit

    async def overwrite(store: RedisStore, commits: Sequence[Commit]) -> list[bool | StoreError]:
        found = await store.load([each.session_id for each in commits])
        versions = [record.version if isinstance(record, Record) else None for record in found]
        blind = [replace(each, expected=version) for each, version in zip(commits, versions, strict=True)]
        return await commit(store, blind)

    RedisStore.commit = overwrite  # type: ignore[assignment,method-assign]  # replacing it is the point


def break_dedupe() -> None:
    """No event id is recognised."""
    Answers.find = lambda _answers, _code: None  # type: ignore[assignment,method-assign]  # same


def break_drain() -> None:
    """SIGTERM ends the process at once with status 0."""

    def leave(_server: uvicorn.Server, _signal: int, _frame: Any) -> None:
        os._exit(0)

    uvicorn.Server.handle_exit = leave  # type: ignore[assignment,method-assign]  # same


def break_marks() -> None:
    """No record remembers what was decided in its session."""
    vars(scorer)["with_decisions"] = lambda record, _decisions, _window: record


def break_offsets() -> None:
    """Offsets are committed before the events are scored."""
    score = KafkaFeed._score  # noqa: SLF001  # private: what is broken

    async def commit_first(feed: Any, batch: Any) -> None:
        await feed._source.commit({row.partition: row.message.offset() + 1 for row in batch.rows})  # noqa: SLF001  # private: same
        await score(feed, batch)

    KafkaFeed._score = commit_first  # type: ignore[assignment,method-assign]  # noqa: SLF001  # private: same


BREAKS = {
    "compare_and_set": break_compare_and_set,
    "dedupe": break_dedupe,
    "drain": break_drain,
    "marks": break_marks,
    "offsets": break_offsets,
}


def main() -> None:
    """Break it, and run the command."""
    BREAKS[sys.argv.pop(1)]()
    cli.main()
