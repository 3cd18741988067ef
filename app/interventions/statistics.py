"""What a rule changed, from the counts of its two groups: differences with intervals, and a verdict in words.

There are two intervals. The fixed-horizon one (Newcombe 1998, method 10, of two Wilson score intervals)
holds for one look at a time that was chosen before. The confidence sequence holds for all looks together, so it may be
read every day and the experiment may end at any of them. It is the asymptotic one of Waudby-Smith, Arbour, Sinha,
Kennedy and Ramdas (2024, doi:10.1214/24-AOS2408): Robbins' normal mixture with the estimated variance. With n sessions
of both groups, a standard error s of the difference, and level 1 - alpha, its half width is

    s sqrt((1 + 1 / (n r)) log((n r + 1) / alpha**2))

where r sets the number of sessions at which the sequence is narrowest. It needs no more than sums, so no day's figures
have to be kept.

"Asymptotic" means that small counts do not count: there is no sequence before both groups have `LEAST_BUYERS` buyers.
"""

from dataclasses import dataclass
from enum import StrEnum
from math import erfc, log, log1p, sqrt
from statistics import NormalDist
from typing import Final, NamedTuple

ALPHA: Final = 0.05
POWER: Final = 0.8
MISMATCH_P: Final = 0.001
"""Below it, the sizes of the groups contradict the share held out, and no difference is believed."""
LEAST_BUYERS: Final = 20
"""Buyers, and sessions without a purchase, that each group needs before there is a sequence of the conversions."""
LEAST_REVENUES: Final = 100
"""The same for the sequence of the revenue, whose few large values make small samples misleading."""
# The sequence is within 10 % of its narrowest from a fifth of it to ten times as many.
_NARROWEST_AT_SESSIONS: Final = 10_000
_MOST_DAYS: Final = 365

_NORMAL: Final = NormalDist()


class Interval(NamedTuple):
    """An interval; both ends belong to it."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class GroupCounts:
    """The ended sessions of one group of a rule.

    Attributes:
        sessions: that ended and whose outcome is known.
        buyers: of these.
        revenue: sum of their revenue, in the shop's currency.
        revenue_squares: sum of the squares of each session's revenue.
    """

    sessions: int = 0
    buyers: int = 0
    revenue: float = 0.0
    revenue_squares: float = 0.0

    @property
    def conversion(self) -> float | None:
        """Buyers by session; None without a session."""
        return self.buyers / self.sessions if self.sessions else None

    @property
    def revenue_a_session(self) -> float | None:
        """Mean revenue of a session, buyers or not; None without a session."""
        return self.revenue / self.sessions if self.sessions else None


class Sequence(NamedTuple):
    """A difference, treatment minus control, with its confidence sequence as it is now.

    Attributes:
        difference: of the means of a session.
        interval: contains the true difference at all looks together with probability 1 - alpha.
        standard_error: of the difference.
    """

    difference: float
    interval: Interval
    standard_error: float


class Finding(StrEnum):
    """What an experiment has shown so far."""

    NO_CONTROL = "no_control"
    TOO_FEW = "too_few"
    MISMATCH = "mismatch"
    UNKNOWN = "unknown"
    MORE = "more"
    LESS = "less"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result in a word for programs and in words for people.

    Attributes:
        finding: the word.
        text: the words.
        days_left: until the sequence excludes zero if difference and traffic stay as they are; None: unknown, or more
            than a year; 0: it does.
    """

    finding: Finding
    text: str
    days_left: int | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """All figures of a rule with two groups; None where there are too few sessions.

    Attributes:
        difference: of the conversions, treatment minus control.
        fixed: Newcombe's interval of it, for one look.
        sequence: the confidence sequence of it, for all looks.
        revenue_difference: of the revenue a session.
        revenue_sequence: the confidence sequence of that.
        mismatch_p: p-value of the sample-ratio test; below `MISMATCH_P` the assignment is broken.
        detectable: minimum detectable effect: the least true difference that the sequence shows at so many sessions
            with probability `POWER`.
        verdict: in words.
    """

    difference: float | None
    fixed: Interval | None
    sequence: Interval | None
    revenue_difference: float | None
    revenue_sequence: Interval | None
    mismatch_p: float | None
    detectable: float | None
    verdict: Verdict


