"""The step as machine code: a second, faster form of an artifact's network, made from the same module.

`willbuy compile ARTIFACT` exports `SessionModel.step` (`torch.export`), compiles it ahead of time for this CPU
(AOTInductor) and adds the resulting package to the artifact, which stays loadable without it. The service needs no
compiler. It uses the package only where torch and the CPU are those that it was compiled for, and only after both forms
gave the same answers over chained steps. Otherwise TorchScript runs the step, and the log says why.

The package is a shared library: loading it runs its code, as loading TorchScript does. So it lies inside the artifact,
where the artifact's SHA-256 covers it.
"""

import json
import platform
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from model.artifact import random_columns
from model.atomic_write import replacing
from model.manifest import Manifest

FEWEST_SESSIONS: Final = 2
"""The compiled step is for batches from this size on: the exporter makes a batch of one a network of its own."""

MOST_SESSIONS: Final = 4096
"""And up to this size."""

_PACKAGE: Final = "extra/step.pt2"
_ABOUT: Final = "extra/step.json"
_NAME: Final = "model"  # of the model inside the package; AOTInductor's default
# Two threads may step at the same time: live sessions, and traces of sessions.
_RUNNERS: Final = 2
# Batches with and without a remainder after the widest vector instructions.
_CHECKED_SESSIONS: Final = (2, 5, 16, 33)
_CHECKED_LENGTH: Final = 12
_TOLERANCE: Final = 1e-6


class CompiledStepError(ValueError):
    """The compiled step of an artifact cannot be used here; the message says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a compiled step runs on.

    Attributes:
        torch: version of torch.
        machine: architecture, as `platform.machine` names it.
        features: the CPU's instruction sets, as `torch.cpu.get_capabilities` names them.
    """

    torch: str
    machine: str
    features: tuple[str, ...]

    @classmethod
    def here(cls) -> "Target":
        """Return this process's."""
        found = torch.cpu.get_capabilities()
        features = sorted(name for name, value in found.items() if value is True)
        return cls(str(torch.__version__), platform.machine(), tuple(features))

    def missing_for(self, other: "Target") -> str:
        """Return why code compiled for `other` does not run on this; empty when it runs."""
        if self.torch != other.torch:
            return f"it was compiled with torch {other.torch}, this is {self.torch}"
        if self.machine != other.machine:
            return f"it was compiled for {other.machine}, this is {self.machine}"
        missing = sorted(set(other.features) - set(self.features))
        return f"this CPU lacks {', '.join(missing)}" if missing else ""


class CompiledStep:
    """Runs a package; takes and returns what `SessionModel.step` does. Thread-safe.

    Args:
        package: the file. It may be deleted afterwards.
        bias: float32 [], the calibration's; an input, so that a live base rate can shift it.

    Raises:
        CompiledStepError: the package cannot be loaded.
    """

    def __init__(self, package: Path, bias: Tensor) -> None:
        try:
            # Not `torch._inductor.aoti_load_package`: importing the compiler takes seconds, and its call 40 us.
            loader = torch._C._aoti.AOTIModelPackageLoader(str(package), _NAME, False, _RUNNERS, -1)  # noqa: SLF001
        except RuntimeError as exc:
            raise CompiledStepError(f"it cannot be loaded: {_first_line(exc)}") from exc
        self._run = loader.boxed_run
        self._bias = bias

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return probability, hidden, carry and memory after a step; call in inference mode.

        Args:
            inputs: of `SessionModel.step`, for `FEWEST_SESSIONS` to `MOST_SESSIONS` sessions.
        """
        probability, hidden, carry, memory = self._run([*columns_first(inputs), self._bias])
        return probability, hidden, carry.t(), memory.t()


def columns_first(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the inputs of `SessionModel.step` as the compiled step takes them: [quantity, batch], contiguous.

    They are so in memory already (`model.columns`, `model.states`), so nothing is copied.
    """
    timestamp_ms, codes, numbers, hidden, carry, memory = inputs
    return [
        timestamp_ms.contiguous(),
        codes.t().contiguous(),
        numbers.t().contiguous(),
        hidden.contiguous(),
        carry.t().contiguous(),
        memory.t().contiguous(),
    ]


