"""The service's client for Python: `Client`, and `AsyncClient` with the same methods to await.

    with Client("http://127.0.0.1:8000") as willbuy:
        score = willbuy.send({"session_id": "s-81", "event_name": "view_item", "item_id": "SKU-1"})
        print(score.probability)

A call is retried after a failure that may pass, with the same event id, so that an event counts once
(`app.client.retries`). Answers are models of `app.schemas`, errors those of `app.client.errors`.
"""

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, TypeVar, Unpack, overload

import httpx

from app.client.calls import (
    DEFAULT_BATCH_BYTES,
    DEFAULT_BATCH_EVENTS,
    DEFAULT_SESSION_EVENTS,
    DEFAULT_TOKEN_LIFETIME_S,
    BoardQuery,
    Calls,
    Event,
    Limits,
    Timestamp,
)
from app.client.errors import (
    SentEvent,
)
from app.client.retries import (
    DEFAULT_BATCH_DEADLINE_S,
    DEFAULT_DEADLINE_S,
    DEFAULT_TIMEOUT_S,
    Answer,
    Attempt,
    Exchange,
    Retries,
)
from app.schemas.board import BoardOut, HistoryOut, StatsOut
from app.schemas.events import ScoreOut
from app.schemas.interventions import InterventionsOut
from app.schemas.model import ModelOut
from app.schemas.sessions import SessionOut, TracedSessionOut
from app.schemas.tokens import TokenOut

_Result = TypeVar("_Result")


class Options(TypedDict, total=False):
    """Options of both clients, see `Client`."""

    api_key: str | None
    timeout_s: float
    deadline_s: float
    batch_deadline_s: float
    batch_events: int
    batch_bytes: int
    session_events: int


class _TimeLeft(dict[str, float]):
    """How long the next step of an attempt may take, whichever it is; looks like httpx's time-outs."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(dict.fromkeys(("connect", "read", "write", "pool"), attempt.timeout_s))
        self._attempt = attempt

    def get(self, _step: str, _default: object = None) -> float:
        return self._attempt.left_s()


class _ServiceAddress:
    """The service's URL, key and limits, in common for the sync and the async client."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        deadline_s: float = DEFAULT_DEADLINE_S,
        batch_deadline_s: float = DEFAULT_BATCH_DEADLINE_S,
        batch_events: int = DEFAULT_BATCH_EVENTS,
        batch_bytes: int = DEFAULT_BATCH_BYTES,
        session_events: int = DEFAULT_SESSION_EVENTS,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url: expected http:// or https://, not {url!r}")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("api_key: expected printable ASCII characters")
        self._url = url.rstrip("/")
        self._headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        batch_retries = Retries(timeout_s, batch_deadline_s)
        self._calls = Calls(Retries(timeout_s, deadline_s), batch_events, batch_bytes, session_events, batch_retries)

    def _arguments(self, attempt: Attempt) -> dict[str, Any]:
        """Return what httpx's `stream` needs for an attempt."""
        request = attempt.request
        typed = {} if request.content_type is None else {"content-type": request.content_type}
        return {
            "method": request.method,
            "url": self._url + request.path,
            "params": request.params or None,
            "content": request.content,
            "headers": {"accept": "application/json", **self._headers, **typed},
            # httpx has no deadline of a whole request. It asks for the time of each step when the step begins.
            "extensions": {"timeout": _TimeLeft(attempt)},
            "follow_redirects": False,
        }

    def _in_time(self, attempt: Attempt) -> None:
        """Raise after the deadline: each part of a slow answer may be in time when the whole is not."""
        if self._calls.retries.clock() >= attempt.give_up_at:
            raise httpx.ReadTimeout("the answer was not complete in time")


