"""Peer (e): no framework: an ASGI callable that reads a body, a loop that batches, Redis, the LSTM; nothing else.

What uvicorn leaves to spend: no checks, no access control, no board, no history, no metrics, and no second chance when
Redis fails.

uvicorn --factory benchmarks.hotpath.peers.bare:create_app --http httptools --loop uvloop --no-access-log
"""

import asyncio
from typing import Any

import msgspec
from redis import Redis
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks.hotpath.peers.body import EventBody
from benchmarks.hotpath.peers.network import REDIS_URL, answers, load_advance

_LARGEST_BATCH = 64
_TURNS_TO_QUEUE = 4


def create_app() -> ASGIApp:
    """Return the callable."""
    advance, redis = load_advance(), Redis.from_url(REDIS_URL)
    decode = msgspec.json.Decoder(EventBody).decode
    waiting: list[tuple[EventBody, asyncio.Future[dict[str, Any]]]] = []
    came = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def batches() -> None:
        while True:
            await came.wait()
            # As willbuy does: what lies in the sockets joins the batch.
            for _ in range(_TURNS_TO_QUEUE):
                await asyncio.sleep(0)
            taken = waiting[:_LARGEST_BATCH]
            del waiting[:_LARGEST_BATCH]
            if not waiting:
                came.clear()
            # Redis is waited for with the loop standing still: less work than a client of the loop's own.
            for (_, answer), body in zip(taken, answers(advance, redis, [event for event, _ in taken]), strict=True):
                answer.set_result(body)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        message = await receive()
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        waiting.append((decode(message["body"]), answer))
        came.set()
        if not tasks:
            tasks.append(asyncio.create_task(batches()))
        body = msgspec.json.encode(await answer)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app
