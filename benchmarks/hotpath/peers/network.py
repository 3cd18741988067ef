"""The peers' model: a plain LSTM session model of the same hidden size, and a session's state as bytes.

Where `HOTPATH_ARTIFACT` names one, it is that artifact's model instead, the very one that willbuy serves.

Shape legend: B sessions, H hidden size.
"""

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol
from zlib import crc32

import numpy as np
import torch
from redis import Redis
from torch import Tensor, nn

from model.events import Event
from model.predictor import Predictor, load_predictor

HIDDEN_SIZE: Final = 128
STATE_TTL_S: Final = 1800
REDIS_URL: Final = os.environ.get("HOTPATH_REDIS_URL", "redis://127.0.0.1:6379/0")
_CODES: Final = 1024
_EMBEDDING_SIZE: Final = 16
_NUMBERS: Final = 2
_STATE_BYTES: Final = 2 * HIDDEN_SIZE * np.dtype(np.float16).itemsize


class Shown(Protocol):
    """What the network looks at in an event, however a peer has parsed it."""

    @property
    def session_id(self) -> str: ...  # the event's own fields
    @property
    def event_name(self) -> str: ...
    @property
    def item_category(self) -> str | None: ...
    @property
    def price(self) -> float | None: ...
    @property
    def quantity(self) -> float | None: ...
    @property
    def item_id(self) -> str | None: ...
    @property
    def properties(self) -> dict[str, str | float | bool]: ...


# From events and states before them to probabilities and states after them.
Advance = Callable[[Sequence[Shown], Sequence[bytes | None]], tuple[list[float], list[bytes]]]


class PeerModel(nn.Module):
    """Embeddings of name and category beside two numbers, an LSTM cell, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.names = nn.Embedding(_CODES, _EMBEDDING_SIZE)
        self.categories = nn.Embedding(_CODES, _EMBEDDING_SIZE)
        self.cell = nn.LSTMCell(2 * _EMBEDDING_SIZE + _NUMBERS, HIDDEN_SIZE)
        self.head = nn.Linear(HIDDEN_SIZE, 1)

    def forward(self, codes: Tensor, numbers: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return probabilities [B] and the next h and c [B, H] for codes [B, 2] and numbers [B, 2]."""
        inputs = torch.cat([self.names(codes[:, 0]), self.categories(codes[:, 1]), numbers], 1)
        h, c = self.cell(inputs, (h, c))
        return torch.sigmoid(self.head(h)).squeeze(1), h, c


def load_advance() -> Advance:
    """Return the model's step, on one thread, as several processes share the machine."""
    artifact = os.environ.get("HOTPATH_ARTIFACT")
    if artifact is not None:
        predictor = load_predictor(Path(artifact), threads=1)
        predictor.warm_up()
        return partial(_advance_own, predictor)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return partial(_advance, PeerModel().eval())


def _advance_own(
    predictor: Predictor, events: Sequence[Shown], states: Sequence[bytes | None]
) -> tuple[list[float], list[bytes]]:
    now_ms = time.time_ns() // 1_000_000
    seen = [
        Event(one.event_name, now_ms, one.item_id, one.item_category, one.price, one.quantity, one.properties)
        for one in events
    ]
    return predictor.advance(seen, states)


def _advance(
    model: PeerModel, events: Sequence[Shown], states: Sequence[bytes | None]
) -> tuple[list[float], list[bytes]]:
    """Return B probabilities and B states after one event each; a state is h and c in float16."""
    codes = torch.tensor([[_code(event.event_name), _code(event.item_category)] for event in events])
    numbers = torch.tensor([[np.log1p(event.price or 0.0), event.quantity or 1.0] for event in events]).float()
    packed = np.frombuffer(b"".join(state or bytes(_STATE_BYTES) for state in states), np.float16)
    h, c = torch.from_numpy(packed.astype(np.float32)).view(len(events), 2, HIDDEN_SIZE).unbind(1)
    with torch.inference_mode():
        probabilities, h, c = model(codes, numbers, h, c)
    rows = torch.stack([h, c], 1).half().numpy().reshape(len(events), -1)
    return probabilities.tolist(), [row.tobytes() for row in rows]


def answers(advance: Advance, redis: Redis, events: Sequence[Shown]) -> list[dict[str, Any]]:
    """Return the answers to a batch: one MGET, one step, one pipeline of SETs."""
    keys = [f"state:{event.session_id}" for event in events]
    before: Any = redis.mget(keys)
    probabilities, states = advance(events, before)
    with redis.pipeline(transaction=False) as pipeline:
        for key, state in zip(keys, states, strict=True):
            pipeline.set(key, state, ex=STATE_TTL_S)
        pipeline.execute()
    return [
        {"session_id": event.session_id, "probability": probability}
        for event, probability in zip(events, probabilities, strict=True)
    ]


def _code(text: str | None) -> int:
    return crc32((text or "").encode()) % _CODES
