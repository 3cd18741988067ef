"""Runs an artifact: events in, probabilities out, states as bytes (`model.states`).

A live base rate changes probabilities and never states, so it may be set and changed at any time.
"""

import copy
import math
import statistics
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, cast

import torch
from torch import Tensor

from model.artifact import BaseRateUnknownError, Manifest, load
from model.base_rate import logit_shift
from model.cells import pack_for_cpu
from model.columns import CODE_FIELDS, ColumnReader, fingerprint, number_value
from model.compiled import FEWEST_SESSIONS, CompiledStep, CompiledStepError, load_compiled
from model.device_step import DeviceStep
from model.events import ADD_TO_CART, Event, EventNames, PropertyValue
from model.explain import Explanation, explain
from model.states import StateCodec, StateDtype
from model.summary import DataSummary, InputCounts, count_inputs

__all__ = ["Predictor", "StateDtype", "load_predictor"]

Engine = Literal["compiled", "torchscript", "cuda_graph"]

# Batches are padded to one of a few sizes. Each size is run this often before the first request, because torch's
# executor specialises in the second run of a size and is stable after the third.
_WARM_UP_RUNS: Final = 3
# A typical batch under load, and enough runs for a median.
_COMPARED_SESSIONS: Final = 64
_COMPARED_RUNS: Final = 11
# Events of each session in one call of the script; bounds its memory.
_FOLDED_AT_ONCE: Final = 256
# From this size on there is one more size between each and its double: 48 sessions take 0.40 ms a step, 64 take 0.49.
_FIRST_HALVED: Final = 16


