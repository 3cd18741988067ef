"""Compiles an artifact's step ahead of time: `torch.export`, then AOTInductor with the machine's C++ compiler.

The exported program is `SessionModel.step` itself, for any batch size. Only its layout is adapted: columns come as
[quantity, batch], and the calibration's bias is an input (`model.compiled`).
"""

import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from model.artifact import load
from model.columns import FIXED_CODES, FIXED_NUMBERS
from model.compiled import (
    FEWEST_SESSIONS,
    MOST_SESSIONS,
    CompiledStep,
    CompiledStepError,
    Target,
    add_compiled_step,
    check,
    columns_first,
)
from model.eager import eager_model
from model.manifest import Manifest
from model.network import SessionModel

STAGES: Final = ("loading", "exporting", "compiling", "checking")
_EXAMPLE_SESSIONS: Final = 8
_AVX2: Final = frozenset({"avx2", "fma3", "f16c", "bmi", "bmi2", "lzcnt"})
_AVX512: Final = _AVX2 | {"avx512_f", "avx512_bw", "avx512_cd", "avx512_dq", "avx512_vl"}


class CompilerMissingError(ValueError):
    """There is no C++ compiler."""


class _Step(nn.Module):
    """A model's step as a forward pass."""

    def __init__(self, model: SessionModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, timestamp_ms: Tensor, codes: Tensor, numbers: Tensor, hidden: Tensor, carry: Tensor, memory: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        probability, hidden, carry, memory = self.model.step(
            timestamp_ms, codes.t(), numbers.t(), hidden, carry.t(), memory.t()
        )
        return probability, hidden, carry.t(), memory.t()


class _StepWithBias(nn.Module):
    """The step with the calibration's bias as its last input: the compiler would make a constant of it."""

    def __init__(self, model: SessionModel) -> None:
        super().__init__()
        self.step = _Step(model)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        *columns, bias = inputs
        found: tuple[Tensor, Tensor, Tensor, Tensor] = functional_call(self.step, {"model.bias": bias}, tuple(columns))
        return found


def require_compiler() -> None:
    """Raise `CompilerMissingError` without a C++ compiler."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        raise CompilerMissingError(
            "no C++ compiler found; install g++ (Debian: apt-get install g++), or compile on another machine"
        )


def compile_artifact(artifact: Path, out: Path, show: Callable[[str], None]) -> Manifest:
    """Write the artifact with its compiled step for this machine to `out`; takes half a minute.

    Args:
        artifact: the model.
        out: the file to write, which may be the artifact.
        show: is called with each of `STAGES` as it begins.

    Returns:
        The artifact's manifest.

    Raises:
        model.artifact.ArtifactError: the artifact cannot be used.
        CompilerMissingError: there is no C++ compiler.
        CompiledStepError: this torch cannot compile the step, or what it compiled answers otherwise.
    """
    show("loading")
    require_compiler()
    module, manifest = load(artifact)
    model = eager_model(module, manifest)
    with tempfile.TemporaryDirectory(prefix="willbuy-") as folder, torch.no_grad(), warnings.catch_warnings():
        # Warnings of torch's own modules about each other.
        warnings.simplefilter("ignore")
        package = Path(folder) / "step.pt2"
        show("exporting")
        try:
            exported = _exported(model, manifest)
            show("compiling")
            _compile(exported, package)
        except Exception as exc:
            # The exporter and the compiler raise errors of many kinds, which have no common base.
            lines = str(exc).strip().splitlines() or [type(exc).__name__]
            raise CompiledStepError(f"torch {torch.__version__} cannot compile the step: {lines[0]}") from exc
        show("checking")
        check(CompiledStep(package, module.bias), module, manifest)
        add_compiled_step(artifact, package, manifest.fingerprint, out)
    return manifest


def _exported(model: SessionModel, manifest: Manifest) -> torch.export.ExportedProgram:
    sessions = _EXAMPLE_SESSIONS
    codes = torch.zeros((sessions, FIXED_CODES + len(manifest.property_values)), dtype=torch.int64)
    numbers = torch.zeros((sessions, FIXED_NUMBERS + len(manifest.properties) - len(manifest.property_values)))
    times = torch.zeros(sessions, dtype=torch.int64)
    example = columns_first((times, codes, numbers, *model.initial_state(sessions)))
    batch = torch.export.Dim("sessions", min=FEWEST_SESSIONS, max=MOST_SESSIONS)
    shapes = [{0: batch}, {1: batch}, {1: batch}, {0: batch}, {1: batch}, {1: batch}, None]
    return torch.export.export(
        _StepWithBias(model), (*example, model.bias.clone()), dynamic_shapes=(tuple(shapes),), strict=False
    )


def _compile(exported: torch.export.ExportedProgram, package: Path) -> None:
    options: dict[str, object] = {
        # One thread, as each worker of the service has.
        "cpp.threads": 1,
        # Precompiled headers take longer than they save, as each is used once.
        "aot_inductor.precompile_headers": False,
    }
    features = frozenset(Target.here().features)
    # A level instead of all that the compiling CPU has, so that the package runs on CPUs of the same kind.
    if features >= _AVX512:
        options["cpp.march"] = "x86-64-v4"
    elif features >= _AVX2:
        options["cpp.march"] = "x86-64-v3"
    torch._inductor.aoti_compile_and_package(exported, package_path=str(package), inductor_configs=options)  # noqa: SLF001 - documented so
