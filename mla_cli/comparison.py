"""`mla compare` and `mla diff` as tables: settings tested against the first one, two runs key by key."""

import json

import pandas as pd

from mla_cli.engine.compare import Comparison
from mla_cli.engine.diff import Difference
from mla_cli.render import Wide
from mla_cli.wide import CAPTION, Cells, about, best_cells, difference, rates_tables

NOT_SHOWN = ("setting", "difference", "num_samples", "units", "seeds")  # columns of the tests that stand elsewhere
HEADS = {"p_holm": "p (Holm)"}
KEYS_SHOWN = 6
LONGEST_VALUE = 60  # characters of a value in a table; csv and json have all of it


def comparison_tables(found: Comparison) -> list[Wide]:
    """Accuracy alone and fused with the difference to the first setting and its p; fused accuracy by missing rate."""
    cells, settings, first = Cells(found), list(found.runs_of), found.full
    tests = found.tests.set_index("setting")
    shown = [column for column in tests.columns if column not in NOT_SHOWN]
    lines = []
    for setting in settings:
        row = [setting, *(cells.text(setting, output) for output in cells.outputs)]
        row.append(difference(cells.rows, setting, first))
        row += [test_text(tests.loc[setting, column], column) if setting in tests.index else "" for column in shown]
        lines.append([*row, str(cells.count(setting))])
    values = [[cells.value(setting, output) for output in cells.outputs] for setting in settings]
    heads = [HEADS.get(column, column.replace("_", " ")) for column in shown]
    columns = ["setting", *cells.outputs, f"fused - {first}", *heads, "seeds"]
    notes = [about(cells.rows), *spread_notes(lines), *test_notes(found), *apart_notes(found)]
    title = f"{CAPTION}: each modality alone, and fused"
    table = Wide(title, columns, lines, notes, best_cells(values), best_cells(values, place=1))
    return [table, *rates_tables(cells, settings)]


def test_text(value: float, column: str) -> str:
    """A p with three decimals, and none of exactly 0; other columns of the tests as they are."""
    if pd.isna(value):
        return ""
    if "p" not in column.split("_"):
        return f"{value:g}"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def spread_notes(lines: list[list[str]]) -> list[str]:
    """What the ± mean, where there are any."""
    some = any("±" in cell for line in lines for cell in line)
    return ["± is the sd over training seeds; the difference is paired by seed"] if some else []


def test_notes(found: Comparison) -> list[str]:
    """What the p say, and which settings have none."""
    if found.split != "test":
        return [f"{found.split} chooses, test reports: no tests of differences here"]
    tests, first = found.tests, found.full
    notes = []
    tested = tests[tests["p"].notna()] if "p" in tests else tests
    if len(tested):
        samples, units = int(tested["num_samples"].iloc[0]), int(tested["units"].iloc[0])
        what = f"{samples} test items" + (f" in {units} groups" if units < samples else "")
        notes.append(
            f"p: {first} against each of the others on the same items, fused; paired bootstrap over {what}, of these "
            f"seeds' mean (no claim about other seeds); Holm over {len(tested)}"
        )
    for row in tests[~tests.index.isin(tested.index)].itertuples():
        notes.append(f"{row.setting}: not tested, {int(row.units)} groups or items are fewer than 10")
    absent = [s for s in found.runs_of if s != first and s not in set(tests["setting"])]
    if absent:
        notes.append(f"not tested, no seed or other items in common with {first}: {', '.join(absent)}")
    return notes


def apart_notes(found: Comparison) -> list[str]:
    """In what the settings differ besides their methods, and what an ablation left unfinished."""
    keys, notes = found.differing, []
    if keys:
        more = f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
        notes.append(f"apart from the method they differ in {', '.join(keys[:KEYS_SHOWN])}{more}")
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
