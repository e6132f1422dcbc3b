"""`mla compare`: finished runs side by side. Runs that are equal but for the seed are one setting. No torch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from mla_cli.engine import results
from mla_cli.engine.evaluate import evaluate
from mla_cli.engine.latest import find_run
from mla_cli.engine.numbers import parse_rates_list
from mla_cli.engine.paired import compare
from mla_cli.engine.request import Request, parse_request
from mla_cli.engine.run import Run
from mla_cli.engine.stored_grids import runs_in_order
from mla_cli.errors import MlaError
from mla_cli.files import real_path
from mla_cli.recipe import NOT_HASHED, dotted

NO_METRICS = ["setting", "num_samples", "units", "seeds", "low", "high"]  # columns of tests that are no figure
NAMED_KEYS = 3  # a row is called after so many differing keys at most


@dataclass
class Comparison:
    """Tidy rows with a column `setting`, the runs of each setting, and the tests against the first setting.

    tests: `paired.compare`; empty on val. differing: keys, apart from those of the method, in which settings differ.
    left_out: runs of an ablation's folder that are not finished.
    """

    rows: pd.DataFrame
    runs_of: dict[str, list[Run]]
    tests: pd.DataFrame
    split: str
    differing: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def full(self) -> str:
        """The setting that the others are compared with."""
        return next(iter(self.runs_of))

    def tidy(self) -> pd.DataFrame:
        """All numbers, one per row: the settings' results, then the tests, with `setting` as first column."""
        table = self.rows[["setting", *results.COLUMNS]]
        shared = {column: self.rows.iloc[0][column] for column in results.SIDE_BY_SIDE}
        shared |= {"output": "fused", "smoke": False}
        tests = []
        for test in self.tests.to_dict("records"):
            groups = test["units"] if test["units"] < test["num_samples"] else 0
            about = shared | {"setting": test["setting"], "num_samples": test["num_samples"], "num_groups": groups}
            for metric in self.tests.columns.difference(NO_METRICS, sort=False):
                bounds = {"low": test["low"], "high": test["high"]} if metric == "difference" else {}
                tests.append(about | {"metric": f"paired_{metric}", "value": test[metric]} | bounds)
        if tests:
            table = pd.concat([table, pd.DataFrame(tests, columns=table.columns)])
        return table.astype({"seed": "Int64", "mask_seed": "Int64"})  # a test has none


def find_runs(names: Sequence[str], run_dir: Path) -> tuple[list[Run], list[str]]:
    """The finished runs of these names or paths, in order, each once; an ablation's folder stands for its runs.

    Of an ablation the runs of the setting that its tables compare with stand first. The second value names its runs
    that are not finished. Raises MlaError for a name that is neither.
    """
    found: dict[Path, Run] = {}
    left_out = []
    for name in names:
        folder = next((p for p in (Path(name), run_dir / name) if (p / "settings.json").is_file()), None)
        if folder is None:
            runs = [find_run(name, run_dir)]
        else:
            runs = [Run(folder.parent / one) for one in runs_in_order(folder)]
            left_out += [run.name for run in runs if run.state != "finished"]
            runs = [run for run in runs if run.state == "finished"]
        found |= {real_path(run.path): run for run in runs if real_path(run.path) not in found}
    return list(found.values()), left_out


