"""The leakage report finds what two splits share, and only that."""

import json

import numpy as np
import pandas as pd
import pytest

from mla_cli.data.leakage import leakage_lines, leakage_report

SPLIT = np.array(["train", "train", "val", "val", "test", "test", "", ""], dtype=object)


def make_rows(groups):
    labels = ["a", "b"] * 4
    return pd.DataFrame({"id": [f"s{i}" for i in range(8)], "label": labels, "group": groups})


def test_shared_groups_are_counted_per_pair_of_splits():
    rows = make_rows(["p", "q", "r", "q", "p", "q", "x", "p"])
    report = leakage_report(rows, SPLIT)
    group = report["groups"]["group"]
    assert group["number"] == {"train": 2, "val": 2, "test": 2}
    assert group["train+test"] == {"count": 2, "first": ["p", "q"]}
    assert group["val+test"] == {"count": 1, "first": ["q"]}
    assert group["train+val"] == {"count": 1, "first": ["q"]}
    assert report["leaks"] is True
    lines = leakage_lines(report)
    assert lines[0] == "2 of 2 groups of test are in train too (first: p)"
    assert "1 of 2 groups of val are in train too (first: q)" in lines


def test_disjoint_groups_do_not_leak_and_unused_rows_do_not_count():
    rows = make_rows(["p", "q", "r", "s", "t", "u", "p", "t"])
    report = leakage_report(rows, SPLIT)
    assert report["leaks"] is False
    assert "groups are on one side only (train/val/test: 2/2/2)" in leakage_lines(report)


def test_train_and_val_may_share_without_a_leak_into_test():
    report = leakage_report(make_rows(["p", "q", "p", "q", "t", "u", "", ""]), SPLIT)
    assert report["groups"]["group"]["train+val"]["count"] == 2
    assert report["leaks"] is False


def test_rows_without_groups_have_nothing_to_share():
    report = leakage_report(make_rows([""] * 8), SPLIT)
    assert report["groups"] == {}
    assert report["leaks"] is False


def test_further_columns_are_looked_at():
    rows = make_rows([f"own{i}" for i in range(8)]).assign(speaker=["ann", "bob", "bob", "cid", "ann", "dan", "", ""])
    report = leakage_report(rows, SPLIT)
    assert report["groups"]["speaker"]["train+test"] == {"count": 1, "first": ["ann"]}
    assert "1 of 2 groups by speaker of test are in train too (first: ann)" in leakage_lines(report)


@pytest.mark.parametrize("absent", ["", None, float("nan")])
def test_identical_files_are_found_and_absent_ones_are_not_alike(absent):
    hashes = np.array(["h0", absent, "h1", absent, "h0", absent, "h0", "h1"], dtype=object)
    report = leakage_report(make_rows([""] * 8), SPLIT, {"audio": hashes})
    audio = report["identical"]["audio"]
    assert audio["train+test"] == {"count": 1, "first": [["s0", "s4"]]}
    assert audio["val+test"]["count"] == audio["train+val"]["count"] == 0
    assert report["leaks"] is True
    assert "1 audio files of test are identical to one of train (first: s4 = s0)" in leakage_lines(report)


def test_balance_names_the_largest_and_smallest_class():
    rows = make_rows([""] * 8)
    split = np.array(["train"] * 5 + ["test"] * 3, dtype=object)
    report = leakage_report(rows, split)
    assert report["balance"] == {"train": {"a": 3, "b": 2}, "val": {"a": 0, "b": 0}, "test": {"a": 1, "b": 2}}
    lines = leakage_lines(report)
    assert "train: 5 samples; largest class a (3), smallest b (2)" in lines
    assert any(line.startswith("val: 0 samples") for line in lines)


def test_the_report_is_json_and_does_not_depend_on_row_order():
    rows = make_rows(["p", "q", "r", "q", "p", "q", "x", "p"])
    hashes = np.array([f"h{i % 3}" for i in range(8)], dtype=object)
    report = leakage_report(rows, SPLIT, {"text": hashes})
    assert json.loads(json.dumps(report)) == report
    order = np.random.default_rng(0).permutation(8)
    assert leakage_report(rows.iloc[order], SPLIT[order], {"text": hashes[order]}) == report
