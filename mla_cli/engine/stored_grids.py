"""What `settings.json` of an ablation says about its grid, so that its tables can be made again from its runs."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mla_cli.engine.evaluate import evaluate
from mla_cli.engine.grids import Grid
from mla_cli.engine.request import Request
from mla_cli.engine.run import Run
from mla_cli.errors import MlaError
from mla_cli.files import read_sealed, sha256

AGAIN = "run the same `mla ablate` again: finished runs are reused"


def setting_rows(run: Run, request: Request, modality: str | None = None) -> pd.DataFrame:
    """Tidy rows of one run of a setting.

    modality: read this part of a `late` run as if it had been trained alone, its output as the fused one too.
    """
    rows = evaluate(run, request)
    if modality is None:
        return rows
    part = rows[rows["output"] == modality]
    return pd.concat([part, part.assign(output="fused", fusion="native")])


def grid_facts(
    grid: Grid,
    names: Mapping[tuple[str, int], str],
    rates: Sequence[float],
    mask_seeds: Sequence[int],
    failed: Sequence[str],
) -> dict[str, Any]:
    """Plain values for `settings.json`: every setting with its fusion rule, rates and finished runs, in order."""
    rows: list[dict[str, Any]] = []
    for setting in grid.settings:
        alone = setting.recipe.method.name == "unimodal"
        runs = [name for seed in grid.seeds if (name := names[setting.label, seed]) not in failed]
        row = {"setting": setting.label, "rule": setting.rule, "rates": [0.0] if alone else list(rates), "runs": runs}
        rows.append(row)
        if grid.unimodal_from_late and setting.recipe.method.name == "late":
            modalities = setting.recipe.dataset.modalities or []
            rows += [{**row, "setting": f"unimodal {m}", "modality": m, "rates": [0.0]} for m in modalities]
    return {
        "name": grid.name,
        "full": grid.full,
        "command": list(sys.argv),
        "mask_seeds": list(mask_seeds),
        "patterns": list(grid.patterns),
        "failed": list(failed),
        "rows": rows,
    }


def stored_grid(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """What every setting is, and `grid_facts`, from an ablation's folder. Raises MlaError for a damaged file."""
    file = path / "settings.json"
    content = read_sealed(file, AGAIN)
    labels, grid = content.get("settings"), content.get("grid")
    if not isinstance(grid, dict):
        raise MlaError(f"`{file}` does not say which run belongs to which setting", AGAIN)
    wanted = {"name": str, "full": str, "command": list, "mask_seeds": list, "patterns": list, "failed": list}
    good = all(isinstance(grid.get(key), kind) for key, kind in wanted.items())
    rows = grid.get("rows")
    lists = (("mask_seeds", int), ("patterns", str), ("failed", str), ("command", str))
    good = good and all(isinstance(value, kind) for key, kind in lists for value in grid[key])
    if not good or not isinstance(labels, dict) or not isinstance(rows, list) or not all(map(_is_row, rows)):
        raise MlaError(f"`{file}` is damaged: its `grid` is not what `mla ablate` writes", AGAIN)
    return labels, grid


def whole_table(file: Path) -> Path:
    """A table of an ablation's folder. Raises MlaError where it is not what `settings.json` says was written."""
    digest = read_sealed(file.parent / "settings.json", AGAIN).get("files", {}).get(file.name)
    if digest is not None and sha256(file) != digest:
        raise MlaError(f"`{file}` was damaged or edited: it is not what `mla ablate` wrote", AGAIN)
    return file


def runs_in_order(path: Path) -> list[str]:
    """Names of an ablation's runs, whatever their state: of the setting that others are compared with first, then in
    the order of its tables. Raises MlaError for a damaged file.
    """
    file = path / "settings.json"
    content = read_sealed(file, AGAIN)
    listed = content.get("runs")
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        raise MlaError(f"`{file}` lists no runs", AGAIN)
    if "grid" not in content:  # of an earlier version
        return listed
    grid = stored_grid(path)[1]
    rows = sorted(grid["rows"], key=lambda row: row["setting"] != grid["full"])
    return list(dict.fromkeys([*(name for row in rows for name in row["runs"]), *listed]))


def _is_row(row: Any) -> bool:
    """Whether a value is a setting as `grid_facts` writes it, whose runs are names and not paths."""
    kinds = {"setting": str, "rule": str, "rates": list, "runs": list}
    if not isinstance(row, dict) or not all(isinstance(row.get(key), kind) for key, kind in kinds.items()):
        return False
    names = [isinstance(run, str) and Path(run).name == run not in ("", "..") for run in row["runs"]]
    rates = [isinstance(rate, int | float) for rate in row["rates"]]
    return all(names) and all(rates) and isinstance(row.get("modality"), str | None)


def stored_rows(grid: Mapping[str, Any], run_dir: Path) -> pd.DataFrame:
    """Tidy rows of every setting and run, with a column `setting`, from the runs' stored predictions."""
    found = []
    for row in grid["rows"]:
        request = Request(
            rates=tuple(row["rates"]),
            patterns=tuple(grid["patterns"]),
            mask_seeds=tuple(grid["mask_seeds"]),
            rules=(row["rule"],),
        )
        for name in row["runs"]:
            rows = setting_rows(Run(run_dir / name), request, row.get("modality"))
            found.append(rows.assign(setting=row["setting"]))
    return pd.concat(found, ignore_index=True)
