"""What each call needs: one table of paths and methods, so that no route decides for itself and none is forgotten.

What is not in the table is not served to holders of keys at all (`app.auth.middleware`), so a new route is unreachable
until it stands here.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Scope(StrEnum):
    """What a key allows."""

    EVENTS_WRITE = "events:write"
    """Post events, say outcomes, erase sessions: what a shop's backend does. Answers carry the sessions' scores."""
    SESSIONS_READ = "sessions:read"
    """Read sessions, the board, the statistics and the model's card: what people and the page do."""
    MODEL_ADMIN = "model:admin"
    """Load another artifact, which runs the code in it: what a release does."""


Needed = Scope | None
"""The scope that a call needs; None: everybody may."""
Methods = Mapping[str, Needed]

_PUBLIC_PAGE: Final[Methods] = MappingProxyType({"GET": None, "HEAD": None})
_READ: Final[Methods] = MappingProxyType({"GET": Scope.SESSIONS_READ})
_WRITE: Final[Methods] = MappingProxyType({"POST": Scope.EVENTS_WRITE})

_PATHS: Final[dict[str, Methods]] = {
    "/v1/events": _WRITE,
    "/v1/events/batch": _WRITE,
    "/v1/sessions": _READ,
    "/v1/stats": _READ,
    "/v1/stream": _READ,
    "/v1/model": _READ,
    "/v1/model/reload": {"POST": Scope.MODEL_ADMIN},
    # Balancers and kubelets ask these and carry no keys; they tell no more than whether the replica is up.
    "/healthz": {"GET": None},
    "/readyz": {"GET": None},
    # The description and the page hold no data; the page asks the API, with a key.
    "/openapi.json": _PUBLIC_PAGE,
    "/dashboard": _PUBLIC_PAGE,
}
_METRICS: Final = "/metrics"
_SESSION: Final[Methods] = {"GET": Scope.SESSIONS_READ, "DELETE": Scope.EVENTS_WRITE}
# As an id may end so too, it can be read and erased like others.
_OUTCOME: Final[Methods] = {**_SESSION, "POST": Scope.EVENTS_WRITE}


class Rules:
    """The table, as the settings make it.

    Args:
        metrics_public: whether everybody may read `/metrics`.
    """

    def __init__(self, *, metrics_public: bool) -> None:
        self._paths = {**_PATHS, _METRICS: {"GET": None} if metrics_public else _READ}

    def methods(self, path: str) -> Methods | None:
        """Return what each method of a path needs, or of a route's template; None for a path that is not served."""
        methods = self._paths.get(path)
        if methods is not None:
            return methods
        # Ids may hold slashes, so everything below these belongs to them.
        if path.startswith("/v1/sessions/"):
            return _OUTCOME if path.endswith("/outcome") else _SESSION
        if path.startswith("/dashboard/"):
            return _PUBLIC_PAGE
        return None
