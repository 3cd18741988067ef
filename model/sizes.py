"""The network's sizes, apart from the network so that settings and the command line need no torch."""

from dataclasses import dataclass
from typing import Final

CELL_KINDS: Final = ("feed-forward", "rnn", "gru", "lstm")
"""The kinds of cell that `model.cells.CELLS` makes."""


@dataclass(frozen=True, slots=True)
class NetworkSizes:
    """Sizes of the network's parts, and which parts it has.

    Attributes:
        hidden_size: units of each recurrent layer; a `feed-forward` network has none.
        layers: recurrent layers.
        head_size: units of the head's hidden layer, and of the layer on the quantile bins.
        dropout: share of bins, recurrent outputs and head units dropped while training.
        input_dropout: share of the inputs dropped while training.
        embedding_size: upper bound of the width of a categorical column's embedding.
        cell: one of `CELL_KINDS`; `feed-forward` has no memory of its own.
        aggregates: whether the network sees the encoder's running aggregates; without them, only what the current
            event says by itself (`model.encoder.Encoder.features_of_the_event`).
    """

    hidden_size: int = 128
    layers: int = 1
    head_size: int = 64
    dropout: float = 0.2
    input_dropout: float = 0.1
    embedding_size: int = 8
    cell: str = "lstm"
    aggregates: bool = True

    def __post_init__(self) -> None:
        for name in ("hidden_size", "layers", "head_size", "embedding_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a whole number from 1 up, not {getattr(self, name)}")
        for name in ("dropout", "input_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}: expected a share from 0 up to, not including, 1, not {getattr(self, name)}")
        if self.cell not in CELL_KINDS:
            raise ValueError(f"cell: expected one of {', '.join(CELL_KINDS)}, not {self.cell!r}")
