"""The model in use, and how another takes its place while requests are answered.

A candidate is loaded and warmed up in a thread. Only then is it put in place, between two batches: the batch that runs
keeps the model it began with, the next one takes the new one, and the old one is freed with its last batch. What cannot
be loaded changes nothing.
"""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol

from structlog.typing import FilteringBoundLogger

from app.errors import ArtifactRefusedError, ReloadInProgressError, WillbuyError
from app.monitoring.metrics import Metrics
from model.interface import Model

# Modification time in ns, size in bytes, inode: another file under the name differs in one of them.
Stamp = tuple[int, int, int]


class LoadUnless(Protocol):
    """Loads what the artifact's path holds now; it blocks, and is called in a thread."""

    def __call__(self, fingerprint: str) -> Model | None:
        """Return the model, warmed up, or None when it is the one of this fingerprint.

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
        metrics: where reloads are counted and the model is named.
        logger: where they are told.
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
    ) -> None:
        self._model = model
        self._path = path
        self._stamp = stamp
        self._load_unless = load_unless
        self._metrics = metrics
        self._logger = logger
        self._reloading = False
        self._watch: asyncio.Task[None] | None = None
        self.loaded_at = datetime.now(UTC)
        metrics.model_info.labels(model.fingerprint).set(1)

    @property
    def current(self) -> Model:
        """The model that the next batch takes."""
        return self._model

    async def reload(self) -> Literal["swapped", "unchanged"]:
        """Put the model that the file holds now in place of the current one.

        Raises:
            ReloadInProgressError: another reload has not ended yet.
            ArtifactRefusedError: the file cannot be used; the current model stays.
        """
        if self._reloading:
            raise ReloadInProgressError("Another reload has not ended yet; ask again when it has.")
        self._reloading = True
        # Before it is read: whatever is written to it from now on makes another stamp.
        self._stamp = await asyncio.to_thread(stamp_of, self._path)
        try:
            model = await asyncio.to_thread(self._load_unless, self._model.fingerprint)
        except Exception as exc:
            self._metrics.model_reloads.labels("refused").inc()
            # Only errors that are known to be about the file are told to callers.
            reason = str(exc) if isinstance(exc, ValueError) else "it could not be loaded; the log says why"
            self._logger.error("model_refused", reason=reason, cause=repr(exc), model=self._model.fingerprint)  # noqa: TRY400 - a bad file needs no traceback
            raise ArtifactRefusedError(f"Model {self._model.fingerprint} stays: {reason}.") from exc
        finally:
            self._reloading = False
        if model is None:
            self._metrics.model_reloads.labels("unchanged").inc()
            return "unchanged"
        self._put_in_place(model)
        return "swapped"

    def start_watch(self, every_s: float) -> None:
        """Look at the file every so often, and reload when another one stands there."""
        self._watch = asyncio.create_task(self._watch_file(every_s), name="artifact-watch")

    async def close(self) -> None:
        """End the watch."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    def _put_in_place(self, model: Model) -> None:
        old, self._model = self._model, model
        self.loaded_at = datetime.now(UTC)
        self._metrics.model_reloads.labels("swapped").inc()
        self._metrics.retire(self._metrics.model_info, old.fingerprint)
        self._metrics.model_info.labels(model.fingerprint).set(1)
        self._logger.info("model_swapped", old=old.fingerprint, model=model.fingerprint)

    async def _watch_file(self, every_s: float) -> None:
        last = self._stamp
        while True:
            await asyncio.sleep(every_s)
            stamp = await asyncio.to_thread(stamp_of, self._path)
            # A file that has changed since the last look may still be written to: it has to stand still for one look.
            is_settled, last = stamp == last, stamp
            if stamp is None or stamp == self._stamp or not is_settled:
                continue
            try:
                await self.reload()
            except WillbuyError:
                # Told and counted; tried again when the file changes.
                continue


def stamp_of(path: Path) -> Stamp | None:
    """Return what tells a file from another under its name; None when there is none. Follows links."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
