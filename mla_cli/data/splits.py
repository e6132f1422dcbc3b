"""Who trains, who validates, who tests: the building blocks of every named protocol.

Every function gets the manifest's rows (columns `id`, `label`, `group`, `split`) and returns an array with `train`,
`val`, `test` or "" (unused) for each of them. Draws depend on the seed and the ids alone, never on the order of the
rows. A row whose `group` is "" is a group of its own. Published lists are read by `data/split_files.py`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mla_cli import registry
from mla_cli.errors import MlaError
from mla_cli.seeding import generator

SPLITS = ("train", "val", "test")


def official(rows: pd.DataFrame) -> np.ndarray:
    """The split that the data set's own files name; raises MlaError where they name none."""
    split = rows["split"].to_numpy(dtype=object).copy()
    if not any(split):
        raise MlaError(
            "these data have no official split",
            "choose another one with `--protocol random`",
        )
    return split


def stratified(rows: pd.DataFrame, fractions: Sequence[float] = (0.6, 0.2, 0.2), seed: int = 0) -> np.ndarray:
    """A random split of the samples with the same fractions (train, val, test) in every class.

    A class with at least as many samples as there are splits asked for has one in each of them.
    """
    split = np.full(len(rows), "", dtype=object)
    for label, members in _sorted_members(rows, "label"):
        shuffled = generator(seed, "split", "stratified", label).permutation(members)
        split[shuffled] = np.repeat(SPLITS, _allot(len(members), fractions))
    return split


def by_group(rows: pd.DataFrame, fractions: Sequence[float], seed: int) -> np.ndarray:
    """A random split with every group on one side only, near the fractions (train, val, test) in every class."""
    keys, counts = _groups(rows)
    part = _deal(counts, fractions, generator(seed, "split", "by_group").random(len(counts)))
    return np.array(SPLITS, dtype=object)[part[keys]]


def group_folds(rows: pd.DataFrame, folds: int, fold: int, seed: int) -> np.ndarray:
    """Fold `fold` of `folds` group-disjoint ones is test, half of the next fold's groups are val, the rest train.

    The folds do not depend on `fold`, so that every sample is tested once as it runs from 0 to `folds` - 1.
    """
    check_fold(fold, folds)
    keys, counts = _groups(rows)
    if len(counts) < folds:
        raise MlaError(
            f"`{folds}` folds need as many groups, these data have {len(counts)}",
            "use another protocol",
        )
    number = _deal(
        counts,
        [1 / folds] * folds,
        generator(seed, "split", "group_folds").random(len(counts)),
    )
    split = np.where(number == fold, "test", "train").astype(object)
    following = np.flatnonzero(number == (fold + 1) % folds)
    draw = generator(seed, "split", "group_folds", "val", fold).random(len(following))
    split[following] = np.where(_deal(counts[following], (0.5, 0.5), draw) == 0, "val", "train")
    return split[keys]


def leave_one_group_out(groups: Sequence[str], fold: int) -> np.ndarray:
    """Of the sorted distinct groups (speakers, sessions), number `fold` is test, the next one val, the rest train."""
    names = sorted(set(groups))
    check_fold(fold, len(names))
    if len(names) < 3:
        raise MlaError(
            f"only {len(names)} groups to rotate, at least 3 are needed",
            "use another protocol",
        )
    side = {names[fold]: "test", names[(fold + 1) % len(names)]: "val"}
    return np.array([side.get(group, "train") for group in groups], dtype=object)


def carve_val(
    split: np.ndarray,
    rows: pd.DataFrame,
    size: float,
    seed: int,
    stratified: bool = True,
    by_group: bool = False,
) -> np.ndarray:
    """Move some training samples to val: `size` of them (int), or that share of them (float below 1).

    stratified: the same share of every class, and at least one of every class that has two. by_group: whole groups,
    whose number of samples is near `size`.
    """
    train = np.flatnonzero(split == "train")
    share = size if isinstance(size, float) else size / max(len(train), 1)
    if not 0 < share < 1:
        raise MlaError(
            f"cannot carve `{size}` validation samples out of {len(train)}",
            "give less than there are",
        )
    inside, split = rows.iloc[train], split.copy()
    if by_group:
        keys, counts = _groups(inside)
        draw = generator(seed, "split", "carve", "group").random(len(counts))
        split[train[_deal(counts, (1 - share, share), draw)[keys] == 1]] = "val"
        return split
    strata = _sorted_members(inside, "label") if stratified else [("", np.argsort(inside["id"].to_numpy(str)))]
    strata = [(label, members) for label, members in strata if len(members) > 1]  # a class of one stays in train
    if not strata:
        raise MlaError("no class has two training samples, one of them for validation", "give a list of val")
    want = _allot(max(round(share * len(train)), 1), [len(members) for _, members in strata])
    for (label, members), number in zip(strata, want, strict=True):
        number = min(max(number, 1), len(members) - 1)
        shuffled = generator(seed, "split", "carve", label).permutation(members)
        split[train[shuffled[:number]]] = "val"
    return split


