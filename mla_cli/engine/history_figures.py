"""Learning curves and diagnostics over the epochs of one run, as figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mla_cli.engine.figure_style import COLOURS, DASHES, INK, log_scale, name_of, panels, plotting, save, whole_epochs

MOST_LINES = 6  # more pairs of modalities than this are drawn as their mean and range
# diagnostic: its axis, logarithmic, the value that means balance or no effect
DIAGNOSTICS: dict[str, tuple[str, bool, float | None]] = {
    "gradient_norm": ("encoder's gradient norm", True, None),
    "rho": ("rho: certainty over the others'", True, 1.0),
    "head_cosine": ("cosine of the head gradients", False, 0.0),
    "forgetting": ("added by others' steps (nats)", False, 0.0),
    "round_change": ("added by a round (nats)", False, 0.0),
    "modality_gap": ("distance of mean features", False, 0.0),
    "modality_separability": ("modality told (%)", False, None),
    "hgm_eigenvalue_median": ("median eigenvalue of P", True, 1.0),
    "hgm_grad_ratio": ("head gradient left by HGM", True, 1.0),
    "head_leak": ("head leak", False, 0.0),
    "hgm_eigenvalue_min": ("smallest eigenvalue of P", True, 1.0),
    "hgm_h_left": ("|P h| / |h|", True, 1.0),
    "hgm_asymmetry": ("asymmetry of P", False, 0.0),
}
SHOWN = tuple(DIAGNOSTICS)[:10]  # by `mla eval --diagnostics`
BALANCE = ("gradient_norm", "rho", "head_cosine", "forgetting", "round_change")
GAP = ("modality_gap", "modality_separability")
HEAD = ("hgm_grad_ratio", "hgm_eigenvalue_median", "hgm_eigenvalue_min", "hgm_h_left", "hgm_asymmetry", "head_leak")


def diagnostics_figure(rows: pd.DataFrame, chosen: int, folder: Path) -> list[Path]:
    """One small plot per diagnostic. rows: `history_rows` of one run; chosen: the epoch that was scored."""
    names = measured(rows, SHOWN)
    with plotting() as plt:
        figure, places = panels(plt, len(names) + 1, width=3.6, height=2.7, most=3)
        accuracy_panel(places[0], rows)
        for axes, name in zip(places[1:], names, strict=True):
            diagnostic_panel(axes, rows, name)
        for axes in places:
            mark_epoch(axes, chosen)
        figure.suptitle(f"{name_of(rows.iloc[0]['run'], 60)} (dotted: epoch {chosen}, which was scored)", fontsize=10)
        return save(figure, folder, "diagnostics")


def diagnostics_over_epochs(
    rows: pd.DataFrame, chosen: int, names: Sequence[str], folder: Path, file: str
) -> list[Path]:
    """A small plot for each of these diagnostics that the run has; no file where it has none."""
    found = measured(rows, names)
    if not found:
        return []
    with plotting() as plt:
        figure, places = panels(plt, len(found))
        for axes, name in zip(places, found, strict=True):
            diagnostic_panel(axes, rows, name)
            mark_epoch(axes, chosen)
        return save(figure, folder, file)


def learning_curves(rows: pd.DataFrame, chosen: int, folder: Path) -> list[Path]:
    """Loss in training, and accuracy of each modality and fused in training (dashed) and validation, over the epochs.

    rows: `history_rows` of one run; chosen: the epoch that was scored.
    """
    split = validated_on(rows)
    outputs = list(dict.fromkeys(rows[rows["diagnostic"] == f"{split}_accuracy"]["of"]))
    if outputs == [*outputs[:1], "fused"]:  # one modality: fused is the same
        outputs = outputs[:1]
    with plotting() as plt:
        figure, places = panels(plt, len(outputs) + 1)
        draw(places[0], rows[rows["diagnostic"] == "train_loss"])
        places[0].set_title("training loss (nats)", fontsize=10)
        for i, (axes, output) in enumerate(zip(places[1:], outputs, strict=True)):
            colour = INK if output == "fused" else COLOURS[i % 7]
            for name, style in (("train", "--"), (split, "-")):
                part = rows[(rows["diagnostic"] == f"{name}_accuracy") & (rows["of"] == output)]
                if len(part):
                    look = {"color": colour, "linestyle": style, "linewidth": 1.6}
                    axes.plot(part["epoch"], 100 * part["value"], label=name, **look)
            axes.set_title(f"{name_of(output)}: accuracy (%)", fontsize=10)
            axes.legend(fontsize=8)
        same_limits(places[1:])
        for axes in places:
            mark_epoch(axes, chosen)
        return save(figure, folder, "learning_curves")


# ---------------------------------------------------------------- parts


def measured(rows: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """Those of the diagnostics that the run has."""
    there = set(rows["diagnostic"])
    return [name for name in names if name in there]


def validated_on(rows: pd.DataFrame) -> str:
    """`val`, or `test` where that chose the epoch."""
    return "val" if (rows["diagnostic"] == "val_accuracy").any() else "test"


def same_limits(places: Sequence[Any]) -> None:
    """One range of values for plots that are to be compared."""
    if not places:
        return
    low, high = min(a.get_ylim()[0] for a in places), max(a.get_ylim()[1] for a in places)
    for axes in places:
        axes.set_ylim(low, high)


def mark_epoch(axes: Any, chosen: int) -> None:
    """A dotted line at the epoch that was scored, and whole epochs on the axis."""
    axes.axvline(chosen, color=INK, linewidth=0.8, linestyle=":")
    whole_epochs(axes)
    axes.tick_params(labelsize=8)


def accuracy_panel(axes: Any, rows: pd.DataFrame) -> None:
    """Accuracy of each modality alone, in training (dashed) and on the split that chose the epoch."""
    for i, m in enumerate(modalities(rows)):
        for name, style in (("train_accuracy", "--"), ("val_accuracy", "-"), ("test_accuracy", "-")):
            part = rows[(rows["diagnostic"] == name) & (rows["of"] == m)]
            if len(part):
                label = f"{name_of(m)}, {name.partition('_')[0]}"
                look = {"color": COLOURS[i % 7], "linestyle": style, "linewidth": 1.4}
                axes.plot(part["epoch"], 100 * part["value"], label=label, **look)
    axes.set_ylabel("accuracy alone (%)", fontsize=9)
    axes.legend(fontsize=6, ncols=2)


def diagnostic_panel(axes: Any, rows: pd.DataFrame, name: str) -> None:
    """One diagnostic over the epochs, with the value that means balance."""
    label, logarithmic, level = DIAGNOSTICS[name]
    part = rows[rows["diagnostic"] == name]
    if name == "modality_separability":
        part = part.assign(value=100 * part["value"])
        axes.set_ylim(0, 105)
    draw(axes, part)
    axes.set_ylabel(label, fontsize=9)
    values = part["value"].dropna()
    if logarithmic and len(values) and (values > 0).all():
        log_scale(axes)
    if level is not None:
        axes.axhline(level, color=INK, linewidth=0.8, alpha=0.6)


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
            axes.plot(line["epoch"], line["value"], label=name_of(thing.replace("+", " + ")), **look)
    if things and things != [""]:
        axes.legend(fontsize=7)


def modalities(rows: pd.DataFrame) -> list[str]:
    """In the order of the recipe."""
    return list(dict.fromkeys(rows[rows["diagnostic"] == "train_accuracy"]["of"]))
