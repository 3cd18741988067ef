"""The model in use, its artifact, and its replacement while requests are answered.

A candidate is loaded and warmed up in a thread. Only then it replaces the model, between two batches: the running batch
keeps the model it began with, the next one takes the new one, and the old one is freed with its last batch. An artifact
that cannot be loaded changes nothing.
"""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol

from structlog.typing import FilteringBoundLogger

from app.errors import ArtifactRefusedError, ReloadInProgressError, WillbuyError
from app.monitoring.metrics import Metrics
from app.runtime.file_watch import FileWatch, Stamp
from app.settings import Settings
from model.artifact import read_manifest
from model.compiled import compiled_digest
from model.interface import Model
from model.predictor import load_predictor


class ArtifactFile:
    """An artifact's path, and how it is loaded.

    Args:
        path: the file.
        sha256: digest that the file must have, if any.
        settings: state type, batch size and base rate of the model.
    """

    def __init__(self, path: Path, sha256: str | None, settings: Settings) -> None:
        self.path = path
        self._sha256 = sha256
        self._settings = settings
        self._compiled_digest: str | None = None

    def load(self) -> Model:
        """Return the model; raise `ValueError` when the artifact cannot be used. Blocks."""
        self._compiled_digest = compiled_digest(self.path)
        return load_predictor(
            self.path,
            device="auto",
            state_dtype=self._settings.state_dtype,
            max_batch_size=self._settings.max_batch_size,
            sha256=self._sha256,
            base_rate=self._settings.base_rate,
            # One a worker: several workers with a full set each would oversubscribe the cores.
            threads=1,
        )

    def load_unless(self, fingerprint: str) -> Model | None:
        """Return the model, warmed up; None when it has this fingerprint and the same compiled step.

        Raises like `load`.
        """
        # Reading the manifest runs nothing of the file and is cheap, so the same artifact is not loaded twice.
        is_known = read_manifest(self.path, sha256=self._sha256).fingerprint == fingerprint
        if is_known and compiled_digest(self.path) == self._compiled_digest:
            return None
        model = self.load()
        model.warm_up()
        return model


class LoadUnless(Protocol):
    """Loads the artifact that is at the path now; blocks, so it is called in a thread."""

    def __call__(self, fingerprint: str) -> Model | None:
        """Return the model, warmed up, or None when it has this fingerprint.

        Raises:
            ValueError: the artifact cannot be used; the message says why.
        """
        ...


class ModelHolder:
    """Holds the model that serves, and replaces it.

    Args:
        model: the first one.
        path: the artifact's file, for the watch.
        stamp: of the file when `model` was loaded from it.
        load_unless: loads another one.
        metrics: where reloads and the model's fingerprint show.
        logger: where reloads are logged.
        watch_every_s: interval at which the file is checked, once `start_watch` was called.
    """

    def __init__(
        self,
        model: Model,
        *,
        path: Path,
        stamp: Stamp | None,
        load_unless: LoadUnless,
        metrics: Metrics,
        logger: FilteringBoundLogger,
        watch_every_s: float = 1.0,
    ) -> None:
        self._model = model
        self._load_unless = load_unless
        self._metrics = metrics
        self._logger = logger
        self._reloading = False
        self._watch = FileWatch(
            path,
            self._reload_changed,
            every_s=watch_every_s,
            name="artifact-watch",
            logger=logger,
            failed="artifact_watch_failed",
            known=stamp,
        )
        self.loaded_at = datetime.now(UTC)
        metrics.model_info.labels(model.fingerprint).set(1)
        metrics.model_compiled.set(model.engine == "compiled")

    @property
    def current(self) -> Model:
        """The model that the next batch takes."""
        return self._model

    async def reload(self) -> Literal["swapped", "unchanged"]:
        """Replace the current model by the artifact that the file holds now.

        Raises:
            ReloadInProgressError: another reload has not ended yet.
            ArtifactRefusedError: the file cannot be used; the current model stays.
        """
        if self._reloading:
            raise ReloadInProgressError("Another reload has not ended yet; ask again when it has.")
        self._reloading = True
        try:
            # Before the file is read: a later write makes another stamp.
            await self._watch.mark_known()
            model = await asyncio.to_thread(self._load_unless, self._model.fingerprint)
        except Exception as exc:
            self._metrics.model_reloads.labels("refused").inc()
            # Callers only get messages of errors that are known to be about the file.
            reason = str(exc) if isinstance(exc, ValueError) else "it could not be loaded; the log says why"
            self._logger.error("model_refused", reason=reason, cause=repr(exc), model=self._model.fingerprint)  # noqa: TRY400 - a bad file needs no traceback
            raise ArtifactRefusedError(f"Model {self._model.fingerprint} stays: {reason}.") from exc
        finally:
            self._reloading = False
        if model is None:
            self._metrics.model_reloads.labels("unchanged").inc()
            return "unchanged"
        self._swap(model)
        return "swapped"

    def start_watch(self) -> None:
        """Check the file at the interval, and reload when it has changed; call once, inside the event loop."""
        self._watch.start()

    async def close(self) -> None:
        """End the watch."""
        await self._watch.close()

    def _swap(self, model: Model) -> None:
        old, self._model = self._model, model
        self.loaded_at = datetime.now(UTC)
        self._metrics.model_reloads.labels("swapped").inc()
        self._metrics.retire(self._metrics.model_info, old.fingerprint)
        self._metrics.model_info.labels(model.fingerprint).set(1)
        self._metrics.model_compiled.set(model.engine == "compiled")
        self._logger.info(
            "model_swapped",
            old=old.fingerprint,
            model=model.fingerprint,
            engine=model.engine,
            engine_reason=model.engine_reason,
        )

    async def _reload_changed(self, stamp: Stamp | None) -> None:
        if stamp is None:
            return
        try:
            await self.reload()
        except WillbuyError:
            # Already logged and counted; the watch tries again when the file changes.
            return
