"""The artifact behind two functions: events in, probabilities out, states as bytes.

A state is `memory` times (2 x int64), the rest of `memory` (int32), `carry` (float32) and `hidden` (float16 or
float32), one after another, little endian. Only `hidden`, which is h and c of an LSTM, h of a GRU or a plain recurrent
net and nothing of a feed-forward net, may be float16: what the encoder counts keeps its precision.

A live base rate changes what is said of a state and never the state: it may be set and changed at any time.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from model.artifact import BaseRateUnknownError, Manifest, load
from model.base_rate import logit_shift
from model.columns import columns_from_events
from model.events import Event
from model.summary import DataSummary, InputCounts, count_inputs

StateDtype = Literal["float16", "float32"]
_TIMES: Final = 2
_FLOAT16_LARGEST: Final = 65504.0
# Each batch size is padded up to one of a few, and each of those is run this often before the first request: torch's
# executor specialises in the second run of a size and settles in the third.
_WARM_UP_RUNS: Final = 3


class Predictor:
    """Advances sessions by one event each.

    Keeps nothing between calls, so several threads may call it: the service traces a session beside the live steps.

    Args:
        module: a scripted `model.network.SessionModel`, from now on this predictor's own.
        manifest: its manifest.
        device: `cpu` or `cuda`.
        state_dtype: how the recurrent state is kept in a state's bytes.
        max_batch_size: events that are stepped at once; more are split.
        base_rate: share of sessions that buy where the model is asked; None for the share where it was trained.

    Raises:
        BaseRateUnknownError: `base_rate` is given, and the manifest does not tell the one it was trained at.
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        module: torch.jit.ScriptModule,
        manifest: Manifest,
        *,
        device: str = "cpu",
        state_dtype: StateDtype = "float16",
        max_batch_size: int = 256,
        base_rate: float | None = None,
    ) -> None:
        if max_batch_size < 1:
            raise ValueError(f"max_batch_size: expected a whole number from 1 up, not {max_batch_size}")
        if state_dtype not in ("float16", "float32"):
            raise ValueError(f"state_dtype: expected float16 or float32, not {state_dtype!r}")
        if base_rate is not None:
            # Counted from the manifest's bias, so that a module that was shifted before is not shifted twice.
            module.bias.fill_(manifest.calibration["bias"] + _shift(manifest, base_rate))
        self._module = module.to(device)
        self._device = torch.device(device)
        self.manifest = manifest
        self.fingerprint = manifest.fingerprint
        self.device = device
        self.base_rate = base_rate
        self.state_dtype: StateDtype = state_dtype
        self.max_batch_size = max_batch_size
        self._event_names = frozenset(manifest.event_names)
        self.summary = DataSummary.from_dict(manifest.data.get("inputs"))
        self._hidden_type = np.dtype("<f2" if state_dtype == "float16" else "<f4")
        widths = manifest.state
        parts = (
            8 * _TIMES,
            4 * (widths["memory"] - _TIMES),
            4 * widths["carry"],
            self._hidden_type.itemsize * widths["hidden"],
        )
        self._ends = np.cumsum(parts).tolist()
        self.state_size: int = self._ends[-1]
        with torch.inference_mode():
            self._initial = self._packed(*self._module.initial_state(1))[0]

    def knows(self, event_name: str) -> bool:
        """Return whether the artifact's vocabulary has the (canonical) name; others count as "other"."""
        return event_name in self._event_names

    def advance(self, events: Sequence[Event], states: Sequence[bytes | None]) -> tuple[list[float], list[bytes]]:
        """Fold one event into each session.

        Args:
            events: B events of B different sessions.
            states: their states before the event; None before a session's first.

        Returns:
            B probabilities that the session ends in a purchase, and B states after the event.

        Raises:
            ValueError: lengths differ, or a state is not `state_size` bytes long.
        """
        if len(events) != len(states):
            raise ValueError(f"states: expected {len(events)}, one an event, not {len(states)}")
        probabilities: list[float] = []
        following: list[bytes] = []
        for first in range(0, len(events), self.max_batch_size):
            last = first + self.max_batch_size
            chunk_probabilities, chunk_states = self._step(events[first:last], states[first:last])
            probabilities += chunk_probabilities
            following += chunk_states
        return probabilities, following

    def refold(self, histories: Sequence[Sequence[Event]]) -> list[tuple[float, bytes]]:
        """Fold whole histories, each of at least one event, from the initial state.

        Returns:
            For each history its last probability and its state: what `advance` would have left, event by event.
        """
        traces = self.traces(histories)
        return [(trace[-1], state) for trace, state in traces]

    def traces(self, histories: Sequence[Sequence[Event]]) -> list[tuple[list[float], bytes]]:
        """Like `refold`, with the probability after each event."""
        if not all(histories):
            raise ValueError("histories: expected at least one event in each")
        states: list[bytes | None] = [None] * len(histories)
        traces: list[list[float]] = [[] for _ in histories]
        for position in range(max(map(len, histories), default=0)):
            going = [index for index, history in enumerate(histories) if position < len(history)]
            probabilities, following = self.advance(
                [histories[index][position] for index in going], [states[index] for index in going]
            )
            for index, probability, state in zip(going, probabilities, following, strict=True):
                traces[index].append(probability)
                states[index] = state
        return [(trace, state) for trace, state in zip(traces, states, strict=True) if state is not None]

    def count_inputs(self, histories: Sequence[Sequence[Event]]) -> InputCounts | None:
        """Return how the sessions' features fall into the bins of the training data; None where that is not known.

        Folds the sessions through the encoder alone, which takes a while: not between two requests.
        """
        if self.summary is None:
            return None
        return count_inputs(
            self._module.encoder,
            histories,
            names=self.manifest.features,
            properties=self.manifest.properties,
            summary=self.summary,
        )

    def score_sessions(self, sessions: Sequence[Sequence[Event]]) -> list[list[float]]:
        """Return the offline model's probability after each event of whole sessions.

        Runs the sequence path in float32, without any stored state: what the service's answers are compared with.
        """
        order = sorted(range(len(sessions)), key=lambda index: len(sessions[index]))
        scores: list[list[float]] = [[] for _ in sessions]
        for first in range(0, len(order), self.max_batch_size):
            chosen = [index for index in order[first : first + self.max_batch_size] if sessions[index]]
            if not chosen:
                continue
            columns = [columns_from_events(sessions[index], self.manifest.properties) for index in chosen]
            padded = [
                torch.nn.utils.rnn.pad_sequence(list(column), batch_first=True) for column in zip(*columns, strict=True)
            ]
            with torch.inference_mode():
                probability = self._module(*(column.to(self._device) for column in padded)).cpu()
            for row, index in enumerate(chosen):
                scores[index] = probability[row, : len(sessions[index])].tolist()
        return scores

    def warm_up(self) -> None:
        """Run every padded batch size, so that no request pays for torch's first passes over one."""
        event = Event(self.manifest.event_names[0], 0)
        for size in self._padded_sizes():
            for _ in range(_WARM_UP_RUNS):
                self._step([event] * size, [None] * size)

    def _padded_sizes(self) -> Iterator[int]:
        size = 1
        while size < self.max_batch_size:
            yield size
            size *= 2
        yield self.max_batch_size

    def _step(self, events: Sequence[Event], states: Sequence[bytes | None]) -> tuple[list[float], list[bytes]]:
        count = len(events)
        size = next(size for size in self._padded_sizes() if size >= count)
        with torch.inference_mode():
            hidden, carry, memory = self._unpacked(states, size)
            columns: Sequence[Tensor] = columns_from_events(events, self.manifest.properties)
            if size > count:
                columns = tuple(
                    torch.nn.functional.pad(c, (0, 0, 0, size - count) if c.dim() > 1 else (0, size - count))
                    for c in columns
                )
            probability, *following = self._module.step(
                *(column.to(self._device) for column in columns), hidden, carry, memory
            )
            rows = self._packed(*following)
            return probability[:count].tolist(), rows[:count]

    def _unpacked(self, states: Sequence[bytes | None], size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return hidden, carry and memory of the states, padded with initial ones to `size` rows."""
        rows = [self._initial if state is None else state for state in states]
        if any(len(row) != self.state_size for row in rows):
            lengths = sorted({len(row) for row in rows} - {self.state_size})
            raise ValueError(f"states: expected {self.state_size} bytes each, found {lengths}")
        rows += [self._initial] * (size - len(rows))
        packed = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(size, self.state_size)
        times, memory, carry, hidden = np.split(packed, self._ends[:-1], axis=1)
        whole_memory = np.concatenate(
            [np.ascontiguousarray(times).view("<i8"), np.ascontiguousarray(memory).view("<i4").astype(np.int64)], axis=1
        )
        return (
            torch.from_numpy(np.ascontiguousarray(hidden).view(self._hidden_type).astype(np.float32)).to(self._device),
            torch.from_numpy(np.ascontiguousarray(carry).view("<f4").copy()).to(self._device),
            torch.from_numpy(whole_memory).to(self._device),
        )

    def _packed(self, hidden: Tensor, carry: Tensor, memory: Tensor) -> list[bytes]:
        """Return the states of all rows as bytes: `_unpacked`'s inverse but for float16's rounding."""
        if self.state_dtype == "float16":
            # |c| grows by at most one an event, so only sessions past 65,504 events could come here.
            hidden = hidden.clamp(-_FLOAT16_LARGEST, _FLOAT16_LARGEST)
        memory_rows = memory.cpu().numpy()
        parts = (
            np.ascontiguousarray(memory_rows[:, :_TIMES]).astype("<i8", copy=False),
            memory_rows[:, _TIMES:].astype("<i4"),
            carry.cpu().numpy().astype("<f4", copy=False),
            hidden.cpu().numpy().astype(self._hidden_type),
        )
        packed = np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in parts], axis=1)
        whole, width = packed.tobytes(), self.state_size
        return [whole[start : start + width] for start in range(0, len(whole), width)]


def _shift(manifest: Manifest, base_rate: float) -> float:
    if manifest.base_rate is None:
        raise BaseRateUnknownError(
            f"base_rate: cannot shift to {base_rate}, since model {manifest.fingerprint} does not tell the base rate "
            "that it was trained at; train it anew, or leave the base rate unset"
        )
    return logit_shift(manifest.base_rate, base_rate)


def load_predictor(
    path: Path,
    *,
    device: str = "cpu",
    state_dtype: StateDtype = "float16",
    max_batch_size: int = 256,
    sha256: str | None = None,
    threads: int | None = None,
    base_rate: float | None = None,
) -> Predictor:
    """Load an artifact for stepping.

    Args:
        path: the artifact.
        device: `cpu`, `cuda`, or `auto` for `cuda` where torch sees a GPU.
        state_dtype: `float16` halves what a session costs in Redis; `float32` answers to 1e-5 as offline.
        max_batch_size: events that are stepped at once.
        sha256: digest that the file must have.
        threads: torch threads of this process, all of it; None leaves them. One a worker is right for a service:
            workers with a full set each oversubscribe the cores.
        base_rate: share of sessions that buy where the model is asked; None for the share where it was trained
            (`model.base_rate`).

    Raises:
        model.artifact.ArtifactError: the file cannot be used.
        ValueError: `device` is not one of the three, or is `cuda` where there is none; `base_rate` is no share.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: expected auto, cpu or cuda, not {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda was asked for, but torch sees no GPU; set it to auto or cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if threads is not None:
        torch.set_num_threads(threads)
    module, manifest = load(path, sha256=sha256)
    return Predictor(
        module,
        manifest,
        device=device,
        state_dtype=state_dtype,
        max_batch_size=max_batch_size,
        base_rate=base_rate,
    )
