"""Imbalance diagnostics over the epochs of one run, as a figure."""

from pathlib import Path
from typing import Any

import pandas as pd

from mla_cli.engine.figures import COLOURS, DASHES, plotting, save

MOST_LINES = 6  # more pairs of modalities than this are drawn as their mean and range
# diagnostic, its axis, logarithmic, the value that means balance or no effect
PANELS = (
    ("gradient_norm", "encoder's gradient norm", True, None),
    ("rho", "rho: certainty over the others'", True, 1.0),
    ("head_cosine", "cosine of the head gradients", False, 0.0),
    ("forgetting", "added by others' steps (nats)", False, 0.0),
    ("round_change", "added by a round (nats)", False, 0.0),
    ("modality_gap", "distance of mean features", False, 0.0),
    ("modality_separability", "modality told (%)", False, None),
    ("hgm_eigenvalue_median", "median eigenvalue of P", True, 1.0),
    ("hgm_grad_ratio", "head gradient left by HGM", True, 1.0),
    ("head_leak", "head leak", False, 0.0),
)


def diagnostics_figure(rows: pd.DataFrame, chosen: int, folder: Path) -> list[Path]:
    """One small plot per diagnostic. rows: `history_rows` of one run; chosen: the epoch that was scored."""
    panels = [panel for panel in PANELS if (rows["diagnostic"] == panel[0]).any()]
    with plotting() as plt:
        columns = 3
        lines = -(-(len(panels) + 1) // columns)
        figure, grid = plt.subplots(
            lines, columns, figsize=(3.6 * columns, 2.7 * lines), layout="constrained", squeeze=False
        )
        for axes in grid.flat[len(panels) + 1 :]:
            axes.set_visible(False)
        accuracy_panel(grid.flat[0], rows)
        for axes, (name, label, logarithmic, level) in zip(grid.flat[1:], panels, strict=False):
            part = rows[rows["diagnostic"] == name]
            if name == "modality_separability":
                part = part.assign(value=100 * part["value"])
                axes.set_ylim(0, 105)
            draw(axes, part)
            axes.set_ylabel(label, fontsize=9)
            if logarithmic and (part["value"].dropna() > 0).all():
                axes.set_yscale("log")
            if level is not None:
                axes.axhline(level, color="black", linewidth=0.8, alpha=0.6)
        for axes in grid.flat[: len(panels) + 1]:
            axes.axvline(chosen, color="black", linewidth=0.8, linestyle=":")
            axes.set_xlabel("epoch", fontsize=9)
            axes.tick_params(labelsize=8)
        figure.suptitle(f"{rows.iloc[0]['run']} (dotted: epoch {chosen}, which was scored)", fontsize=10)
        return save(figure, folder, "diagnostics")


def accuracy_panel(axes: Any, rows: pd.DataFrame) -> None:
    """Accuracy of each modality alone, in training (dashed) and on the split that chose the epoch."""
    for i, m in enumerate(modalities(rows)):
        for name, style in (("train_accuracy", "--"), ("val_accuracy", "-"), ("test_accuracy", "-")):
            part = rows[(rows["diagnostic"] == name) & (rows["of"] == m)]
            if len(part):
                label = f"{m}, {name.partition('_')[0]}"
                look = {"color": COLOURS[i % 7], "linestyle": style, "linewidth": 1.4}
                axes.plot(part["epoch"], 100 * part["value"], label=label, **look)
    axes.set_ylabel("accuracy alone (%)", fontsize=9)
    axes.legend(fontsize=6, ncols=2)


def draw(axes: Any, part: pd.DataFrame) -> None:
    """A line for each thing that the figures are about; many are shown as mean and range."""
    things = list(dict.fromkeys(part["of"]))
    if len(things) > MOST_LINES:
        by_epoch = part.groupby("epoch")["value"]
        axes.plot(by_epoch.mean().index, by_epoch.mean(), color=COLOURS[0], label=f"mean of {len(things)} pairs")
        axes.fill_between(by_epoch.mean().index, by_epoch.min(), by_epoch.max(), color=COLOURS[0], alpha=0.15)
    else:
        for i, thing in enumerate(things):
            line = part[part["of"] == thing]
            look: dict[str, Any] = {"color": COLOURS[i % 7], "linestyle": DASHES[i % 7], "linewidth": 1.4}
            axes.plot(line["epoch"], line["value"], label=thing.replace("+", " + "), **look)
    if things != [""]:
        axes.legend(fontsize=7)


def modalities(rows: pd.DataFrame) -> list[str]:
    """In the order of the recipe."""
    return list(dict.fromkeys(rows[rows["diagnostic"] == "train_accuracy"]["of"]))
