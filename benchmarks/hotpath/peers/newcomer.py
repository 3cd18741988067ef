"""Peer (b): FastAPI, state read from Redis, an eager LSTM, state written back; as a careful newcomer writes it.

uvicorn --factory benchmarks.hotpath.peers.newcomer:create_app --http httptools --loop uvloop --no-access-log
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from redis.asyncio import Redis

from app.schemas.events import EventIn
from benchmarks.hotpath.peers.network import REDIS_URL, STATE_TTL_S, load_advance


def create_app() -> FastAPI:
    """Return the app."""
    advance = load_advance()
    redis = Redis.from_url(REDIS_URL)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await redis.aclose()

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/events")
    async def post_event(event: EventIn) -> dict[str, str | float]:
        key = f"state:{event.session_id}"
        before: Any = await redis.get(key)
        (probability,), (state,) = advance([event], [before])
        await redis.set(key, state, ex=STATE_TTL_S)
        return {"session_id": event.session_id, "probability": probability}

    return app
