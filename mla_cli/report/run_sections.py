"""The sections of a report about one run. Each is a function of the run's facts, the figures' folder and a level."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from mla_cli.core import metrics
from mla_cli.core.fusion import NEIGHBOUR_WARNING
from mla_cli.engine import results
from mla_cli.engine import score_figures as scores
from mla_cli.engine.figure_style import UNDRAWN, all_drawn
from mla_cli.engine.figures import subset_bars
from mla_cli.engine.report import MASK_SEEDS, SPLIT, RunFacts
from mla_cli.engine.scores import DEFAULT
from mla_cli.evaluation import cell, eval_tables, heading, notes_of
from mla_cli.render import Wide, counted, percent, spread
from mla_cli.report import words
from mla_cli.report.tags import At, beside, bullets, figure, paragraph, section, table, tiles
from mla_cli.tables import run_table

Section = Callable[[RunFacts, Path, At], str]
MOST_PAIRS = 12  # of confused classes
METRIC_NOTES = (
    "lower is better: NLL (nats), Brier, ECE (calibration error, 15 bins of equal mass), AURC (area under the "
    "risk-coverage curve); mAP: mean average precision, one class against the rest",
)
PAIR_NOTE = "share: of the true class' test samples"
DRAWN = f"{UNDRAWN} stands for a character that the figure's font lacks; the tables have the names."


def summary(f: RunFacts, folder: Path, at: At) -> str:
    found = {output: metrics.accuracy(*values) for output, values in f.scores.items()}
    order = ["fused", *(m for m in found if m != "fused")] if len(found) > 2 else list(found)[:1]
    key = [
        (o if o == "fused" else f"{o} alone", f"{percent(found[o])} %", f"test accuracy, n = {len(f.scores[o][1])}")
        for o in order
    ]
    curve = words.rate_curve(f.rows)
    if len(curve) > 1:
        last = curve.iloc[-1]
        note = f"fused test accuracy, mean over {int(last.n)} mask seeds"
        key.append((f"missing rate {last.missing_rate:g}", f"{percent(last.value)} %", note))
    epochs = len(set(f.history["epoch"])) if f.history is not None else 0
    return section(
        at,
        "summary",
        "Summary",
        tiles(key),
        paragraph(words.what_was_run(f)),
        paragraph(words.who_chose_the_epoch(f.rows.iloc[0]["selected_on"], f.chosen, epochs)),
        paragraph("What came out:"),
        bullets(words.what_came_out(f)),
        paragraph("What these numbers do not show:"),
        bullets(words.not_shown_by_a_run(f)),
        paragraph("Left out here:") if f.notes else "",
        bullets(f.notes),
    )


def result_tables(f: RunFacts, folder: Path, at: At) -> str:
    complete = f.rows[f.rows["missing_rate"] == 0]
    own = run_table(complete[complete["metric"].isin(DEFAULT)])
    own.title = f"{f.run.name}: accuracy and macro-F1 in %, nothing missing"
    scores_table = table(at, "results-metrics", metrics_table(complete[complete["split"] == SPLIT]))
    return section(at, "results", "Results", table(at, "results-own", own), scores_table)


def metrics_table(complete: pd.DataFrame) -> Wide:
    """A line per metric and a column per output, with intervals. complete: test rows with nothing missing.

    Recall by class is left out: it stands beside the confusion matrix.
    """
    rows = results.over_mask_seeds(complete[~complete["metric"].str.startswith("recall.")])
    outputs, names = list(dict.fromkeys(rows["output"])), list(dict.fromkeys(rows["metric"]))
    found = {(row["output"], row["metric"]): row for _, row in rows.iterrows()}
    lines = [[heading(name, names), *(cell(found.get((output, name))) for output in outputs)] for name in names]
    notes = [*notes_of(complete[~complete["metric"].str.startswith("recall.")]), *METRIC_NOTES]
    return Wide("All metrics on test, nothing missing", ["metric", *outputs], lines, notes)


def missing(f: RunFacts, folder: Path, at: At) -> str:
    if len(f.modalities) < 2:
        return ""
    test = f.rows[f.rows["split"] == SPLIT]
    curve = words.rate_curve(f.rows)
    parts = []
    if len(curve) > 1:
        first, last = curve.iloc[0], curve.iloc[-1]
        seeds = f"{MASK_SEEDS[0]} to {MASK_SEEDS[-1]}"
        alt = (
            f"Fused accuracy against missing rate: {percent(first.value)} % with nothing missing, "
            f"{percent(last.value)} % at a rate of {last.missing_rate:g}."
        )
        caption = (
            f"Test inputs taken away at random ({last.missing_pattern}), drawn again over the stored predictions for "
            f"each of the mask seeds {seeds}; the band is one sd over mask seeds, not over training runs."
        )
        drawing = scores.missing_rate_figure(test[~test["missing_pattern"].fillna("").str.startswith("subset")], folder)
        curve_figure = figure(drawing, alt, caption)
        lines = [
            [f"{r.missing_rate:g}", f"{r.realised_rate:.3f}", spread(r.value, r.sd, int(r.n)), str(int(r.n))]
            for r in curve.itertuples()
        ]
        columns = ["missing rate", "realised", "fused accuracy %", "draws"]
        note = "± is the sd over mask seeds of one training run"
        wide = Wide("Fused test accuracy against missing rate", columns, lines, [note])
        parts.append(beside(curve_figure, table(at, "missing-rates", wide)))
    given = test[test["missing_pattern"].fillna("").str.startswith("subset:")]
    if len(given):
        right = given[given["metric"] == "accuracy"]
        reached = [f"{r.missing_pattern.removeprefix('subset:')} {percent(r.value)} %" for r in right.itertuples()]
        shown = "; ".join(reached[:8]) + (f"; and {len(reached) - 8} more" if len(reached) > 8 else "")
        caption = "Fused accuracy when only these modalities are given to every test sample that has them."
        title = f"{f.test.facts['dataset']}: one run, {SPLIT} n = {int(given['num_samples'].max())}"
        bars = subset_bars(given.assign(setting=f.recipe.method.name), folder, title)
        parts.append(figure(bars, f"Fused accuracy by the modalities given: {shown}.", caption))
    return section(at, "missing", "Missing modalities", *parts)


def weights(f: RunFacts, folder: Path, at: At) -> str:
    title = "Fusion weights"
    if len(f.modalities) < 2:
        return ""
    if f.weights is None:
        mixes = f"`{f.recipe.method.name}` mixes its modalities inside the network: it has no fusion weights."
        return section(at, "weights", title, paragraph(mixes))
    if not len(f.weights):
        return section(at, "weights", title, paragraph("No test sample has two modalities, so nothing is weighed."))
    present = f.test.present[f.weighed]
    values = np.where(present, f.weights, np.nan)
    right = f.test.logits[f.weighed].argmax(-1) == f.test.labels[f.weighed][:, None]
    lines, said = [], []
    for i, m in enumerate(f.modalities):
        if not (has := present[:, i]).any():
            continue
        mean = values[has, i].mean()
        sides = [has & right[:, i], has & ~right[:, i]]
        means = [f"{values[rows, i].mean():.3f}" if rows.any() else "" for rows in sides]
        lines.append([m, f"{mean:.3f}", *means, str(int(has.sum()))])
        said.append(f"{m} {mean:.2f}")
    single = int((~f.weighed).sum())
    rest = f"; the other {single} have one, whose weight is 1" if single else ""
    caption = (
        f"How often each fusion weight (rule `{f.rule}`) occurs on test, over the {len(values)} samples with two "
        f"modalities or more{rest}. Hatched: the modality alone is wrong. Dashed line: the mean."
    )
    drawing = scores.weights_figure(values, right, f.modalities, folder)
    columns = ["modality", "mean", "where right", "where wrong", "n"]
    own = f.test.facts["native_rule"] if f.rule == "native" else f.rule
    notes = [f"weights of rule {own}" + (" of the method itself" if f.rule == "native" else "")]
    notes += [NEIGHBOUR_WARNING] if own == "entropy_batch" else []
    return section(
        at,
        "weights",
        title,
        figure(drawing, f"Mean fusion weights: {', '.join(said)}.", caption),
        table(at, "weights-means", Wide("Mean fusion weight on test", columns, lines, notes)),
    )


def calibration(f: RunFacts, folder: Path, at: At) -> str:
    errors = [f"{output} {percent(metrics.ece(*values))} %" for output, values in f.scores.items()]
    caption = (
        "Accuracy against mean confidence in 15 bins of equal mass, on test. The diagonal is perfect calibration; "
        "below it the output is surer than it is right. ECE: the mean distance from it, weighted by samples."
    )
    drawing = figure(scores.calibration_figure(f.scores, folder), f"Calibration error: {', '.join(errors)}.", caption)
    return section(at, "calibration", "Calibration", drawing)


def confusions(f: RunFacts, folder: Path, at: At) -> str:
    logits, labels = f.scores["fused"]
    cells = metrics.confusion(logits, labels)
    pairs = confused_pairs(cells, f.classes)
    most = "Most confused: {} taken for {}, {} times.".format(*pairs[0]) if pairs else "Nothing is confused."
    files = scores.confusion_figures(f.scores, f.classes, folder)
    shown = "the number in a cell counts samples, its colour" if len(f.classes) <= scores.COUNTED else "the colour"
    note = "" if all_drawn(f.classes) else " " + DRAWN
    caption = (
        f"Fused output on test: rows are true classes, columns predictions; {shown} is the share of the class.{note}"
    )
    alt = f"Confusion matrix of the fused output over {len(f.classes)} classes. {most}"
    columns = ["true class", "taken for", "samples", "share %"]
    title = f"Most confused classes, fused ({counted(len(pairs), 'pair')})"
    shown_pairs = table(at, "confusion-pairs", Wide(title, columns, pairs, [PAIR_NOTE])) if pairs else ""
    drawing = figure(files[0], alt, caption)
    parts = [beside(drawing, shown_pairs)] if len(f.classes) <= scores.COUNTED else [drawing, shown_pairs]
    if len(files) > 1:
        alone = [m for m in f.scores if m != "fused"]
        right = ", ".join(f"{m} {percent(metrics.accuracy(*f.scores[m]))} %" for m in alone)
        caption = f"Each modality alone, over the test samples that have it.{note}"
        parts.append(figure(files[1], f"Confusion matrices of each modality alone. Right: {right}.", caption))
    recall = f.rows[f.rows["metric"].str.startswith("recall.") & (f.rows["missing_rate"] == 0)]
    parts += [table(at, f"confusion-recall-{i}", wide) for i, wide in enumerate(eval_tables(recall), 1)]
    return section(at, "confusion", "Which classes are confused", *parts)


def confused_pairs(cells: np.ndarray, classes: list[str]) -> list[list[str]]:
    """The pairs (true class, predicted class) that occur most often: both names, samples, share of the true class."""
    wrong = cells - np.diag(cells.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]
    places = [np.unravel_index(i, wrong.shape) for i in order]
    return [
        [classes[r], classes[c], str(wrong[r, c]), percent(wrong[r, c] / cells[r].sum())]
        for r, c in places
        if wrong[r, c]
    ]
