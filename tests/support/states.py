"""An independent decoder of states, by the layout in `model.states`."""

import numpy as np

from model.predictor import Predictor


def parts_of(predictor: Predictor, state: bytes) -> list[np.ndarray]:
    """Return a state's times in ms, the rest of its memory, its carry and its hidden."""
    widths = predictor.manifest.state
    hidden_type = np.dtype("<f2" if predictor.state_dtype == "float16" else "<f4")
    _, carry, memory = (part.numpy()[0] for part in predictor._module.initial_state(1))  # noqa: SLF001 - what a state's bytes count from
    initial = memory[:2].astype("<i8").tobytes() + memory[2:].astype("<i4").tobytes() + carry.astype("<f4").tobytes()
    counted = bytearray(initial + bytes(-len(initial) % 16))
    assert state[0] == {"float16": 1, "float32": 2}[predictor.state_dtype]
    mask_at = 1 + hidden_type.itemsize * widths["hidden"]
    at = words_at = mask_at + len(counted) // 16
    for word in range(len(counted) // 2):
        if state[mask_at + word // 8] >> (7 - word % 8) & 1:
            counted[2 * word] ^= state[at]
            counted[2 * word + 1] ^= state[at + 1]
            assert state[at : at + 2] != b"\0\0"
            at += 2
    assert at == len(state)
    assert words_at <= len(state) <= predictor.state_size
    times, memory_end = np.frombuffer(counted[:16], "<i8").copy(), 16 + 4 * (widths["memory"] - 2)
    times[1] += times[0]
    numbers = np.frombuffer(counted[memory_end:], "<f4", widths["carry"])
    hidden = np.frombuffer(state[1:mask_at], hidden_type)
    return [times, np.frombuffer(counted[16:memory_end], "<i4"), numbers, hidden]