def add_compiled_step(artifact: Path, package: Path, fingerprint: str, out: Path) -> None:
    """Write the artifact with a package inside to `out`, which may be the artifact itself; replaces an earlier package.

    Args:
        artifact: the model.
        package: its compiled step, for this machine.
        fingerprint: of the model.
        out: the file to write; gets its name only once it is complete.
    """
    about = json.dumps({"fingerprint": fingerprint, "target": asdict(Target.here())})
    # Readable, because another user runs the service.
    with (
        replacing(out, mode=0o644) as temporary,
        zipfile.ZipFile(artifact) as source,
        zipfile.ZipFile(temporary, "w") as target,
    ):
        root = source.namelist()[0].partition("/")[0]
        replaced = {f"{root}/{_PACKAGE}", f"{root}/{_ABOUT}"}
        for entry in source.infolist():
            if entry.filename not in replaced:
                target.writestr(entry, source.read(entry))
        target.writestr(f"{root}/{_ABOUT}", about)
        target.write(package, f"{root}/{_PACKAGE}")


def compiled_digest(artifact: Path) -> str | None:
    """Return a text that tells one compiled step of an artifact from another; None without one.

    None too for another kind of file: loading says what is wrong with it.
    """
    if not zipfile.is_zipfile(artifact):
        return None
    with zipfile.ZipFile(artifact) as archive:
        found = [entry for entry in archive.infolist() if entry.filename.endswith(f"/{_PACKAGE}")]
    return f"{found[0].CRC:08x}" if found else None


def load_compiled(artifact: Path, manifest: Manifest, module: torch.jit.ScriptModule) -> CompiledStep:
    """Return the compiled step of an artifact, checked against its script.

    Args:
        artifact: the file.
        manifest: its manifest.
        module: its script, on the CPU; its bias is used.

    Raises:
        CompiledStepError: there is none, or it is for another model, torch or CPU, or its answers differ.
    """
    with zipfile.ZipFile(artifact) as archive, tempfile.TemporaryDirectory(prefix="willbuy-") as folder:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        if _PACKAGE not in names or _ABOUT not in names:
            raise CompiledStepError("the artifact has none; `willbuy compile` adds one")
        about = _about(archive.read(names[_ABOUT]))
        if about["fingerprint"] != manifest.fingerprint:
            raise CompiledStepError(f"it is of another model, {about['fingerprint']}")
        if reason := Target.here().missing_for(Target(**about["target"])):
            raise CompiledStepError(reason)
        package = Path(folder) / "step.pt2"
        with archive.open(names[_PACKAGE]) as source, package.open("wb") as target:
            shutil.copyfileobj(source, target)
        step = CompiledStep(package, module.bias)
    check(step, module, manifest)
    return step


def check(step: CompiledStep, module: torch.jit.ScriptModule, manifest: Manifest) -> None:
    """Run compiled step and script over chained steps of random sessions; raise `CompiledStepError` if they differ."""
    for sessions in _CHECKED_SESSIONS:
        timestamp_ms, codes, numbers = random_columns(manifest, sessions, _CHECKED_LENGTH)
        with torch.inference_mode():
            expected_state = actual_state = module.initial_state(sessions)
            for event in range(_CHECKED_LENGTH):
                columns = (timestamp_ms[:, event], codes[:, event], numbers[:, event])
                expected, *expected_state = module.step(*columns, *expected_state)
                try:
                    actual, *actual_state = step((*columns, *actual_state))
                except RuntimeError as exc:
                    raise CompiledStepError(f"it fails: {_first_line(exc)}") from exc
                difference = float((actual - expected).abs().max())
                if not difference <= _TOLERANCE:
                    raise CompiledStepError(f"its answers differ from the script's by {difference:.2g}")


def _about(text: bytes) -> dict[str, Any]:
    try:
        about = json.loads(text)
        target = about["target"]
        features = tuple(str(name) for name in target["features"])
        known = {"torch": str(target["torch"]), "machine": str(target["machine"]), "features": features}
        return {"fingerprint": str(about["fingerprint"]), "target": known}
    except (ValueError, KeyError, TypeError) as exc:
        raise CompiledStepError(f"its description cannot be read: {exc}") from exc


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
