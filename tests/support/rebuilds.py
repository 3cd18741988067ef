"""A scorer as the batcher calls it: requeued events come again once their session's rebuild has ended."""

from collections.abc import Sequence

from app.scoring.batcher import REQUEUE
from app.scoring.events import QueuedEvent
from app.scoring.rebuilder import Rebuilder
from app.scoring.scorer import Scorer
from app.scoring.session_update import Score


async def score_all(scorer: Scorer, rebuilder: Rebuilder, batch: Sequence[QueuedEvent]) -> list[Score | Exception]:
    results = [*await scorer.score(batch)]
    while again := [index for index, result in enumerate(results) if result is REQUEUE]:
        for index in again:
            if (pending := rebuilder.pending(batch[index].session_id)) is not None:
                await pending
        for index, result in zip(again, await scorer.score([batch[index] for index in again]), strict=True):
            results[index] = result
    return [result for result in results if result is not REQUEUE]
