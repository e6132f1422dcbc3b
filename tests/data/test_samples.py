from dataclasses import replace

import numpy as np
import pytest

from mla_cli.data.samples import Samples, pair_by_class, unpaired
from mla_cli.errors import MlaError

CLASSES = ["one", "two", "three"]


def unpaired_samples(counts: dict[str, list[int]], split: str = "test") -> Samples:
    """modality -> number of samples in each class; ids sort by modality."""
    names = list(counts)
    ids, labels, groups, rows = [], [], [], []
    for column, name in enumerate(names):
        for label, count in enumerate(counts[name]):
            for i in range(count):
                ids.append(f"{name}-{label}-{i:03d}")
                labels.append(label)
                groups.append(f"speaker{i % 2}" if name == "audio" else "")
                rows.append(
                    [len([r for r in rows if r[column] >= 0]) if c == column else -1 for c in range(len(names))]
                )
    return Samples(
        split, names, np.array(ids, object), np.array(labels, np.int32), np.array(groups, object), np.array(rows)
    )


def reordered(samples: Samples, order: np.ndarray) -> Samples:
    return samples.take(order)


def columns_swapped(samples: Samples) -> Samples:
    return replace(samples, modalities=samples.modalities[::-1], rows=samples.rows[:, ::-1])


TWO = unpaired_samples({"audio": [2, 3, 1], "visual": [7, 6, 5]})


def test_unpaired() -> None:
    assert unpaired(TWO.present)
    paired = np.array([[True, False], [True, True]])
    assert not unpaired(paired)
    assert not unpaired(paired[:, :1])  # one modality needs no pairs
    assert not unpaired(np.zeros((0, 2), bool))


def test_pairs_join_samples_of_one_class() -> None:
    pairs = pair_by_class(TWO, CLASSES, 0)
    label_of = {(m, r): lab for m, column in enumerate(TWO.rows.T) for r, lab in zip(column, TWO.labels, strict=True)}
    assert len(pairs) == 18  # one for each sample of the most frequent modality
    assert pairs.present.all()
    for label, row in zip(pairs.labels, pairs.rows, strict=True):
        assert [label_of[m, r] for m, r in enumerate(row)] == [label, label]
    assert sorted(pairs.rows[:, 1]) == list(range(18))  # each image once
    assert set(pairs.rows[:, 0]) <= set(range(6))
    assert pairs.split == "test"
    assert pairs.paired_with_seed == 0
    assert len(set(pairs.ids)) == len(pairs)
    for name, row in zip(pairs.ids, pairs.rows, strict=True):
        visual, audio = name.split("+")
        assert list(TWO.ids).index(visual) == np.flatnonzero(TWO.rows[:, 1] == row[1])[0]
        assert list(TWO.ids).index(audio) == np.flatnonzero(TWO.rows[:, 0] == row[0])[0]
    assert set(pairs.groups) == {"speaker0", "speaker1"}  # images have no group


def test_distinct_counts_recordings_not_pairs() -> None:
    assert TWO.distinct == {"audio": 6, "visual": 18}
    pairs = pair_by_class(TWO, CLASSES, 0)
    assert pairs.distinct == {"audio": len(set(pairs.rows[:, 0])), "visual": 18}
    assert 3 <= pairs.distinct["audio"] <= 6
    few = pairs.take(np.array([0, 0, 1]))
    assert few.distinct["visual"] == 2


def test_pairs_depend_on_seed_and_split_only() -> None:
    first = pair_by_class(TWO, CLASSES, 0)
    np.testing.assert_array_equal(first.rows, pair_by_class(TWO, CLASSES, 0).rows)
    assert (first.rows != pair_by_class(TWO, CLASSES, 1).rows).any()
    assert (first.rows != pair_by_class(replace(TWO, split="val"), CLASSES, 0).rows).any()
    for order in (np.arange(len(TWO))[::-1], np.random.default_rng(1).permutation(len(TWO))):
        other = pair_by_class(reordered(TWO, order), CLASSES, 0)
        assert other.ids.tolist() == first.ids.tolist()
        np.testing.assert_array_equal(other.rows, first.rows)


@pytest.mark.parametrize("counts", [{"a": [2, 3], "b": [4, 4], "c": [5, 1]}, {"a": [3, 3], "b": [3, 3], "c": [2, 4]}])
def test_the_order_of_modalities_changes_no_pair(counts: dict[str, list[int]]) -> None:
    three = unpaired_samples(counts)
    first = pair_by_class(three, CLASSES, 0)
    other = pair_by_class(columns_swapped(three), CLASSES, 0)
    assert other.modalities == ["c", "b", "a"]
    assert other.ids.tolist() == first.ids.tolist()
    np.testing.assert_array_equal(other.rows[:, ::-1], first.rows)
    assert all(len(set(name.split("+"))) == 3 for name in first.ids)


def test_partners_are_drawn_uniformly() -> None:
    many = unpaired_samples({"audio": [4], "visual": [4000]})
    used = np.bincount(pair_by_class(many, CLASSES, 0).rows[:, 0], minlength=4)
    assert used.min() > 900  # 1,000 each, sd 27
    assert used.max() < 1100


def test_a_class_that_one_modality_lacks() -> None:
    with pytest.raises(MlaError) as caught:
        pair_by_class(unpaired_samples({"audio": [2, 0], "visual": [3, 4]}), CLASSES, 0)
    assert caught.value.message == "class `two` has no audio sample in split `test` to pair with"
    # the rarer modality may have a class of its own: no pair needs it
    assert len(pair_by_class(unpaired_samples({"audio": [2, 1], "visual": [4, 0]}), CLASSES, 0)) == 4


def test_limited_keeps_every_pattern_and_the_order() -> None:
    assert TWO.limited(None, 0) is TWO
    few = TWO.limited(4, 0)
    assert few.present.sum(0).tolist() == [4, 4]
    assert few.ids.tolist() == sorted(few.ids)
    assert few.ids.tolist() == TWO.limited(4, 0).ids.tolist()
    assert few.ids.tolist() != TWO.limited(4, 1).ids.tolist()
    assert set(few.ids) <= set(TWO.limited(5, 0).ids)  # a larger limit only adds
    assert len(TWO.limited(1000, 0)) == len(TWO)
    backwards = reordered(TWO, np.arange(len(TWO))[::-1]).limited(4, 0)
    assert set(backwards.ids) == set(few.ids)
    at = [list(TWO.ids).index(name) for name in few.ids]
    np.testing.assert_array_equal(few.rows, TWO.rows[at])
    np.testing.assert_array_equal(few.labels, TWO.labels[at])


def test_limiting_nothing() -> None:
    empty = TWO.take(np.empty(0, np.int64))
    assert len(empty.limited(4, 0)) == 0


def test_classes_and_modalities_are_drawn_apart() -> None:
    three = unpaired_samples({"a": [30, 30], "b": [30, 30], "c": [60, 60]})
    rows = pair_by_class(three, CLASSES, 0).rows
    assert (rows[:, 0] != rows[:, 1]).any()  # equal pools, other draws
    assert (rows[:60, 0] + 30 != rows[60:, 0]).any()
    # a class more, or a modality less, and the other pairs stay
    more = pair_by_class(unpaired_samples({"a": [30, 30, 5], "b": [30, 30, 5], "c": [60, 60, 9]}), CLASSES, 0)
    np.testing.assert_array_equal(more.rows[:120], rows)
    less = pair_by_class(unpaired_samples({"b": [30, 30], "c": [60, 60]}), CLASSES, 0)
    np.testing.assert_array_equal(less.rows, rows[:, 1:])
