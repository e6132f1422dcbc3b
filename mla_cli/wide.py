"""What all wide tables share: where their numbers come from, and which cells stand out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pandas as pd

from mla_cli.data.rates import rate_text
from mla_cli.engine import results
from mla_cli.render import Wide, spread

if TYPE_CHECKING:
    from mla_cli.engine.ablate import Ablation
    from mla_cli.engine.compare import Comparison

CAPTION = "accuracy in %"
# diagnostics of the shared head in `history.jsonl`, and how they are called in tables
HEAD = {
    "hgm_eigenvalue_median": "median eigenvalue",
    "hgm_eigenvalue_min": "smallest eigenvalue",
    "hgm_asymmetry": "asymmetry",
    "hgm_h_left": "|P h| / |h|",
    "hgm_grad_ratio": "|g P| / |g|",
    "head_leak": "head leak",
}
SELECTED = {
    "last": "last epoch",
    "val": "epoch chosen on val",
    "test": "EPOCH CHOSEN ON TEST",
    results.IMPORTED: "IMPORTED: TRAINED ELSEWHERE, NOT KNOWN HOW ITS EPOCH WAS CHOSEN",
}
HEAD_NOTE = "eigenvalues: of P's symmetric part; head leak: |dW h| / (|dW| |h|), h the previous modality's mean feature"


class Cells:
    """Means and spreads over seeds of a grid's rows, complete modalities: by setting and output."""

    def __init__(self, found: Ablation | Comparison):
        self.rows = found.rows[found.rows["metric"] == "accuracy"]
        self.summary = results.over_seeds(self.rows, by=["setting"])  # at every missing rate
        complete = self.summary[(self.summary["missing_rate"] == 0) | (self.summary["output"] != "fused")]
        self.outputs = [o for o in dict.fromkeys(self.rows["output"]) if o != "fused"] + ["fused"]
        self.found = {(r.setting, r.output): (r.value, r.sd, int(r.n)) for r in complete.itertuples()}

    def text(self, setting: str, output: str) -> str:
        return spread(*self.found[setting, output]) if (setting, output) in self.found else ""

    def value(self, setting: str, output: str) -> float:
        return self.found.get((setting, output), (math.nan,))[0]

    def count(self, setting: str) -> int:
        """Training seeds of its fused accuracy; 0 where it has none."""
        return self.found.get((setting, "fused"), (0, 0, 0))[2]

    def seeds(self) -> str:
        """`n = 3 training seeds`, and which rows have fewer."""
        counts = {setting: n for (setting, _), (_, _, n) in self.found.items()}
        most = max(counts.values())
        fewer = ", ".join(f"{setting}: {n}" for setting, n in counts.items() if n < most)
        return f"n = {most} training seeds" + (f" ({fewer})" if fewer else "")


def about(rows: pd.DataFrame) -> str:
    """Where the numbers come from: data set, protocol, split, selection, samples."""
    first = rows.iloc[0]
    counts = sorted({int(n) for n in rows["num_samples"].dropna()})
    samples = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    chosen = SELECTED[first["selected_on"]]
    fold = f" fold {first['fold']}" if first["fold"] else ""
    text = f"{first['dataset']}, protocol {first['protocol']}{fold}, {first['split']} {samples}, {chosen}"
    return text + trained_missing(rows) + (", SMOKE RUN: NOT A RESULT" if bool(first["smoke"]) else "")


def trained_missing(rows: pd.DataFrame) -> str:
    """At which missing rates the runs were trained; nothing where all were trained on complete data."""
    rates = rows["train_missing_rate"].drop_duplicates().tolist()
    patterns = ", ".join(dict.fromkeys(rows["train_missing_pattern"][rows["train_missing_rate"].astype(bool)]))
    if not any(rates):
        return ""
    which = "rate" if len(rates) == 1 else "rates"
    return f", trained at missing {which} {', '.join(rate_text(rate) for rate in rates)} ({patterns})"


def best_cells(values: list[list[float]], place: int = 0) -> set[tuple[int, int]]:
    """Positions of every column's best value (place 0) or second-best (place 1), shifted by the column of names."""
    found = set()
    for c in range(len(values[0]) if values else 0):
        column = [row[c] for row in values]
        ranked = sorted({v for v in column if not math.isnan(v)}, reverse=True)
        if len(ranked) > place:
            found |= {(r, c + 1) for r, v in enumerate(column) if v == ranked[place]}
    return found


def table_of(title: str, corner: str, rows: list[str], columns: list, cells: dict, notes: list[str]) -> Wide:
    """A wide table of means ± sd with the best of each column bold and the second underlined."""
    lines, values = [], []
    for row in rows:
        found = [cells.get((row, column)) for column in columns]
        lines.append([row, *("" if c is None else spread(c.value, c.sd, c.n) for c in found)])
        values.append([math.nan if c is None else c.value for c in found])
    heads = [corner, *(f"{c:g}" if isinstance(c, float) else str(c) for c in columns)]
    count = max((int(c.n) for c in cells.values()), default=0)
    return Wide(title, heads, lines, [*notes, f"n = {count} training seeds"], best_cells(values), best_cells(values, 1))


def rates_tables(cells: Cells, settings: list[str]) -> list[Wide]:
    """Fused accuracy against missing rate, of the settings that have every rate; no table for fewer than two rates."""
    rows, summary = cells.rows, cells.summary
    fused = summary[(summary["output"] == "fused") & summary["missing_rate"].notna()]
    rates = sorted(fused["missing_rate"].unique())
    if len(rates) < 2:
        return []
    by_rate = {(r.setting, r.missing_rate): r for r in fused.itertuples()}
    with_all = [s for s in settings if all((s, rate) in by_rate for rate in rates)]
    lines = [[s, *(spread(c.value, c.sd, c.n) for c in (by_rate[s, r] for r in rates))] for s in with_all]
    best = best_cells([[by_rate[s, r].value for r in rates] for s in with_all])
    masks = rows[rows["missing_rate"] > 0]["mask_seed"].nunique()
    note = f"each run's mean over {masks} mask seeds"
    if any("±" in cell for line in lines for cell in line):
        note += "; ± is the sd over training seeds"
    pattern = fused["missing_pattern"].iloc[0]
    columns = ["setting", *(f"{rate:g}" for rate in rates)]
    return [Wide(f"fused {CAPTION} against missing rate ({pattern})", columns, lines, [note], best)]


def difference(rows: pd.DataFrame, setting: str, full: str) -> str:
    """Mean and sd over seeds of (this setting - full method), fused, complete modalities, in points."""
    if setting == full:
        return ""
    fused = rows[(rows["output"] == "fused") & (rows["missing_rate"] == 0)]
    wide = fused.pivot_table(index="seed", columns="setting", values="value")
    if setting not in wide or full not in wide:
        return ""
    delta = 100 * (wide[setting] - wide[full]).dropna()
    if delta.empty:
        return ""
    return f"{delta.mean():+.1f}" + (f" ± {delta.std():.1f}" if len(delta) > 1 else "")


def left_out(ablation: Ablation) -> list[str]:
    """A note that names the settings of which no run finished; none where all did."""
    absent = [setting for setting, runs in ablation.runs_of.items() if not runs]
    return [f"left out, since no run of theirs finished: {', '.join(absent)}"] if absent else []
