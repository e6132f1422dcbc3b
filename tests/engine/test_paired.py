"""Paired comparison on the same test items: against the exact answer, SciPy, and Holm's steps worked by hand."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from tiny import mfeat_recipe, trained

from mla_cli.engine.paired import bootstrap, compare, correct_items, holm
from mla_cli.errors import MlaError

NONE = np.full(400, "", dtype=object)


def drawn(mean: float, seed: int, count: int = 400) -> np.ndarray:
    """Differences of correctness: -1, 0 or 1, with this mean in expectation."""
    return np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], count, p=[0.2 - mean / 2, 0.6, 0.2 + mean / 2])


def test_p_is_close_to_a_paired_z_test() -> None:
    """With many independent items both tests approach the same normal distribution."""
    for seed, mean in enumerate((0.0, 0.03, 0.06)):
        difference = drawn(mean, seed)
        found, units = bootstrap(difference, NONE)
        z = difference.mean() / (difference.std() / np.sqrt(len(difference)))
        assert units == 400
        assert found == pytest.approx(2 * stats.norm.sf(abs(z)), abs=0.05)


def test_p_is_uniform_where_nothing_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kolmogorov-Smirnov over 200 simulated comparisons of equals."""
    monkeypatch.setattr("mla_cli.engine.paired.DRAWS", 1000)
    found = [bootstrap(drawn(0.0, seed, 200), NONE[:200])[0] for seed in range(200)]
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert 0.01 < np.mean(np.array(found) < 0.05) < 0.1


def test_items_of_a_group_are_resampled_together() -> None:
    """Twenty copies of each of twenty items carry no more evidence than the twenty items."""
    few = drawn(0.2, 3, 20)
    groups = np.repeat([f"g{i}" for i in range(20)], 20).astype(object)
    alone, _ = bootstrap(few, NONE[:20])
    together, units = bootstrap(np.repeat(few, 20), groups)
    apart, _ = bootstrap(np.repeat(few, 20), np.full(400, "", dtype=object))
    assert units == 20
    assert bootstrap(np.repeat(few, 20), np.append(groups[:-1], ""))[1] == 21  # who has no group is a unit alone
    assert together == pytest.approx(alone, abs=0.02)  # other draws of the same distribution
    assert apart < together / 2


def test_too_few_groups_are_not_tested() -> None:
    found, units = bootstrap(drawn(0.3, 0), np.repeat(["a", "b"], 200).astype(object))
    assert np.isnan(found)
    assert units == 2


def test_equal_predictions_do_not_differ() -> None:
    assert bootstrap(np.zeros(50), NONE[:50]) == (1.0, 50)


def test_holm_by_hand() -> None:
    """Sorted .01, .02, .03, .5 times 4, 3, 2, 1: .04, .06, .06, .5."""
    assert holm([0.5, 0.01, float("nan"), 0.03, 0.02])[:2] == pytest.approx([0.5, 0.04])
    assert holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert np.isnan(holm([float("nan")])[0])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


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
    one, other = correct_items(runs["late"], "native"), correct_items(runs["mla"][1:], "entropy")
    assert row["difference"] == pytest.approx(one["score"].mean() - other["score"].mean())
    assert row["p_holm"] == row["p"]  # one comparison
    both = correct_items(runs["mla"], "entropy")["score"]
    assert set(both.unique()) <= {0.0, 0.5, 1.0}


def test_other_test_items_are_refused(mfeat_store, data_dir: Path, tmp_path: Path, quick_files) -> None:
    one = trained(mfeat_recipe(train={"epochs": 1}), data_dir, tmp_path)
    other = trained(mfeat_recipe(train={"epochs": 1}, dataset={"limit": 50}), data_dir, tmp_path)
    with pytest.raises(MlaError, match="other test items"):
        correct_items([one, other], "entropy")
    with pytest.raises(MlaError, match="other test items"):
        compare({"a": [one], "b": [other]}, {"a": "entropy", "b": "entropy"}, "a")