class Client(_ServiceAddress):
    """The service's client. Threads may share one.

    Events are mappings as `POST /v1/events` takes them, or `app.schemas.events.EventIn`; a time may be a `datetime`.
    Every method takes `timeout_s` and `deadline_s` for this one call, and raises `ClientError`.

    Args:
        url: of the service, with its path prefix if it has one.
        api_key: sent as `Authorization: Bearer`.
        timeout_s: longest wait for a connection, for sending, and for each part of an answer.
        deadline_s: longest time of a call, retries included.
        batch_deadline_s: the same for each request of a batch.
        batch_events, batch_bytes: largest request of a batch, at most the service's limits.
        session_events: most events of one session in a request, at most the service's dedupe window.
        http: the caller's own httpx client, for certificates, proxies or limits; `close` leaves it open.
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

    def send(self, event: Event, *, control: bool = False, **limits: Unpack[Limits]) -> ScoreOut:
        """Send one event, with a new id if it has none, and return its session's score.

        With `control`, the answer has decisions of control groups too; the key needs the scope `sessions:read` for it.
        """
        return self._run(self._calls.within(limits).send(event, control=control))

    def send_batch(
        self, events: Sequence[Event], *, control: bool = False, **limits: Unpack[Limits]
    ) -> list[SentEvent]:
        """Send many events in order, in as many requests as needed, and return one result for each; see `send`.

        An event that the service refuses is a result with a `problem`. An event that the service cannot take now is
        sent again; it then counts after the events of its session that were taken.

        Raises:
            IncompleteBatchError: a request had no answer. The error has the results so far, and the other events.
        """
        return self._run(self._calls.within(limits).send_batch(events, control=control))

    @overload
    def session(
        self, session_id: str, *, trace: Literal[True], why: bool = False, **limits: Unpack[Limits]
    ) -> TracedSessionOut: ...
    @overload
    def session(
        self, session_id: str, *, trace: bool = False, why: Literal[True], **limits: Unpack[Limits]
    ) -> TracedSessionOut: ...
    @overload
    def session(
        self, session_id: str, *, trace: bool = False, why: bool = False, **limits: Unpack[Limits]
    ) -> SessionOut: ...
    def session(
        self, session_id: str, *, trace: bool = False, why: bool = False, **limits: Unpack[Limits]
    ) -> SessionOut:
        """Return a session.

        With `trace`, also the probability after each of its events; with `why`, which inputs moved it at the last one.
        """
        return self._run(self._calls.within(limits).session(session_id, trace=trace, why=why))

    def sessions(self, *, limits: Limits | None = None, **query: Unpack[BoardQuery]) -> BoardOut:
        """Return a page of the live board; `cursor=page.next_cursor` returns the next one."""
        return self._run(self._calls.within(limits or {}).sessions(query))

    def stats(self, **limits: Unpack[Limits]) -> StatsOut:
        """Return the statistics of the service."""
        return self._run(self._calls.within(limits).stats())

    def history(self, hours: int = 24, **limits: Unpack[Limits]) -> HistoryOut:
        """Return conversion, volume and revenue by the hour, of at most the last week."""
        return self._run(self._calls.within(limits).history(hours))

    def interventions(self, **limits: Unpack[Limits]) -> InterventionsOut:
        """Return the rules, how often each fired, and its experiment."""
        return self._run(self._calls.within(limits).interventions())

    def token(
        self,
        session_id: str | None = None,
        *,
        lifetime_s: int = DEFAULT_TOKEN_LIFETIME_S,
        **limits: Unpack[Limits],
    ) -> TokenOut:
        """Return a token with which a browser may read one session; without an id, board, statistics and stream."""
        return self._run(self._calls.within(limits).token(session_id, lifetime_s))

    def outcome(
        self,
        session_id: str,
        outcome: Literal["purchase", "none"],
        timestamp: Timestamp | None = None,
        **limits: Unpack[Limits],
    ) -> SessionOut:
        """Record the outcome of a session, where no `purchase` event does, and return the session."""
        return self._run(self._calls.within(limits).outcome(session_id, outcome, timestamp))

    def delete(self, session_id: str, **limits: Unpack[Limits]) -> None:
        """Erase a session, if there is one."""
        self._run(self._calls.within(limits).delete(session_id))

    def model(self, **limits: Unpack[Limits]) -> ModelOut:
        """Return the model in use."""
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


class AsyncClient(_ServiceAddress):
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

    async def send(self, event: Event, *, control: bool = False, **limits: Unpack[Limits]) -> ScoreOut:
        return await self._run(self._calls.within(limits).send(event, control=control))

    async def send_batch(
        self, events: Sequence[Event], *, control: bool = False, **limits: Unpack[Limits]
    ) -> list[SentEvent]:
        return await self._run(self._calls.within(limits).send_batch(events, control=control))

    @overload
    async def session(
        self, session_id: str, *, trace: Literal[True], why: bool = False, **limits: Unpack[Limits]
    ) -> TracedSessionOut: ...
    @overload
    async def session(
        self, session_id: str, *, trace: bool = False, why: Literal[True], **limits: Unpack[Limits]
    ) -> TracedSessionOut: ...
    @overload
    async def session(
        self, session_id: str, *, trace: bool = False, why: bool = False, **limits: Unpack[Limits]
    ) -> SessionOut: ...
    async def session(
        self, session_id: str, *, trace: bool = False, why: bool = False, **limits: Unpack[Limits]
    ) -> SessionOut:
        return await self._run(self._calls.within(limits).session(session_id, trace=trace, why=why))

    async def sessions(self, *, limits: Limits | None = None, **query: Unpack[BoardQuery]) -> BoardOut:
        return await self._run(self._calls.within(limits or {}).sessions(query))

    async def stats(self, **limits: Unpack[Limits]) -> StatsOut:
        return await self._run(self._calls.within(limits).stats())

    async def history(self, hours: int = 24, **limits: Unpack[Limits]) -> HistoryOut:
        return await self._run(self._calls.within(limits).history(hours))

    async def interventions(self, **limits: Unpack[Limits]) -> InterventionsOut:
        return await self._run(self._calls.within(limits).interventions())

    async def token(
        self,
        session_id: str | None = None,
        *,
        lifetime_s: int = DEFAULT_TOKEN_LIFETIME_S,
        **limits: Unpack[Limits],
    ) -> TokenOut:
        return await self._run(self._calls.within(limits).token(session_id, lifetime_s))

    async def outcome(
        self,
        session_id: str,
        outcome: Literal["purchase", "none"],
        timestamp: Timestamp | None = None,
        **limits: Unpack[Limits],
    ) -> SessionOut:
        return await self._run(self._calls.within(limits).outcome(session_id, outcome, timestamp))

    async def delete(self, session_id: str, **limits: Unpack[Limits]) -> None:
        await self._run(self._calls.within(limits).delete(session_id))

    async def model(self, **limits: Unpack[Limits]) -> ModelOut:
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
