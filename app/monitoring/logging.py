"""The service's own log: one event a line on standard error, as text on a terminal and as JSON elsewhere.

Lines that the server and other libraries write through `logging` take the same form (`server_log_config`). Session ids
are hidden: they name visitors, and logs are kept longer and read by more people than sessions.
"""

import hashlib
import logging
import re
import sys
from collections.abc import Callable, MutableMapping, Sequence
from contextvars import ContextVar
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

REQUEST_ID: Final[ContextVar[bytes | None]] = ContextVar("request_id", default=None)
"""Request id of the current request, as in its header; every log line of the request carries it."""

_SHORT: Final = 4
_HASH_BYTES: Final = 6
_SESSION_PATH: Final = re.compile(r"(/v1/sessions/)(.+?)(/outcome)?$", re.DOTALL)


def build_logger(
    *, log_level: str, stream: TextIO | None = None, fields: Sequence[Processor] = ()
) -> FilteringBoundLogger:
    """Return a logger that writes to `stream` (standard error when None); configures nothing global.

    The processors of `fields` add fields to each line.
    """
    stream = stream or sys.stderr
    level = logging.getLevelNamesMapping()[log_level.upper()]
    logger: FilteringBoundLogger = structlog.wrap_logger(
        structlog.WriteLogger(stream),
        processors=[*_common(), *fields, *_renderers(stream)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
    )
    return logger


def hide_session_ids(form: Literal["full", "short", "hash"]) -> Processor:
    """Return a processor that rewrites the ids in `session_id` and in a request's `path`.

    `hash` is the id's BLAKE2b of six bytes in hexadecimal. It is the same each time, so that a search for an id's hash
    finds all lines of the session:

        python -c 'import hashlib, sys; print(hashlib.blake2b(sys.argv[1].encode(), digest_size=6).hexdigest())' ID
    """
    forms: dict[str, Callable[[str], str]] = {"full": str, "short": _shortened, "hash": _hashed}
    hidden = forms[form]

    def hide(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:  # noqa: ANN401 - structlog's
        if isinstance(session_id := event.get("session_id"), str):
            event["session_id"] = hidden(session_id)
        if isinstance(path := event.get("path"), str):
            event["path"] = _SESSION_PATH.sub(lambda found: found[1] + hidden(found[2]) + (found[3] or ""), path)
        return event

    return hide


def writes_text() -> bool:
    """Whether standard error is a terminal, which gets text for people instead of JSON."""
    return sys.stderr.isatty()


def start_error(reason: str) -> str:
    """Return the line of a fault that stops the start: in the log's form, text or JSON."""
    if writes_text():
        return f"willbuy cannot start: {reason}"
    values = {"event": "start_failed", "detail": reason, "level": "error"}
    stamped = structlog.processors.TimeStamper(fmt="iso", utc=True)(None, "error", values)
    return str(structlog.processors.JSONRenderer()(None, "error", stamped))


def server_log_config() -> dict[str, Any]:
    """Return uvicorn's `log_config`: its own lines, and other libraries' warnings, in the service's form.

    In JSON, the server logs each process that starts, ends or dies; on a terminal, only warnings and errors.
    """
    level = "WARNING" if writes_text() else "INFO"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"willbuy": {"()": "app.monitoring.logging.server_formatter"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "willbuy"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {"uvicorn": {"level": level}, "uvicorn.access": {"level": "CRITICAL"}},
    }


def server_formatter() -> logging.Formatter:
    """Return the formatter of `server_log_config`, and route Python's warnings to the log; called in each process."""
    logging.captureWarnings(capture=True)
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*_common(), structlog.stdlib.add_logger_name],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *_renderers(sys.stderr),
        ],
    )


def _common() -> list[Processor]:
    return [
        _add_request_id,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _renderers(stream: TextIO) -> list[Processor]:
    if stream.isatty():
        return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    # Without the frames' variables: events, keys and addresses with passwords are among them.
    transformer = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [structlog.processors.ExceptionRenderer(transformer), structlog.processors.JSONRenderer()]


def _add_request_id(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    request_id = REQUEST_ID.get()
    if request_id is not None:
        event.setdefault("request_id", request_id.decode("latin-1"))
    return event


def _shortened(session_id: str) -> str:
    return session_id if len(session_id) <= _SHORT else session_id[:_SHORT] + "…"


def _hashed(session_id: str) -> str:
    return hashlib.blake2b(session_id.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).hexdigest()