def compare_runs(names: Sequence[str], run_dir: Path, request: Request) -> Comparison:
    """Evaluate the runs with one request, and test every setting against the first one on the same items.

    Raises MlaError for fewer than two runs, and for runs that must not stand side by side.
    """
    runs, left_out = find_runs(names, run_dir)
    if len(runs) < 2:
        counted = f"only `{runs[0].path}`" if runs else "no run"
        raise MlaError(f"{counted} to compare", "name two runs or more, or the folder of an ablation")
    runs_of, differing = settings(runs)
    parts: list[pd.DataFrame] = []
    for setting, own in runs_of.items():
        for run in own:
            recipe = run.recipe()
            alone = recipe.method.name == "unimodal" or len(recipe.dataset.modalities or []) == 1  # nothing to lose
            found = evaluate(run, replace(request, rates=(0.0,)) if alone else request)
            parts.append(found.assign(setting=setting))
            refuse_other(parts[0], parts[-1])
    rows = pd.concat(parts, ignore_index=True)
    tests = pd.DataFrame(columns=["setting", "num_samples", "units"])
    if request.split == "test":
        fused = rows[(rows["output"] == "fused") & (rows["missing_rate"] == 0)].groupby("setting", sort=False).first()
        same = fused[fused["num_samples"] == fused["num_samples"].iloc[0]]  # one modality alone may lack some items
        tests = compare({name: runs_of[name] for name in same.index}, same["fusion"].to_dict(), next(iter(runs_of)))
    return Comparison(rows, runs_of, tests, request.split, differing, left_out)


def refuse_other(first: pd.DataFrame, other: pd.DataFrame) -> None:
    """Raise MlaError, naming the two runs, where their rows may not stand in one table; and for a smoke run."""
    try:
        results.refuse_smoke(other)
        results.check_comparable(pd.concat([first, other], ignore_index=True), results.SIDE_BY_SIDE)
    except MlaError as error:
        one, two = first["run"].iloc[0], other["run"].iloc[0]
        raise MlaError(f"`{one}` and `{two}`: {error.message}", error.hint) from error


def request(split: str, rates: str, mask_seeds: str) -> Request:
    """From the texts of the options. Raises MlaError for what is no split, rate or seed."""
    asked = parse_request(split, None, None, mask_seeds, None, None)
    return replace(asked, rates=sorted({0.0, *parse_rates_list(rates)}))  # the first table shows complete modalities


def settings(runs: Sequence[Run]) -> tuple[dict[str, list[Run]], list[str]]:
    """The runs by what they are called, in the order given, and the keys apart from the method's that differ.

    Raises MlaError for two runs of one setting and seed.
    """
    groups: dict[str, list[Run]] = {}
    keys_of: dict[str, dict[str, Any]] = {}
    seeds: dict[tuple[str, int], Run] = {}
    for run in runs:
        recipe = run.recipe()
        keys = {k: v for k, v in dotted(recipe.model_dump()).items() if k not in ("seed", *map(".".join, NOT_HASHED))}
        keys["data"] = str(run.info().get("data_fingerprint", ""))[:8]
        setting = json.dumps(keys, sort_keys=True)
        if (twin := seeds.setdefault((setting, recipe.seed), run)) is not run:
            raise MlaError(
                f"`{twin.path}` and `{run.path}` are runs of one recipe and seed",
                f"name one of them; `mla diff {twin.path} {run.path}` shows what differs",
            )
        groups.setdefault(setting, []).append(run)
        keys_of[setting] = keys
    labels = labels_of(keys_of)
    apart = [key for key in differing_keys(list(keys_of.values())) if key.partition(".")[0] != "method"]
    return {labels[setting]: sorted(own, key=lambda r: r.recipe().seed) for setting, own in groups.items()}, apart


def differing_keys(settings: Sequence[dict[str, Any]]) -> list[str]:
    """The keys in which any two differ, sorted."""
    every = sorted({key for setting in settings for key in setting})
    return [key for key in every if any(s.get(key) != settings[0].get(key) for s in settings)]


def labels_of(keys_of: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What each setting is called: its method, and where several share it, the keys in which these differ."""
    labels = {}
    for name in dict.fromkeys(keys["method.name"] for keys in keys_of.values()):
        own = {setting: keys for setting, keys in keys_of.items() if keys["method.name"] == name}
        differing = differing_keys(list(own.values()))
        short = [key.split(".")[-1] for key in differing]
        shown = [last if short.count(last) == 1 else key for key, last in zip(differing, short, strict=True)]
        for number, (setting, keys) in enumerate(own.items(), 1):
            parts = [f"{key}={keys.get(full)}" for key, full in zip(shown, differing, strict=True)]
            labels[setting] = ", ".join([name, *parts]) if len(parts) <= NAMED_KEYS else f"{name} ({number})"
    return labels
