"""Models from the files that the settings name."""

from pathlib import Path

from app.settings import Settings
from model.artifact import read_manifest
from model.interface import Model
from model.predictor import load_predictor


class ArtifactFile:
    """An artifact's path, and how what stands there is loaded.

    Args:
        path: the file.
        sha256: digest that the file must have, if any.
        settings: where the model runs, and how its states are kept.
    """

    def __init__(self, path: Path, sha256: str | None, settings: Settings) -> None:
        self.path = path
        self._sha256 = sha256
        self._settings = settings

    def load(self) -> Model:
        """Return the model; raise `ValueError` when the artifact cannot be used. Blocks."""
        return load_predictor(
            self.path,
            device=self._settings.device,
            state_dtype=self._settings.state_dtype,
            max_batch_size=self._settings.max_batch_size,
            sha256=self._sha256,
            base_rate=self._settings.base_rate,
            # One a worker: workers with a full set each oversubscribe the cores.
            threads=1,
        )

    def load_unless(self, fingerprint: str) -> Model | None:
        """See `app.scoring.model_holder.LoadUnless`."""
        # Tells the model without running anything of the file, so looking at the same one again costs little.
        if read_manifest(self.path, sha256=self._sha256).fingerprint == fingerprint:
            return None
        model = self.load()
        model.warm_up()
        return model
