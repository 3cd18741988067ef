"""HTTP by uvicorn, with a shorter way for events.

The server makes an ASGI scope, a cycle and a task for each request, which then waits for its answer. For an event whose
head is known (`app.api.quick_events`) the connection itself waits: its bytes go straight to the batcher, and the
batcher's result straight to its socket, in one write instead of two. Everything else is the server's, untouched.
"""

import time
from typing import Any, cast

from starlette.types import Scope

from app.api.quick_events import STATE_NAME, Decided, QuickEvents, note_decided
from app.runtime.http_protocol import BoundedHttp
from app.scoring.events import QueuedEvent
from app.scoring.session_update import Score


class _Asked:
    """An event that a connection waits for: the batcher's caller (`app.scoring.batcher.Caller`)."""

    __slots__ = ("connection", "events", "is_over", "request", "started", "submission")

    def __init__(
        self, connection: "EventsHttp", events: QuickEvents, request: bytes, submission: QueuedEvent, started: float
    ) -> None:
        self.connection = connection
        self.events = events
        self.request = request
        self.submission = submission
        self.started = started
        self.is_over = False

    def answer(self, _place: int, result: Score | Exception) -> None:
        if not self.is_over:
            self._tell(result)

    def end(self) -> None:
        self._tell(self.events.withdraw(self.submission, self))

    def _tell(self, result: Score | Exception) -> None:
        self.is_over = True
        try:
            self.connection.on_result(self, result)
        except Exception:
            # Others of the batch have yet to be told theirs.
            self.connection.logger.exception("An answer could not be given.")
            self.connection.transport.abort()


class EventsHttp(BoundedHttp):
    """A connection that answers events by itself where it can."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - the server's
        super().__init__(*args, **kwargs)
        # Not there under another application, or while requests are traced. Where the server writes a line for each
        # request, or counts those that run, it has to see them all.
        self._events: QuickEvents | None = None
        if self.limit_concurrency is None and not (self.config.access_log and self.access_log):
            self._events = self.app_state.get(STATE_NAME)
        self._asked: _Asked | None = None
        # What came while an event was waited for: callers may send several requests at once.
        self._come = b""
        self._is_in_message = False
        self._is_to_close = False
        # When the last event was answered, by the loop's clock.
        self._answered_s = 0.0
        self._request: bytes | None = None
        self._decided: Decided | None = None

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._asked is not None:
            self._come += data
            self.flow.pause_reading()
            return
        is_between = not self._is_in_message and (self.cycle is None or self.cycle.response_complete)
        if is_between and self._events is not None:
            if self._ask(self._events, data):
                return
            self._request = data
        super().data_received(data)
        if self._is_in_message:
            # It came in parts, which is nothing to learn from.
            self._request = None

    def on_message_begin(self) -> None:
        """Take note of a request's first byte; called by the parser."""
        self._is_in_message = True
        super().on_message_begin()
        if self._decided is not None:
            note_decided(cast("Scope", self.scope), self._decided)
            self._decided = None

    def on_message_complete(self) -> None:
        """Take note that the request is all there; called by the parser."""
        self._is_in_message = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on to the next request; called by the server when one that it served is answered."""
        if self._request is not None and self._events is not None and self.cycle.keep_alive:
            self._events.learn(cast("Scope", self.cycle.scope), self._request)
        self._request = None
        super().on_response_complete()

    def shutdown(self) -> None:
        """Close the connection once what it waits for is answered; called by the server that stops."""
        if self._asked is None:
            super().shutdown()
        else:
            self._is_to_close = True

    def on_result(self, asked: _Asked, result: Score | Exception) -> None:
        """Answer the event that is waited for."""
        self._asked = None
        if isinstance(result, Exception):
            self._tell(asked, result)
        else:
            is_last = self._is_to_close or asked.events.is_draining
            if not self.transport.is_closing():
                answer = asked.events.answer(result, self.server_state.default_headers, is_last=is_last)
                self.transport.write(answer)
            asked.events.observe(time.perf_counter() - asked.started)
            self.server_state.total_requests += 1
            self._answered_s = self.loop.time()
            if is_last:
                self.transport.close()
            elif self.timeout_keep_alive_task is None:
                self._close_when_idle(self.timeout_keep_alive)
        if self._come:
            come, self._come = self._come, b""
            self.flow.resume_reading()
            self.data_received(come)

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection if it has been idle for as long as the server says; called by its timer.

        It runs on while events are answered, as a timer for each of them would be made to be cancelled.
        """
        left_s = self._answered_s + self.timeout_keep_alive - self.loop.time()
        if self._asked is not None:
            self._close_when_idle(self.timeout_keep_alive)
        elif left_s > 0:
            self._close_when_idle(left_s)
        else:
            super().timeout_keep_alive_handler()

    def _close_when_idle(self, after_s: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(after_s, self.timeout_keep_alive_handler)

    def _ask(self, events: QuickEvents, data: bytes) -> bool:
        """Return whether the data are an event that is answered here."""
        started = time.perf_counter()
        if self.flow.write_paused or self.transport.is_closing():
            return False
        submission = events.submission(data)
        if submission is None:
            return False
        self._stop_timer()
        self._asked = _Asked(self, events, data, submission, started)
        events.enqueue(submission, self._asked, self.loop.time())
        return True

    def _tell(self, asked: _Asked, error: Exception) -> None:
        """Have the application answer with an error, as it words them all."""
        if self.transport.is_closing():
            return
        self._decided = Decided(error, asked.started)
        super().data_received(asked.request)
        if self._is_to_close:
            super().shutdown()
