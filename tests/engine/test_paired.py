"""Paired comparison on the same test items: against the exact answer, SciPy, and Holm's steps worked by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from tiny import mfeat_recipe, trained

from mla_cli.engine.paired import bootstrap, check_runs, compare, correct_items, holm, mcnemar
from mla_cli.errors import MlaError

ITEMS = np.arange(400)  # every item is a unit of its own


def drawn(mean: float, seed: int, count: int = 400) -> np.ndarray:
    """Differences of correctness: -1, 0 or 1, with this mean in expectation."""
    return np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], count, p=[0.2 - mean / 2, 0.6, 0.2 + mean / 2])


def test_p_and_interval_are_close_to_a_paired_t_test() -> None:
    """With many independent items both approach the same normal distribution."""
    for seed, mean in enumerate((0.0, 0.03, 0.06)):
        difference = drawn(mean, seed)
        found = bootstrap(difference, ITEMS)
        exact = stats.ttest_1samp(difference, 0)
        assert found["units"] == 400
        assert found["p"] == pytest.approx(exact.pvalue, abs=0.05)
        assert (found["low"], found["high"]) == pytest.approx(tuple(exact.confidence_interval()), abs=0.005)
        assert (found["p"] < 0.05) == (found["low"] > 0 or found["high"] < 0)


def test_p_is_uniform_where_nothing_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kolmogorov-Smirnov over 200 simulated comparisons of equals."""
    monkeypatch.setattr("mla_cli.engine.paired.DRAWS", 1000)
    found = [bootstrap(drawn(0.0, seed, 200), ITEMS[:200])["p"] for seed in range(200)]
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert 0.01 < np.mean(np.array(found) < 0.05) < 0.1


def test_items_of_a_group_are_resampled_together() -> None:
    """Twenty copies of each of twenty items carry no more evidence than the twenty items."""
    few, groups = drawn(0.2, 3, 20), np.repeat(np.arange(20), 20)
    alone, together, apart = (
        bootstrap(few, ITEMS[:20]),
        bootstrap(np.repeat(few, 20), groups),
        bootstrap(np.repeat(few, 20), ITEMS),
    )
    assert together == pytest.approx(alone)
    assert together["units"] == 20
    assert apart["p"] < together["p"] / 2
    assert apart["low"] > together["low"]


def test_too_few_groups_are_not_tested() -> None:
    found = bootstrap(drawn(0.3, 0), np.repeat([0, 1], 200))
    assert found.pop("units") == 2
    assert np.isnan(list(found.values())).all()


def test_equal_predictions_do_not_differ() -> None:
    found = bootstrap(np.zeros(50), ITEMS[:50])
    assert found["p"] == 1.0
    assert np.isnan(found["low"])
    assert mcnemar(np.zeros(50), ITEMS[:50]) == {"better": 0, "worse": 0, "p_mcnemar": 1.0}


@pytest.mark.parametrize("seed", range(3))
def test_mcnemar_is_the_exact_binomial(seed: int) -> None:
    """Twice the tail of a fair coin, worked out by its sum."""
    difference = drawn(0.05, seed, 60)
    found = mcnemar(difference, ITEMS[:60])
    better, worse = (difference > 0).sum(), (difference < 0).sum()
    few, both = min(better, worse), better + worse
    tail = sum(math.comb(both, k) for k in range(few + 1)) / 2**both
    assert (found["better"], found["worse"]) == (better, worse)
    assert found["p_mcnemar"] == pytest.approx(min(1.0, 2 * tail))


def test_mcnemar_as_statsmodels_has_it() -> None:
    """`mcnemar([[10, 7], [15, 8]], exact=True).pvalue` of statsmodels 0.15.0."""
    difference = np.repeat([1.0, -1.0, 0.0], [7, 15, 18])
    assert mcnemar(difference, ITEMS[:40])["p_mcnemar"] == pytest.approx(0.13380050659179688)


