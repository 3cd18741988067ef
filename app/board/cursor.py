"""Where a page of the board ended, as a text that the caller hands back.

URL-safe Base64 of: version byte, score as float64 little endian, session id in UTF-8, and eight bytes of BLAKE2b over
these and the selection that the page was of. The hash notices a cursor that was changed, cut, or brought to another
order or other filters. It is no seal: what a cursor says, a caller may ask for anyway.
"""

import binascii
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b
from typing import Final

from app.store.board import Position, Selection

_VERSION: Final = 1
_HEAD: Final = struct.Struct("<Bd")
_CHECK_BYTES: Final = 8


class InvalidCursorError(ValueError):
    """The text is no cursor of this selection."""


def encode_cursor(position: Position, selection: Selection, min_events: int) -> str:
    """Return the cursor that goes on behind a position."""
    payload = _HEAD.pack(_VERSION, position.score) + position.session_id.encode()
    return urlsafe_b64encode(payload + _check(payload, selection, min_events)).rstrip(b"=").decode()


def decode_cursor(cursor: str, selection: Selection, min_events: int) -> Position:
    """Return the position that a cursor stands for; raise `InvalidCursorError` if it is not one of this selection."""
    try:
        data = urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
    except (UnicodeEncodeError, binascii.Error) as exc:
        raise InvalidCursorError from exc
    payload, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    if len(payload) <= _HEAD.size or check != _check(payload, selection, min_events):
        raise InvalidCursorError
    # Base64 has several texts for one value, and takes characters that it ignores.
    if urlsafe_b64encode(data).rstrip(b"=").decode() != cursor:
        raise InvalidCursorError
    _version, score = _HEAD.unpack_from(payload)
    return Position(score, payload[_HEAD.size :].decode())


def _check(payload: bytes, selection: Selection, min_events: int) -> bytes:
    bound = (
        f"{selection.order} {selection.min_probability!r} {selection.max_probability!r} "
        f"{selection.seen_since_ms} {min_events} "
    )
    return blake2b(bound.encode() + payload, digest_size=_CHECK_BYTES, person=b"willbuy-cursor").digest()
