"""The artifact: the one file that training writes and the service loads, TorchScript with a manifest inside.

Only this module scripts, saves and loads models. TorchScript is deprecated in torch 2.13 and is a requirement of this
project. Another format would be added here and nowhere else.

Loading a TorchScript file runs its code: load only files that you trust. Before torch opens a file, its manifest is
read, and its checksums, its format version, the digest of its code and (if given) its SHA-256 are checked.
"""

import hashlib
import json
import lzma
import platform
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch

from model.atomic_write import replacing
from model.code_digest import code_digest
from model.columns import FIXED_CODES, FIXED_NUMBERS, fingerprint
from model.manifest import (
    FORMAT_VERSION,
    ArtifactCorruptError,
    ArtifactDigestError,
    ArtifactError,
    ArtifactMissingError,
    ArtifactVersionError,
    BaseRateUnknownError,
    Manifest,
    ScriptMismatchError,
)
from model.network import SessionModel
from model.text_rules import TEXT_RULES

__all__ = [
    "ArtifactCorruptError",
    "ArtifactDigestError",
    "ArtifactError",
    "ArtifactMissingError",
    "ArtifactVersionError",
    "BaseRateUnknownError",
    "Manifest",
    "ScriptMismatchError",
    "load",
    "manifest_of",
    "model_fingerprint",
    "random_columns",
    "read_manifest",
    "save",
]

_MANIFEST: Final = "manifest.json"
# Vocabularies of 100,000 items take a few MB. Reading a larger manifest would only use up the memory.
_LARGEST_MANIFEST: Final = 64 * 2**20
# float32 sums in another order differ by about 1e-7 a step; a larger difference means another computation.
_SCRIPT_TOLERANCE: Final = 1e-5


