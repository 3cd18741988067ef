"""The statistics of a rule's two groups: against published values, by simulation, and their properties."""

from math import log, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from app.interventions.statistics import (
    LEAST_BUYERS,
    LEAST_REVENUES,
    MISMATCH_P,
    Finding,
    GroupCounts,
    Interval,
    compare,
    conversion_sequence,
    days_left,
    newcombe,
    revenue_sequence,
    sample_ratio_p,
    wilson,
)


def group(sessions: int, buyers: int, revenue: float = 0.0, squares: float = 0.0) -> GroupCounts:
    return GroupCounts(sessions, buyers, revenue, squares)


@st.composite
def groups(draw: st.DrawFn, least: int = 0) -> GroupCounts:
    buyers = draw(st.integers(least, 5_000))
    others = draw(st.integers(least, 50_000))
    basket = draw(st.floats(0.01, 1e4))
    return GroupCounts(buyers + others, buyers, buyers * basket, buyers * basket * basket)


# Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
@pytest.mark.parametrize(
    ("buyers", "sessions", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_score_interval_has_the_published_values(buyers: int, sessions: int, low: float, high: float) -> None:
    assert wilson(buyers, sessions) == pytest.approx((low, high), abs=5e-5)


# Newcombe 1998, "Interval estimation for the difference between independent proportions", table II, method 10.
@pytest.mark.parametrize(
    ("treatment", "control", "low", "high"),
    [
        ((70, 56), (80, 48), 0.0524, 0.3339),
        ((10, 9), (10, 3), 0.1705, 0.8090),
        ((10, 10), (10, 0), 0.6075, 1.0),
        ((10, 10), (20, 0), 0.6791, 1.0),
        ((10, 0), (20, 0), -0.1611, 0.2775),
    ],
)
def test_fixed_interval_has_the_published_values(
    treatment: tuple[int, int], control: tuple[int, int], low: float, high: float
) -> None:
    assert newcombe(group(*treatment), group(*control)) == pytest.approx((low, high), abs=2e-4)


def test_sequence_is_the_normal_mixture_of_the_paper() -> None:
    treatment, control = group(9_000, 1_200), group(1_000, 100)
    found = conversion_sequence(treatment, control)
    assert found is not None
    # Theorem 2.2 with the variance of the inverse-probability-weighted difference: rho for n = 10,000.
    n, alpha = 10_000, 0.05
    rho_squared = (-2 * log(alpha) + log(1 - 2 * log(alpha))) / 10_000
    p, q = 1_200 / 9_000, 0.1
    variance = p * (1 - p) / 8_999 * 9_000 / 0.9 + q * (1 - q) / 999 * 1_000 / 0.1
    scaled = n * rho_squared + 1
    margin = sqrt(variance) * sqrt(2 * scaled / (n * n * rho_squared) * log(sqrt(scaled) / alpha))
    assert found.difference == pytest.approx(p - q)
    assert found.interval == pytest.approx((p - q - margin, p - q + margin))


def test_sequence_is_wider_than_the_fixed_interval_and_narrows() -> None:
    widths = []
    for factor in (1, 10, 100):
        treatment, control = group(1_000 * factor, 130 * factor), group(1_000 * factor, 120 * factor)
        found, fixed = conversion_sequence(treatment, control), newcombe(treatment, control)
        assert found is not None
        assert fixed is not None
        widths.append(found.interval.high - found.interval.low)
        assert widths[-1] > fixed.high - fixed.low
    assert widths == sorted(widths, reverse=True)


def test_small_counts_have_no_sequence() -> None:
    enough = group(1_000, 100)
    assert conversion_sequence(enough, group(1_000, LEAST_BUYERS)) is not None
    assert conversion_sequence(enough, group(1_000, LEAST_BUYERS - 1)) is None
    assert conversion_sequence(group(100, 100 - LEAST_BUYERS + 1), enough) is None
    assert newcombe(enough, group(0, 0)) is None
    assert revenue_sequence(enough, group(1_000, LEAST_REVENUES)) is not None
    assert revenue_sequence(enough, group(1_000, LEAST_REVENUES - 1)) is None


@pytest.mark.parametrize("effect", [0.0, 0.02])
def test_sequence_holds_at_all_looks_and_the_fixed_interval_does_not(effect: float) -> None:
    draw, missed, missed_fixed = np.random.default_rng(3), 0, 0
    for _ in range(200):
        sums = [[0, 0], [0, 0]]
        ever = ever_fixed = False
        for _ in range(30):
            for arm, conversion in enumerate((0.12 + effect, 0.12)):
                sums[arm][0] += 100
                sums[arm][1] += int(draw.binomial(100, conversion))
            treatment, control = group(*sums[0]), group(*sums[1])
            found, fixed = conversion_sequence(treatment, control), newcombe(treatment, control)
            ever |= found is not None and not found.interval.low <= effect <= found.interval.high
            ever_fixed |= fixed is not None and not fixed.low <= effect <= fixed.high
        missed += ever
        missed_fixed += ever_fixed
    assert missed <= 10
    assert missed_fixed > 30


def test_revenue_counts_all_sessions() -> None:
    treatment = group(1_000, 100, 5_000.0, 400_000.0)
    control = group(1_000, 100, 4_000.0, 250_000.0)
    found = revenue_sequence(treatment, control)
    assert found is not None
    assert found.difference == pytest.approx(1.0)
    variance = (400.0 - 25.0) / 999 + (250.0 - 16.0) / 999
    assert found.standard_error == pytest.approx(sqrt(variance))


@pytest.mark.parametrize(
    ("treated", "held", "share"), [(900, 100, 0.1), (880, 120, 0.1), (520, 480, 0.5), (50_400, 49_600, 0.5)]
)
def test_sample_ratio_test_is_the_chi_square_test(treated: int, held: int, share: float) -> None:
    total = treated + held
    expected = stats.chisquare([treated, held], [total * (1 - share), total * share]).pvalue
    assert sample_ratio_p(treated, held, share) == pytest.approx(expected, rel=1e-9)


def test_a_group_without_a_share_has_no_sample_ratio_test() -> None:
    assert sample_ratio_p(0, 0, 0.5) is None
    assert sample_ratio_p(10, 0, 0.0) is None
    assert sample_ratio_p(0, 10, 1.0) is None


def test_days_left_are_those_until_the_sequence_excludes_zero() -> None:
    treatment, control = group(2_000, 270), group(2_000, 240)
    found = conversion_sequence(treatment, control)
    assert found is not None
    assert found.interval.low < 0.0 < found.interval.high
    days = days_left(found, 4_000, 1_000.0)
    assert days is not None

    def excludes_zero(days: int) -> bool:
        factor = 1 + days * 1_000 / 4_000
        later = conversion_sequence(
            group(round(2_000 * factor), round(270 * factor)), group(round(2_000 * factor), round(240 * factor))
        )
        assert later is not None
        return later.interval.low > 0.0

    assert excludes_zero(days)
    assert not excludes_zero(days - 1)


def test_days_left_without_traffic_or_difference_are_unknown() -> None:
    found = conversion_sequence(group(2_000, 270), group(2_000, 240))
    assert found is not None
    assert days_left(found, 4_000, 0.0) is None
    same = conversion_sequence(group(2_000, 240), group(2_000, 240))
    assert same is not None
    assert days_left(same, 4_000, 1_000.0) is None


def test_minimum_detectable_effect_is_shown_by_the_sequence_four_times_of_five() -> None:
    at_once = compare(group(5_000, 2_500), group(5_000, 2_500), control_share=0.5, sessions_a_day=1.0).detectable
    assert at_once is not None
    draw = stats.binom.rvs
    shown = 0
    for seed in range(400):
        treated = int(draw(5_000, 0.5 + at_once, random_state=2 * seed))
        held = int(draw(5_000, 0.5, random_state=2 * seed + 1))
        found = conversion_sequence(group(5_000, treated), group(5_000, held))
        assert found is not None
        shown += found.interval.low > 0.0
    assert 0.74 <= shown / 400 <= 0.86


@pytest.mark.parametrize(
    ("treatment", "control", "share", "rate", "finding", "text"),
    [
        (group(100, 10), group(0, 0), 0.0, 5.0, Finding.NO_CONTROL, "no control group"),
        (group(0, 0), group(100, 10), 1.0, 5.0, Finding.NO_CONTROL, "no treatment group"),
        (group(0, 0), group(0, 0), 0.5, 0.0, Finding.TOO_FEW, "each group needs 20 buyers"),
        (group(10_000, 1_200), group(8_000, 960), 0.5, 5.0, Finding.MISMATCH, "not to be trusted"),
        (group(2_000, 270), group(2_000, 240), 0.5, 1_000.0, Finding.UNKNOWN, "not yet known: about 15 more days"),
        (group(2_000, 270), group(2_000, 240), 0.5, 50_000.0, Finding.UNKNOWN, "not yet known: about 1 more day"),
        (group(2_000, 240), group(2_000, 240), 0.5, 1_000.0, Finding.UNKNOWN, "more than a year"),
        (group(2_000, 270), group(2_000, 240), 0.5, 0.0, Finding.UNKNOWN, "no session ended today"),
        (group(9_000, 1_800), group(1_000, 120), 0.1, 5.0, Finding.MORE, "more purchases with it: +"),
        (group(9_000, 720), group(1_000, 130), 0.1, 5.0, Finding.LESS, "fewer purchases with it: -"),
    ],
)
def test_verdict_in_words(
    treatment: GroupCounts, control: GroupCounts, share: float, rate: float, finding: Finding, text: str
) -> None:
    verdict = compare(treatment, control, control_share=share, sessions_a_day=rate).verdict
    assert verdict.finding is finding
    assert text in verdict.text


def holds(interval: Interval, value: float) -> bool:
    return interval.low <= value + 1e-12 and value <= interval.high + 1e-12


@given(groups(), groups(), st.floats(0.0, 1.0), st.floats(0.0, 1e6))
def test_figures_of_any_counts(treatment: GroupCounts, control: GroupCounts, share: float, rate: float) -> None:
    found = compare(treatment, control, control_share=share, sessions_a_day=rate)
    assert (found.difference is None) == (not treatment.sessions or not control.sessions)
    if found.difference is not None and found.fixed is not None:
        assert holds(found.fixed, found.difference)
        assert -1.0 <= found.fixed.low <= found.fixed.high <= 1.0
    if found.sequence is not None and found.difference is not None:
        assert holds(found.sequence, found.difference)
        assert found.detectable is not None
        assert found.detectable > 0.0
    assert found.mismatch_p is None or 0.0 <= found.mismatch_p <= 1.0
    assert (found.verdict.finding is Finding.MISMATCH) == (
        found.mismatch_p is not None and found.mismatch_p < MISMATCH_P and 0.0 < share < 1.0
    )


@given(groups(LEAST_REVENUES), groups(LEAST_REVENUES))
def test_exchanged_groups_have_the_opposite_difference(one: GroupCounts, other: GroupCounts) -> None:
    for interval in (conversion_sequence, revenue_sequence):
        forth, back = interval(one, other), interval(other, one)
        assert forth is not None
        assert back is not None
        assert forth.interval == pytest.approx((-back.interval.high, -back.interval.low), abs=1e-9)
    fixed, mirrored = newcombe(one, other), newcombe(other, one)
    assert fixed is not None
    assert mirrored is not None
    assert fixed == pytest.approx((-mirrored.high, -mirrored.low), abs=1e-12)
