"""Figures: PNG and SVG, one style, legible in grey (lines differ in dash and marker, not in colour alone)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mla_cli.data.rates import rate_text
from mla_cli.engine import results
from mla_cli.engine.curves import is_number
from mla_cli.files import whole_file

# Okabe-Ito, which stays distinct for colour-blind readers
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "//", "..", "xx", "\\\\", "--", "oo")
SIDE_BY_SIDE = 7  # subsets (those of three modalities) whose bars fit next to each other
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))


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
            look: dict[str, Any] = {"color": COLOURS[i % 7], "marker": MARKERS[i % 7], "linestyle": DASHES[i % 7]}
            axes.plot(x, y, label=setting, linewidth=1.6, markersize=5, **look)
            axes.fill_between(x, y - sd, y + sd, color=COLOURS[i % 7], alpha=0.12, linewidth=0)
        axes.set_xticks(sorted(summary["missing_rate"].astype(float).unique()))
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
            axes.set(title=method, xlabel="rate at test time (share)", ylabel="rate in training (share)")
            axes.grid(False)
        figure.colorbar(image, ax=grid.ravel().tolist(), label="fused accuracy (%)")
        figure.suptitle("missing rate in training and at test time\n" + source_of(fused, summary, "mean"), fontsize=10)
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
    bars = {m: summary[summary["setting"] == m].set_index("missing_pattern").reindex(subsets) for m in methods}
    names = [s.removeprefix("subset:").replace("+", " + ") for s in subsets]
    with plotting() as plt:
        draw = bars_side_by_side if len(subsets) <= SIDE_BY_SIDE else bars_in_panels
        figure = draw(plt, names, bars)
        figure.suptitle(source_of(chosen, summary), fontsize=10)
        return save(figure, folder, "subsets")


def bars_side_by_side(plt: Any, names: list[str], bars: dict[str, pd.DataFrame]) -> Any:
    """Few subsets: upright bars, those of the methods next to each other."""
    figure, axes = plt.subplots(figsize=(max(6.4, 1.5 * len(names)), 4.2), layout="constrained")
    width = 0.8 / len(bars)
    for i, (method, part) in enumerate(bars.items()):
        x = np.arange(len(names)) + (i - (len(bars) - 1) / 2) * width
        axes.bar(x, 100 * part["value"], width, yerr=100 * part["sd"].fillna(0), label=method, capsize=2, **look_of(i))
    axes.set_xticks(range(len(names)), names)
    axes.set(xlabel="modalities given at test time", ylabel="fused accuracy (%)", ylim=(0, 100))
    figure.legend(fontsize=8, ncols=len(bars), loc="outside lower center", frameon=False)
    return figure


def bars_in_panels(plt: Any, names: list[str], bars: dict[str, pd.DataFrame]) -> Any:
    """Many subsets (six modalities have 63): lying bars, so that their names can be read, a panel for each method."""
    size = (2.4 + 2.0 * len(bars), 1.6 + 0.17 * len(names))
    figure, grid = plt.subplots(1, len(bars), figsize=size, layout="constrained", sharex=True, sharey=True)
    for i, (axes, (method, part)) in enumerate(zip(np.atleast_1d(grid), bars.items(), strict=True)):
        y = np.arange(len(names))
        axes.barh(y, 100 * part["value"], 0.8, xerr=100 * part["sd"].fillna(0), capsize=1.5, **look_of(i))
        axes.set_title(method, fontsize=9)
        axes.set(xlim=(0, 100), ylim=(len(names) - 0.4, -0.6))
        axes.set_yticks(y, names, fontsize=7)
    figure.supxlabel("fused accuracy (%)", fontsize=10)
    figure.supylabel("modalities given at test time", fontsize=10)
    return figure


def look_of(number: int) -> dict[str, Any]:
    """How the bars of one method look."""
    return {"color": COLOURS[number % 7], "edgecolor": "black", "hatch": HATCHES[number % 7], "linewidth": 0.6}


# ---------------------------------------------------------------- the one style


def drawn_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Fused accuracies at one missing rate each."""
    return rows[(rows["output"] == "fused") & (rows["metric"] == "accuracy") & rows["missing_rate"].map(is_number)]


def source_of(rows: pd.DataFrame, summary: pd.DataFrame, what: str = "mean and sd") -> str:
    """Data set, number of seeds and of samples, and what training missed if that is one rate, for a figure's title."""
    first, trained = rows.iloc[0], rows["train_missing_rate"].unique()
    text = f"{first['dataset']}: {what} over {int(summary['n'].max())} seeds, {first['split']} n = "
    text += str(int(rows["num_samples"].max()))
    return text + (f", trained at missing rate {rate_text(trained[0])}" if len(trained) == 1 else "")


@contextmanager
def plotting() -> Iterator[Any]:
    """pyplot without a screen, in our style. Fixed ids and no date: equal numbers give equal bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context(
        {"svg.hashsalt": "mla", "font.size": 10, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True}
    ):
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
