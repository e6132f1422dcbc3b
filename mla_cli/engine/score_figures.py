"""Figures of one run's predictions: missing rates, calibration, confusion, fusion weights; and of a grid's seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mla_cli.core.metrics import confusion, ece, reliability
from mla_cli.engine import results
from mla_cli.engine.curves import is_number
from mla_cli.engine.figure_style import (
    COLOURS,
    DARK_TEXT,
    INK,
    LIGHT_TEXT,
    MARKERS,
    PAPER,
    bar_look,
    line_look,
    name_of,
    panels,
    plotting,
    save,
    whole_epochs,
)

Scores = Mapping[str, tuple[np.ndarray, np.ndarray]]  # output -> logits (sample, class), labels (sample,)
COUNTED = 12  # classes whose cells carry numbers
NAMED = 40  # classes whose names fit a small plot; a large one takes any number
WEIGHT_BINS = 20


def missing_rate_figure(rows: pd.DataFrame, folder: Path) -> list[Path]:
    """Fused accuracy of one run against missing rate, a band of one sd over mask seeds, and each modality alone.

    rows: tidy rows of one run on one split. No file where there is only one rate.
    """
    accuracy = rows[rows["metric"] == "accuracy"]
    fused = results.over_mask_seeds(accuracy[(accuracy["output"] == "fused") & accuracy["missing_rate"].map(is_number)])
    fused = fused.sort_values("missing_rate")
    if len(fused) < 2:
        return []
    with plotting() as plt:
        figure, axes = plt.subplots(figsize=(5.0, 3.6), layout="constrained")
        x, y = fused["missing_rate"].to_numpy(float), 100 * fused["value"].to_numpy()
        sd = 100 * fused["sd"].fillna(0).to_numpy()
        axes.plot(x, y, color=INK, marker="o", linewidth=1.8, label="fused")
        axes.fill_between(x, y - sd, y + sd, color=INK, alpha=0.15, linewidth=0)
        alone = accuracy[accuracy["output"] != "fused"]
        for i, row in enumerate(alone.itertuples()):
            look = line_look(i) | {"marker": "", "linestyle": ("--", "-.", ":")[i % 3]}
            axes.axhline(100 * row.value, label=f"{name_of(row.output)} alone", linewidth=1.3, **look)
        axes.set_xticks(x)
        axes.set_xlabel(f"missing rate at test time ({fused.iloc[0]['missing_pattern']})")
        axes.set_ylabel("test accuracy (%)")
        figure.legend(fontsize=9, ncols=min(4, 1 + len(alone)), loc="outside lower center", frameon=False)
        return save(figure, folder, "missing_rate")


def calibration_figure(scores: Scores, folder: Path) -> list[Path]:
    """Accuracy against confidence in bins of equal mass, for each modality alone and fused."""
    with plotting() as plt:
        figure, places = panels(plt, len(scores), width=3.1, height=3.1)
        for i, (axes, (output, (logits, labels))) in enumerate(zip(places, scores.items(), strict=True)):
            confidence, share, _ = reliability(logits, labels)
            colour = INK if output == "fused" else COLOURS[i % 7]
            axes.plot([0, 100], [0, 100], color=INK, linewidth=0.8, linestyle=":")
            axes.vlines(100 * confidence, 100 * confidence, 100 * share, color=colour, linewidth=1.2, alpha=0.6)
            points = {"marker": MARKERS[i % 7], "linestyle": "", "markersize": 5, "clip_on": False}  # whole at 100 %
            axes.plot(100 * confidence, 100 * share, color=colour, **points)
            axes.set_title(f"{name_of(output)}: ECE {100 * ece(logits, labels):.1f} %", fontsize=10)
            axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal", xlabel="confidence (%)")
            axes.set_ylabel("accuracy (%)")
        return save(figure, folder, "calibration")


def confusion_figures(scores: Scores, classes: Sequence[str], folder: Path) -> list[list[Path]]:
    """Share of every class' samples that are predicted as each class: fused, and each modality alone, small."""
    names = [name_of(name) for name in classes]
    files = []
    alone = [output for output in scores if output != "fused"]
    with plotting() as plt:
        side = max(3.6, 0.13 * len(classes) + 2.2)
        figure, axes = plt.subplots(figsize=(side + 1.2, side), layout="constrained")
        image = matrix(axes, *scores["fused"], names, large=True)
        figure.colorbar(image, ax=axes, label="share of the class (%)", shrink=0.8)
        files.append(save(figure, folder, "confusion_fused"))
        if len(alone) > 1:
            figure, places = panels(plt, len(alone), width=3.3, height=3.3)
            for panel, output in zip(places, alone, strict=True):
                image = matrix(panel, *scores[output], names, large=False)
                panel.set_title(f"{name_of(output)} alone", fontsize=10)
            figure.colorbar(image, ax=places, label="share of the class (%)", shrink=0.8)
            files.append(save(figure, folder, "confusion_alone"))
    return files