@contextmanager
def _torchscript() -> Iterator[None]:
    """Silence only torch 2.13's deprecation warnings for `torch.jit.script`, `save` and `load`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        yield


def model_fingerprint(model: torch.nn.Module, configuration: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that identify the model's tensors and configuration."""
    digest = hashlib.sha256(json.dumps(configuration, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _configuration(manifest: Manifest) -> dict[str, Any]:
    """Return the part of a manifest that the fingerprint covers: all that affects an answer or a state's layout."""
    values = manifest.to_dict()
    about = {"fingerprint", "metrics", "data", "training", "model_card", "versions", "created"}
    if not manifest.code:
        # Artifacts of earlier releases record no digest, and their fingerprints stay what they are.
        about.add("code")
    return {key: value for key, value in values.items() if key not in about}


def manifest_of(
    model: SessionModel,
    *,
    metrics: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> Manifest:
    """Return the manifest of a model; the keyword arguments are recorded in it and change no answer.

    It lacks the digest of the code, which `save` adds; the fingerprint changes with it.
    """
    encoder = model.encoder
    manifest = Manifest(
        fingerprint="",
        event_names=encoder.vocabularies["event_name"],
        items=encoder.vocabularies["item_id"],
        item_categories=encoder.vocabularies["item_category"],
        properties=encoder.properties,
        property_values={
            spec.name: encoder.vocabularies[f"property.{spec.name}"]
            for spec in encoder.properties
            if spec.kind == "category"
        },
        calendar=encoder.calendar,
        sizes=asdict(model.sizes),
        state={"hidden": model.hidden_width, "carry": encoder.carry_size, "memory": encoder.memory_size},
        features=encoder.feature_names,
        calibration={"temperature": float(model.temperature), "bias": float(model.bias)},
        metrics=dict(metrics or {}),
        data={"text_rules": TEXT_RULES, **(data or {})},
        training=dict(training or {}),
        versions={"willbuy": version("willbuy"), "torch": torch.__version__, "python": platform.python_version()},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return replace(manifest, fingerprint=model_fingerprint(model, _configuration(manifest)))


def save(
    model: SessionModel,
    path: Path,
    manifest: Manifest | None = None,
    card: Callable[[Manifest], dict[str, Any]] | None = None,
) -> Manifest:
    """Script the model, check the script against the eager model, and write it with its manifest to `path`.

    The file gets its name only once it is complete.

    Args:
        model: is moved to the CPU and set to evaluation mode.
        path: the file to write; its folder must exist.
        manifest: the result of `manifest_of` for this model; computed if omitted.
        card: makes the model card of the manifest, once that has the fingerprint of the artifact.

    Returns:
        The manifest as written: with the digest of the code, and the fingerprint over weights, configuration and code.

    Raises:
        ScriptMismatchError: the written file computes different probabilities than the eager model.
        ArtifactCorruptError: the manifest is another model's.
    """
    model = model.cpu().eval()
    manifest = manifest or manifest_of(model)
    _check_fingerprint(model, manifest, path)
    # Readable, because another user runs the service.
    with replacing(path, mode=0o644) as temporary:
        with _torchscript():
            script = torch.jit.script(model)
            # Twice: the manifest has the digest of the code, which torch writes only with the file.
            torch.jit.save(script, str(temporary))
            manifest = replace(manifest, code=code_digest(temporary))
            manifest = replace(manifest, fingerprint=model_fingerprint(model, _configuration(manifest)))
            if card is not None:
                manifest = replace(manifest, model_card=card(manifest))
            torch.jit.save(script, str(temporary), _extra_files={_MANIFEST: json.dumps(manifest.to_dict())})
        scripted, written = load(temporary)
        _check_script(model, scripted, written)
    return written


def load(path: Path, *, sha256: str | None = None) -> tuple[torch.jit.ScriptModule, Manifest]:
    """Read an artifact.

    Args:
        path: the file.
        sha256: expected hexadecimal digest, checked before any code of the file runs.

    Returns:
        The scripted `SessionModel` on the CPU, in evaluation mode, and its manifest.

    Raises:
        ArtifactError: the file cannot be used; the subclass names the reason.
    """
    manifest = read_manifest(path, sha256=sha256)
    _check_code(path, manifest)
    try:
        with _torchscript():
            module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]  # torch ships it untyped
        _check_fingerprint(module, manifest, path)
    except ArtifactError:
        raise
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as exc:
        first_line = str(exc).strip().splitlines()[:1]
        raise ArtifactCorruptError(f"{path}: torch cannot load the model in it: {''.join(first_line)}") from exc
    module.eval()
    return module, manifest


def _check_code(path: Path, manifest: Manifest) -> None:
    """Raise unless the file's code is the one that its manifest records, if it records one."""
    if not manifest.code:
        return
    try:
        actual = code_digest(path)
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError) as exc:
        raise ArtifactCorruptError(f"{path}: the code in it cannot be read: {exc}") from exc
    if actual != manifest.code:
        raise ArtifactCorruptError(
            f"{path}: the code in it is not the one that its manifest records "
            f"(digest {actual[:16]}, expected {str(manifest.code)[:16]}); train or copy it again"
        )


def _check_fingerprint(module: torch.nn.Module, manifest: Manifest, path: Path) -> None:
    actual = model_fingerprint(module, _configuration(manifest))
    if actual != manifest.fingerprint:
        raise ArtifactCorruptError(
            f"{path}: the model in it is not the one that its manifest describes "
            f"(fingerprint {actual}, expected {manifest.fingerprint})"
        )


def read_manifest(path: Path, *, sha256: str | None = None) -> Manifest:
    """Return an artifact's manifest without running code of the file.

    Raises:
        ArtifactError: the file cannot be used; the subclass names the reason.
    """
    try:
        if not path.is_file():
            raise ArtifactMissingError(f"{path}: no such file; `willbuy train DATA --out {path}` writes one")
        with path.open("rb") as stream:
            digest = "" if sha256 is None else hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as exc:
        raise ArtifactMissingError(f"{path}: cannot be read: {exc.strerror}") from exc
    if sha256 is not None and digest != sha256.lower():
        raise ArtifactDigestError(f"{path}: SHA-256 is {digest}, expected {sha256.lower()}")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(f"/extra/{_MANIFEST}")]
            if names and (size := archive.getinfo(names[0]).file_size) > _LARGEST_MANIFEST:
                raise ValueError(f"its manifest has {size} bytes, and at most {_LARGEST_MANIFEST} are read")  # noqa: TRY301 - named below
            damaged = archive.testzip()
            values = json.loads(archive.read(names[0])) if names and damaged is None else None
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, RuntimeError) as exc:
        raise ArtifactCorruptError(
            f"{path}: not a willbuy artifact, or damaged ({exc}); train or copy it again"
        ) from exc
    if damaged is not None:
        raise ArtifactCorruptError(f"{path}: damaged at {damaged} (checksum differs); copy it again")
    if not isinstance(values, dict) or "format_version" not in values:
        raise ArtifactCorruptError(f"{path}: has no willbuy manifest; it is another program's file")
    if values["format_version"] != FORMAT_VERSION:
        raise ArtifactVersionError(
            f"{path}: artifact format {values['format_version']}, this release reads format {FORMAT_VERSION}; "
            "train again with this release, or run the release that wrote it"
        )
    try:
        return Manifest.from_dict(values)
    except ArtifactCorruptError as exc:
        raise ArtifactCorruptError(f"{path}: {exc}") from exc


