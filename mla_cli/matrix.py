"""The preset `missing` as tables: methods against missing rates, in training and at test time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from mla_cli.engine import results
from mla_cli.render import Wide
from mla_cli.wide import CAPTION, about, table_of

if TYPE_CHECKING:
    from mla_cli.engine.ablate import Ablation


def missing_tables(ablation: Ablation) -> list[Wide]:
    """The paper's table (one rate for training and test), the whole train x test grid, every subset of modalities."""
    rows = ablation.rows[(ablation.rows["metric"] == "accuracy") & (ablation.rows["output"] == "fused")]
    summary = results.over_seeds(rows, by=["setting", "train_missing_rate"])
    summary["method"] = [setting.partition(" @ ")[0] for setting in summary["setting"]]
    drawn = summary[summary["missing_rate"].notna()]
    methods = list(dict.fromkeys(summary["method"]))
    rates = sorted(drawn["missing_rate"].unique())
    cell = {(r.method, r.train_missing_rate, r.missing_rate): r for r in drawn.itertuples()}
    both = [r for r in rates if all((m, r, r) in cell for m in methods)]
    masks = rows[rows["missing_rate"] > 0]["mask_seed"].nunique()
    how = f"kept_one; each run's mean over {masks} mask seeds; ± is the sd over training seeds"
    source = about(rows[rows["train_missing_rate"] == rows["train_missing_rate"].min()])
    diagonal = table_of(
        f"fused {CAPTION}, missing rate in training and at test time",
        "method",
        methods,
        both,
        {(m, r): cell[m, r, r] for m in methods for r in both},
        [source, how],
    )
    trained = [(m, t) for m in methods for t in sorted(summary["train_missing_rate"].unique())]
    names = [f"{m}, trained at {t:g}" for m, t in trained]
    grid = table_of(
        f"fused {CAPTION}, missing rate at test time",
        "method",
        names,
        rates,
        {(n, r): cell[m, t, r] for n, (m, t) in zip(names, trained, strict=True) for r in rates if (m, t, r) in cell},
        ["columns: missing rate at test time", how],
    )
    return [diagonal, grid, subset_table(summary, methods)]


def subset_table(summary: pd.DataFrame, methods: list[str]) -> Wide:
    """Every subset of modalities on the whole test set, methods trained on complete data.

    One row per subset, as there can be 63 of them; so the best and second-best stand out within a row.
    """
    least = summary["train_missing_rate"].min()
    chosen = summary[summary["missing_pattern"].str.startswith("subset:") & (summary["train_missing_rate"] == least)]
    names = [p.removeprefix("subset:") for p in dict.fromkeys(chosen["missing_pattern"])]
    cells = {(r.method, r.missing_pattern.removeprefix("subset:")): r for r in chosen.itertuples()}
    note = f"only these modalities are given at test time; trained at missing rate {least:g}"
    return transposed(table_of(f"fused {CAPTION}, by given modalities", "given", methods, names, cells, [note]))


def transposed(table: Wide) -> Wide:
    """Rows as columns, marked cells with them."""
    corner, *heads = table.columns
    rows = [[head, *(row[c + 1] for row in table.rows)] for c, head in enumerate(heads)]
    best, second = ({(c - 1, r + 1) for r, c in cells} for cells in (table.best, table.second))
    return Wide(table.title, [corner, *(row[0] for row in table.rows)], rows, table.notes, best, second)