def test_mcnemar_is_not_given_where_items_come_in_groups() -> None:
    found = mcnemar(drawn(0.2, 0, 60), np.append(np.arange(59), 0))
    assert np.isnan(found["p_mcnemar"])
    assert found["better"] > 0


def test_mcnemar_over_seeds_counts_each_item_once() -> None:
    assert mcnemar(np.array([1 / 3, -1 / 3, 2 / 3, 0, 1]), ITEMS[:5])["better"] == 3


def test_holm_by_hand() -> None:
    """Sorted .01, .02, .03, .5 times 4, 3, 2, 1: .04, .06, .06, .5."""
    assert holm([0.5, 0.01, float("nan"), 0.03, 0.02])[:2] == pytest.approx([0.5, 0.04])
    assert holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert np.isnan(holm([float("nan")])[0])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_holm_as_statsmodels_has_it() -> None:
    """Values of statsmodels 0.15.0, `multipletests(p, method="holm")[1]`."""
    p = [0.012, 0.0004, 0.21, 0.049, 0.0004, 0.033, 0.8]
    assert holm(p) == pytest.approx([0.06, 0.0028, 0.42, 0.147, 0.0028, 0.132, 0.8])


@pytest.fixture
def quick_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)


def test_methods_are_compared_on_the_seeds_they_share(mfeat_store, data_dir: Path, tmp_path: Path, quick_files) -> None:
    runs = {
        name: [
            trained(mfeat_recipe(method={"name": name}, seed=seed, train={"epochs": 1}), data_dir, tmp_path)
            for seed in seeds
        ]
        for name, seeds in {"mla": (0, 1), "late": (1,), "concat": (2,)}.items()
    }
    table = compare(runs, {"mla": "entropy", "late": "native", "concat": "native"}, "mla")
    assert table["setting"].tolist() == ["late"]  # concat has no seed in common
    row = table.iloc[0]
    assert (row["seeds"], row["units"], row["num_samples"]) == (1, 96, 96)
    assert table.columns.tolist() == [
        "setting", "difference", "low", "high", "p", "p_holm", "better", "worse", "p_mcnemar", "p_mcnemar_holm",
        "num_samples", "units", "seeds",
    ]  # fmt: skip
    one, other = correct_items(runs["late"], "native"), correct_items(runs["mla"][1:], "entropy")
    assert row["difference"] == pytest.approx(one["score"].mean() - other["score"].mean())
    assert (row["p_holm"], row["p_mcnemar_holm"]) == (row["p"], row["p_mcnemar"])  # one comparison
    assert row["difference"] == pytest.approx((row["better"] - row["worse"]) / 96)
    assert row["low"] < row["difference"] < row["high"]
    both = correct_items(runs["mla"], "entropy")["score"]
    assert set(both.unique()) <= {0.0, 0.5, 1.0}


def test_other_test_items_are_refused(mfeat_store, data_dir: Path, tmp_path: Path, quick_files) -> None:
    one = trained(mfeat_recipe(train={"epochs": 1}), data_dir, tmp_path)
    other = trained(mfeat_recipe(train={"epochs": 1}, dataset={"limit": 50}), data_dir, tmp_path)
    with pytest.raises(MlaError, match="other test items"):
        correct_items([one, other], "entropy")
    with pytest.raises(MlaError, match="different items of one split") as error:
        compare({"a": [one], "b": [other]}, {"a": "entropy", "b": "entropy"}, "a")
    assert "limit" in error.value.hint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"epochs": 1, "select_on": "last"}}, "the runs differ in selected_on: `val`, `last`"),
        ({"train": {"epochs": 1, "max_rounds": 1}}, "smoke run"),
    ],
)
def test_runs_that_may_not_be_compared(
    mfeat_store, data_dir: Path, tmp_path: Path, quick_files, changes: dict, message: str
) -> None:
    one = trained(mfeat_recipe(train={"epochs": 1}), data_dir, tmp_path)
    other = trained(mfeat_recipe(seed=1, **changes), data_dir, tmp_path)
    with pytest.raises(MlaError, match=message):
        check_runs([one, other])
