"""The service's client for Python: `Client`, and `AsyncClient` with the same methods to await (docs/client.md)."""

from app.client.client import AsyncClient, Client
from app.client.errors import (
    ClientError,
    IncompleteBatchError,
    NoAnswerError,
    ProblemError,
    SentEvent,
    UnavailableError,
    UnexpectedAnswerError,
)
from app.schemas.model import ModelOut

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "IncompleteBatchError",
    "ModelOut",
    "NoAnswerError",
    "ProblemError",
    "SentEvent",
    "UnavailableError",
    "UnexpectedAnswerError",
]
