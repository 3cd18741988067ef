"""`willbuy compile ARTIFACT`: adds the compiled step to an artifact."""

from pathlib import Path
from typing import Final

from model.artifact import ArtifactError
from model.compiled import CompiledStepError
from training.commands.console import print_line, progress_bars
from training.fit.compilation import STAGES, CompilerMissingError, compile_artifact

COMPILE_ERRORS: Final = (ArtifactError, CompiledStepError, CompilerMissingError, OSError)


def run_compile(artifact: Path, out: Path) -> None:
    """Write the artifact with its compiled step to `out`, which may be the artifact, and say what to do next.

    Raises:
        COMPILE_ERRORS: an error that the user can fix; the message says how.
    """
    with progress_bars() as bars:
        task = bars.add_task("compiling the step", total=len(STAGES), note="")
        manifest = compile_artifact(
            artifact, out, lambda stage: bars.update(task, completed=STAGES.index(stage), note=stage)
        )
        bars.update(task, completed=len(STAGES), note="")
    print_line(f"compiled  {out} ({out.stat().st_size / 1024:.0f} KiB, model {manifest.fingerprint})")
