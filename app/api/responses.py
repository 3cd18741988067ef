"""How answers leave: JSON, and every error as a problem of RFC 9457, those of the framework too."""

from typing import Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from structlog.typing import FilteringBoundLogger

from app.auth.middleware import route_path
from app.auth.scopes import Rules
from app.errors import (
    FRAMEWORK_CODES,
    OTHER_FRAMEWORK_CODE,
    InvalidRequestError,
    WillbuyError,
    error_response,
    field_errors,
    problem,
    problem_response,
)
from app.monitoring.metrics import Metrics

_METHOD_NOT_ALLOWED: Final = 405


def json_response(content: bytes) -> Response:
    """Return JSON that is serialised already."""
    return Response(content, media_type="application/json")


def error_answer(error: WillbuyError, metrics: Metrics, logger: FilteringBoundLogger) -> Response:
    """Return an error as a problem; the error is counted, and logged when the service is at fault."""
    metrics.errors.labels(error.code).inc()
    if error.status == 500:  # noqa: PLR2004 - a status is its own name
        logger.error("request_failed", code=error.code, detail=error.detail, cause=repr(error.__cause__))
    return error_response(error)


def client_gone() -> Response:
    """Return the answer to a caller that has left; only the metrics see its status."""
    return Response(status_code=499)


def handle_errors(app: FastAPI, rules: Rules, metrics: Metrics, logger: FilteringBoundLogger) -> None:
    """Make the app answer every error as a problem, and count it."""

    async def on_error(_request: Request, exc: Exception) -> Response:
        if not isinstance(exc, WillbuyError):  # pragma: no cover - registered for this class alone
            raise exc
        return error_answer(exc, metrics, logger)

    async def on_http_error(request: Request, exc: Exception) -> Response:
        if not isinstance(exc, HTTPException):  # pragma: no cover - registered for this class alone
            raise exc
        code = FRAMEWORK_CODES.get(exc.status_code, OTHER_FRAMEWORK_CODE)
        metrics.errors.labels(code).inc()
        title = str(exc.detail)
        body = problem(exc.status_code, code, title, f"{title}; /openapi.json lists what there is.")
        headers = dict(exc.headers or {})
        if exc.status_code == _METHOD_NOT_ALLOWED:
            # The framework names the methods of one route, and a path may have several.
            headers["Allow"] = ", ".join(rules.methods(route_path(request.scope)) or ())
        return problem_response(body, headers)

    async def on_invalid_request(request: Request, exc: Exception) -> Response:
        if not isinstance(exc, RequestValidationError):  # pragma: no cover - registered for this class alone
            raise exc
        errors = field_errors([{**error, "loc": error["loc"][1:]} for error in exc.errors()])
        detail = "; ".join(f"{error['field']}: {error['message']}" for error in errors)
        return await on_error(request, InvalidRequestError(detail, errors))

    async def on_disconnect(_request: Request, _exc: Exception) -> Response:
        return client_gone()

    app.add_exception_handler(WillbuyError, on_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid_request)
    app.add_exception_handler(ClientDisconnect, on_disconnect)