def matrix(axes: Any, logits: np.ndarray, labels: np.ndarray, names: Sequence[str], large: bool) -> Any:
    """One confusion matrix as a heat map; counts in its cells where there are few classes."""
    counts = confusion(logits, labels)
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=100, aspect="equal")
    axes.grid(False)
    axes.set(xlabel="predicted", ylabel="true")
    if len(names) <= COUNTED and large:
        for (r, c), count in np.ndenumerate(counts):
            if count:
                text = LIGHT_TEXT if shares[r, c] < 55 else DARK_TEXT
                axes.text(c, r, str(count), ha="center", va="center", fontsize=9, color=text)
    if large or len(names) <= NAMED:
        size = 8 if large and len(names) <= NAMED else 6 if len(names) <= 2 * COUNTED or large else 4
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    return image


def weights_figure(weights: np.ndarray, right: np.ndarray, modalities: Sequence[str], folder: Path) -> list[Path]:
    """How often each fusion weight occurs, where the modality alone is right and where it is wrong.

    weights: (sample, modality) of samples with two modalities or more, NaN where absent; right: bool, same shape.
    """
    high = max(1.0, float(np.nanmax(weights)))
    with plotting() as plt:
        figure, places = panels(plt, len(modalities), width=3.1, height=2.8, sharey=True)
        for i, (axes, m) in enumerate(zip(places, modalities, strict=True)):
            there = ~np.isnan(weights[:, i])
            good = right[:, i]
            values = [weights[there & good, i], weights[there & ~good, i]]
            bins = np.linspace(0, high, WEIGHT_BINS + 1)
            style = {"edgecolor": INK, "linewidth": 0.5, "color": [COLOURS[i % 7], PAPER], "hatch": ["", "////"]}
            axes.hist(values, bins=bins, stacked=True, **style)
            if there.any():
                axes.axvline(float(weights[there, i].mean()), color=INK, linewidth=1.2, linestyle="--")
            axes.set_title(name_of(m), fontsize=10)
            axes.set(xlabel="fusion weight", ylabel="test samples", xlim=(0, high))
        looks = {"the modality alone is right": (INK, ""), "wrong": (PAPER, "////")}
        sides = [plt.Rectangle((0, 0), 1, 1, edgecolor=INK, facecolor=c, hatch=h) for c, h in looks.values()]
        figure.legend(sides, list(looks), fontsize=9, ncols=2, loc="outside lower center", frameon=False)
        return save(figure, folder, "fusion_weights")


def seeds_figure(rows: pd.DataFrame, folder: Path) -> list[Path]:
    """Accuracy of every run, complete modalities: a dot for each seed and a bar at their mean, a line per setting.

    rows: tidy rows of a grid on one split, with a column `setting`.
    """
    complete = rows[(rows["metric"] == "accuracy") & ((rows["missing_rate"] == 0) | (rows["output"] != "fused"))]
    complete = complete.drop_duplicates(["setting", "run", "output"])
    outputs = [o for o in dict.fromkeys(complete["output"]) if o != "fused"] + ["fused"]
    settings = list(dict.fromkeys(complete["setting"]))
    with plotting() as plt:
        most = min(3, len(outputs))
        height = 0.9 + 0.3 * len(settings)
        figure, places = panels(plt, len(outputs), width=2.6, height=height, most=most, sharey=True)
        for axes, output in zip(places, outputs, strict=True):
            for i, setting in enumerate(settings):
                values = 100 * complete[(complete["setting"] == setting) & (complete["output"] == output)]["value"]
                if len(values):
                    look = bar_look(0) | {"hatch": ""}
                    axes.scatter(values, np.full(len(values), i), s=26, zorder=3, color=look["color"], alpha=0.75)
                    axes.vlines(values.mean(), i - 0.32, i + 0.32, color=INK, linewidth=2)
            axes.set_title(name_of(output), fontsize=10)
            axes.set_xlabel("accuracy (%)", fontsize=9)
            axes.set_yticks(range(len(settings)), [name_of(s, 36) for s in settings], fontsize=9)
            axes.set_ylim(len(settings) - 0.5, -0.5)
        return save(figure, folder, "seeds")


def learning_by_setting(curves: Mapping[str, pd.DataFrame], split: str, folder: Path) -> list[Path]:
    """Accuracy on the split that chose the epochs, mean over seeds: a plot per modality and fused, a line per setting.

    curves: setting -> `history_rows` of its runs.
    """
    outputs: list[str] = []
    for rows in curves.values():
        outputs += [o for o in rows[rows["diagnostic"] == f"{split}_accuracy"]["of"].unique() if o not in outputs]
    outputs = [o for o in outputs if o != "fused"] + ["fused"]
    with plotting() as plt:
        figure, places = panels(plt, len(outputs), width=3.4, height=3.0, sharey=True)
        handles = {}
        for axes, output in zip(places, outputs, strict=True):
            for i, (setting, rows) in enumerate(curves.items()):
                part = rows[(rows["diagnostic"] == f"{split}_accuracy") & (rows["of"] == output)]
                if len(part):
                    mean = 100 * part.groupby("epoch")["value"].mean()
                    look = line_look(i) | {"linewidth": 1.4, "markersize": 4, "markevery": max(1, len(mean) // 8)}
                    (handles[setting],) = axes.plot(mean.index, mean, **look)
            axes.set_title(f"{name_of(output)}: {split} accuracy (%)", fontsize=10)
            whole_epochs(axes)
        named = [name_of(setting, 36) for setting in handles]
        figure.legend(list(handles.values()), named, fontsize=8, ncols=3, loc="outside lower center", frameon=False)
        return save(figure, folder, "learning_curves_by_setting")
