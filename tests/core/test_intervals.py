"""Intervals: units, resamples, bounds against SciPy, and in a simulation with known truth how often they cover it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from mla_cli.core import intervals
from mla_cli.core.intervals import (
    FEWEST_UNITS,
    bounds,
    draw_counts,
    effective,
    per_unit,
    resampled,
    student_quantile,
    two_sided,
    units_of,
)

# ------------------------------------------------------------ units


def test_a_group_is_a_unit_and_so_is_a_sample_without_one() -> None:
    units = units_of(np.array(["b", "", "a", "b", "", "0"], dtype=object))
    assert units[0] == units[3]
    assert len(set(units)) == 5
    assert sorted(set(units)) == list(range(5))


def test_pairs_that_share_a_source_are_one_unit() -> None:
    """img1 and img3 share rec1; img2 hangs on img1 by its speaker; img4 has all of its own."""
    ids = ["img1+rec1", "img2+rec2", "img3+rec1", "img4+rec4"]
    units = units_of(["ann+w1", "ann+w2", "bob+w3", "eve+w4"], ids)
    assert units[0] == units[1] == units[2] != units[3]
    apart = units_of(["", "", "", ""], ids)
    assert len(set(apart)) == 3
    assert len(set(units_of(["", "", "", ""]))) == 4  # without the ids each is a unit of its own


@given(st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=1, max_size=20))
def test_sums_per_unit_are_those_of_its_samples(groups: list[str]) -> None:
    units = units_of(groups)
    values = np.random.default_rng(0).normal(size=(len(groups), 2))
    found = per_unit(values, units)
    assert found.shape == (len(set(units)), 2)
    for unit, total in enumerate(found):
        np.testing.assert_allclose(total, values[units == unit].sum(0))


# ------------------------------------------------------------ resamples


def test_every_resample_has_as_many_units() -> None:
    counts = draw_counts(37)
    assert counts.shape == (intervals.DRAWS, 37)
    assert (counts.sum(1, dtype=int) == 37).all()
    assert counts.mean(0) == pytest.approx(np.ones(37), abs=0.15)
    draw_counts.cache_clear()
    np.testing.assert_array_equal(draw_counts(37), counts)


def test_equal_units_are_drawn_together_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other draws of the same distribution: equal quantiles, up to the draws' own error."""
    sums = np.stack([np.random.default_rng(0).random(300) < 0.7, np.ones(300)], axis=1).astype(float)
    plain = resampled(sums)
    monkeypatch.setattr(intervals, "MANY", 100)
    together = resampled(sums)
    assert together.shape == plain.shape
    assert not np.array_equal(together, plain)
    assert (together[:, 1] == 300).all()
    at = [0.025, 0.5, 0.975]
    np.testing.assert_allclose(np.quantile(together[:, 0], at), np.quantile(plain[:, 0], at), atol=2.5)
    several = np.random.default_rng(1).normal(size=(300, 1))  # all differ: nothing to draw together
    monkeypatch.undo()
    np.testing.assert_array_equal(resampled(several), draw_counts(300) @ several)


# ------------------------------------------------------------ bounds


def test_percentiles_are_those_of_scipy() -> None:
    """With equal sizes and many units the corrections are small: SciPy's percentile and BC intervals, other draws."""
    values = np.random.default_rng(0).exponential(size=400)
    draws = resampled(values[:, None])[:, 0] / 400
    low, high = bounds(draws, np.ones(400))
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    width = theirs.high - theirs.low
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.05 * width)


def test_few_units_stand_further_out_by_students_t() -> None:
    """Normal draws with the bootstrap's variance give exactly the t interval."""
    units = 12
    draws = special.ndtri((np.arange(200_000) + 0.5) / 200_000) * np.sqrt((units - 1) / units)  # of a mean with se 1
    low, high = bounds(draws, np.full(units, 7.0))
    t = stats.t.ppf(0.975, units - 1)
    assert (low, high) == pytest.approx((-t, t), rel=1e-3)


def test_students_quantile_is_scipys() -> None:
    """From 100 degrees of freedom on by its expansion."""
    for df in (1.06, 9.0, 57.3, 99.9, 100.0, 100.5, 327.0, 2047.0, 1e6):
        assert student_quantile(df) == pytest.approx(special.stdtrit(df, 0.975), abs=1e-10)


def test_unequal_sizes_count_as_fewer_units() -> None:
    assert effective(np.full(8, 3.0)) == pytest.approx(8)
    assert effective(np.array([100.0, 1, 1, 1])) == pytest.approx(1.06, abs=0.01)
    assert effective(np.zeros(3)) == 0
    draws = np.random.default_rng(0).normal(size=2000)
    even, uneven = bounds(draws, np.ones(20)), bounds(draws, np.repeat([1.0, 9.0], 10))
    assert uneven[0] < even[0] and uneven[1] > even[1]


def test_bias_is_corrected_where_the_value_is_known() -> None:
    """Draws that lie a standard error too high are moved back by two."""
    draws = np.random.default_rng(0).normal(loc=1.0, size=100_000)
    low, high = bounds(draws, np.ones(10_000), value=0.0)
    assert (low, high) == pytest.approx((-1 - 1.96, -1 + 1.96), abs=0.1)