class Predictor:
    """Advances sessions by one event each.

    Stateless between calls and therefore thread-safe: the service traces sessions while it steps live ones.

    Args:
        module: a scripted `model.network.SessionModel`; the predictor modifies it.
        manifest: its manifest.
        device: `cpu` or `cuda`, where each batch size is one CUDA graph (`model.device_step`).
        state_dtype: type of the recurrent state inside a state's bytes.
        max_batch_size: most events in one step; larger batches are split.
        base_rate: share of buying sessions in the live shop; None for the share in the training log.
        compiled: a compiled step of this model, on the CPU, with this module's bias (`model.compiled`).

    Attributes:
        engine: what runs the step: `compiled`, `torchscript`, or `cuda_graph`.
        engine_reason: why.

    Raises:
        BaseRateUnknownError: `base_rate` is given, and the manifest does not record the training base rate.
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
        compiled: CompiledStep | None = None,
    ) -> None:
        if max_batch_size < 1:
            raise ValueError(f"max_batch_size: expected a whole number from 1 up, not {max_batch_size}")
        if state_dtype not in ("float16", "float32"):
            raise ValueError(f"state_dtype: expected float16 or float32, not {state_dtype!r}")
        if base_rate is not None:
            # Relative to the manifest's bias, so that a module that was shifted before is not shifted twice.
            module.bias.fill_(manifest.calibration["bias"] + _shift(manifest, base_rate))
        # A fold is a long chain of small operations, and a GPU takes several times as long for each.
        self._host_module = module if device == "cpu" else copy.deepcopy(module)
        self._fold_module = _fold_of(self._host_module)
        self._module = module.to(device)
        self._device = torch.device(device)
        self.manifest = manifest
        self.fingerprint = manifest.fingerprint
        self.device = device
        self.base_rate = base_rate
        self.state_dtype: StateDtype = state_dtype
        self.max_batch_size = max_batch_size
        self.device_reason = "as was asked for"
        # No closure over this object: `gc.freeze` (app.runtime.gc) would keep a reference cycle for ever.
        self._device_step = None if self._device.type == "cpu" else DeviceStep(self._module.step, self._device)
        self._compiled = compiled
        self.engine: Engine = "cuda_graph"
        if self._device_step is None:
            pack_for_cpu(self._module.lstm)
            self.engine = "torchscript" if compiled is None else "compiled"
        self.engine_reason = "as was asked for"
        fewest = 1 if compiled is None else FEWEST_SESSIONS
        self._sizes = tuple(size for size in self._padded_sizes() if size >= fewest) or (fewest,)
        self._event_names = frozenset(manifest.event_names)
        self._columns = ColumnReader(manifest.properties, manifest.text_rules)
        # A name of the vocabulary is kept, though a later release may have made it an alias.
        self.canonical_name = EventNames(manifest.event_renames, kept=manifest.event_names).canonical
        self._known_values = {
            name: frozenset(map(fingerprint, values)) for name, values in manifest.property_values.items()
        }
        self._declared = frozenset(spec.name for spec in manifest.properties)
        self.summary = DataSummary.from_dict(manifest.data.get("inputs"))
        self.usual_prices = (0.0, math.inf) if self.summary is None else self.summary.usual_prices()
        with torch.inference_mode():
            hidden, carry, memory = (part.cpu() for part in self._module.initial_state(1))
            self._states = StateCodec(state_dtype, (hidden, carry, memory))
        self._cart_column = self._find_cart_column()

    @property
    def state_size(self) -> int:
        """Length in bytes of the longest possible state; most are much shorter."""
        return self._states.largest_bytes

    def reads(self, state: bytes) -> bool:
        """Return whether `advance` can decode the bytes: a state of a predictor with the same layout."""
        return self._states.reads(state)

    def cart_values(self, states: Sequence[bytes]) -> list[float] | None:
        """Return the cart's value in each of this model's states; None: the artifact does not keep it.

        Raises:
            ValueError: `reads` is False for a state.
        """
        if self._cart_column is None:
            return None
        with torch.inference_mode():
            _, carry, _ = self._states.unpack(states, len(states))
            return cast("list[float]", carry[:, self._cart_column].tolist())

    def _find_cart_column(self) -> int | None:
        """Return the column of `carry` with the cart's value, found by filling a cart: artifacts name no columns."""
        price, quantity = 4097.5, 3.0
        columns = self._columns.read([Event(ADD_TO_CART, 0, price=price, quantity=quantity)])
        with torch.inference_mode():
            state = self._host_module.initial_state(1)
            _, _, carry, _ = self._fold_module(*(column.unsqueeze(0) for column in columns), *state)
        found = (carry[0] == price * quantity).nonzero()
        return int(found[0]) if len(found) == 1 else None

    def knows(self, event_name: str) -> bool:
        """Return whether the artifact's vocabulary contains the (canonical) name; others count as "other"."""
        return event_name in self._event_names

    def unknown_properties(self, properties: Mapping[str, PropertyValue]) -> list[str]:
        """Return the declared properties whose value is not in the vocabulary, or is no number where one is declared.

        The model takes such a category for "other", and such a number for missing.
        """
        unknown = []
        for name, known in self._known_values.items():
            code = self._columns.category_code(properties.get(name))
            if code and code not in known:
                unknown.append(name)
        for name in self._columns.numbers:
            value = properties.get(name)
            if isinstance(value, str) and value and math.isnan(number_value(value)):
                unknown.append(name)
        return unknown

    def undeclared_properties(self, properties: Mapping[str, PropertyValue]) -> list[str]:
        """Return the properties that were not in the training log, or not declared."""
        if self._declared.issuperset(properties):
            return []
        return [name for name in properties if name not in self._declared]

    def advance(self, events: Sequence[Event], states: Sequence[bytes | None]) -> tuple[list[float], list[bytes]]:
        """Fold one event into each session.

        Args:
            events: B events of B different sessions.
            states: their states before the event; None before a session's first.

        Returns:
            B probabilities that the session ends in a purchase, and B states after the event.

        Raises:
            ValueError: the lengths differ, or `reads` is False for a state.
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

    def fold(
        self, histories: Sequence[Sequence[Event]], states: Sequence[bytes | None]
    ) -> list[tuple[list[float], bytes]]:
        """Fold several events into each session: a history, or the next part of one.

        Between the events of a call the state is not rounded, so with float16 states the answers are nearer to the
        offline model than those of `advance`. With float32 states both are equal up to float32 rounding.

        Args:
            histories: B lists of at least one event each, of B different sessions.
            states: their states before the first of these events; None before a session's first.

        Returns:
            For each session the probability after each event, and its state after the last one.

        Raises:
            ValueError: the lengths differ, a list is empty, or `reads` is False for a state.
        """
        if len(histories) != len(states):
            raise ValueError(f"states: expected {len(histories)}, one a history, not {len(states)}")
        if not all(histories):
            raise ValueError("histories: expected at least one event in each")
        folded: list[tuple[list[float], bytes]] = [([], b"")] * len(histories)
        # Long histories first, so that those that continue are always the first rows.
        order = sorted(range(len(histories)), key=lambda index: -len(histories[index]))
        for first in range(0, len(order), self.max_batch_size):
            chosen = order[first : first + self.max_batch_size]
            some = self._fold([histories[index] for index in chosen], [states[index] for index in chosen])
            for index, one in zip(chosen, some, strict=True):
                folded[index] = one
        return folded

    def refold(self, histories: Sequence[Sequence[Event]]) -> list[tuple[float, bytes]]:
        """Fold whole histories from the initial state; return the last probability and the state of each."""
        return [(trace[-1], state) for trace, state in self.traces(histories)]

    def traces(self, histories: Sequence[Sequence[Event]]) -> list[tuple[list[float], bytes]]:
        """Like `refold`, with the probability after each event."""
        return self.fold(histories, [None] * len(histories))

    def explain(self, history: Sequence[Event]) -> Explanation:
        """Return what moved the probability at the last event of a whole session of at least one event; thread-safe.

        Runs in float32 without stored states, as `traces` up to rounding.
        """
        manifest = self.manifest
        indices = [*CODE_FIELDS, *(f"property.{name}" for name in self._columns.categories)]
        return explain(self._host_module, self._columns.read(history), features=manifest.features, indices=indices)

    def count_inputs(self, histories: Sequence[Sequence[Event]]) -> InputCounts | None:
        """Return counts of the sessions' features in the bins of the training data; None without a summary.

        Folds the sessions through the encoder only. Slow: call it in a thread.
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

        Runs the sequence path in float32 without stored states: the reference for the service's answers.
        """
        order = sorted(range(len(sessions)), key=lambda index: len(sessions[index]))
        scores: list[list[float]] = [[] for _ in sessions]
        for first in range(0, len(order), self.max_batch_size):
            chosen = [index for index in order[first : first + self.max_batch_size] if sessions[index]]
            if not chosen:
                continue
            columns = [self._columns.read(sessions[index]) for index in chosen]
            padded = [
                torch.nn.utils.rnn.pad_sequence(list(column), batch_first=True) for column in zip(*columns, strict=True)
            ]
            with torch.inference_mode():
                probability = self._module(*(column.to(self._device) for column in padded)).cpu()
            for row, index in enumerate(chosen):
                scores[index] = probability[row, : len(sessions[index])].tolist()
        return scores

    def warm_up(self) -> None:
        """Run every padded batch size, so that no request pays for torch's first runs of a size."""
        event = Event(self.manifest.event_names[0], 0)
        for size in self._sizes:
            for _ in range(_WARM_UP_RUNS):
                self._step([event] * size, [None] * size)

    def _padded_sizes(self) -> Iterator[int]:
        size = 1
        while size < self.max_batch_size:
            yield size
            if size >= _FIRST_HALVED and size * 3 // 2 < self.max_batch_size:
                yield size * 3 // 2
            size *= 2
        yield self.max_batch_size

    def _fold(
        self, histories: Sequence[Sequence[Event]], states: Sequence[bytes | None]
    ) -> list[tuple[list[float], bytes]]:
        """Fold at most `max_batch_size` histories, the longest first."""
        lengths = [len(history) for history in histories]
        columns = [self._columns.read(history) for history in histories]
        probabilities: list[list[float]] = [[] for _ in histories]
        with torch.inference_mode():
            hidden, carry, memory = (part.clone() for part in self._states.unpack(states, len(states)))
            position, going = 0, len(histories)
            while going:
                # Up to the next end of a history: no session gets an event that is not its own.
                end = min(position + _FOLDED_AT_ONCE, lengths[going - 1])
                parts = [
                    torch.stack([part[position:end] for part in each]) for each in zip(*columns[:going], strict=True)
                ]
                probability, hidden[:going], carry[:going], memory[:going] = self._fold_module(
                    *parts, hidden[:going], carry[:going], memory[:going]
                )
                for index, values in enumerate(probability.tolist()):
                    probabilities[index] += values
                position = end
                while going and lengths[going - 1] == position:
                    going -= 1
            return list(zip(probabilities, self._states.pack(hidden, carry, memory), strict=True))

    def _step(self, events: Sequence[Event], states: Sequence[bytes | None]) -> tuple[list[float], list[bytes]]:
        count = len(events)
        size = self._sizes[bisect_left(self._sizes, count)]
        with torch.inference_mode():
            inputs = (*self._columns.read(events, size), *self._states.unpack(states, size))
            if self._compiled is not None:
                probability, hidden, carry, memory = self._compiled(inputs)
            elif self._device_step is None:
                probability, hidden, carry, memory = self._module.step(*inputs)
            else:
                probability, hidden, carry, memory = self._device_step(inputs)
            # Without the padding rows.
            following = self._states.pack(hidden[:count], carry[:count], memory[:count])
            return probability[:count].tolist(), following


