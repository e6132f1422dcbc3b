"""`mla diff`: what two runs differ in, from their recipes, `run.json`, results and files. No torch."""

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mla_cli.engine.run import Run
from mla_cli.errors import MlaError
from mla_cli.files import sha256
from mla_cli.recipe import dotted

COLUMNS = ("part", "key", "one", "other")
ABSENT = "(not there)"
MACHINE = ("device", "threads", "host")
OUTCOME = ("state", "checkpoint", "best_epoch", "error")
# Of the data: what the split is made of. Reports such as the leakage follow from it.
DATA = ("data_fingerprint", "protocol", "raw_kinds")
NOT_DATA = ("leakage", "split_notes")
FILES = ("predictions.parquet", "history.jsonl", "present.parquet")


@dataclass
class Difference:
    """rows: one per key that differs (`COLUMNS`); for results, `other - one` in column `difference`.

    identical: the parts in which nothing differs.
    """

    one: Run
    other: Run
    rows: pd.DataFrame
    identical: list[str]

    def tidy(self) -> pd.DataFrame:
        """`rows` with values that are neither text nor numbers as JSON."""
        plain = {
            name: self.rows[name].map(lambda v: v if isinstance(v, str | int | float) else json.dumps(v))
            for name in ("one", "other")
        }
        return self.rows.assign(**plain)


def diff_runs(one: Run, other: Run) -> Difference:
    """Compare two runs in any state. Raises MlaError for a run that cannot be read."""
    rows: list[dict[str, Any]] = []
    identical = []
    for part, read in PARTS.items():
        left, right = read(one), read(other)
        keys = [key for key in {**left, **right} if left.get(key, ABSENT) != right.get(key, ABSENT)]
        if left and not keys:
            identical.append(part)
        for key in keys:
            row = {"part": part, "key": key, "one": left.get(key, ABSENT), "other": right.get(key, ABSENT)}
            numbers = part == "results" and key in left and key in right
            rows.append(row | {"difference": right[key] - left[key] if numbers else None})
    return Difference(one, other, pd.DataFrame(rows, columns=[*COLUMNS, "difference"]), identical)


def find_any_run(source: str, run_dir: Path) -> Run:
    """A run by path or name, in whatever state. Raises MlaError where there is none."""
    path = next((p for p in (Path(source), run_dir / source) if (p / "run.json").is_file()), None)
    if path is None:
        raise MlaError(f"no run at `{source}`", f"`mla status --run-dir {run_dir}` lists the runs")
    return Run(path)


# ---------------------------------------------------------------- the parts of a run, each as dotted keys


def recipe_part(run: Run) -> dict[str, Any]:
    return dotted(run.recipe().model_dump())


def facts(run: Run, keys: tuple[str, ...]) -> dict[str, Any]:
    """Keys of `run.json`, those that are there, with dots where they nest."""
    info = run.info()
    return dotted({key: info[key] for key in keys if key in info})


def data_part(run: Run) -> dict[str, Any]:
    found = run.info().get("data", {})
    kept = {k: v for k, v in found.items() if k not in NOT_DATA} if isinstance(found, Mapping) else {}
    return facts(run, DATA) | dotted(kept)


def command_part(run: Run) -> dict[str, Any]:
    words = run.info().get("command", [])
    return {"command": " ".join(["mla", *map(str, words[1:])])} if isinstance(words, list) else {}


def results_part(run: Run) -> dict[str, Any]:
    """Accuracy and other metrics of `results.csv`, complete modalities."""
    path = run.whole("results.csv")
    if not path.is_file():
        return {}
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return {f"{r['split']} {r['metric']} {r['output']}": float(r["value"]) for r in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise MlaError(f"cannot read `{path}`: {error}", run.start_again) from error


def files_part(run: Run) -> dict[str, Any]:
    """Start of the SHA-256 of the files that two equal runs share byte for byte."""
    return {name: sha256(run.path / name)[:12] for name in FILES if (run.path / name).is_file()}


PARTS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "recipe": recipe_part,
    "data": data_part,
    "weights": lambda run: facts(run, ("weights",)),
    "versions": lambda run: facts(run, ("versions",)),
    "machine": lambda run: facts(run, MACHINE),
    "command": command_part,
    "outcome": lambda run: facts(run, OUTCOME),
    "results": results_part,
    "files": files_part,
}
