"""The presets `table1`, `table3` and `hgm` as tables: methods and switches side by side."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pandas as pd

from mla_cli.engine.budget import budgets
from mla_cli.engine.history import history_rows
from mla_cli.render import Wide
from mla_cli.wide import CAPTION, HEAD, HEAD_NOTE, Cells, about, best_cells, difference, left_out

if TYPE_CHECKING:
    from mla_cli.engine.ablate import Ablation


def table1_tables(ablation: Ablation) -> list[Wide]:
    """Rows are methods, columns each modality alone and fused; the modalities trained alone share one row."""
    cells = Cells(ablation)
    alone = [s for s in ablation.labels if s.startswith("unimodal ")]
    settings = [s for s in ablation.labels if s not in alone]
    lines, values = [], []
    if alone:
        found = {output: f"unimodal {output}" for output in cells.outputs if output != "fused"}
        lines.append(["unimodal", *(cells.text(found[o], o) if o in found else "" for o in cells.outputs)])
        values.append([cells.value(found[o], o) if o in found else math.nan for o in cells.outputs])
    marks = {} if ablation.significance is None else significance_marks(ablation.significance)
    for setting in settings:
        own = [cells.text(setting, output) for output in cells.outputs]
        lines.append([setting, *own[:-1], own[-1] + marks.get(setting, "")])
        values.append([cells.value(setting, output) for output in cells.outputs])
    notes = [about(cells.rows), f"± is the sd over training seeds, {cells.seeds()}", *left_out(ablation)]
    if ablation.significance is not None:
        notes += significance_notes(ablation.significance, ablation.full)
    title = f"{CAPTION}: each modality alone, and fused"
    first = Wide(title, ["method", *cells.outputs], lines, notes, best_cells(values), best_cells(values, place=1))
    return [first, budget_table(ablation)]


def significance_marks(found: pd.DataFrame) -> dict[str, str]:
    """` †` below .05 and ` ‡` below .01, corrected (asterisks would mean bold in Markdown)."""
    levels = ((0.01, " ‡"), (0.05, " †"))
    return {r.setting: next((m for level, m in levels if r.p_holm < level), "") for r in found.itertuples()}


def significance_notes(found: pd.DataFrame, full: str) -> list[str]:
    """What the marks mean, or why there are none."""
    if found.empty:
        return [f"nothing to compare with {full}"]
    first = found.iloc[0]
    units = int(first["units"])
    if found["p"].isna().all():
        what = "items" if units == first["num_samples"] else "groups"
        return [f"not tested against {full}: {what} = {units}, fewer than 10"]
    what = "items" if units == first["num_samples"] else f"items in {units} groups"
    exact = "McNemar's p beside it" if found["p_mcnemar"].notna().any() else "McNemar's test is not valid for groups"
    return [
        f"† differs from {full}, fused: p < .05, ‡ p < .01, Holm over {found['p'].notna().sum()} methods; paired "
        f"bootstrap over {int(first['num_samples'])} test {what}, of these seeds' mean (significance.csv; {exact})"
    ]


def budget_table(ablation: Ablation) -> Wide:
    """Whether any method would have gone on learning; if so, all should get more epochs."""
    found = budgets(ablation.runs_of)
    lines = [
        [
            r.setting,
            f"{r.best_epoch:g} of {r.epochs}",
            f"{100 * r.gain:+.1f}",
            f"{100 * r.error:.1f}",
            "YES" if r.learning else "no",
        ]
        for r in found.itertuples()
    ]
    notes = [
        "best epoch: median seed; gain of the last fifth of the epochs: fused val accuracy, mean over seeds, in points",
        "still learning: the best epoch lies after 80 % of the budget and the gain is at least one standard error",
    ]
    if found["learning"].any():
        doubled = 2 * int(found["epochs"].max())
        notes.append(f"give every method more: --set train.epochs={doubled}")
    if not lines:
        notes = ["not known: a last fifth of the epochs takes two epochs at the least"]
    columns = ["method", "best epoch", "gain", "standard error", "still learning"]
    return Wide("budget: was any method still learning?", columns, lines, notes)


def table3_tables(ablation: Ablation) -> list[Wide]:
    """HGM and DF as columns of their own."""
    cells = Cells(ablation)
    on = {"neither": ("", ""), "HGM": ("✓", ""), "DF": ("", "✓"), ablation.full: ("✓", "✓")}
    settings = [s for s in on if s in ablation.labels]
    lines = [
        [*on[s], *(cells.text(s, o) for o in cells.outputs), difference(cells.rows, s, ablation.full)] for s in settings
    ]
    values = [[cells.value(s, o) for o in cells.outputs] for s in settings]
    # two columns stand before the numbers
    best, second = ({(r, c + 1) for r, c in best_cells(values, place)} for place in (0, 1))
    notes = [
        about(cells.rows),
        "HGM: trained with and without; DF: switched at test time (off: equal weights), so no modality alone changes",
        f"± is the sd over training seeds, {cells.seeds()}; the difference is paired by seed",
        *left_out(ablation),
    ]
    columns = ["HGM", "DF", *cells.outputs, f"fused - {ablation.full}"]
    return [Wide(f"{CAPTION}: head gradient modification x dynamic fusion", columns, lines, notes, best, second)]


def hgm_tables(ablation: Ablation) -> list[Wide]:
    """Accuracies of the variants, and beside them what P and the head looked like at the end of training."""
    cells = Cells(ablation)
    settings = list(ablation.labels)
    lines, values = [], []
    for setting in settings:
        ends = pd.concat([last_epoch(history_rows(run)) for run in ablation.runs_of[setting]])
        means = ends.groupby("diagnostic")["value"].mean()
        facts = [f"{means[name]:.2g}" if name in means and not math.isnan(means[name]) else "" for name in HEAD]
        lines.append([setting, *(cells.text(setting, o) for o in cells.outputs), *facts])
        values.append([cells.value(setting, o) for o in cells.outputs])
    notes = [
        about(cells.rows),
        f"± is the sd over training seeds, {cells.seeds()}; diagnostics of the last epoch, mean over seeds",
        HEAD_NOTE,
        *left_out(ablation),
    ]
    columns = ["HGM", *cells.outputs, *HEAD.values()]
    best, second = best_cells(values), best_cells(values, place=1)
    return [Wide(f"{CAPTION}: variants of head gradient modification", columns, lines, notes, best, second)]


def last_epoch(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["epoch"] == rows["epoch"].max()]
