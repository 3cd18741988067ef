"""What the server tells the application about a request beyond ASGI: when it arrived, and whether its caller left."""

from collections.abc import Callable
from typing import Final, Protocol

ARRIVED: Final = "willbuy.arrived"
"""Entry of the ASGI scope: when the request's first byte was read, by the event loop's clock."""
CONNECTION: Final = "willbuy.connection"
"""Entry of the ASGI scope: the request's `Connection`."""


class Connection(Protocol):
    """The connection of a request.

    Attributes:
        is_lost: whether the caller has left.
        on_lost: called when the caller leaves; set by the request that is being answered.
    """

    is_lost: bool
    on_lost: Callable[[], None] | None
