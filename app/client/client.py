"""The service's client for Python: `Client`, and `AsyncClient` with the same methods to await.

    with Client("http://127.0.0.1:8000") as willbuy:
        score = willbuy.send({"session_id": "s-81", "event_name": "view_item", "item_id": "SKU-1"})
        print(score.probability)

Calls are tried again where that may help, with the same event id, so that an event counts once (`app.client.retries`).
Answers are the models of `app.schemas.events` and `app.schemas.board`, errors those of `app.client.errors`.
"""

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Literal, Self, TypeVar, Unpack, overload

import httpx

from app.client.address import Options, ServiceAddress
from app.client.calls import BoardQuery, Event, Limits, ModelOut, Timestamp
from app.client.errors import (
    ClientError,
    IncompleteBatchError,
    NoAnswerError,
    ProblemError,
    SentEvent,
    UnavailableError,
    UnexpectedAnswerError,
)
from app.client.retries import Answer, Attempt, Exchange
from app.schemas.board import BoardOut, StatsOut
from app.schemas.events import ScoreOut, SessionOut, TracedSessionOut

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "IncompleteBatchError",
    "ModelOut",
    "NoAnswerError",
    "ProblemError",
    "SentEvent",
    "UnavailableError",
    "UnexpectedAnswerError",
]

_Result = TypeVar("_Result")


class Client(ServiceAddress):
    """The service's client. Threads may share one.

    Events are mappings as `POST /v1/events` takes them, with a `datetime` for a time where that is handier, or
    `app.schemas.events.EventIn`. Every method takes `timeout_s` and `deadline_s` for this one call, and raises
    `ClientError`.

    Args:
        url: of the service, with a path where it stands behind one.
        api_key: sent as `Authorization: Bearer`.
        timeout_s: longest wait for a connection, for sending, and for each part of an answer.
        deadline_s: for how long a call is tried; of a batch, each request.
        batch_events, batch_bytes: largest request of a batch; not above what the service takes.
        session_events: most events of one session in it; not above the service's dedupe window.
        http: an httpx client of one's own, for certificates, proxies or limits; it is not closed.
    """

    def __init__(self, url: str, *, http: httpx.Client | None = None, **options: Unpack[Options]) -> None:
        super().__init__(url, **options)
        self._own = http is None
        self._http = http or httpx.Client()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if self._own:
            self._http.close()

    def send(self, event: Event, **limits: Unpack[Limits]) -> ScoreOut:
        """Send one event, with an id of its own where it has none, and return its session's score."""
        return self._run(self._calls.within(limits).send(event))

    def send_batch(self, events: Sequence[Event], **limits: Unpack[Limits]) -> list[SentEvent]:
        """Send many events in order, in as many requests as it takes, and return what became of each.

        An event that the service refused is a result with a `problem`. One that it could not take is sent once more;
        it then counts after those of its session that were taken.

        Raises:
            IncompleteBatchError: a request brought no answer; it has the results so far, and the events without one.
        """
        return self._run(self._calls.within(limits).send_batch(events))

    @overload
    def session(self, session_id: str, *, trace: Literal[True], **limits: Unpack[Limits]) -> TracedSessionOut: ...
    @overload
    def session(self, session_id: str, *, trace: bool = False, **limits: Unpack[Limits]) -> SessionOut: ...
    def session(self, session_id: str, *, trace: bool = False, **limits: Unpack[Limits]) -> SessionOut:
        """Return a session as it stands; with `trace`, the probability after each of its events too."""
        return self._run(self._calls.within(limits).session(session_id, trace=trace))

    def sessions(self, *, limits: Limits | None = None, **query: Unpack[BoardQuery]) -> BoardOut:
        """Return a page of the live board; `cursor=page.next_cursor` is the next one."""
        return self._run(self._calls.within(limits or {}).sessions(query))

    def stats(self, **limits: Unpack[Limits]) -> StatsOut:
        """Return how the service is doing."""
        return self._run(self._calls.within(limits).stats())

    def outcome(
        self,
        session_id: str,
        outcome: Literal["purchase", "none"],
        timestamp: Timestamp | None = None,
        **limits: Unpack[Limits],
    ) -> SessionOut:
        """Say what became of a session, where no `purchase` event does, and return it as it stands."""
        return self._run(self._calls.within(limits).outcome(session_id, outcome, timestamp))

    def delete(self, session_id: str, **limits: Unpack[Limits]) -> None:
        """Erase a session, if there is one."""
        self._run(self._calls.within(limits).delete(session_id))

    def model(self, **limits: Unpack[Limits]) -> ModelOut:
        """Return which model the service runs."""
        return self._run(self._calls.within(limits).model())

    def _run(self, exchange: Exchange[_Result]) -> _Result:
        came: Answer | httpx.HTTPError | None = None
        try:
            while True:
                step = exchange.send(came)
                if isinstance(step, Attempt):
                    came = self._attempt(step)
                else:
                    time.sleep(step.seconds)
                    came = None
        except StopIteration as done:
            result: _Result = done.value
            return result

    def _attempt(self, attempt: Attempt) -> Answer | httpx.HTTPError:
        content = bytearray()
        try:
            with self._http.stream(**self._arguments(attempt)) as response:
                for part in response.iter_bytes():
                    content += part
                    self._in_time(attempt)
        except httpx.HTTPError as exc:
            return exc
        return Answer(response.status_code, response.headers, bytes(content))


