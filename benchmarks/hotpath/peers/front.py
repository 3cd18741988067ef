"""willbuy with a scorer that answers at once: what is left is the front, from the socket to the batcher and back.

python benchmarks/hotpath/peers/front.py --port 8000 --http app.runtime.http_protocol:BoundedHttp

Uses only names that several states of the code have, so that it can measure an older checkout.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import uvicorn

from app import main
from app.scoring.session_update import Score
from app.store.record_codec import Answer, Outcome

_ANSWER = Answer(0.25, 3, "00" * 8, Outcome.OPEN, folded=True)


class ImmediateScorer:
    """Takes the place of `app.scoring.scorer.Scorer`."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    async def score(self, submissions: Sequence[Any], _callers: object) -> list[Score]:
        """Return the same answer for each event."""
        return [Score(submission.session_id, _ANSWER, duplicate=False, warnings=()) for submission in submissions]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--http", required=True)
    options = parser.parse_args()
    setattr(main, "Scorer", ImmediateScorer)  # noqa: B010 - the module does not export the name
    uvicorn.run(
        main.create_app(),
        host="127.0.0.1",
        port=options.port,
        http=options.http,
        loop="uvloop",
        proxy_headers=False,
        access_log=False,
        log_level="warning",
    )
