"""What `willbuy evaluate` is asked, and what it is asked about: models, sessions, and what can be wrong with them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from model.artifact import ArtifactError, BaseRateUnknownError
from model.base_rate import logit_shift
from training.commands.prepare import PREPARE_ERRORS, LogOptions, run_prepare
from training.data.prepared import PreparedDataset, is_prepared, read_prepared
from training.data.provenance import cuts_of
from training.data.sources import AUTO
from training.evaluation.reading import PosteriorError
from training.evaluation.resampling import DEFAULT_RESAMPLES
from training.evaluation.selection import SelectionError, Wanted
from training.fit.warm_start import Start, WarmStartError, check_properties, read_start
from training.report import Assumptions


class EvaluateError(ValueError):
    """The artifact cannot be judged on this data; the message says why."""


EVALUATE_ERRORS: Final = (
    *PREPARE_ERRORS, ArtifactError, EvaluateError, PosteriorError, SelectionError, WarmStartError, OSError
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EvaluateRequest:
    """What a command line asks for.

    Attributes:
        artifact: the model to judge.
        data: prepared sessions, or a log.
        out: HTML file to write; the same as JSON beside it. None for one beside the artifact.
        beside: `NAME=ARTIFACT` of other models to judge with it.
        baseline_data: prepared sessions that the baselines learn from.
        posterior: exact posterior of a synthetic log.
        log_format: of a log.
        mapping: of a log's columns.
        wanted: which sessions, and whether baselines.
        assumptions: of earliness and profit.
        base_rate: share of sessions that buy, where it is known to differ from the training's.
        resamples: of the bootstrap.
        seed: of samples, baselines and bootstrap.
        threads: of torch, LightGBM and linear algebra.
    """

    artifact: Path
    data: Path
    out: Path | None = None
    beside: Sequence[str] = ()
    baseline_data: Path | None = None
    posterior: Path | None = None
    log_format: str = AUTO
    mapping: Path | None = None
    wanted: Wanted = field(default_factory=Wanted)
    assumptions: Assumptions = field(default_factory=Assumptions)
    base_rate: float | None = None
    resamples: int = DEFAULT_RESAMPLES
    seed: int = 0
    threads: int = 1


def models_of(request: EvaluateRequest) -> dict[str, Start]:
    """Return the models by name, the subject first, all shifted to the base rate that was asked for.

    Raises:
        EvaluateError: a name is there twice, or an option is not `NAME=ARTIFACT`.
        ArtifactError: a file cannot be used, or does not tell its base rate.
    """
    paths = {request.artifact.stem: request.artifact}
    for given in request.beside:
        name, separator, path = given.partition("=")
        if not separator or not name or not path:
            raise EvaluateError(f"--beside: expected NAME=ARTIFACT, not {given!r}")
        if name in paths:
            raise EvaluateError(f"--beside: the name {name!r} is there twice")
        paths[name] = Path(path)
    models = {name: read_start(path) for name, path in paths.items()}
    if request.base_rate is not None:
        for name, start in models.items():
            trained = start.manifest.base_rate
            if trained is None:
                raise BaseRateUnknownError(
                    f"--base-rate: {name} does not tell the base rate that it was trained at; train it anew"
                )
            start.model.bias.add_(logit_shift(trained, request.base_rate))
    return models


def dataset_of(request: EvaluateRequest, folder: Path, subject: Start) -> PreparedDataset:
    """Return prepared sessions as they are, or those of a log, prepared into `folder`."""
    if is_prepared(request.data):
        return read_prepared(request.data)
    options = LogOptions(format=request.log_format, mapping=request.mapping, **cuts_of(subject.manifest))
    return run_prepare(request.data, folder, options)


def check_fits(name: str, start: Start, dataset: PreparedDataset) -> None:
    """Refuse data without the properties that a model looks at."""
    try:
        check_properties(start.manifest, dataset)
    except WarmStartError as exc:
        raise EvaluateError(f"{name}: {exc}") from exc