def random_columns(manifest: Manifest, sessions: int, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return columns of random sessions, known and unknown words and missing values among them, the same ones always.

    Returns:
        `timestamp_ms` int64 [sessions, length], `codes` int64 [.., .., 3 + C] and `numbers` float32 [.., .., 2 + N], as
        `SessionModel.forward` takes them.
    """
    generator = torch.Generator().manual_seed(0)

    def below(limit: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, limit, shape, generator=generator)

    columns = FIXED_CODES + len(manifest.property_values)
    words = [manifest.event_names, manifest.items, manifest.item_categories, *manifest.property_values.values()]
    codes = torch.zeros((sessions, length, columns), dtype=torch.int64)
    for column, vocabulary in enumerate(words):
        known = torch.tensor([0, 1, *(fingerprint(word) for word in vocabulary[:50])])
        codes[:, :, column] = known[below(len(known), sessions, length)]
    codes[:, :, 0].clamp_(min=1)
    timestamp_ms = below(600_000, sessions, length).cumsum(1) - 60_000
    numbers_wide = FIXED_NUMBERS + len(manifest.properties) - len(manifest.property_values)
    numbers = torch.rand((sessions, length, numbers_wide), generator=generator) * 100
    numbers[below(4, *numbers.shape) == 0] = float("nan")
    return timestamp_ms, codes, numbers


def _check_script(eager: SessionModel, scripted: torch.jit.ScriptModule, manifest: Manifest) -> None:
    """Compare script and eager model, by steps and by sequence, on random sessions; raise if they differ."""
    sessions, length = 16, 12
    timestamp_ms, codes, numbers = random_columns(manifest, sessions, length)
    with torch.inference_mode():
        expected = eager(timestamp_ms, codes, numbers)
        sequence = scripted(timestamp_ms, codes, numbers)
        state = scripted.initial_state(sessions)
        steps = []
        for position in range(length):
            probability, *state = scripted.step(
                timestamp_ms[:, position], codes[:, position], numbers[:, position], *state
            )
            steps.append(probability)
    for name, actual in (("sequence", sequence), ("step", torch.stack(steps, 1))):
        difference = float((actual - expected).abs().max())
        if not difference <= _SCRIPT_TOLERANCE:
            raise ScriptMismatchError(
                f"the scripted {name} differs from the eager model by {difference:.2g}; no artifact was written"
            )
