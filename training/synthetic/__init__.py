"""A synthetic shop: sessions from a known hidden process, and the exact best answer for each prefix of them.

`process` has the shop's probabilities, `sample` draws from it, `posterior` inverts it, `log` turns both into tables.
"""

from training.synthetic.log import DEFAULT_START, SyntheticLog, generate, sessions, write
from training.synthetic.shape import PRESETS, ShopShape

__all__ = ["DEFAULT_START", "PRESETS", "ShopShape", "SyntheticLog", "generate", "sessions", "write"]
