"""What the metrics read off a route, for requests that are answered before the routing."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KnownRoute:
    """Stands in a request's scope where the framework puts the route it found."""

    path: str
