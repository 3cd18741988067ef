"""The file of rules and webhooks: read at the start, and again when it changes or another model is loaded."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from structlog.typing import FilteringBoundLogger

from app.interventions.webhooks import Webhook, WebhookError, read_webhooks
from app.runtime.file_watch import FileWatch, Stamp
from app.runtime.periodic import PeriodicTask
from app.settings import Settings
from model.interface import Model
from model.interventions.decide import Decider
from model.interventions.rules import RulesError, RuleSet, Vocabulary, parse_rules, read_table

# A change is in use after two checks, so within a second.
RULES_CHECKED_EVERY_S: Final = 0.5
_FAILED: Final = "interventions_watch_failed"
_SETTING: Final = "WILLBUY_INTERVENTIONS_FILE"
# A clock that is corrected in steps goes back by less.
_CLOCK_TOLERANCE_MS: Final = 1000


class RuleFile:
    """The rules and webhooks in use; none without a file.

    A file that cannot be used is an error in the log and changes nothing: what was read before stays.

    Args:
        settings: name the file.
        model: returns the model in use, which reads the names of events.
        now_ms: the server's clock.
        logger: where changes and faults are logged.

    Raises:
        RulesError: the file cannot be used; at the start there is nothing that could stay.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        model: Callable[[], Model],
        now_ms: Callable[[], int],
        logger: FilteringBoundLogger,
    ) -> None:
        self._path = settings.interventions_file
        self._session_idle_s = settings.session_idle_s
        self._model = model
        self._now_ms = now_ms
        self._latest_ms = now_ms()
        self._logger = logger
        self._on_change: list[Callable[[], None]] = []
        self.rules = RuleSet()
        """The rules of the file."""
        self._off: frozenset[str] = frozenset()
        self.decider: Decider | None = None
        """Decides by the rules that are not switched off; None: there are none, so the fold does nothing for them."""
        self.webhooks: tuple[Webhook, ...] = ()
        """Where decisions are sent."""
        # The one that read the file. None without a file: a model that was replaced must not stay in memory.
        self._vocabulary: Vocabulary | None = None
        self._watch: FileWatch | None = None
        self._task: PeriodicTask | None = None
        if self._path is not None:
            # Without a known stamp: the file may change before the first check.
            self._watch = FileWatch(
                self._path, self._read_again, every_s=RULES_CHECKED_EVERY_S, name="rules", logger=logger, failed=_FAILED
            )
            self._task = PeriodicTask(
                self.check, name="rules", every_s=RULES_CHECKED_EVERY_S, logger=logger, failed=_FAILED
            )
            try:
                self._vocabulary = model()
                self._use(*self._read(self._path, self._vocabulary))
            except RulesError as exc:
                raise RulesError([f"{_SETTING}: {fault}" for fault in exc.faults]) from exc

    @property
    def is_there(self) -> bool:
        """Whether the settings name a file."""
        return self._path is not None

    def on_change(self, call: Callable[[], None]) -> None:
        """Have `call` called whenever other rules or webhooks are in use."""
        self._on_change.append(call)

    def switch_off(self, names: frozenset[str]) -> None:
        """Let the rules of these names not fire, and all others fire; a name may be of a rule that is added later."""
        self._off = names
        self._decide()

    def start(self) -> None:
        """Watch the file, if there is one; call once, inside the event loop."""
        if self._task is not None:
            self._task.start()

    async def close(self) -> None:
        """End the watch."""
        if self._task is not None:
            await self._task.close()

    async def check(self) -> None:
        """Look once at all that the rules depend on: file, model, clock."""
        assert self._watch is not None  # noqa: S101 - only a file is watched
        await self._watch.check()
        if self._model() is not self._vocabulary:
            await self._read_again(None)
        now_ms = self._now_ms()
        if now_ms < self._latest_ms - _CLOCK_TOLERANCE_MS:
            self._note_clock(self._latest_ms - now_ms)
            self._latest_ms = now_ms
        self._latest_ms = max(self._latest_ms, now_ms)

    async def _read_again(self, _stamp: Stamp | None) -> None:
        path, vocabulary = self._path, self._model()
        assert path is not None  # noqa: S101 - only a file is watched
        # Once for each model, whatever comes of it.
        self._vocabulary = vocabulary
        try:
            # In a thread: the file may be on a network file system that hangs.
            found = await asyncio.to_thread(self._read, path, vocabulary)
        except RulesError as exc:
            self._logger.error("interventions_refused", faults=exc.faults, kept=self.rules.names)  # noqa: TRY400 - a bad file needs no traceback
            return
        if found == (self.rules, self.webhooks):
            return
        self._use(*found)
        self._logger.info("interventions_read", rules=self.rules.names, webhooks=len(self.webhooks))
        for call in self._on_change:
            call()

    def _read(self, path: Path, vocabulary: Vocabulary) -> tuple[RuleSet, tuple[Webhook, ...]]:
        table = read_table(path)
        rules = parse_rules(table, vocabulary, source=str(path), session_idle_s=self._session_idle_s)
        try:
            webhooks = read_webhooks(table.get("webhooks", []), rules.names, folder=path.parent)
        except WebhookError as exc:
            raise RulesError([f"{path}: {exc}"]) from exc
        return rules, webhooks

    def _use(self, rules: RuleSet, webhooks: tuple[Webhook, ...]) -> None:
        self.rules = rules
        self.webhooks = webhooks
        self._decide()

    def _decide(self) -> None:
        on = tuple(rule for rule in self.rules.rules if rule.name not in self._off)
        self.decider = Decider(RuleSet(on, self.rules.source)) if on else None

    def _note_clock(self, back_ms: int) -> None:
        """Log which rules judge by a clock that has gone back."""
        faults = [
            f"{self.rules.source}: rule {rule.name!r}: {field}: the server's clock went back by {back_ms / 1000:g} s"
            for rule in self.rules.rules
            for field in ("starts", "ends")
            if getattr(rule, field) is not None
        ]
        if faults:
            self._logger.warning("interventions_clock_went_back", faults=faults)
