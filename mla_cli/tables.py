"""Tidy rows -> wide tables: what `mla train`, `mla eval` and `mla ablate` show, made from the rows alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd

from mla_cli import registry
from mla_cli.engine import results
from mla_cli.engine.figures import missing_figures, missing_rate_curves
from mla_cli.engine.numbers import counted, duration
from mla_cli.engine.run import Run
from mla_cli.evaluation import eval_tables
from mla_cli.files import write_text
from mla_cli.matrix import missing_tables
from mla_cli.render import Wide, markdown, percent, print_lines, print_tidy, print_wide, say
from mla_cli.standings import hgm_tables, table1_tables, table3_tables
from mla_cli.wide import CAPTION, Cells, about, best_cells, difference, left_out, rates_tables

if TYPE_CHECKING:
    from mla_cli.engine.ablate import Ablation
    from mla_cli.engine.inspection import Inspection
    from mla_cli.engine.prepare import Prepared

PRESET_TABLES: dict[str, Callable[[Ablation], list[Wide]]] = {
    "missing": missing_tables,
    "table1": table1_tables,
    "table3": table3_tables,
    "hgm": hgm_tables,
}


def run_table(rows: pd.DataFrame) -> Wide:
    """A run's own results: every output on val and test."""
    outputs = list(dict.fromkeys(rows["output"]))
    splits = list(dict.fromkeys(rows["split"]))
    cells = rows.set_index(["output", "split", "metric"])["value"]
    table = [
        [output, *(percent(cells.get((output, s, m), math.nan)) for s in splits for m in ("accuracy", "macro_f1"))]
        for output in outputs
    ]
    columns = ["output", *(f"{s} {m}" for s in splits for m in ("accuracy", "macro-F1"))]
    test = rows[rows["split"] == splits[-1]]
    return Wide(f"{rows.iloc[0]['run']} (%)", columns, table, [about(test)])


def ablation_tables(ablation: Ablation) -> list[Wide]:
    """(1) accuracy alone and fused with the difference to the full method, (2) fused accuracy against missing rate."""
    if ablation.smoke:
        lines = [[name, what] for name, what in ablation.labels.items()]
        return [Wide("smoke run: every setting ran; its numbers are no results", ["setting", "what ran"], lines)]
    if ablation.grid in PRESET_TABLES:
        return PRESET_TABLES[ablation.grid](ablation)
    cells, settings = Cells(ablation), list(ablation.labels)
    rows = cells.rows
    lines = [
        [s, *(cells.text(s, o) for o in cells.outputs), difference(rows, s, ablation.full), str(cells.count(s))]
        for s in settings
    ]
    best = best_cells([[cells.value(s, o) for o in cells.outputs] for s in settings])
    columns = ["setting", *cells.outputs, f"fused - {ablation.full}", "seeds"]
    notes = [about(rows), "± is the sd over training seeds; the difference is paired by seed", *left_out(ablation)]
    tables = [Wide(f"{CAPTION}: each modality alone, and fused", columns, lines, notes, best)]
    tables += rates_tables(cells, settings)
    return tables


# ---------------------------------------------------------------- printing and writing


def print_tables(tables: list[Wide], rows: pd.DataFrame, style: str) -> None:
    """Print wide tables, or the tidy rows they are made of."""
    if style in ("csv", "json"):
        print_tidy(rows, style)
        return
    for i, table in enumerate(tables):
        if i:
            print_lines([""])  # Markdown would read the next title as a row
        print_wide(table, style)


def print_run(run: Run, style: str) -> None:
    """A finished run's own results."""
    rows = results.read_csv(run.whole("results.csv"))
    print_tables([run_table(rows)], rows, style)


def write_markdown(run: Run) -> None:
    """`results.md` of a run, rendered from its `results.csv`."""
    rows = results.read_csv(run.whole("results.csv"))
    write_text(run.path / "results.md", markdown(run_table(rows)) + "\n")
    run.seal("results.md")


def print_eval(rows: pd.DataFrame, style: str) -> None:
    """What `mla eval` shows."""
    print_tables(eval_tables(rows), rows, style)


def write_ablation(ablation: Ablation) -> None:
    """`results.md` and the figures of an ablation, and `results.md` of its runs."""
    text = "\n\n".join(markdown(table) for table in ablation_tables(ablation))
    write_text(ablation.path / "results.md", text + "\n")
    for run in ablation.runs:
        write_markdown(run)
    if not ablation.smoke:
        draw = missing_figures if ablation.grid == "missing" else missing_rate_curves
        draw(ablation.rows, ablation.path)


