"""The tidy results table: its columns, and honest averages over it.

One number per row. Inside a run the mean over mask seeds; across runs the mean and standard deviation of those means
over training seeds. Rows that differ in data set, protocol, fold, split, items, selection or mask seeds are never
averaged.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mla_cli.errors import MlaError
from mla_cli.files import whole_file

COLUMNS = (
    "dataset",
    "protocol",
    "fold",
    "split",
    "items",
    "recipe",
    "method",
    "hgm",
    "fusion",
    "temperature",
    "seed",
    "run",
    "checkpoint",
    "selected_on",
    "train_missing_rate",
    "train_missing_pattern",
    "missing_rate",
    "realised_rate",
    "expected_rate",
    "natural_absence",
    "missing_pattern",
    "mask_seed",
    "absent",
    "impute",
    "output",
    "alone_readout",
    "metric",
    "value",
    "low",
    "high",
    "num_samples",
    "num_groups",
    "smoke",
)
IMPORTED = "unknown (imported)"  # `selected_on` of a run whose weights were trained elsewhere
NUMBERS = (
    "temperature",
    "realised_rate",
    "expected_rate",
    "mask_seed",
    "value",
    "low",
    "high",
    "num_samples",
    "num_groups",
)
# Rows stand side by side in a table where all of these, and the mask seeds, are equal.
SIDE_BY_SIDE = ("dataset", "protocol", "fold", "split", "selected_on", "items")
# Rows are averaged only where all of these are equal too.
COMPARABLE = (*SIDE_BY_SIDE, "train_missing_rate", "train_missing_pattern")
OTHER_ITEMS = "train all with one dataset.fold, split_seed, split_file, pair_seed and limit, on the same prepared data"


def frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a table with exactly the tidy columns, in order; what a row does not say is empty."""
    table = pd.DataFrame(list(rows))
    unknown = [c for c in table.columns if c not in COLUMNS]
    if unknown:
        raise ValueError(f"unknown result columns {unknown}")
    return table.reindex(columns=list(COLUMNS))


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write the whole table; values unrounded."""
    with whole_file(path) as file:
        table.to_csv(file, index=False)


def read_csv(path: Path) -> pd.DataFrame:
    """A table that `write_csv` wrote; a number that is not there is NaN, a text is empty."""
    return pd.read_csv(path, keep_default_na=False, na_values={column: [""] for column in NUMBERS})


def refuse_smoke(table: pd.DataFrame) -> None:
    """Raise MlaError if any row comes from a smoke run: those numbers mean nothing."""
    if len(table) and table["smoke"].astype(bool).any():
        raise MlaError("rows of a smoke run cannot enter a table", "run it again without `--smoke`")


def check_comparable(table: pd.DataFrame, columns: Sequence[str] = COMPARABLE) -> None:
    """Raise MlaError if the rows differ in something that forbids averaging or comparing them.

    Of several runs none may be imported: an epoch that was chosen nobody knows how equals no other.
    """
    for column in columns:
        values = table[column].drop_duplicates().tolist()
        if column == "selected_on" and table["run"].nunique() > 1:
            for value in values:
                if value == IMPORTED:
                    run = table["run"][table[column] == value].iloc[0]
                    hint = f"show it by itself: `mla eval {run}`"
                    raise MlaError(f"how the epoch of `{run}` was chosen is {value}: it cannot be compared", hint)
        if len(values) > 1:
            shown = ", ".join(f"`{v}`" for v in values[:4])
            if column == "items":
                raise MlaError(f"the runs were scored on different items of one split (hashes {shown})", OTHER_ITEMS)
            raise MlaError(f"the runs differ in {column}: {shown}", "compare only runs that agree in it")
    masks = table.groupby(["run", "missing_rate", "missing_pattern"], dropna=False)["mask_seed"].agg(
        lambda s: tuple(sorted(s.dropna().unique()))
    )
    for key, seeds in masks.groupby(level=["missing_rate", "missing_pattern"], dropna=False):
        if seeds.nunique() > 1:
            raise MlaError(f"the runs differ in mask seeds at missing rate {key}", "evaluate all with the same seeds")


def over_mask_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Mean (`value`), sd and number of mask seeds per run and setting. The sd of a single value is empty, not 0.

    `low` and `high` stay where there is one value only: a mean over draws has no interval. `num_samples` is a mean too.
    """
    averaged = ("value", "low", "high", "mask_seed", "realised_rate", "num_samples")
    keys = [c for c in table.columns if c not in averaged]  # also columns that a caller added, such as `setting`
    grouped = table.groupby(keys, dropna=False, sort=False)
    found = grouped["value"].agg(value="mean", sd="std", n="count")
    for column in ("low", "high"):
        found[column] = grouped[column].first().astype(float).where(found["n"] == 1)
    for column in ("realised_rate", "num_samples"):
        found[column] = grouped[column].mean()
    return found.reset_index()


def over_seeds(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean, sd (n - 1 in the denominator; empty for one run) and n over training seeds, of the runs' means.

    by: columns that tell settings apart. Raises MlaError for smoke rows, rows that may not be averaged, and a setting
    that holds the same seed twice.
    """
    refuse_smoke(table)
    check_comparable(table, SIDE_BY_SIDE)
    for _, setting in table.groupby(list(by), dropna=False, sort=False):
        check_comparable(setting)
    means = over_mask_seeds(table)
    keys = [*by, "missing_rate", "missing_pattern", "output", "metric"]
    keys = list(dict.fromkeys(keys))
    grouped = means.groupby(keys, dropna=False, sort=False)
    twice = grouped["seed"].agg(lambda s: s.duplicated().any())
    if twice.any():
        raise MlaError("two runs of one setting have the same seed", "compare runs that differ in one setting only")
    found = grouped["value"].agg(value="mean", sd="std", n="count")
    for column in ("num_samples", "num_groups", "realised_rate"):
        found[column] = grouped[column].mean()
    return found.reset_index()
