"""A session's state as bytes.

    bytes           what
    1               format: 1 if hidden is float16, 2 if it is float32
    2 or 4 x S      hidden: h and c of an LSTM, h of a GRU or a plain recurrent network, empty if feed-forward
    W / 8           mask: a bit for each word (2 bytes) of the counted part, 1 if the word differs from the initial
                    state's; the first word has the highest bit
    2 for each word the changed words, each XORed with the initial state's

Of the counted part only changed words are stored. It consists of the times in `memory` (2 x int64: the first event's,
and the last one's relative to it), the rest of `memory` (int32), `carry` (float32) and zeros up to a multiple of 8
words. Everything is little endian. In a session of ten events most words still equal the initial state: empty slots,
types that did not occur, the lower halves of small whole numbers. A mask of bytes instead of words would take twice the
time and more space.

Only `hidden` may be float16: the encoder's counts keep their precision.

Shape legend: B sessions, S width of hidden, W words of the counted part.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

StateDtype = Literal["float16", "float32"]
State = tuple[Tensor, Tensor, Tensor]
"""`hidden` float32 [B, S], `carry` float32 [B, .] and `memory` int64 [B, .]: see `model.network.SessionModel`."""

_TIMES: Final = 2
_WORD_BYTES: Final = 2
_FORMATS: Final[Mapping[StateDtype, int]] = {"float16": 1, "float32": 2}
_FLOAT16_LARGEST: Final = 65504.0


class StateCodec:
    """Encodes and decodes states of one model, a batch at a time.

    Args:
        dtype: type of hidden in the bytes.
        initial: the state before the first event, B = 1, on the CPU.

    Attributes:
        largest_bytes: length of the longest possible state.
    """

    def __init__(self, dtype: StateDtype, initial: State) -> None:
        hidden, carry, memory = initial
        self._dtype = dtype
        self._format = bytes((_FORMATS[dtype],))
        self._hidden_type = np.dtype("<f2" if dtype == "float16" else "<f4")
        slots, numbers = memory.size(1) - _TIMES, carry.size(1)
        numbers_at = 8 * _TIMES + 4 * slots
        self._words = -(-(numbers_at + 4 * numbers) // (8 * _WORD_BYTES)) * 8
        self._counted_type = np.dtype(
            {
                "names": ["times", "slots", "numbers"],
                "formats": [("<i8", (_TIMES,)), ("<i4", (slots,)), ("<f4", (numbers,))],
                "offsets": [0, 8 * _TIMES, numbers_at],
                "itemsize": _WORD_BYTES * self._words,
            }
        )
        self._mask_at = 1 + self._hidden_type.itemsize * hidden.size(1)
        self._words_at = self._mask_at + self._words // 8
        self.largest_bytes = self._words_at + _WORD_BYTES * self._words
        self._initial_words = self._counted(carry, memory)
        self._initial = self.pack(hidden, carry, memory)[0]

    def reads(self, state: bytes) -> bool:
        """Return whether the bytes are a state of this layout; other models may have the same layout."""
        words = int.from_bytes(state[self._mask_at : self._words_at]).bit_count()
        return state[:1] == self._format and len(state) == self._words_at + _WORD_BYTES * words

    def pack(self, hidden: Tensor, carry: Tensor, memory: Tensor) -> list[bytes]:
        """Return B states as bytes; the inverse of `unpack` up to float16 rounding."""
        if self._dtype == "float16":
            # |c| grows by at most 1 an event, so the clamp affects only sessions beyond 65,504 events. With torch,
            # because NumPy's float16 conversion takes ten times as long.
            hidden = hidden.clamp(-_FLOAT16_LARGEST, _FLOAT16_LARGEST).to(torch.float16)
        words = self._counted(carry, memory)
        words ^= self._initial_words
        is_changed = words != 0
        mask = np.packbits(is_changed, axis=1)
        all_fixed = np.concatenate(
            [
                np.frombuffer(self._format * len(words), np.uint8).reshape(-1, 1),
                hidden.contiguous().numpy().astype(self._hidden_type, copy=False).view(np.uint8),
                mask,
            ],
            axis=1,
        ).tobytes()
        # `take` and `place` take half the time of a boolean index.
        all_changed = words.ravel().take(is_changed.ravel().nonzero()[0]).tobytes()
        states: list[bytes] = []
        fixed_at = changed_at = 0
        for count in np.add.reduce(np.bitwise_count(mask), axis=1, dtype=np.intp).tolist():
            fixed_end, changed_end = fixed_at + self._words_at, changed_at + _WORD_BYTES * count
            states.append(all_fixed[fixed_at:fixed_end] + all_changed[changed_at:changed_end])
            fixed_at, changed_at = fixed_end, changed_end
        return states

    def unpack(self, states: Sequence[bytes | None], size: int) -> State:
        """Return the states as tensors of `size` rows; None and the rows beyond `len(states)` are the initial state.

        Raises:
            ValueError: a state's bytes are not of this layout.
        """
        words_at = self._words_at
        rows = [self._initial if state is None else state for state in states]
        rows += [self._initial] * (size - len(rows))
        all_fixed = b"".join([row[:words_at] for row in rows])
        if len(all_fixed) != size * words_at:
            raise self._refusal(rows)
        fixed = np.frombuffer(all_fixed, np.uint8).reshape(size, words_at)
        mask = fixed[:, self._mask_at :]
        counts = np.add.reduce(np.bitwise_count(mask), axis=1, dtype=np.intp)
        lengths = (counts * _WORD_BYTES + words_at).tolist()
        if lengths != [*map(len, rows)] or fixed[:, 0].tobytes() != self._format * size:
            raise self._refusal(rows)
        words = np.zeros((size, self._words), np.uint16)
        changed = np.frombuffer(b"".join([row[words_at:] for row in rows]), np.uint16)
        np.place(words, np.unpackbits(mask, axis=1).view(np.bool_), changed)
        words ^= self._initial_words
        counted = words.view(self._counted_type)[:, 0]
        # As [quantity, batch], the encoder's layout.
        memory = np.concatenate([counted["times"].T, counted["slots"].T])
        memory[1] += memory[0]
        hidden = fixed[:, 1 : self._mask_at].copy().view(self._hidden_type)
        return (
            torch.from_numpy(hidden).to(torch.float32),
            torch.from_numpy(counted["numbers"].T.copy()).t(),
            torch.from_numpy(memory).t(),
        )

    def _counted(self, carry: Tensor, memory: Tensor) -> np.ndarray[tuple[int, int], np.dtype[np.uint16]]:
        """Return the counted part's words uint16 [B, W]."""
        counted = np.zeros(len(carry), self._counted_type)
        memory_rows = memory.numpy()
        times = counted["times"]
        times[:] = memory_rows[:, :_TIMES]
        # Lossless for all times: a difference that overflows 64 bits wraps around, and so does the sum.
        times[:, 1] -= times[:, 0]
        counted["slots"] = memory_rows[:, _TIMES:]
        counted["numbers"] = carry.numpy()
        return counted.view(np.uint16).reshape(len(carry), self._words)

    def _refusal(self, rows: Sequence[bytes]) -> ValueError:
        wrong = [f"number {place} of {len(row)} bytes" for place, row in enumerate(rows) if not self.reads(row)]
        return ValueError(
            f"states: expected {self._dtype} states of {self._words_at} to {self.largest_bytes} bytes, each as long as "
            f"its mask says, found {', '.join(wrong)}"
        )