def _fold_of(module: torch.jit.ScriptModule) -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Return the module's `fold`; a loop of its `step` where the artifact is older than that method."""
    if hasattr(module, "fold"):
        return cast("Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]", module.fold)

    def fold(
        timestamp_ms: Tensor, codes: Tensor, numbers: Tensor, *initial: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        probabilities, state = [], [*initial]
        for position in range(timestamp_ms.size(1)):
            probability, *state = module.step(
                timestamp_ms[:, position], codes[:, position], numbers[:, position], *state
            )
            probabilities.append(probability)
        hidden, carry, memory = state
        return torch.stack(probabilities, 1), hidden, carry, memory

    return fold


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
        device: `cpu`, `cuda`, or `auto` for the one that steps 64 sessions in less time; the predictor's
            `device_reason` explains the choice.
        state_dtype: `float16` halves a session's size in Redis; `float32` equals the offline model to 1e-5.
        max_batch_size: most events in one step.
        sha256: expected digest of the file.
        threads: torch threads of the whole process; None leaves them unchanged. A service needs one for each worker:
            more oversubscribe the cores.
        base_rate: share of buying sessions in the live shop; None for the share in the training log
            (`model.base_rate`).

    Raises:
        model.artifact.ArtifactError: the file cannot be used.
        ValueError: `device` is unknown, or `cuda` without a GPU; `base_rate` is not between 0 and 1.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: expected auto, cpu or cuda, not {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda was asked for, but torch sees no GPU; set it to auto or cpu")
    if threads is not None:
        torch.set_num_threads(threads)

    def on(name: str) -> Predictor:
        module, manifest = load(path, sha256=sha256)
        compiled, reason = None, "the device is a GPU"
        if name == "cpu":
            try:
                compiled, reason = load_compiled(path, manifest, module), "it gave the script's answers at start"
            except CompiledStepError as exc:
                reason = f"no compiled step: {exc}"
        predictor = Predictor(
            module,
            manifest,
            device=name,
            state_dtype=state_dtype,
            max_batch_size=max_batch_size,
            base_rate=base_rate,
            compiled=compiled,
        )
        predictor.engine_reason = reason
        return predictor

    if device != "auto":
        return on(device)
    if not torch.cuda.is_available():
        predictor = on("cpu")
        predictor.device_reason = "torch sees no GPU"
        return predictor
    return _faster(on("cpu"), lambda: on("cuda"))


def _faster(host: Predictor, on_gpu: Callable[[], Predictor]) -> Predictor:
    """Return the predictor that steps in less time; its `device_reason` has both times."""
    try:
        gpu = on_gpu()
        gpu_s = _step_s(gpu)
    except RuntimeError as exc:
        # For example an old driver or full GPU memory. The CPU still works.
        host.device_reason = f"the GPU cannot be used: {str(exc).splitlines()[0]}"
        return host
    host_s = _step_s(host)
    chosen = gpu if gpu_s < host_s else host
    times = f"{gpu_s * 1000:.2f} ms on the GPU, {host_s * 1000:.2f} on the CPU"
    chosen.device_reason = f"a step of {_COMPARED_SESSIONS} sessions takes {times}"
    return chosen


def _step_s(predictor: Predictor) -> float:
    """Return the median seconds of a step, from events and bytes to probabilities and bytes."""
    count = min(_COMPARED_SESSIONS, predictor.max_batch_size)
    events = [Event(predictor.manifest.event_names[0], 0)] * count
    states: list[bytes | None] = [None] * count
    taken = []
    for run in range(_WARM_UP_RUNS + _COMPARED_RUNS):
        started = time.perf_counter()
        _, following = predictor.advance(events, states)
        if run >= _WARM_UP_RUNS:
            taken.append(time.perf_counter() - started)
        states = list(following)
    return statistics.median(taken)
