"""The event as peers without pydantic parse it: msgspec, the quickest that there is for Python."""

import msgspec


class EventBody(msgspec.Struct):
    """One event; what is not checked here, these peers do not check at all."""

    session_id: str
    event_name: str
    event_id: str | None = None
    timestamp: int | str | None = None
    item_id: str | None = None
    item_category: str | None = None
    price: float | None = None
    quantity: float | None = None
    properties: dict[str, str | float | bool] = {}
