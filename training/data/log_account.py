"""The account of a log's first pass: what its names, times and ids are, what is wrong with them, and in whose words.

Some findings stop the run, since a model of such a log would be wrong without a word. Others are warnings.
"""

import shlex
from collections import Counter
from difflib import get_close_matches
from typing import Any, Final

import polars as pl

from model.events import PURCHASE
from model.purchase_names import looks_like_purchase
from training.data.sources import Batch, Source, SourceError
from training.data.sources.conversion import OUTSIDE, Reading
from training.data.sources.time_patterns import swapped_day_and_month
from training.data.sources.values import NO_DATE, NO_TIME
from training.data.time_checks import clock_warnings, hint, likely_patterns

MS_PER_DAY: Final = 86_400_000
_MS_PER_HOUR: Final = 3_600_000
# Names that are counted one by one; a log of addresses has more.
_MOST_NAMES: Final = 50_000
_LISTED_NAMES: Final = 20
_SAMPLE: Final = 100
# Rows read before times outside the range stop the run early.
_EARLY_ROWS: Final = 100_000
# A log's last rows are stray if they are so few of all, and come so long after all others.
_STRAY_SHARE: Final = 0.001
_STRAY_GAP_DAYS: Final = 30
_MANY_ROWS: Final = 1000


class LogAccount:
    """What is known of a log after its first pass.

    Attributes:
        rows_read, rows_lookup, rows_dropped: data rows; those that describe items; those of names left out.
        lost_purchases: rows that say purchase and name no session.
        nulled: optional values that became null, by column and reason.
    """

    def __init__(self, source: Source, reading: Reading) -> None:
        self.rows_read = self.rows_lookup = self.rows_dropped = self.lost_purchases = 0
        self.nulled: Counter[str] = Counter()
        self._source = source
        self._reading = reading
        self._accepted = self._outside = self._no_times = 0
        self._has_time_of_day = self._has_fractions = False
        self._unread_times: list[str] = []
        self._names: Counter[tuple[str, str]] = Counter()
        self._placeholders: Counter[str] = Counter()
        self._notes: list[str] = []
        self._warnings: dict[str, None] = {}
        self._lost_labels: list[pl.Series] = []
        # By day since 1970: rows and the latest time.
        self._days: dict[int, tuple[int, int]] = {}
        self._hours = [0] * 24

    def add(self, batch: Batch) -> None:
        """Add a batch; raise `SourceError` once it is clear that the times have another unit."""
        self.rows_read += batch.rows_read
        self.rows_lookup += batch.rows_lookup
        self.rows_dropped += batch.rows_dropped
        self.lost_purchases += batch.lost_purchases
        self._placeholders.update(batch.placeholders)
        self._notes += batch.notes
        self._warnings |= dict.fromkeys(batch.warnings)
        if len(batch.lost_labels):
            self._lost_labels.append(batch.lost_labels)
        for name, read_as, rows in batch.names.iter_rows():
            self._names[name, read_as] += rows
        if len(self._names) > 2 * _MOST_NAMES:
            self._names = Counter(dict(self._names.most_common(_MOST_NAMES)))
        if batch.nulled.height:
            counts = batch.nulled.group_by("field", "reason").len()
            self.nulled.update({f"{field}: {reason}": rows for field, reason, rows in counts.iter_rows()})
        self._add_unread_times(batch.rejected)
        if batch.events.height:
            self._accepted += batch.events.height
            self._add_times(batch.events["timestamp_ms"])
        if self.rows_read > _EARLY_ROWS:
            self._check_range()

    def _add_unread_times(self, rejected: pl.DataFrame) -> None:
        unread = rejected.filter(pl.col("reason").is_in([OUTSIDE, NO_DATE, NO_TIME]))
        outside = unread.filter(pl.col("reason") != NO_TIME).height
        self._outside += outside
        self._no_times += unread.height - outside
        room = _SAMPLE - len(self._unread_times)
        self._unread_times += unread["value"].drop_nulls().head(max(room, 0)).to_list()

    def _add_times(self, times: pl.Series) -> None:
        days = pl.DataFrame({"day": times // MS_PER_DAY, "time": times}).group_by("day")
        for day, rows, latest in days.agg(pl.len(), pl.col("time").max()).iter_rows():
            known_rows, known_latest = self._days.get(day, (0, latest))
            self._days[day] = (known_rows + rows, max(known_latest, latest))
        self._has_time_of_day = self._has_time_of_day or bool((times % MS_PER_DAY != 0).any())
        self._has_fractions = self._has_fractions or bool((times % 1000 != 0).any())
        for hour, rows in (times % MS_PER_DAY // _MS_PER_HOUR).value_counts().iter_rows():
            self._hours[hour] += rows

    @property
    def lost_labels(self) -> pl.Series:
        """Session ids (or visitors) whose label is unknown."""
        return pl.concat([pl.Series([], dtype=pl.String), *self._lost_labels]).unique()

    def end_ms(self) -> tuple[int, str | None]:
        """Return the time of the log's last event, and a warning where stray rows after it do not count."""
        if not self._days:
            return 0, None
        days, rows = sorted(self._days), sum(count for count, _ in self._days.values())
        allowed = max(1, int(_STRAY_SHARE * rows))
        after = 0
        for position in range(len(days) - 1, 0, -1):
            day, earlier = days[position], days[position - 1]
            after += self._days[day][0]
            gap, span = day - earlier, earlier - days[0]
            if after > allowed:
                break
            if gap > _STRAY_GAP_DAYS and (gap > span or rows >= _MANY_ROWS):
                return self._days[earlier][1], (
                    f"{after:,} of {rows:,} rows are {gap:,} days later than all others; the log's end is taken to be "
                    "before them, and their sessions are left out"
                )
        return self._days[days[-1]][1], None

    def check(self, *, is_whole: bool = True) -> None:
        """Raise `SourceError` where the log was read as something that it is not.

        Args:
            is_whole: whether all of the log was read, so that a name which did not occur never does.
        """
        self._check_range()
        if self._source.clock == "calendar" and self._accepted and not self._has_time_of_day:
            column = self._source.event_files[0].mapping.timestamp
            raise SourceError(
                f"column {column!r} holds dates without a time of day: a purchase would have the same time as the "
                "pages before it. Map the column of the time too: --column timestamp=DATE+TIME"
            )
        if is_whole:
            self._check_typed_names()
        if not self.outcome_is_given:
            self._check_lookalikes()

    def check_purchases(self) -> None:
        """Raise `SourceError` where no row is read as a purchase and no outcome is given."""
        if self._accepted and not self.outcome_is_given and not self.purchase_names:
            raise SourceError(f"no row of the log is a purchase. {self._how_to_name_one()}")

    def no_buyers(self, account: str) -> SourceError:
        """Return the error of a log in which no session bought."""
        return SourceError(f"no session of the log bought: {account}. {self._how_to_name_one()}")

    def time_hint(self) -> str:
        """Return what times that could not be read seem to be, as a sentence, or nothing."""
        return hint(self._unread_times, self._reading, self._time_format)

    @property
    def _time_format(self) -> str:
        return self._source.event_files[0].mapping.time_format

    def drops_equal_rows(self, chosen: str | None) -> bool:
        """Return whether rows that agree in every column are one event, as chosen, or as the format or the log says."""
        if chosen is not None:
            return chosen == "drop"
        given = self._source.equal_rows_are_duplicates
        return self._source.has_event_ids or self._has_fractions if given is None else given

    @property
    def outcome_is_given(self) -> bool:
        """Whether the log says which sessions bought, so that no purchase need be in it."""
        return any(file.mapping.outcome is not None for file in self._source.event_files)

    @property
    def purchase_names(self) -> list[str]:
        """The names that were read as a purchase, most frequent first."""
        return [name for (name, read_as), _ in self._names.most_common() if read_as == PURCHASE]

    def warnings(self) -> list[str]:
        """Return what looks wrong in the first pass, in plain words."""
        found = [*self._warnings]
        if self.nulled:
            counts = ", ".join(f"{reason} ({rows:,})" for reason, rows in self.nulled.most_common(_LISTED_NAMES))
            found.append(f"{self.nulled.total():,} optional values could not be read and count as missing: {counts}")
        if self.lost_purchases:
            found.append(
                f"{self.lost_purchases:,} rejected rows say purchase and name no session: whose purchases they are is "
                "unknown, so that buyers may be among the sessions without a purchase"
            )
        if self._placeholders:
            ids = ", ".join(f"{text} ({rows:,})" for text, rows in self._placeholders.most_common(_LISTED_NAMES))
            found.append(f"{self._placeholders.total():,} rows have an id that stands for nothing: {ids}")
        if self.outcome_is_given:
            found += [
                f"{name!r} ({rows:,} rows) reads like a purchase and is kept as a page: where it follows a purchase, "
                "the model learns the outcome from it"
                for name, rows in self._lookalikes()
            ]
        if self._source.clock == "calendar":
            found += clock_warnings(sorted(self._days), self._hours, self._time_format)
        others = [name for name in self.purchase_names if name.lower() != PURCHASE]
        if others and len(self.purchase_names) > 1:
            found.append(f"several names are read as a purchase: {', '.join(map(repr, self.purchase_names))}")
        return found

    def notes(self) -> list[str]:
        """Return what was found out about the files."""
        return list(dict.fromkeys(self._notes))

    def names(self) -> list[dict[str, Any]]:
        """Return names, what they were read as, and their rows, most frequent first."""
        return [
            {"name": name, "read_as": read_as, "rows": rows}
            for (name, read_as), rows in self._names.most_common(_LISTED_NAMES)
        ]

    def hours(self) -> list[int]:
        """Return the rows of each hour of the day, UTC."""
        return self._hours

    def _check_range(self) -> None:
        if self._outside <= self._accepted:
            self._check_time_format()
            return
        example = self._unread_times[0] if self._unread_times else ""
        raise SourceError(
            f"{self._outside:,} of {self._outside + self._accepted:,} times are outside the plausible range, such as "
            f"{example!r}.{self.time_hint()} --earliest and --days-ahead set the range"
        )

    def _check_time_format(self) -> None:
        if not self._no_times or not self._accepted:
            return
        swapped = swapped_day_and_month(self._time_format)
        likely = likely_patterns(self._unread_times, self._reading, self._time_format)
        are_swapped = swapped is not None and likely == [swapped]
        if are_swapped or self._no_times > self._accepted:
            raise SourceError(
                f"{self._no_times:,} of {self._no_times + self._accepted:,} times cannot be read as "
                f"{self._time_format}, such as {self._unread_times[0]!r}.{self.time_hint()}"
            )

    def _check_typed_names(self) -> None:
        if len(self._names) >= _MOST_NAMES:
            return
        known = {name for name, _ in self._names}
        for name in self._source.must_occur:
            if name not in known and not (name in self._dropped_names() and self.rows_dropped):
                close = get_close_matches(name, known, 1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                raise SourceError(f"no event of the log is called {name!r}; {hint}{self._listing()}")

    def _dropped_names(self) -> set[str]:
        return {name for file in self._source.event_files for name in file.mapping.drop}

    def _lookalikes(self) -> list[tuple[str, int]]:
        explained = set(self._source.event_renames)
        return [
            (name, rows)
            for (name, read_as), rows in self._names.most_common()
            if read_as != PURCHASE and name not in explained and looks_like_purchase(name)
        ]

    def _check_lookalikes(self) -> None:
        found = self._lookalikes()
        if not found:
            return
        name = found[0][0]
        raise SourceError(
            f"{name!r} ({found[0][1]:,} rows) reads like a purchase and is none that is known. Say what it is: "
            f"--event {shlex.quote(f'{name}={PURCHASE}')} if it is one, "
            f"--event {shlex.quote(f'{name}={name}')} if it is not; {self._listing()}"
        )

    def _how_to_name_one(self) -> str:
        return f"Name the event that is one: --event THEIRS={PURCHASE}; {self._listing()}"

    def _listing(self) -> str:
        shown = [f"{entry['name']} ({entry['rows']:,})" for entry in self.names()]
        more = len(self._names) - len(shown)
        return f"the log's events by count: {', '.join(shown)}" + (f" and {more:,} more" if more > 0 else "")
