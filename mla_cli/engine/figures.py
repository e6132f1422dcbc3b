"""Figures: PNG and SVG, one style, legible in grey (lines differ in dash and marker, not in colour alone)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mla_cli.engine import results
from mla_cli.engine.curves import is_number
from mla_cli.files import whole_file

# Okabe-Ito, which stays distinct for colour-blind readers
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "//", "..", "xx", "\\\\", "--", "oo")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))


def missing_rate_curves(rows: pd.DataFrame, folder: Path) -> list[Path]:
    """Fused accuracy against missing rate, one line per setting, a band of one sd over seeds.

    rows: tidy rows with a column `setting`. Returns the files, none where there is only one rate.
    """
    fused = drawn_rows(rows)
    summary = results.over_seeds(fused, by=["setting"])
    if summary["missing_rate"].nunique() < 2:
        return []
    with plotting() as plt:
        figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
        curves = [(s, part) for s, part in summary.groupby("setting", sort=False) if part["missing_rate"].nunique() > 1]
        for i, (setting, part) in enumerate(curves):
            part = part.sort_values("missing_rate")
            x, y = part["missing_rate"].to_numpy(float), 100 * part["value"].to_numpy()
            sd = 100 * part["sd"].fillna(0).to_numpy()
            look: dict[str, Any] = {"color": COLOURS[i % 7], "marker": MARKERS[i % 7], "linestyle": DASHES[i % 7]}
            axes.plot(x, y, label=setting, linewidth=1.6, markersize=5, **look)
            axes.fill_between(x, y - sd, y + sd, color=COLOURS[i % 7], alpha=0.12, linewidth=0)
        axes.set_xlabel(f"missing rate at test time (share of entries, {fused.iloc[0]['missing_pattern']})")
        axes.set_ylabel("fused accuracy (%)")
        axes.set_title(source_of(fused, summary), fontsize=10)
        axes.legend(fontsize=8)
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
        columns = min(2, len(methods))
        lines = -(-len(methods) // columns)
        figure, grid = plt.subplots(
            lines, columns, figsize=(3.4 * columns, 2.9 * lines), layout="constrained", squeeze=False
        )
        for axes in grid.flat[len(methods) :]:
            axes.set_visible(False)
        for axes, method in zip(grid.flat, methods, strict=False):
            part = summary[summary["method"] == method]
            table = 100 * part.pivot_table(index="train_missing_rate", columns="missing_rate", values="value")
            image = axes.imshow(table.to_numpy(), cmap="cividis", vmin=low, vmax=high, origin="lower", aspect="auto")
            for (r, c), value in np.ndenumerate(table.to_numpy()):
                dark = value < (low + high) / 2
                axes.text(
                    c, r, f"{value:.1f}", ha="center", va="center", color="white" if dark else "black", fontsize=8
                )
            axes.set_xticks(range(table.shape[1]), [f"{v:g}" for v in table.columns])
            axes.set_yticks(range(table.shape[0]), [f"{v:g}" for v in table.index])
            axes.set(title=method, xlabel="missing rate at test time", ylabel="missing rate in training")
            axes.grid(False)
        figure.colorbar(image, ax=grid.ravel().tolist(), label="fused accuracy (%)")
        figure.suptitle(source_of(fused, summary), fontsize=10)
        return save(figure, folder, "train_test_rates")


def subset_bars(rows: pd.DataFrame, folder: Path) -> list[Path]:
    """Fused accuracy when only a subset of the modalities is given, a bar per method, whiskers of one sd over seeds."""
    chosen = rows[
        (rows["output"] == "fused")
        & (rows["metric"] == "accuracy")
        & rows["missing_pattern"].fillna("").str.startswith("subset:")
    ]
    if chosen.empty:
        return []
    summary = results.over_seeds(chosen, by=["setting"])
    subsets, methods = list(dict.fromkeys(summary["missing_pattern"])), list(dict.fromkeys(summary["setting"]))
    with plotting() as plt:
        width = max(6.4, 0.35 * len(subsets) * len(methods))
        figure, axes = plt.subplots(figsize=(min(width, 16), 4.2), layout="constrained")
        for i, method in enumerate(methods):
            part = summary[summary["setting"] == method].set_index("missing_pattern").reindex(subsets)
            x = np.arange(len(subsets)) + (i - (len(methods) - 1) / 2) * 0.8 / len(methods)
            look = {"color": COLOURS[i % 7], "edgecolor": "black", "hatch": HATCHES[i % 7], "linewidth": 0.6}
            bars = 100 * part["value"].to_numpy()
            axes.bar(x, bars, 0.8 / len(methods), yerr=100 * part["sd"].fillna(0), label=method, capsize=2, **look)
        axes.set_xticks(range(len(subsets)), [s.removeprefix("subset:").replace("+", " + ") for s in subsets])
        axes.tick_params(axis="x", rotation=30 if len(subsets) > 4 else 0)
        axes.set(xlabel="modalities given at test time", ylabel="fused accuracy (%)")
        axes.set_title(source_of(chosen, summary), fontsize=10)
        axes.legend(fontsize=8, ncols=len(methods), loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
        return save(figure, folder, "subsets")


# ---------------------------------------------------------------- the one style


def drawn_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Fused accuracies at one missing rate each."""
    return rows[(rows["output"] == "fused") & (rows["metric"] == "accuracy") & rows["missing_rate"].map(is_number)]


def source_of(rows: pd.DataFrame, summary: pd.DataFrame) -> str:
    """Data set, number of seeds and of samples, for a figure's title."""
    first = rows.iloc[0]
    return f"{first['dataset']}: mean and sd over {int(summary['n'].max())} seeds, n = {int(first['num_samples'])}"


@contextmanager
def plotting() -> Iterator[Any]:
    """pyplot without a screen, in our style. Fixed ids and no date: equal numbers give equal bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context({"svg.hashsalt": "mla", "font.size": 10, "axes.grid": True, "grid.alpha": 0.3}):
        yield plt
        plt.close("all")


def save(figure: Any, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG and SVG."""
    files = []
    for suffix in ("png", "svg"):
        path = folder / f"{name}.{suffix}"
        with whole_file(path) as file:
            figure.savefig(file, format=suffix, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
        files.append(path)
    return files