class AsyncClient(ServiceAddress):
    """The service's client for asyncio: `Client`, with `await`. Tasks of one event loop may share one."""

    def __init__(self, url: str, *, http: httpx.AsyncClient | None = None, **options: Unpack[Options]) -> None:
        super().__init__(url, **options)
        self._own = http is None
        self._http = http or httpx.AsyncClient()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._own:
            await self._http.aclose()

    async def send(self, event: Event, **limits: Unpack[Limits]) -> ScoreOut:
        """See `Client.send`."""
        return await self._run(self._calls.within(limits).send(event))

    async def send_batch(self, events: Sequence[Event], **limits: Unpack[Limits]) -> list[SentEvent]:
        """See `Client.send_batch`."""
        return await self._run(self._calls.within(limits).send_batch(events))

    @overload
    async def session(self, session_id: str, *, trace: Literal[True], **limits: Unpack[Limits]) -> TracedSessionOut: ...
    @overload
    async def session(self, session_id: str, *, trace: bool = False, **limits: Unpack[Limits]) -> SessionOut: ...
    async def session(self, session_id: str, *, trace: bool = False, **limits: Unpack[Limits]) -> SessionOut:
        """See `Client.session`."""
        return await self._run(self._calls.within(limits).session(session_id, trace=trace))

    async def sessions(self, *, limits: Limits | None = None, **query: Unpack[BoardQuery]) -> BoardOut:
        """See `Client.sessions`."""
        return await self._run(self._calls.within(limits or {}).sessions(query))

    async def stats(self, **limits: Unpack[Limits]) -> StatsOut:
        """See `Client.stats`."""
        return await self._run(self._calls.within(limits).stats())

    async def outcome(
        self,
        session_id: str,
        outcome: Literal["purchase", "none"],
        timestamp: Timestamp | None = None,
        **limits: Unpack[Limits],
    ) -> SessionOut:
        """See `Client.outcome`."""
        return await self._run(self._calls.within(limits).outcome(session_id, outcome, timestamp))

    async def delete(self, session_id: str, **limits: Unpack[Limits]) -> None:
        """See `Client.delete`."""
        await self._run(self._calls.within(limits).delete(session_id))

    async def model(self, **limits: Unpack[Limits]) -> ModelOut:
        """See `Client.model`."""
        return await self._run(self._calls.within(limits).model())

    async def _run(self, exchange: Exchange[_Result]) -> _Result:
        came: Answer | httpx.HTTPError | None = None
        try:
            while True:
                step = exchange.send(came)
                if isinstance(step, Attempt):
                    came = await self._attempt(step)
                else:
                    await asyncio.sleep(step.seconds)
                    came = None
        except StopIteration as done:
            result: _Result = done.value
            return result

    async def _attempt(self, attempt: Attempt) -> Answer | httpx.HTTPError:
        content = bytearray()
        try:
            async with self._http.stream(**self._arguments(attempt)) as response:
                async for part in response.aiter_bytes():
                    content += part
                    self._in_time(attempt)
        except httpx.HTTPError as exc:
            return exc
        return Answer(response.status_code, response.headers, bytes(content))
