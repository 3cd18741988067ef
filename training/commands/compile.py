"""`willbuy compile ARTIFACT`: adds the compiled step to an artifact."""

from pathlib import Path
from typing import Final

from model.artifact import ArtifactError
from model.compiled import CompiledStepError
from training.commands.console import print_line
from training.commands.stages import stage
from training.fit.compilation import STAGES, CompilerMissingError, compile_artifact

COMPILE_ERRORS: Final = (ArtifactError, CompiledStepError, CompilerMissingError, OSError)


def run_compile(artifact: Path, out: Path) -> None:
    """Write the artifact with its compiled step to `out`, which may be the artifact, and say what to do next.

    Raises:
        COMPILE_ERRORS: an error that the user can fix; the message says how.
    """
    with stage("compiling the step", len(STAGES)) as show:
        manifest = compile_artifact(artifact, out, lambda part: show(STAGES.index(part), part))
        show(len(STAGES))
    print_line(f"compiled  {out} ({out.stat().st_size / 1024:.0f} KiB, model {manifest.fingerprint})")
