"""What `mla eval` shows: each modality alone, the fused output, and recall per class, made from the tidy rows alone."""

import pandas as pd

from mla_cli.core.intervals import FEWEST_UNITS
from mla_cli.engine import results
from mla_cli.engine.scores import METRICS, PLAIN
from mla_cli.render import Wide, counted, percent, spread
from mla_cli.wide import about

HEADS = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "nll": "NLL",
    "brier": "Brier",
    "ece": "ECE",
    "aurc": "AURC",
    "map": "mAP",
    "entropy_choice": "entropy choice",
    "oracle_gap": "oracle gap",
}
WIDEST = 3  # metrics side by side; more stand below each other
MOST_OUTPUTS = 4  # side by side in that case; of more, every number has a line
CONDITION = ["fusion", "temperature", "missing_pattern", "missing_rate"]


def eval_tables(rows: pd.DataFrame) -> list[Wide]:
    """Each modality alone; the fused output by fusion rule, pattern and missing rate; recall where it was asked for."""
    means = results.over_mask_seeds(rows)
    means["area"] = means["metric"].str.startswith("area_")
    means["metric"] = means["metric"].str.removeprefix("area_")
    recall = means["metric"].str.startswith("recall.")
    names = [name for name in METRICS if (means["metric"] == name).any()]
    unit = "" if any(name in PLAIN for name in names) else ", %"
    run, tables = rows.iloc[0]["run"], []
    alone, fused = means[(means["output"] != "fused") & ~recall], means[(means["output"] == "fused") & ~recall]
    if len(alone):
        title = f"{run}: each modality alone ({alone.iloc[0]['alone_readout']}){unit}"
        tables.append(alone_table(title, alone, names))
    if len(fused):
        tables.append(fused_table(f"{run}: fused{unit}", fused, names))
    if recall.any():
        tables.append(recall_table(f"{run}: recall per class, %", means[recall & ~means["area"]]))
    tables[-1].notes += notes_of(rows)
    return tables


def alone_table(title: str, means: pd.DataFrame, names: list[str]) -> Wide:
    """A line per modality and a column per metric; with many metrics the other way round, if that is not too wide."""
    names = [name for name in names if (means["metric"] == name).any()]
    found = conditions(means, ["output", "temperature"])
    labels = [at_temperature(first["output"], first) for first, _ in found]
    cells = [[cell(part.get(name)) for name in names] for _, part in found]
    heads = [heading(name, names) for name in names]
    if len(names) <= WIDEST:
        return Wide(title, ["modality", *heads], [[label, *line] for label, line in zip(labels, cells, strict=True)])
    if len(labels) > MOST_OUTPUTS:
        lines = [
            [label, *pair] for label, line in zip(labels, cells, strict=True) for pair in zip(heads, line, strict=True)
        ]
        return Wide(title, ["modality", "metric", "value"], lines)
    turned = [[head, *line] for head, line in zip(heads, zip(*cells, strict=True), strict=True)]
    return Wide(title, ["metric", *labels], turned)


def fused_table(title: str, means: pd.DataFrame, names: list[str]) -> Wide:
    """A line per fusion rule, temperature, pattern and missing rate; columns that would say nothing are left out."""
    wide = len(names) <= WIDEST
    lines = []
    for first, part in conditions(means, [*CONDITION, "area"]):
        realised = "" if pd.isna(first["realised_rate"]) else f"{first['realised_rate']:.3f}"
        if not pd.isna(first["expected_rate"]):
            realised += f" (expected {first['expected_rate']:.3f})"
        rule, seeds = at_temperature(first["fusion"], first), str(int(first["n"]))
        begin = [rule, str(first["missing_pattern"]), rate_of(first), realised]
        if wide:
            lines.append([*begin, *(cell(part.get(name)) for name in names), seeds])
        else:
            lines += [[*begin, heading(name, names), cell(part[name]), seeds] for name in names if name in part]
    values = [heading(name, names) for name in names] if wide else ["metric", "value"]
    columns = ["fusion", "pattern", "missing rate", "realised", *values, "mask seeds"]
    if (means["missing_rate"] == 0).all() and means["missing_pattern"].nunique() == 1:  # nothing was taken away
        keep = [i for i, column in enumerate(columns) if column not in ("pattern", "realised", "mask seeds")]
        columns, lines = [columns[i] for i in keep], [[line[i] for i in keep] for line in lines]
    return Wide(title, columns, lines)


def recall_table(title: str, means: pd.DataFrame) -> Wide:
    """A line per class and a column per output; where the fused output has many conditions a line for each of them."""
    found = conditions(means, ["output", *CONDITION])
    classes = list(dict.fromkeys(means["metric"]))
    names = {name: name.removeprefix("recall.") for name in classes}
    if sum(first["output"] == "fused" for first, _ in found) > 1:
        lines = []
        for first, part in found:
            pattern = "" if pd.isna(first["missing_pattern"]) else str(first["missing_pattern"])
            rule = first["fusion"] if first["output"] == "fused" else first["output"]
            where = [at_temperature(rule, first), pattern, rate_of(first)]
            lines += [[*where, names[m], sample_count([part[m]]), cell(part[m])] for m in classes if m in part]
        return Wide(title, ["output", "pattern", "missing rate", "class", "n", "recall"], lines)
    heads = [at_temperature(first["output"], first) for first, _ in found]
    lines = [
        [names[m], sample_count([part[m] for _, part in found if m in part]), *(cell(part.get(m)) for _, part in found)]
        for m in classes
    ]
    return Wide(title, ["class", "n", *heads], lines)


