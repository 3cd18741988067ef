"""The scope that each call needs: one table of paths and methods for all routes.

With API keys, a call that is not in the table is not served (`app.auth.middleware`). So a new route is unreachable
until it has an entry here.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Scope(StrEnum):
    """A permission of an API key."""

    EVENTS_WRITE = "events:write"
    """Post events, record outcomes, erase sessions: for the shop's backend. Answers have the sessions' scores."""
    SESSIONS_READ = "sessions:read"
    """Read sessions, the board, the statistics and the model's manifest: for people and the dashboard."""
    INTERVENTIONS_ADMIN = "interventions:admin"
    """Switch rules on and off, and send dead webhook messages again: for who runs the experiments."""
    MODEL_ADMIN = "model:admin"
    """Load another artifact, which runs the code in it: for releases."""


Needed = Scope | None
"""The scope that a call needs; None: the call is public."""
Methods = Mapping[str, Needed]

INGEST_PATH: Final = "/v1/ingest/"
"""Beginning of the calls that take events in the shapes of vendors."""

_PUBLIC_PAGE: Final[Methods] = MappingProxyType({"GET": None, "HEAD": None})
_READ: Final[Methods] = MappingProxyType({"GET": Scope.SESSIONS_READ})
_WRITE: Final[Methods] = MappingProxyType({"POST": Scope.EVENTS_WRITE})

_PATHS: Final[dict[str, Methods]] = {
    "/v1/events": _WRITE,
    "/v1/events/batch": _WRITE,
    **{f"{INGEST_PATH}{vendor}": _WRITE for vendor in ("segment", "rudderstack", "snowplow", "ga4")},
    f"{INGEST_PATH}rejects": _READ,
    "/v1/sessions": _READ,
    "/v1/stats": _READ,
    "/v1/history": _READ,
    "/v1/stream": _READ,
    "/v1/interventions": _READ,
    # A token allows a part of what its key does.
    "/v1/tokens": {"POST": Scope.SESSIONS_READ},
    "/v1/model": _READ,
    "/v1/model/reload": {"POST": Scope.MODEL_ADMIN},
    # Load balancers and kubelets have no keys; the answers only show whether the replica is up.
    "/healthz": _PUBLIC_PAGE,
    "/readyz": _PUBLIC_PAGE,
    # The description and the dashboard have no data; the dashboard calls the API with a key.
    "/openapi.json": _PUBLIC_PAGE,
    "/dashboard": _PUBLIC_PAGE,
    # Leads to the dashboard.
    "/": _PUBLIC_PAGE,
}
_METRICS: Final = "/metrics"
_SESSION: Final[Methods] = {"GET": Scope.SESSIONS_READ, "DELETE": Scope.EVENTS_WRITE}
_RULES: Final[Methods] = MappingProxyType({"POST": Scope.INTERVENTIONS_ADMIN})
# By the beginning and the end of a path; rules and webhooks have no slash in their names.
_NAMED: Final = (
    ("/v1/interventions/", "/switch", _RULES),
    ("/v1/webhooks/", "/dead", _READ),
    ("/v1/webhooks/", "/resend", _RULES),
)
# A session id may end in `/outcome` too, so it can be read and erased.
_OUTCOME: Final[Methods] = {**_SESSION, "POST": Scope.EVENTS_WRITE}


class Rules:
    """The table with the settings applied.

    Args:
        metrics_public: whether `/metrics` is public.
    """

    def __init__(self, *, metrics_public: bool) -> None:
        self._paths = {**_PATHS, _METRICS: {"GET": None} if metrics_public else _READ}

    def methods(self, path: str) -> Methods | None:
        """Return the needed scope by method for a path or a route's template; None for a path that is not served."""
        methods = self._paths.get(path)
        if methods is not None:
            return methods
        # Session ids may have slashes, so the rest of the path is the id.
        if path.startswith("/v1/sessions/"):
            return _OUTCOME if path.endswith("/outcome") else _SESSION
        for beginning, end, methods in _NAMED:
            if path.startswith(beginning) and path.endswith(end):
                return methods
        if path.startswith("/dashboard/"):
            return _PUBLIC_PAGE
        return None
