"""Short forms of what events say, for their history; each gives back exactly what it stands for."""

import math
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Final

import msgspec

from model.events import PropertyValue

# By their numbers, which are stored: new names go to the end, none is ever taken out.
NAMES: Final = (
    "page_view",
    "view_item_list",
    "view_item",
    "search",
    "add_to_cart",
    "remove_from_cart",
    "view_cart",
    "begin_checkout",
    "add_shipping_info",
    "add_payment_info",
    "purchase",
    "add_to_wishlist",
    "click",
    "first_visit",
    "generate_lead",
    "login",
    "refund",
    "scroll",
    "select_content",
    "select_item",
    "select_promotion",
    "session_start",
    "share",
    "sign_up",
    "user_engagement",
    "view_promotion",
    "view_search_results",
)
NUMBERS: Final = {name: number for number, name in enumerate(NAMES)}

# Beyond it an integer takes as many bytes as the float, and products are no longer close enough to round.
_LARGEST_AMOUNT: Final = 2.0**40
_encoder: Final = msgspec.msgpack.Encoder()


def hundredths(amount: float) -> int | float:
    """Return a whole number of hundredths that divided by 100 is the amount, or else the amount as a float."""
    if 0.0 <= amount <= _LARGEST_AMOUNT:
        number = round(amount * 100)
        if number / 100 == amount and (number or _is_positive_zero(amount)):
            return number
    return float(amount)


def whole(amount: float) -> int | float:
    """Return the amount as an integer where it is a whole number, 0 or more, or else as a float."""
    if 0.0 <= amount <= _LARGEST_AMOUNT:
        number = int(amount)
        if number == amount and (number or _is_positive_zero(amount)):
            return number
    return float(amount)


def properties_code(properties: Mapping[str, PropertyValue]) -> int:
    """Return 64 bits that tell an event's properties from others, the same in every process; never 0.

    Two different ones share a code with a probability of 2**-64. Their order and their types count.
    """
    return _code(_encoder.encode(dict(properties)))


@lru_cache(maxsize=4096)
def _code(properties: bytes) -> int:
    return int.from_bytes(blake2b(properties, digest_size=8).digest(), "little") or 1


def _is_positive_zero(amount: float) -> bool:
    return math.copysign(1.0, amount) > 0
