"""Figures of grids: PNG and SVG, legible in grey (lines differ in dash and marker, not in colour alone)."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mla_cli.data.rates import rate_text
from mla_cli.engine import results
from mla_cli.engine.curves import is_number
from mla_cli.engine.figure_style import DARK_TEXT, LIGHT_TEXT, bar_look, line_look, name_of, panels, plotting, save

SIDE_BY_SIDE = 7  # subsets (those of three modalities) whose bars fit next to each other


def missing_rate_curves(rows: pd.DataFrame, folder: Path) -> list[Path]:
    """Fused accuracy against missing rate, one line per setting, a band of one sd over seeds.

    rows: tidy rows with a column `setting`. Returns the files, none where there is only one rate.
    """
    fused = drawn_rows(rows)
    summary = results.over_seeds(fused, by=["setting"])
    curves = [(s, part) for s, part in summary.groupby("setting", sort=False) if part["missing_rate"].nunique() > 1]
    if not curves:
        return []
    with plotting() as plt:
        figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
        for i, (setting, part) in enumerate(curves):
            part = part.sort_values("missing_rate")
            x, y = part["missing_rate"].to_numpy(float), 100 * part["value"].to_numpy()
            sd = 100 * part["sd"].fillna(0).to_numpy()
            look = line_look(i)
            axes.plot(x, y, label=name_of(setting), linewidth=1.6, markersize=5, **look)
            axes.fill_between(x, y - sd, y + sd, color=look["color"], alpha=0.12, linewidth=0)
        axes.set_xticks(sorted(summary["missing_rate"].astype(float).unique()))
        axes.set_xlabel(f"missing rate at test time (share of entries, {fused.iloc[0]['missing_pattern']})")
        axes.set_ylabel("fused accuracy (%)")
        axes.set_title(source_of(fused, summary), fontsize=10)
        figure.legend(fontsize=8, ncols=min(3, len(curves)), loc="outside lower center", frameon=False)
        return save(figure, folder, "missing_rate")


def missing_figures(rows: pd.DataFrame, folder: Path) -> list[Path]:
    """The preset `missing`: curves of the methods trained on complete data, train x test maps, bars over subsets."""
    least = rows["train_missing_rate"].min()
    complete = rows[rows["train_missing_rate"] == least]
    named = complete.assign(setting=complete["setting"].str.partition(" @ ")[0])
    return [*missing_rate_curves(named, folder), *train_test_maps(rows, folder), *subset_bars(named, folder)]


def train_test_maps(rows: pd.DataFrame, folder: Path) -> list[Path]:
    """One heat map per method: fused accuracy for every missing rate in training and at test time."""
    fused = drawn_rows(rows)
    summary = results.over_seeds(fused, by=["setting", "train_missing_rate"])
    summary["method"] = summary["setting"].str.partition(" @ ")[0]
    if summary["train_missing_rate"].nunique() < 2:
        return []
    methods = list(dict.fromkeys(summary["method"]))
    low, high = 100 * summary["value"].min(), 100 * summary["value"].max()
    with plotting() as plt:
        figure, places = panels(plt, len(methods), height=2.9, most=2)
        for axes, method in zip(places, methods, strict=True):
            part = summary[summary["method"] == method]
            table = 100 * part.pivot_table(index="train_missing_rate", columns="missing_rate", values="value")
            image = axes.imshow(table.to_numpy(), cmap="cividis", vmin=low, vmax=high, origin="lower", aspect="auto")
            for (r, c), value in np.ndenumerate(table.to_numpy()):
                dark = value < (low + high) / 2
                axes.text(
                    c, r, f"{value:.1f}", ha="center", va="center", color=LIGHT_TEXT if dark else DARK_TEXT, fontsize=8
                )
            axes.set_xticks(range(table.shape[1]), [f"{v:g}" for v in table.columns])
            axes.set_yticks(range(table.shape[0]), [f"{v:g}" for v in table.index])
            axes.set(title=name_of(method), xlabel="rate at test time (share)", ylabel="rate in training (share)")
            axes.grid(False)
        figure.colorbar(image, ax=places, label="fused accuracy (%)")
        figure.suptitle("missing rate in training and at test time\n" + source_of(fused, summary, "mean"), fontsize=10)
        return save(figure, folder, "train_test_rates")


def subset_bars(rows: pd.DataFrame, folder: Path, title: str = "") -> list[Path]:
    """Fused accuracy when only a subset of the modalities is given, a bar per method, whiskers of one sd over seeds.

    title: in place of data set, number of seeds and of samples.
    """
    chosen = rows[
        (rows["output"] == "fused")
        & (rows["metric"] == "accuracy")
        & rows["missing_pattern"].fillna("").str.startswith("subset:")
    ]
    if chosen.empty:
        return []
    summary = results.over_seeds(chosen, by=["setting"])
    subsets, methods = list(dict.fromkeys(summary["missing_pattern"])), list(dict.fromkeys(summary["setting"]))
    bars = {m: summary[summary["setting"] == m].set_index("missing_pattern").reindex(subsets) for m in methods}
    names = [name_of(s.removeprefix("subset:").replace("+", " + "), 60) for s in subsets]
    with plotting() as plt:
        draw = bars_side_by_side if len(subsets) <= SIDE_BY_SIDE else bars_in_panels
        figure = draw(plt, names, bars)
        figure.suptitle(name_of(title, 80) or source_of(chosen, summary), fontsize=10)
        return save(figure, folder, "subsets")


def bars_side_by_side(plt: Any, names: list[str], bars: dict[str, pd.DataFrame]) -> Any:
    """Few subsets: upright bars, those of the methods next to each other."""
    figure, axes = plt.subplots(figsize=(max(6.4, 1.5 * len(names)), 4.2), layout="constrained")
    width = 0.8 / len(bars)
    for i, (method, part) in enumerate(bars.items()):
        x = np.arange(len(names)) + (i - (len(bars) - 1) / 2) * width
        axes.bar(
            x,
            100 * part["value"],
            width,
            yerr=100 * part["sd"].fillna(0),
            label=name_of(method),
            capsize=2,
            **bar_look(i),
        )
    axes.set_xticks(range(len(names)), names)
    axes.set(xlabel="modalities given at test time", ylabel="fused accuracy (%)", ylim=(0, 100))
    if len(bars) > 1:
        figure.legend(fontsize=8, ncols=min(3, len(bars)), loc="outside lower center", frameon=False)
    return figure


def bars_in_panels(plt: Any, names: list[str], bars: dict[str, pd.DataFrame]) -> Any:
    """Many subsets (six modalities have 63): lying bars, so that their names can be read, a panel for each method."""
    size = (2.4 + 2.0 * len(bars), 1.6 + 0.17 * len(names))
    figure, grid = plt.subplots(1, len(bars), figsize=size, layout="constrained", sharex=True, sharey=True)
    for i, (axes, (method, part)) in enumerate(zip(np.atleast_1d(grid), bars.items(), strict=True)):
        y = np.arange(len(names))
        axes.barh(y, 100 * part["value"], 0.8, xerr=100 * part["sd"].fillna(0), capsize=1.5, **bar_look(i))
        axes.set_title(name_of(method), fontsize=9)
        axes.set(xlim=(0, 100), ylim=(len(names) - 0.4, -0.6))
        axes.set_yticks(y, names, fontsize=7)
    figure.supxlabel("fused accuracy (%)", fontsize=10)
    figure.supylabel("modalities given at test time", fontsize=10)
    return figure


# ---------------------------------------------------------------- what a figure stands on


def drawn_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Fused accuracies at one missing rate each."""
    return rows[(rows["output"] == "fused") & (rows["metric"] == "accuracy") & rows["missing_rate"].map(is_number)]


def source_of(rows: pd.DataFrame, summary: pd.DataFrame, what: str = "mean and sd") -> str:
    """Data set, number of seeds and of samples, and what training missed if that is one rate, for a figure's title."""
    first, trained = rows.iloc[0], rows["train_missing_rate"].unique()
    text = f"{name_of(first['dataset'])}: {what} over {int(summary['n'].max())} seeds, {first['split']} n = "
    text += str(int(rows["num_samples"].max()))
    return text + (f", trained at missing rate {rate_text(trained[0])}" if len(trained) == 1 else "")