def print_ablation(ablation: Ablation, style: str, quiet: bool = False) -> None:
    """What `mla ablate` shows."""
    print_tables(ablation_tables(ablation), ablation.rows[list(results.COLUMNS)].drop_duplicates(), style)
    files = ", ".join(sorted(file.name for file in ablation.path.iterdir()))
    say(f"written to {ablation.path}: {files}", quiet)
    if ablation.failed:
        say(f"warning: {len(ablation.failed)} runs failed: {', '.join(ablation.failed)}")


def prepared_lines(done: Prepared, splits: dict[str, Any]) -> list[str]:
    """What `mla prepare` says at the end."""
    counts = ", ".join(f"{m} {n}" for m, n in done.counts.items() if m != "samples")
    state = "prepared" if done.built else "is prepared already, nothing to do:"
    lines = [f"{done.dataset} {state} {done.path}: {done.counts['samples']} samples ({counts})"]
    if done.problems:
        lines.append(f"{counted(len(done.problems), 'problem')}, with file and reason: {done.path / 'problems.csv'}")
    sizes = ", ".join(f"{split} {n}" for split, n in splits["splits"].items())
    lines.append(f"protocol {splits['protocol']}: {sizes}")
    if splits["pair_seed"] is not None:
        for split in ("val", "test"):
            distinct = ", ".join(f"{n} {m}" for m, n in splits["distinct"][split].items())
            lines.append(f"{split} pairs are drawn by class (pair_seed {splits['pair_seed']}), distinct: {distinct}")
    lines += splits["lines"]
    if done.attribution:
        lines += ["", *done.attribution.strip().split("\n")]
    return lines


def inspection_lines(report: Inspection) -> list[str]:
    """What `mla prepare --check` and `--dry-run` say."""
    lines = [f"{report.dataset}: {report.samples} samples under {report.root}"]
    for m, count in report.present.items():
        lines.append(f"  {m}: {count} present, {report.shapes[m]} each, {report.bytes_of[m] / 1e6:.1f} MB in the store")
    lines.append("  classes: " + ", ".join(f"{name} {count}" for name, count in report.classes.items()))
    if report.checked:
        lines.append(f"{len(report.problems)} problems")
    else:
        lines += planned_lines(report)
    kinds = pd.Series([p.kind for p in report.problems], dtype=object).value_counts()
    for kind in sorted(kinds.index):
        lines.append(f"{kind}: {kinds[kind]}")
        lines += [f"  {p.id} {p.modality} {p.file}: {p.reason}" for p in report.problems if p.kind == kind]
    return lines


def planned_lines(report: Inspection) -> list[str]:
    """Where, how much and how long, for `--dry-run`."""
    size = sum(report.bytes_of.values())
    lines = [f"would be built at {report.store}: {size / 1e6:.1f} MB, {report.free / 1e6:,.0f} MB are free"]
    known = {m: seconds for m, seconds in report.seconds_of.items() if seconds is not None}
    if known:
        each = ", ".join(f"{m} {1000 * seconds:.1f} ms" for m, seconds in known.items())
        whole = sum(report.present[m] * seconds for m, seconds in known.items()) / report.workers
        workers = counted(report.workers, "worker")
        lines.append(f"estimated time: {duration(whole)} with {workers}, and some seconds to start ({each} a sample)")
    return lines


def registry_lines() -> list[str]:
    """What `mla recipes` lists."""
    lines = ["data sets (mla prepare NAME):"]
    for name in registry.names("datasets"):
        module = registry.load("datasets", name)
        modalities = ", ".join(f"{m} ({kind})" for m, kind in module.MODALITIES.items()) or "columns of your table"
        built_in = " [built in]" if getattr(module, "BUILT_IN", False) else ""
        lines.append(f"  {name:<16} {module.TITLE}{built_in}: {modalities}; protocols {', '.join(module.PROTOCOLS)}")
    lines.append("recipes (mla train --recipe NAME):")
    for name, path in registry.recipe_paths().items():
        lines.append(f"  {name:<16} {first_comment(path.read_text('utf-8'))}")
    for folder, title in (("methods", "methods (--method NAME)"), ("encoders", "encoders (encoders.<modality>.name)")):
        lines.append(f"{title}:")
        for name in registry.names(folder):
            own = registry.options(folder, name).items()
            # token_count comes from the text features, never from a recipe
            keys = ", ".join(f"{key}={default!r}" for key, (_, default) in own if key != "token_count")
            lines.append(f"  {name:<16} {registry.summary(folder, name)}" + (f" Keys: {keys}" if keys else ""))
    return lines


def first_comment(text: str) -> str:
    """A recipe's first comment line, without the word that leads to the next one."""
    first = next((line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("#")), "")
    return first.removesuffix(" Run:")
