"""Bodies of `POST /v1/tokens`."""

from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from app.schemas.events import SessionId

LONGEST_LIFETIME_S: Final = 3600


class TokenIn(BaseModel):
    """What a token is for."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    session_id: SessionId | None = None
    """The session that the token may read, with its trace; null: the board, the statistics and the stream."""
    lifetime_s: int = Field(default=300, ge=1, le=LONGEST_LIFETIME_S)
    """Seconds until the token ends."""


class TokenOut(BaseModel):
    """A token; it is shown once and stored nowhere, only its hash is."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    token: str
    """The token."""
    session_id: str | None
    """The session that it may read; null: the board, the statistics and the stream."""
    lifetime_s: int
    """Seconds until it ends."""
