"""The sections of a report about an ablation: the tables of the terminal, and figures over its runs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from mla_cli.core import metrics
from mla_cli.engine import score_figures as scores
from mla_cli.engine.figures import missing_figures, missing_rate_curves
from mla_cli.engine.history import history_rows
from mla_cli.engine.history_figures import validated_on
from mla_cli.engine.report import GridFacts, fused_scores
from mla_cli.render import Wide, percent, spread
from mla_cli.report import words
from mla_cli.report.closing import command_line
from mla_cli.report.tags import At, bullets, code, figure, paragraph, section, table, tiles
from mla_cli.tables import ablation_tables
from mla_cli.wide import Cells

CAPTIONS = {
    "missing_rate": "Fused test accuracy when entries are taken away at test time, mean over seeds; bands are one sd.",
    "train_test_rates": "Fused accuracy for every missing rate in training (rows) and at test time (columns).",
    "subsets": "Fused accuracy when only some of the modalities are given; whiskers are one sd over seeds.",
}


Section = Callable[[GridFacts, Path, At], str]


def summary(g: GridFacts, folder: Path, at: At) -> str:
    a = g.ablation
    cells = Cells(a)
    shown = []
    for output in ["fused", *(o for o in cells.outputs if o != "fused")]:
        if (a.full, output) in cells.found:
            value, sd, count = cells.found[a.full, output]
            shown.append((f"{a.full}: {output}", f"{percent(value)} %", f"mean of {count} seeds" + sd_text(sd)))
    selected = sorted(set(a.rows["selected_on"]))
    chosen = "; ".join(words.who_chose_the_epoch(s, 0, 0) for s in selected)
    return section(
        at,
        "summary",
        "Summary",
        tiles(shown),
        paragraph(words.what_the_grid_was(a, g.seeds)),
        paragraph(chosen),
        paragraph("What came out:"),
        bullets(words.what_the_grid_found(a)),
        paragraph("What these numbers do not show:"),
        bullets(words.not_shown_by_a_grid(a, g.seeds)),
    )


def sd_text(sd: float) -> str:
    return "" if np.isnan(sd) else f", sd {100 * sd:.1f}"


def result_tables(g: GridFacts, folder: Path, at: At) -> str:
    a = g.ablation
    parts = [table(at, f"results-{i}", wide) for i, wide in enumerate(ablation_tables(a), 1)]
    cells = Cells(a)
    means = [f"{s} {percent(cells.value(s, 'fused'))} %" for s in a.labels if (s, "fused") in cells.found]
    caption = "Every run: a dot is the test accuracy of one training seed, the bar their mean; nothing missing."
    alt = f"Test accuracy of every run by setting. Fused means: {'; '.join(means)}."
    parts.insert(1, figure(scores.seeds_figure(a.rows, folder), alt, caption))
    what = [[name, text] for name, text in a.labels.items()]
    parts.append(
        table(at, "results-settings", Wide("What each setting is", ["setting", "method, budget, selection"], what))
    )
    return section(at, "results", "Results", *parts)


def missing(g: GridFacts, folder: Path, at: At) -> str:
    a = g.ablation
    draw = missing_figures if a.grid == "missing" else missing_rate_curves
    by_name: dict[str, list[Path]] = {}
    for file in draw(a.rows, folder):
        by_name.setdefault(file.stem, []).append(file)
    if not by_name:
        return ""
    fused = a.rows[(a.rows["output"] == "fused") & (a.rows["metric"] == "accuracy")]
    fused = fused.assign(rate=pd.to_numeric(fused["missing_rate"], errors="coerce"))
    least, most = fused["rate"].min(), fused["rate"].max()
    means = fused.groupby(["setting", "rate"], sort=False)["value"].mean()
    ends = [
        f"{setting} {percent(means[setting, least])} to {percent(means[setting, most])} %"
        for setting in a.labels
        if (setting, least) in means and (setting, most) in means
    ]
    alt = f"From a missing rate of {least:g} to {most:g}, fused accuracy: {'; '.join(ends)}."
    seeds = ", ".join(map(str, g.mask_seeds))
    parts = [figure(files, f"{CAPTIONS[name]} {alt}", CAPTIONS[name]) for name, files in by_name.items()]
    parts.append(paragraph(f"Drawn again from the stored predictions with the mask seeds {seeds}."))
    return section(at, "missing", "Missing modalities", *parts)


def learning(g: GridFacts, folder: Path, at: At) -> str:
    a = g.ablation
    curves: dict[str, pd.DataFrame] = {}
    seen: dict[tuple[str, ...], str] = {}
    for setting, runs in a.runs_of.items():
        names = tuple(run.name for run in runs)
        if names and names not in seen and all(run.history() for run in runs):
            seen[names] = setting
            curves[setting] = pd.concat([history_rows(run) for run in runs], ignore_index=True)
    if not curves:
        return ""
    split = validated_on(next(iter(curves.values())))
    caption = (
        f"Accuracy on {split} over the epochs, mean over seeds, each modality alone and fused. Settings that differ "
        "only at test time share a line, under the first one's name."
    )
    ends = []
    for setting, rows in curves.items():
        fused = rows[(rows["diagnostic"] == f"{split}_accuracy") & (rows["of"] == "fused")]
        ends.append(f"{setting} {percent(fused[fused['epoch'] == fused['epoch'].max()]['value'].mean())} %")
    alt = f"Learning curves by setting. Fused {split} accuracy after the last epoch: {'; '.join(ends)}."
    drawing = figure(scores.learning_by_setting(curves, split, folder), alt, caption)
    return section(at, "learning", "Learning curves", drawing)


def probabilities(g: GridFacts, folder: Path, at: At) -> str:
    """Calibration of the fused output by setting."""
    functions: dict[str, tuple[Callable[..., float], Callable[[float, float, int], str]]] = {
        "NLL": (metrics.nll, plain),
        "Brier": (metrics.brier, plain),
        "ECE %": (metrics.ece, spread),
        "AURC %": (metrics.aurc, spread),
    }
    lines = []
    for setting, runs in g.ablation.runs_of.items():
        if runs:
            found = [fused_scores(run, g.rules[setting]) for run in runs]
            values = {name: np.array([function(*f) for f in found]) for name, (function, _) in functions.items()}
            cells = [shown(*mean_sd(values[name])) for name, (_, shown) in functions.items()]
            lines.append([setting, *cells, str(len(runs))])
    notes = [
        "fused output, nothing missing; NLL in nats; ECE: 15 bins of equal mass; AURC: area under the risk-coverage "
        "curve; all: lower is better; ± is the sd over training seeds"
    ]
    wide = Wide("Probabilities of the fused output on test", ["setting", *functions, "seeds"], lines, notes)
    return section(at, "probabilities", "Can the confidence be trusted?", table(at, "probabilities-table", wide))


def mean_sd(values: np.ndarray) -> tuple[float, float, int]:
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else float("nan"), len(values)


def plain(value: float, sd: float, count: int) -> str:
    """As `spread`, for what is no share."""
    return f"{value:.3f}" if count < 2 else f"{value:.3f} ± {sd:.3f}"


def runs_table(g: GridFacts, folder: Path, at: At) -> str:
    a = g.ablation
    settings: dict[str, list[str]] = {}
    for setting, runs in a.runs_of.items():
        for run in runs:
            settings.setdefault(run.name, []).append(setting)
    lines = []
    for run in a.runs:
        info = run.info()
        warned = str(len(info.get("warnings", [])) or "")
        lines.append([run.name, "; ".join(settings.get(run.name, [])), str(info.get("checkpoint", "")), warned])
    lines += [[name, "", "failed", ""] for name in a.failed]
    notes = [f"each has a report of its own: mla report {a.path.parent}/RUN"]
    wide = Wide("Runs of the ablation", ["run", "settings", "weights scored", "warnings"], lines, notes)
    return section(at, "runs", "Runs", table(at, "runs-table", wide))


def repeat(g: GridFacts, folder: Path, at: At) -> str:
    return section(
        at,
        "repeat-all",
        "How to repeat the ablation",
        paragraph("As it was typed; finished runs are reused, and the tables and figures are made again:"),
        code(command_line(g.command), "command that repeats the ablation"),
    )


SECTIONS: tuple[Section, ...] = (summary, result_tables, missing, learning, probabilities, runs_table, repeat)
