"""The service's own log: one event a line on standard error, for people or for machines.

What the server and other libraries write through `logging` takes the same form, see `server_log_config`.
"""

import logging
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

LogFormat = Literal["console", "json"]

REQUEST_ID: Final[ContextVar[bytes | None]] = ContextVar("request_id", default=None)
"""Name of the request that is being served, as its header has it; every line that is written meanwhile carries it."""


def build_logger(
    *, log_format: LogFormat, log_level: str, stream: TextIO | None = None, fields: Sequence[Processor] = ()
) -> FilteringBoundLogger:
    """Return a logger that writes to `stream` (standard error when None); configures nothing global.

    `fields` add to each line what is known elsewhere.
    """
    stream = stream or sys.stderr
    level = logging.getLevelNamesMapping()[log_level.upper()]
    logger: FilteringBoundLogger = structlog.wrap_logger(
        structlog.WriteLogger(stream),
        processors=[*_common(), *fields, *_renderers(log_format, colors=stream.isatty())],
        wrapper_class=structlog.make_filtering_bound_logger(level),
    )
    return logger


def server_log_config(log_format: LogFormat) -> dict[str, Any]:
    """Return what uvicorn takes as `log_config`: its own lines, and other libraries' warnings, in the service's form.

    The server tells of each process that starts, ends or dies; a person at a console sees only what goes wrong.
    """
    level = "INFO" if log_format == "json" else "WARNING"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"willbuy": {"()": "app.monitoring.logging.server_formatter", "log_format": log_format}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "willbuy"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {"uvicorn": {"level": level}, "uvicorn.access": {"level": "CRITICAL"}},
    }


def server_formatter(log_format: LogFormat) -> logging.Formatter:
    """Return the formatter of `server_log_config`, and send Python's warnings its way; called in each process."""
    logging.captureWarnings(capture=True)
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*_common(), structlog.stdlib.add_logger_name],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *_renderers(log_format, colors=sys.stderr.isatty()),
        ],
    )


def _common() -> list[Processor]:
    return [
        _add_request_id,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _renderers(log_format: LogFormat, *, colors: bool) -> list[Processor]:
    if log_format == "json":
        # Without the frames' variables: events, keys and addresses with passwords are among them.
        transformer = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        return [structlog.processors.ExceptionRenderer(transformer), structlog.processors.JSONRenderer()]
    return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)]


def _add_request_id(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    request_id = REQUEST_ID.get()
    if request_id is not None:
        event.setdefault("request_id", request_id.decode("latin-1"))
    return event