def test_no_bounds_for_few_units_or_draws_that_agree() -> None:
    draws = np.random.default_rng(0).normal(size=500)
    few = np.append(np.ones(FEWEST_UNITS - 1), [0.0, 0.0])  # units of size 0 do not count
    assert np.isnan(bounds(draws, few)).all()
    assert np.isnan(two_sided(draws, few))
    assert np.isfinite(bounds(draws, np.ones(FEWEST_UNITS))).all()
    assert np.isnan(bounds(np.full(500, 0.3), np.ones(50), value=0.3)).all()
    assert np.isnan(bounds(np.full(500, np.nan), np.ones(50))).all()
    some = np.where(np.arange(500) < 100, np.nan, draws)  # resamples in which the measure is not defined
    assert bounds(some, np.ones(50)) == bounds(draws[100:], np.ones(50))


def test_p_is_the_level_at_which_the_interval_touches_0() -> None:
    for shift in (-3.0, -2.0, -1.0, 0.0, 0.5, 2.05, 2.2, 4.0):
        draws = np.random.default_rng(0).normal(loc=shift, size=20_000)
        low, high = bounds(draws, np.ones(25))
        p = two_sided(draws, np.ones(25))
        assert (p < 0.05) == (low > 0 or high < 0), shift
        if abs(shift) < 3:
            assert p == pytest.approx(2 * stats.t.sf(abs(shift) * np.sqrt(24 / 25), 24), rel=0.1, abs=0.02)
    assert two_sided(np.zeros(1000), np.ones(25)) == 1.0


# ------------------------------------------------------------ coverage

CLASSES = 6
SIMULATIONS = 3000


def population(
    rng: np.random.Generator, accuracy: float, spread: float, unequal: bool
) -> tuple[np.ndarray, np.ndarray]:
    """2,000 kinds of groups: their sizes, and the probability of every (label, prediction) in them.

    Groups differ in how hard they are (sd of the log odds of a right answer: `spread`) and in their classes.
    """
    kinds = 2000
    sizes = np.maximum(1, np.exp(rng.normal(2.0, 0.9, kinds)).round()) if unequal else np.full(kinds, 10.0)
    labels = rng.dirichlet(rng.dirichlet(np.full(CLASSES, 3.0)) * 3 * CLASSES, kinds)
    odds = np.log(accuracy / (1 - accuracy)) + rng.normal(0, 0.7, CLASSES) + rng.normal(0, spread, (kinds, 1))
    right = special.expit(odds)[..., None] * np.eye(CLASSES)
    wrong = rng.dirichlet(np.ones(CLASSES), CLASSES) * (1 - np.eye(CLASSES))
    wrong = wrong / wrong.sum(1, keepdims=True) * special.expit(-odds)[..., None]
    return sizes.astype(int), labels[..., None] * (right + wrong)


def measures(cells: np.ndarray) -> np.ndarray:
    """Accuracy, and macro-F1 over the classes that are seen: (..., class, class) -> (..., 2)."""
    hits, seen = np.einsum("...cc->...c", cells), cells.sum(-1) + cells.sum(-2)
    accuracy = 2 * hits.sum(-1) / seen.sum(-1)
    return np.stack([accuracy, (2 * hits / np.maximum(seen, 1e-9)).sum(-1) / (seen > 0).sum(-1)], axis=-1)


def coverage(groups: int, accuracy: float, spread: float, unequal: bool) -> tuple[float, ...]:
    """Share of the simulated test sets whose interval holds the value of the population: accuracy, macro-F1."""
    rng = np.random.default_rng(groups)
    sizes, joint = population(rng, accuracy, spread, unequal)
    truth = measures((sizes[:, None, None] * joint).sum(0))
    held = np.zeros(2)
    for _ in range(SIMULATIONS):
        drawn = rng.integers(0, len(sizes), groups)
        cells = rng.multinomial(sizes[drawn], joint[drawn].reshape(groups, -1)).astype(float)
        draws = measures(resampled(cells).reshape(-1, CLASSES, CLASSES))
        values = measures(cells.sum(0).reshape(CLASSES, CLASSES))
        for i, (value, true) in enumerate(zip(values, truth, strict=True)):
            low, high = bounds(draws[:, i], sizes[drawn].astype(float), float(value))
            held[i] += low <= true <= high
    return tuple(held / SIMULATIONS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("groups", "accuracy", "spread", "unequal"),
    [(50, 0.7, 1.0, True), (50, 0.7, 1.0, False), (100, 0.85, 0.5, True)],
)
def test_the_interval_covers_the_truth_in_95_of_100_test_sets(
    groups: int, accuracy: float, spread: float, unequal: bool
) -> None:
    """3,000 simulated test sets each: the simulation's own standard error is 0.4 points, so 93 to 97 can be claimed."""
    assert all(0.93 <= held <= 0.97 for held in coverage(groups, accuracy, spread, unequal))
