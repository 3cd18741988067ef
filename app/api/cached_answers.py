"""Polls that were answered a moment ago, answered again before they reach the routing.

A dashboard asks the same every second, and so do all the others: most of their requests need neither Redis nor a check
of their parameters. Finding the route costs several times what the answer does, so it is skipped for them. Whatever is
not kept goes on to its route, which makes it.
"""

from collections.abc import Callable
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.middleware import KnownRoute
from app.board.content import Content, ContentResponse
from app.board.dashboards import Dashboards
from app.board.query import parse_query
from app.errors import InvalidRequestError

_BOARD_PATH: Final = "/v1/sessions"
_STATS_PATH: Final = "/v1/stats"


class CachedAnswers:
    """ASGI middleware: must stand behind whatever decides who may ask.

    Args:
        app: what answers the rest.
        dashboards: returns the parts that keep answers, once the service runs.
    """

    def __init__(self, app: ASGIApp, *, dashboards: Callable[[], Dashboards]) -> None:
        self._app = app
        self._dashboards = dashboards
        self._routes = {path: KnownRoute(path) for path in (_BOARD_PATH, _STATS_PATH)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "http" and scope["method"] == "GET" and (route := self._routes.get(scope["path"])):
            content = self._kept(route.path, scope["query_string"])
            if content is not None:
                scope["route"] = route
                await ContentResponse(content)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _kept(self, path: str, query_string: bytes) -> Content | None:
        if path == _STATS_PATH:
            return self._dashboards().stats.kept()
        try:
            return self._dashboards().board.kept(parse_query(query_string))
        except InvalidRequestError:
            return None  # the route says what is wrong
