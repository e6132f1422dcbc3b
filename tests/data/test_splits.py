"""Splits: sizes are exact, classes are covered, groups stay whole, and the order of the rows says nothing."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_cli.data import splits
from mla_cli.errors import MlaError


def make_rows(count: int, classes: int = 3, group_size: int = 0) -> pd.DataFrame:
    """`count` rows of cycling classes; groups of `group_size` neighbours, or none."""
    groups = [f"g{i // group_size:03d}" if group_size else "" for i in range(count)]
    labels = [f"c{i % classes}" for i in range(count)]
    return pd.DataFrame({"id": [f"s{i:05d}" for i in range(count)], "label": labels, "group": groups, "split": ""})


def groups_of(rows: pd.DataFrame, split: np.ndarray, name: str) -> set[str]:
    return set(rows["group"][split == name])


WAYS: dict[str, Callable[[pd.DataFrame, int], np.ndarray]] = {
    "stratified": lambda rows, seed: splits.stratified(rows, (0.6, 0.2, 0.2), seed),
    "by_group": lambda rows, seed: splits.by_group(rows, (0.6, 0.2, 0.2), seed),
    "group_folds": lambda rows, seed: splits.group_folds(rows, 4, 1, seed),
    "carve_val": lambda rows, seed: splits.carve_val(splits.stratified(rows, (0.8, 0, 0.2), 5), rows, 0.2, seed),
    "carve_plain": lambda rows, seed: splits.carve_val(
        np.full(len(rows), "train", dtype=object), rows, 15, seed, stratified=False
    ),
    "carve_groups": lambda rows, seed: splits.carve_val(
        np.full(len(rows), "train", dtype=object), rows, 0.25, seed, by_group=True
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_depends_on_seed_and_ids_but_not_on_row_order(way):
    rows = make_rows(120, group_size=3)
    split = WAYS[way](rows, 1)
    order = np.random.default_rng(0).permutation(len(rows))
    np.testing.assert_array_equal(WAYS[way](rows.iloc[order].reset_index(drop=True), 1), split[order])
    np.testing.assert_array_equal(WAYS[way](rows.iloc[order], 1), split[order])  # whatever the index is
    assert (WAYS[way](rows, 2) != split).any()


def test_stratified_has_exact_numbers_in_every_class():
    rows = make_rows(150)
    table = pd.crosstab(rows["label"], splits.stratified(rows, (0.6, 0.2, 0.2), 0))
    assert (table["train"] == 30).all()
    assert (table["val"] == 10).all()
    assert (table["test"] == 10).all()


def test_stratified_gives_a_small_class_to_every_split():
    rows = make_rows(9)
    table = pd.crosstab(rows["label"], splits.stratified(rows, (0.9, 0.05, 0.05), 0))
    assert (table[["train", "val", "test"]] == 1).all(axis=None)


def test_a_fraction_of_zero_gets_nothing():
    rows = make_rows(60, group_size=2)
    for split in (splits.stratified(rows, (0.9, 0, 0.1), 0), splits.by_group(rows, (0.9, 0, 0.1), 0)):
        assert set(split) == {"train", "test"}


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=3, max_size=40),
    classes=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_by_group_never_cuts_a_group_and_uses_every_split(sizes, classes, seed):
    groups = np.repeat([f"g{i}" for i in range(len(sizes))], sizes)
    rows = pd.DataFrame(
        {
            "id": [f"{i:04d}" for i in range(len(groups))],
            "label": [f"c{i % classes}" for i in range(len(groups))],
            "group": groups,
        }
    )
    split = splits.by_group(rows, (0.6, 0.2, 0.2), seed)
    assert all(len(set(split[groups == group])) == 1 for group in set(groups))
    assert set(split) == {"train", "val", "test"}


def test_by_group_of_equal_actors_is_exact():
    rows = make_rows(91 * 12, classes=6, group_size=12)
    split = splits.by_group(rows, (0.7, 0.1, 0.2), 0)
    assert [len(groups_of(rows, split, name)) for name in splits.SPLITS] == [64, 9, 18]


def test_by_group_covers_a_class_of_three_groups():
    rows = make_rows(60, classes=1, group_size=2)
    rare = pd.DataFrame({"id": ["r1", "r2", "r3"], "label": "rare", "group": ["a", "b", "c"], "split": ""})
    rows = pd.concat([rows, rare], ignore_index=True)
    for seed in range(5):
        split = splits.by_group(rows, (0.8, 0.1, 0.1), seed)
        assert set(split[rows["label"] == "rare"]) == {"train", "val", "test"}


def test_one_large_group_does_not_spoil_the_fractions():
    rows = make_rows(200, classes=2)
    rows.loc[:99, "group"] = "large"
    for seed in range(8):
        split = splits.by_group(rows, (0.5, 0.25, 0.25), seed)
        assert set(split[:100]) == {"train"}
        assert [int((split == name).sum()) for name in splits.SPLITS] == pytest.approx([100, 50, 50], abs=2)


def test_rows_without_a_group_are_their_own():
    rows = make_rows(200)
    rows.loc[:19, "group"] = "one"
    split = splits.by_group(rows, (0.5, 0.25, 0.25), 0)
    assert len(set(split[:20])) == 1
    assert [int((split == name).sum()) for name in splits.SPLITS] == pytest.approx([100, 50, 50], abs=2)


def test_an_id_that_equals_a_group_is_not_in_it():
    rows = pd.DataFrame({"id": ["a", "b", "c", "d"], "label": "x", "group": ["", "a", "a", ""], "split": ""})
    sides = {tuple(splits.by_group(rows, (0.34, 0.33, 0.33), seed)[[0, 1]]) for seed in range(10)}
    assert any(own != other for own, other in sides)


def test_group_folds_test_every_sample_once_and_keep_groups_whole():
    rows = make_rows(46 * 6, classes=6, group_size=6)
    tested = np.zeros(len(rows), dtype=int)
    for fold in range(5):
        split = splits.group_folds(rows, 5, fold, seed=3)
        sides = [groups_of(rows, split, name) for name in splits.SPLITS]
        assert sum(len(side) for side in sides) == 46
        assert len(set.union(*sides)) == 46
        assert len(sides[1]) in (4, 5)  # half of the next fold
        tested += split == "test"
    assert (tested == 1).all()


@pytest.mark.parametrize("fold", [-1, 5])
def test_a_fold_out_of_range_is_an_error(fold):
    with pytest.raises(MlaError, match=f"fold `{fold}` is out of range") as error:
        splits.group_folds(make_rows(60, group_size=2), 5, fold, 0)
    assert error.value.hint == "this protocol has folds 0 to 4"


def test_fewer_groups_than_folds_is_an_error():
    with pytest.raises(MlaError, match="`5` folds need as many groups, these data have 2"):
        splits.group_folds(make_rows(6, group_size=3), 5, 0, 0)


def test_leave_one_group_out_rotates_in_sorted_order():
    groups = ["b", "a", "d", "c", "b"]
    assert list(splits.leave_one_group_out(groups, 0)) == ["val", "test", "train", "train", "val"]
    assert list(splits.leave_one_group_out(groups, 3)) == ["train", "val", "test", "train", "train"]
    with pytest.raises(MlaError, match="fold `4`"):
        splits.leave_one_group_out(groups, 4)
    with pytest.raises(MlaError, match="only 2 groups"):
        splits.leave_one_group_out(["a", "b"], 0)


def test_carve_val_moves_training_samples_only_and_as_many_as_asked():
    rows = make_rows(300)
    before = splits.stratified(rows, (0.8, 0, 0.2), 0)
    copy = before.copy()
    after = splits.carve_val(before, rows, 30, seed=0)
    np.testing.assert_array_equal(before, copy)
    np.testing.assert_array_equal(after == "test", before == "test")
    assert pd.Series(after[after == "val"]).size == 30
    assert (pd.crosstab(rows["label"], after)["val"] == 10).all()


def test_carve_val_by_share_keeps_a_class_of_one_in_train_and_takes_one_of_two():
    rows = make_rows(100, classes=1)
    rows.loc[0, "label"] = "single"
    rows.loc[1:2, "label"] = "pair"
    split = splits.carve_val(np.full(100, "train", dtype=object), rows, 0.1, seed=0)
    assert split[0] == "train"
    assert sorted(split[1:3]) == ["train", "val"]
    assert (split == "val").sum() == 10


def test_carve_val_by_group_moves_whole_groups():
    rows = make_rows(200, group_size=5)
    split = splits.carve_val(np.full(200, "train", dtype=object), rows, 0.2, seed=0, by_group=True)
    assert not groups_of(rows, split, "train") & groups_of(rows, split, "val")
    assert (split == "val").sum() == 40


@pytest.mark.parametrize("size", [0, 100, 1.5])
def test_carve_val_refuses_a_size_that_leaves_nothing(size):
    with pytest.raises(MlaError, match=f"cannot carve `{size}` validation samples out of 100"):
        splits.carve_val(np.full(100, "train", dtype=object), make_rows(100), size, seed=0)


def test_official_wants_a_split():
    rows = make_rows(4)
    with pytest.raises(MlaError, match="no official split"):
        splits.official(rows)
    rows["split"] = ["train", "val", "test", ""]
    assert list(splits.official(rows)) == ["train", "val", "test", ""]


def test_an_empty_class_is_named_with_its_split():
    rows = make_rows(30)
    split = splits.stratified(rows, (0.6, 0.2, 0.2), 0)
    splits.check_classes(split, rows["label"], ["c0", "c1", "c2"])
    split[(split == "val") & (rows["label"] == "c1")] = "train"
    with pytest.raises(MlaError) as error:
        splits.check_classes(split, rows["label"], ["c0", "c1", "c2"])
    assert error.value.message == "no sample of class `c1` in split `val`"
    assert "dataset.protocol" in error.value.hint


def test_an_unknown_protocol_gets_the_nearest_name_and_file_gets_its_flag():
    protocols = {"actor": "", "random": "", "file": ""}
    assert splits.unknown_protocol("actors", protocols).hint == "did you mean `actor`?"
    assert "--split-file" in splits.unknown_protocol("file", protocols).hint