# ---------------------------------------------------------------- cells


def conditions(means: pd.DataFrame, keys: list[str]) -> list[tuple[pd.Series, dict[str, pd.Series]]]:
    """For every condition its first row, and its rows by metric."""
    return [
        (part.iloc[0], {row["metric"]: row for _, row in part.iterrows()})
        for _, part in means.groupby(keys, dropna=False, sort=False)
    ]


def at_temperature(label: str, row: pd.Series) -> str:
    return label if pd.isna(row["temperature"]) else f"{label} @ T = {row['temperature']:.3f}"


def rate_of(row: pd.Series) -> str:
    rate = row["missing_rate"]
    shown = "" if pd.isna(rate) else f"{rate:g}" if isinstance(rate, float) else str(rate)
    return f"area {shown}" if row["area"] else shown


def heading(name: str, names: list[str]) -> str:
    """A metric's name; with `%` where others beside it are no shares."""
    mixed = any(other in PLAIN for other in names)
    return HEADS[name] + (" (%)" if mixed and name not in PLAIN else "")


def cell(row: pd.Series | None) -> str:
    """`62.8 ± 1.9` over mask seeds, `62.8 [57.1, 68.0]` with an interval; plain numbers with three decimals."""
    if row is None:
        return ""
    value, sd, low, high = row["value"], row["sd"], row["low"], row["high"]
    if row["metric"] in PLAIN:
        text = plain(value) + ("" if pd.isna(sd) else f" ± {plain(sd)}")
        return text if pd.isna(low) else f"{text} [{plain(low)}, {plain(high)}]"
    text = spread(value, sd, int(row["n"]))
    return text if pd.isna(low) else f"{text} [{percent(low)}, {percent(high)}]"


def plain(value: float) -> str:
    """Three decimals; a huge one, of logits beyond reason, as a power.

    >>> plain(2.30259), plain(1e38)
    ('2.303', '1.000e+38')
    """
    return f"{value:.3f}" if abs(value) < 1e6 else f"{value:.3e}"


def sample_count(found: list[pd.Series]) -> str:
    """`31`, or `28..31` where outputs are over other samples."""
    counts = sorted({round(row["num_samples"]) for row in found})
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}..{counts[-1]}"


# ---------------------------------------------------------------- notes


def notes_of(rows: pd.DataFrame) -> list[str]:
    """What the numbers rest on: samples, spread, intervals, metrics over fewer samples, natural absence."""
    fewer = rows["metric"].str.contains(r"^(?:area_)?(?:recall\.|entropy_choice)")
    notes = [about(rows[~fewer] if not fewer.all() else rows)]
    if rows["mask_seed"].nunique() > 1:
        notes.append("± is the sd over mask seeds of one training run")
    notes += interval_notes(rows)
    chosen = rows[rows["metric"] == "entropy_choice"]["num_samples"]
    if len(chosen):
        count = f"{chosen.min():g}" if chosen.nunique() == 1 else f"{chosen.min():g} to {chosen.max():g}"
        notes.append(
            f"entropy choice: how often the surest modality is right, n = {count} of which exactly one is right"
        )
    if (rows["metric"] == "oracle_gap").any():
        notes.append("oracle gap: what choosing the right modality every time would add to the fused accuracy")
    if rows["temperature"].notna().any():
        notes.append("T: fitted on val, complete data; a modality's before fusion, the fused output's after it")
    if (natural := rows["natural_absence"].max()) > 0:
        notes.append(f"absent by nature, apart from the rates: {100 * natural:.1f} % of the split's entries")
    return notes


def interval_notes(rows: pd.DataFrame) -> list[str]:
    """What the intervals are, or why there are none."""
    bounded = rows[rows["low"].notna()]
    whole = rows[rows["mask_seed"].isna() & ~rows["metric"].str.startswith("area_")]
    if not len(bounded):
        groups = int(whole["num_groups"].max()) if len(whole) else 0
        few = 0 < groups < FEWEST_UNITS
        return [f"no 95 % interval: {counted(groups, 'group')}, fewer than {FEWEST_UNITS}"] if few else []
    groups, split = int(bounded["num_groups"].max()), bounded.iloc[0]["split"]
    what = f"{counted(groups, 'group')} of {split} items" if groups else f"{split} items"
    notes = [f"[low, high]: 95 % interval, bootstrap over {what}; it says nothing about other training seeds"]
    if (whole["metric"] == "ece").any():
        notes.append("ECE has no interval: resampling inflates it")
    if (whole["low"].isna() & (whole["metric"] != "ece")).any():
        notes.append(
            f"no interval where resamples agree, fewer than {FEWEST_UNITS} units count, or mAP would take minutes"
        )
    return notes
