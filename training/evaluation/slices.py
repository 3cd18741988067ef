"""Slices of the prefixes: before and after the first cart, and with known and unknown items.

Shape legend: N events of S sessions, one after another; every event ends one prefix.
"""

from collections.abc import Collection
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from model.columns import fingerprint
from model.events import ADD_TO_CART
from training.data.dataset import Columns

CART: Final = "cart"
ITEM: Final = "item"

_NAME, _ITEM = 0, 1  # columns of `Columns.codes`
_PIECE_EVENTS: Final = 1_000_000


def cart_seen(columns: Columns) -> NDArray[np.bool_]:
    """Return (N,) whether the session had an `add_to_cart` up to and including each event."""
    added = columns.codes[:, _NAME].numpy() == fingerprint(ADD_TO_CART)
    return _running_count(columns, added) > 0


def items_of(columns: Columns) -> NDArray[np.int64]:
    """Return the fingerprints of the items that these sessions show."""
    # In pieces, as the columns may be in files larger than memory.
    pieces = [np.unique(piece[:, _ITEM].numpy()) for piece in torch.split(columns.codes, _PIECE_EVENTS)]
    return np.unique(np.concatenate(pieces))


def slices_of(
    columns: Columns, known_items: Collection[str] | NDArray[np.int64]
) -> dict[str, dict[str, NDArray[np.bool_]]]:
    """Return the slices by heading and name, (N,) each; a heading that does not apply to these events is left out.

    Args:
        columns: the events.
        known_items: items of the model's training sessions, as names or as fingerprints. The item of a prefix is that
            of its last event; a prefix whose last event has no item belongs to neither part.
    """
    found: dict[str, dict[str, NDArray[np.bool_]]] = {}
    seen = cart_seen(columns)
    if seen.any():
        found[CART] = {"before the first add to cart": ~seen, "after the first add to cart": seen}
    item = columns.codes[:, _ITEM].numpy()
    shown = item != 0
    if shown.any():
        known = np.isin(item, _fingerprints(known_items))
        found[ITEM] = {"an item that training had": shown & known, "an unseen item": shown & ~known}
    return found


def _fingerprints(items: Collection[str] | NDArray[np.int64]) -> NDArray[np.int64]:
    if isinstance(items, np.ndarray):
        return items
    return np.array([fingerprint(item) for item in items], dtype=np.int64)


def _running_count(columns: Columns, flag: NDArray[np.bool_]) -> NDArray[np.int64]:
    count = np.concatenate([[0], np.cumsum(flag)])
    before = count[columns.offsets.numpy()[:-1]]
    running: NDArray[np.int64] = count[1:] - before[columns.session_index().numpy()]
    return running
