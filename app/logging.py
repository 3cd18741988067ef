"""The service's own log: one event a line on standard error, for people or for machines."""

import logging
import sys
from typing import Literal, TextIO

import structlog
from structlog.typing import FilteringBoundLogger, Processor


def build_logger(
    *, log_format: Literal["console", "json"], log_level: str, stream: TextIO | None = None
) -> FilteringBoundLogger:
    """Return a logger that writes to `stream` (standard error when None); configures nothing global."""
    stream = stream or sys.stderr
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if log_format == "json":
        processors += [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    else:
        processors.append(
            structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback)
        )
    level = logging.getLevelNamesMapping()[log_level.upper()]
    logger: FilteringBoundLogger = structlog.wrap_logger(
        structlog.WriteLogger(stream),
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
    )
    return logger