def wilson(buyers: int, sessions: int, alpha: float = ALPHA) -> Interval:
    """Return the score interval of a conversion (Wilson 1927); (0, 1) without a session."""
    if not sessions:
        return Interval(0.0, 1.0)
    z = _NORMAL.inv_cdf(1.0 - alpha / 2.0)
    share, spread = buyers / sessions, z * z / sessions
    middle = share + spread / 2.0
    half = z * sqrt(share * (1.0 - share) / sessions + spread / (4.0 * sessions))
    # Exact at the ends, where rounding could leave a probability outside of 0 to 1.
    low = 0.0 if buyers == 0 else (middle - half) / (1.0 + spread)
    high = 1.0 if buyers == sessions else (middle + half) / (1.0 + spread)
    return Interval(low, high)


def newcombe(treatment: GroupCounts, control: GroupCounts, alpha: float = ALPHA) -> Interval | None:
    """Return the fixed-horizon interval of the difference of two conversions (Newcombe 1998, method 10).

    None if a group has no session.
    """
    if not treatment.sessions or not control.sessions:
        return None
    p, q = treatment.buyers / treatment.sessions, control.buyers / control.sessions
    (low_p, high_p), (low_q, high_q) = (wilson(g.buyers, g.sessions, alpha) for g in (treatment, control))
    return Interval(
        max(-1.0, p - q - sqrt((p - low_p) ** 2 + (high_q - q) ** 2)),
        min(1.0, p - q + sqrt((high_p - p) ** 2 + (q - low_q) ** 2)),
    )


def conversion_sequence(treatment: GroupCounts, control: GroupCounts, alpha: float = ALPHA) -> Sequence | None:
    """Return the difference of the conversions with its confidence sequence.

    None before each group has `LEAST_BUYERS` buyers and as many sessions without a purchase.
    """
    return _sequence(
        treatment, control, (float(treatment.buyers),) * 2, (float(control.buyers),) * 2, LEAST_BUYERS, alpha
    )


def revenue_sequence(treatment: GroupCounts, control: GroupCounts, alpha: float = ALPHA) -> Sequence | None:
    """Return the difference of the revenue a session with its confidence sequence.

    None before each group has `LEAST_REVENUES` buyers and as many sessions without a purchase.
    """
    return _sequence(
        treatment,
        control,
        (treatment.revenue, treatment.revenue_squares),
        (control.revenue, control.revenue_squares),
        LEAST_REVENUES,
        alpha,
    )


def sample_ratio_p(treatment_sessions: int, control_sessions: int, control_share: float) -> float | None:
    """Return the p-value of the chi-square test that the groups have the sizes that their shares ask for.

    None without sessions, or if a group has the share 0.
    """
    sessions = treatment_sessions + control_sessions
    if not sessions or not 0.0 < control_share < 1.0:
        return None
    expected = control_share * sessions
    statistic = (control_sessions - expected) ** 2 / (expected * (1.0 - control_share))
    # The upper tail of the chi-square distribution of one degree of freedom.
    return erfc(sqrt(statistic / 2.0))


def days_left(sequence: Sequence, sessions: int, sessions_a_day: float, alpha: float = ALPHA) -> int | None:
    """Return the days until the sequence excludes zero, if the difference and the traffic stay as they are.

    Args:
        sequence: as it is now.
        sessions: of both groups so far.
        sessions_a_day: of both groups, at today's rate.
        alpha: 1 - the level.

    Returns:
        Whole days, rounded up; 0 if it excludes zero now; None: more than a year, or no traffic.
    """
    low, high = sequence.interval
    if low > 0.0 or high < 0.0:
        return 0
    if sessions_a_day <= 0.0 or not sequence.difference:
        return None
    spread = sequence.standard_error * sqrt(sessions)

    def is_known(days: int) -> bool:
        then = sessions + days * sessions_a_day
        return spread / sqrt(then) * _width(then, alpha) < abs(sequence.difference)

    if not is_known(_MOST_DAYS):
        return None
    # The width falls with the number of sessions, so bisect.
    unknown, known = 0, _MOST_DAYS
    while known - unknown > 1:
        middle = (unknown + known) // 2
        unknown, known = (unknown, middle) if is_known(middle) else (middle, known)
    return known