def check_fold(fold: int, folds: int) -> None:
    """Raise MlaError unless 0 <= fold < folds."""
    if not 0 <= fold < folds:
        raise MlaError(
            f"fold `{fold}` is out of range",
            f"this protocol has folds 0 to {folds - 1}",
        )


def check_classes(split: np.ndarray, labels: Sequence[str] | pd.Series, classes: Sequence[str]) -> None:
    """Raise MlaError where a class has no sample in train, val or test, naming all of them."""
    table = {name: set(np.asarray(labels, dtype=object)[split == name]) for name in SPLITS}
    empty = [f"class `{c}` in split `{name}`" for name in SPLITS for c in classes if c not in table[name]]
    if empty:
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        raise MlaError(
            f"no sample of {', '.join(empty[:3])}{more}",
            "add samples of it, leave the class out of the data, or choose another `dataset.protocol`, "
            "`dataset.split_seed` or `dataset.fold`",
        )


def unknown_protocol(protocol: str, protocols: Mapping[str, str]) -> MlaError:
    """The error to raise for a protocol that a data set does not offer here."""
    if protocol == "file":
        return MlaError(
            "protocol `file` needs a list of the splits",
            "pass it with `--split-file LIST`",
        )
    return MlaError(f"no protocol `{protocol}`", registry.did_you_mean(protocol, list(protocols)))


# ---------------------------------------------------------------- helpers


def _sorted_members(rows: pd.DataFrame, column: str) -> list[tuple[str, np.ndarray]]:
    """(value, positions of its rows sorted by id) for every value of a column, sorted."""
    ids, values = rows["id"].to_numpy(str), rows[column].to_numpy(str)
    order = np.lexsort((ids, values))
    cuts = np.flatnonzero(values[order][1:] != values[order][:-1]) + 1
    return [(str(values[part[0]]), part) for part in np.split(order, cuts) if len(part)]


def _allot(total: int, shares: Sequence[float]) -> np.ndarray:
    """Whole numbers near `total` x shares that sum to it (largest remainder); 1 or more per positive share if possible.

    >>> _allot(10, (0.6, 0.2, 0.2)).tolist(), _allot(3, (0.6, 0.2, 0.2)).tolist(), _allot(2, (0.9, 0, 0.1)).tolist()
    ([6, 2, 2], [1, 1, 1], [1, 0, 1])
    """
    exact = total * np.asarray(shares, dtype=float) / sum(shares)
    whole = np.floor(exact + 1e-9).astype(int)
    for i in np.argsort(-(exact - whole), kind="stable")[: total - whole.sum()]:
        whole[i] += 1
    for i in np.flatnonzero((exact > 0) & (whole == 0)):
        if whole.max() > 1:
            whole[whole.argmax()] -= 1
            whole[i] += 1
    return whole


def _groups(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Group number of every row, (row,), and samples per group and class, (group, class); groups sorted by name."""
    ids, names = rows["id"].to_numpy(object), rows["group"].to_numpy(object)
    # The mark keeps an id apart from a group of the same name.
    named = np.array([f"g\x1f{group}" if group else f"i\x1f{own}" for group, own in zip(names, ids, strict=True)])
    groups, keys = np.unique(named, return_inverse=True)
    classes, labels = np.unique(rows["label"].to_numpy(str), return_inverse=True)
    counts = np.zeros((len(groups), len(classes)), dtype=int)
    np.add.at(counts, (keys, labels), 1)
    return keys, counts


def _deal(counts: np.ndarray, fractions: Sequence[float], draw: np.ndarray) -> np.ndarray:
    """Deal whole groups to parts so that each part's number of samples per class is near its fraction.

    counts: (group, class) samples; draw: (group,) uniform random numbers. Returns the part of each group, (group,).
    Large groups first (by powers of two, random among those), each to the part that lacks it most; for groups that are
    alike this is the Sainte-Lague method. The last groups of a class go to the parts that have none of it yet. The
    total counts as one more class.
    """
    counts = np.column_stack([counts, counts.sum(axis=1)])
    share = np.asarray(fractions, dtype=float) / sum(fractions)
    open_parts = np.flatnonzero(share > 0)
    target = np.maximum(share[open_parts, None] * counts.sum(axis=0), 1e-9)  # (part, class)
    have = np.zeros_like(target)
    left = (counts > 0).sum(axis=0)  # (class,): groups still to deal
    part = np.zeros(len(counts), dtype=int)
    size = np.floor(np.log2(np.maximum(counts[:, -1], 1)))
    for group in np.lexsort((draw, -size)):
        own = counts[group]
        # Change of sum (have - target)^2 / target if this group went to each part.
        cost = (own * (2 * (have - target) + own) / target).sum(axis=1)
        lacking = (have == 0) & (own > 0)
        urgent = lacking & (left <= (have == 0).sum(axis=0))
        best = np.lexsort((np.round(cost, 9), -urgent.sum(axis=1)))[0]
        part[group] = open_parts[best]
        have[best] += own
        left -= own > 0
    return part
