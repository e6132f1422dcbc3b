"""`mla compare` and `mla diff` as tables: settings tested against the first one, two runs key by key."""

import json
import re

import pandas as pd

from mla_cli.engine.compare import Comparison
from mla_cli.engine.diff import Difference
from mla_cli.render import Wide, counted
from mla_cli.wide import CAPTION, Cells, about, best_cells, difference, rates_tables

KEYS_SHOWN = 6
NUMBERED = re.compile(r".+ \(\d+\)")  # a setting that is called by a number says nothing of its own
LONGEST_VALUE = 40  # characters of a value in a table; csv and json have all of it


def comparison_tables(found: Comparison) -> list[Wide]:
    """Accuracy alone and fused; how the settings differ from the first one; fused accuracy against missing rate."""
    cells, settings, first = Cells(found), list(found.runs_of), found.full
    lines = []
    for setting in settings:
        row = [setting, *(cells.text(setting, output) for output in cells.outputs)]
        lines.append([*row, difference(cells.rows, setting, first), str(cells.count(setting))])
    values = [[cells.value(setting, output) for output in cells.outputs] for setting in settings]
    columns = ["setting", *cells.outputs, f"fused - {first}", "seeds"]
    notes = [about(cells.rows)]
    if any("±" in cell for line in lines for cell in line):
        notes.append("± is the sd over training seeds; the difference is paired by seed")
    notes += [f"{s}: {', '.join(r.name for r in found.runs_of[s])}" for s in settings if NUMBERED.fullmatch(s)]
    notes += [*apart_notes(found), *untested_notes(found)]
    title = f"{CAPTION}: each modality alone, and fused"
    table = Wide(title, columns, lines, notes, best_cells(values), best_cells(values, place=1))
    return [table, *paired_tables(found.tests, first), *rates_tables(cells, settings)]


def paired_tables(tests: pd.DataFrame, first: str) -> list[Wide]:
    """The tests of every setting against the first one; no table where nothing was tested."""
    if tests.empty:
        return []
    exact = bool(tests["p_mcnemar"].notna().any())
    lines = []
    for row in tests.itertuples():
        bounds = "" if pd.isna(row.low) else f"{100 * row.low:+.1f} to {100 * row.high:+.1f}"
        line = [row.setting, f"{100 * row.difference:+.1f}", bounds, p_text(row.p), p_text(row.p_holm)]
        line += [str(row.better), str(row.worse)]
        line += [p_text(row.p_mcnemar), p_text(row.p_mcnemar_holm)] if exact else []
        lines.append([*line, str(row.seeds)])
    columns = ["setting", "difference", "95 %", "p", "p (Holm)", "better", "worse"]
    columns += ["McNemar p", "McNemar p (Holm)"] if exact else []
    samples, units = int(tests["num_samples"].iloc[0]), int(tests["units"].iloc[0])
    over = f"{samples} test items" if units == samples else f"{samples} test items in {units} groups"
    notes = [
        f"difference in points, 95 % and p: paired bootstrap over {over}, of these seeds' mean, not of others",
        f"better, worse: items that more, fewer seeds get right; Holm over {counted(len(tests), 'row')}",
    ]
    if not exact:
        notes.append("McNemar's test takes items as independent: not valid where they come in groups")
    if tests["p"].isna().any():
        notes.append(f"no p and no interval: {units} {'items' if units == samples else 'groups'} are fewer than 10")
    return [Wide(f"fused, against {first}, on the same test items", [*columns, "seeds"], lines, notes)]


def p_text(value: float) -> str:
    """Three decimals, and no p of exactly 0; empty where nothing was tested."""
    return "" if pd.isna(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def untested_notes(found: Comparison) -> list[str]:
    """Which settings are not tested, and why."""
    if found.split != "test":
        return [f"{found.split} chooses, test reports: no tests of differences here"]
    absent = [s for s in found.runs_of if s != found.full and s not in set(found.tests["setting"])]
    return [f"not tested, no seed or other items in common with {found.full}: {', '.join(absent)}"] if absent else []


def apart_notes(found: Comparison) -> list[str]:
    """In what the settings differ besides their methods, and what an ablation left unfinished."""
    keys, notes = found.differing, []
    if keys:
        more = f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
        notes.append(f"apart from the method they differ in {', '.join(keys[:KEYS_SHOWN])}{more}")
    numbered = [name for name in found.runs_of if name.endswith(")")]  # too many keys to be called after them
    notes += [f"{name}: {', '.join(run.name for run in found.runs_of[name])}" for name in numbered]
    if found.left_out:
        notes.append(f"left out, not finished: {', '.join(found.left_out)}")
    return notes


# ---------------------------------------------------------------- two runs


def difference_table(found: Difference) -> Wide:
    """One line for each key that differs; what is identical, in a note."""
    names = [found.one.name, found.other.name]
    if names[0] == names[1]:  # copies in two folders
        names = [str(found.one.path), str(found.other.path)]
    if found.rows.empty:
        return Wide(
            f"{names[0]} and {names[1]}: identical", ["part", "runs"], [[p, "identical"] for p in found.identical]
        )
    lines = []
    for row in found.rows.itertuples():
        cells = [value_text(row.one, row.key), value_text(row.other, row.key)]
        if not pd.isna(row.difference):
            cells[1] += f" ({value_text(row.difference, row.key, sign='+')})"
        lines.append([row.part, f"{row.key} %" if in_percent(row.key) else row.key, *cells])
    notes = [f"identical: {', '.join(found.identical)}"] if found.identical else []
    return Wide(f"{names[0]} against {names[1]}", ["part", "key", *names], lines, notes)


def in_percent(key: str) -> bool:
    """Whether a result is a share that tables show in percent."""
    return key.partition(" ")[2].startswith(("accuracy ", "macro_f1 "))


def value_text(value: object, key: str, sign: str = "") -> str:
    """A metric rounded as in other tables; any other value as JSON, long ones shortened in the middle."""
    if isinstance(value, float) and " " in key:
        return f"{100 * value:{sign}.1f}" if in_percent(key) else f"{value:{sign}.4f}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE // 2]}…{text[-LONGEST_VALUE // 2 :]}"