def compare(
    treatment: GroupCounts, control: GroupCounts, *, control_share: float, sessions_a_day: float, alpha: float = ALPHA
) -> Comparison:
    """Return all figures of a rule.

    Args:
        treatment: the sessions that were treated.
        control: those that were held out.
        control_share: share that the rule holds out, 0 to 1.
        sessions_a_day: of both groups, at today's rate.
        alpha: 1 - the level of the intervals.
    """
    sequence = conversion_sequence(treatment, control, alpha)
    revenue = revenue_sequence(treatment, control, alpha)
    sessions = treatment.sessions + control.sessions
    mismatch_p = sample_ratio_p(treatment.sessions, control.sessions, control_share)
    detectable = None
    if sequence is not None:
        detectable = sequence.standard_error * (_width(sessions, alpha) + _NORMAL.inv_cdf(POWER))
    return Comparison(
        difference=_difference(treatment.conversion, control.conversion),
        fixed=newcombe(treatment, control, alpha),
        sequence=None if sequence is None else sequence.interval,
        revenue_difference=_difference(treatment.revenue_a_session, control.revenue_a_session),
        revenue_sequence=None if revenue is None else revenue.interval,
        mismatch_p=mismatch_p,
        detectable=detectable,
        verdict=_verdict(sequence, mismatch_p, control_share, sessions, sessions_a_day, alpha),
    )


def _verdict(
    sequence: Sequence | None,
    mismatch_p: float | None,
    control_share: float,
    sessions: int,
    sessions_a_day: float,
    alpha: float,
) -> Verdict:
    if control_share in {0.0, 1.0}:
        missing = "treatment" if control_share else "control"
        return Verdict(Finding.NO_CONTROL, f"cannot be known: the rule has no {missing} group")
    if mismatch_p is not None and mismatch_p < MISMATCH_P:
        return Verdict(Finding.MISMATCH, "not to be trusted: the sizes of the groups do not fit the share held out")
    if sequence is None:
        return Verdict(Finding.TOO_FEW, f"not yet known: each group needs {LEAST_BUYERS} buyers first")
    days = days_left(sequence, sessions, sessions_a_day, alpha)
    if days == 0:
        low, high = (100.0 * end for end in sequence.interval)
        finding, word = (Finding.MORE, "more") if low > 0.0 else (Finding.LESS, "fewer")
        return Verdict(finding, f"{word} purchases with it: {low:+.2f} to {high:+.2f} percentage points", 0)
    if days is not None:
        text = f"about {days} more {'day' if days == 1 else 'days'}"
    else:
        text = "more than a year at this difference and rate" if sessions_a_day > 0.0 else "no session ended today"
    return Verdict(Finding.UNKNOWN, f"not yet known: {text}", days)


def _sequence(
    treatment: GroupCounts,
    control: GroupCounts,
    treatment_sums: tuple[float, float],
    control_sums: tuple[float, float],
    least: int,
    alpha: float,
) -> Sequence | None:
    """Return the sequence of a difference of means, given sum and sum of squares of each group's quantity."""
    groups = (treatment, control)
    if any(min(group.buyers, group.sessions - group.buyers) < least for group in groups):
        return None
    (mean, variance), (control_mean, control_variance) = (
        _moments(group.sessions, *sums) for group, sums in zip(groups, (treatment_sums, control_sums), strict=True)
    )
    error = sqrt(variance / treatment.sessions + control_variance / control.sessions)
    difference = mean - control_mean
    half = error * _width(treatment.sessions + control.sessions, alpha)
    return Sequence(difference, Interval(difference - half, difference + half), error)


def _moments(sessions: int, total: float, squares: float) -> tuple[float, float]:
    mean = total / sessions
    # Rounding may leave a variance of zero a little below.
    return mean, max(0.0, squares / sessions - mean * mean) * sessions / (sessions - 1)


def _width(sessions: float, alpha: float) -> float:
    """Return the sequence's half width in standard errors."""
    level = -2.0 * log(alpha)
    scaled = sessions * (level + log1p(level)) / _NARROWEST_AT_SESSIONS
    return sqrt((1.0 + 1.0 / scaled) * (log1p(scaled) + level))


def _difference(treatment: float | None, control: float | None) -> float | None:
    return None if treatment is None or control is None else treatment - control
