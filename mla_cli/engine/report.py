"""What a report is about: one finished run, or an ablation, read from disk and scored again from its predictions.

Nothing here trains or needs the model. Missing-rate curves are draws over the stored predictions, mask seeds 0 to 9.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ValidationError

from mla_cli.core import fusion
from mla_cli.engine.ablate import Ablation
from mla_cli.engine.evaluate import Evaluator, common_facts, evaluate, is_smoke
from mla_cli.engine.history import history_rows
from mla_cli.engine.latest import find_run
from mla_cli.engine.predictions import Predictions, read_predictions
from mla_cli.engine.request import Request
from mla_cli.engine.run import Run
from mla_cli.engine.scores import DEFAULT, METRICS
from mla_cli.engine.scoring_rules import fixed_weights
from mla_cli.engine.stored_grids import AGAIN, stored_grid, stored_rows, whole_table
from mla_cli.errors import MlaError, misfit
from mla_cli.schema import Recipe

RATES = (0.1, 0.2, 0.3, 0.4, 0.5)  # of the missing-rate curve, those that the modalities can meet
MASK_SEEDS = tuple(range(10))
SPLIT = "test"
# facts about the predictions that a report quotes
NEEDED = ("dataset", "protocol", "native_rule", "default_rule", "alone_readout", "checkpoint")


class SplitFacts(BaseModel):
    """A split in `run.json`: its samples."""

    samples: int


class DataFacts(BaseModel):
    """What `run.json` says of the data; what an imported run does not know is empty."""

    train: SplitFacts | None = None
    val: SplitFacts | None = None
    test: SplitFacts | None = None
    split_notes: list[str] = []
    leakage: dict[str, Any] | None = None


class Record(BaseModel):
    """The parts of `run.json` that a report shows."""

    command: list[str] = []
    versions: dict[str, str] = {}
    device: str = ""
    threads: int | None = None
    host: str = ""
    hash: str = ""
    data_fingerprint: str = ""
    checkpoint: str = ""
    data_dir: str = "data"
    data: DataFacts = DataFacts()
    warnings: list[str] = []


@dataclass
class RunFacts:
    """A run's record, and its scores on the labelled test samples that have at least one modality.

    scores: output -> (logits (sample, class), labels (sample,)); a modality's over the samples that have it.
    weights: fusion weights (sample, modality) of `weighed` samples, those with two modalities or more; None for a
    method that mixes its modalities inside. rows: tidy rows at every missing rate and subset. history: None for a run
    that has none. notes: what could not be shown, and why.
    """

    run: Run
    recipe: Recipe
    record: Record
    classes: list[str]
    test: Predictions
    rule: str
    scores: dict[str, tuple[np.ndarray, np.ndarray]]
    weights: np.ndarray | None
    weighed: np.ndarray
    rows: pd.DataFrame
    history: pd.DataFrame | None
    chosen: int
    notes: list[str] = field(default_factory=list)

    @property
    def modalities(self) -> list[str]:
        return self.test.modalities


@dataclass
class GridFacts:
    """An ablation, and what its `settings.json` says of how it was made. rules: setting -> fusion rule."""

    ablation: Ablation
    rules: dict[str, str]
    mask_seeds: list[int]
    command: list[str]

    @property
    def seeds(self) -> list[int]:
        """Training seeds, in order."""
        return sorted({int(seed) for seed in self.ablation.rows["seed"]})


def find_report(source: str | None, run_dir: Path) -> Run | Path:
    """A finished run, or an ablation's folder, by path or name; the latest run where none is named.

    Raises MlaError with what to do instead.
    """
    if source is not None:
        for path in (Path(source), run_dir / source):
            if (path / "settings.json").is_file():
                return path
            if path.is_dir() and path.name.startswith("ablate-"):
                raise MlaError(f"`{path}` has lost its `settings.json`", AGAIN)
    return find_run(source, run_dir)


def load_grid(path: Path) -> GridFacts:
    """An ablation as `mla ablate` left it. Raises MlaError for a damaged or a smoke one, or where a run is gone."""
    labels, grid = stored_grid(path)
    run_dir = path.parent
    trained = [row for row in grid["rows"] if "modality" not in row]  # the others are parts of `late`
    names = list(dict.fromkeys(name for row in grid["rows"] for name in row["runs"]))
    for name in names:
        if Run(run_dir / name).state != "finished":
            raise MlaError(f"the ablation's run `{run_dir / name}` is gone or not finished", AGAIN)
    if not names:
        raise MlaError(f"no run of `{path}` finished", AGAIN)
    rows = stored_rows(grid, run_dir)
    refuse_smoke(str(path), bool(rows["smoke"].any()), "mla ablate")
    ablation = Ablation(
        path=path,
        rows=rows,
        labels={row["setting"]: str(labels.get(row["setting"], "")) for row in grid["rows"] if row["runs"]},
        full=grid["full"],
        runs=[Run(run_dir / name) for name in names],
        reused=0,
        failed=grid["failed"],
        grid=grid["name"],
        runs_of={row["setting"]: [Run(run_dir / n) for n in row["runs"]] for row in trained},
        significance=read_significance(path / "significance.csv"),
    )
    rules = {row["setting"]: row["rule"] for row in trained}
    return GridFacts(ablation, rules, grid["mask_seeds"], grid["command"])


def read_significance(file: Path) -> pd.DataFrame | None:
    """The stored tests of a `table1`; None where there are none. Raises MlaError for another table."""
    if not file.is_file():
        return None
    wanted = {"setting", "p", "p_holm", "num_samples", "units"}
    try:
        table = pd.read_csv(whole_table(file))
    except (ValueError, OSError) as error:
        raise MlaError(f"cannot read `{file}`: {error}", AGAIN) from error
    if not wanted <= set(table.columns):
        raise MlaError(f"`{file}` lacks the column `{sorted(wanted - set(table.columns))[0]}`", AGAIN)
    return table


def load_run(run: Run) -> RunFacts:
    """Everything a report says about a run. Raises MlaError for a damaged or a smoke run."""
    recipe, record = run.recipe(), read_record(run)
    refuse_smoke(str(run.path), is_smoke(recipe), f"mla train --recipe {recipe.name}")
    predictions = read_predictions(run.predictions)
    lacking = [key for key in NEEDED if key not in predictions.facts]
    if lacking:
        raise MlaError(f"`{run.predictions}` does not say its `{lacking[0]}`", run.start_again)
    notes: list[str] = []
    labelled = predictions.labels >= 0
    if not labelled.all():
        without = int((~labelled).sum())
        notes.append(f"{without} of {len(predictions)} samples have no label; every number leaves them out")
    predictions = predictions.take(np.flatnonzero(labelled))
    if not (predictions.present[predictions.splits == SPLIT]).any():
        raise MlaError(f"`{run.predictions}` has no labelled sample of split `{SPLIT}`", "there is nothing to report")
    test = predictions.of_split(SPLIT)
    some = np.flatnonzero(test.present.any(1))
    if len(some) < len(test):
        without = len(test) - len(some)
        notes.append(f"{without} of {len(test)} test samples lack every modality and cannot be scored")
    test = test.take(some)
    evaluator = Evaluator(test, recipe, common_facts(run, recipe, predictions, SPLIT))
    rule = recipe.fusion.rule or test.facts["default_rule"]
    scores = {
        m: (test.logits[has, i], test.labels[has])
        for i, m in enumerate(test.modalities)
        if (has := test.present[:, i]).any()
    }
    notes += [f"{m} is absent in every test sample" for m in test.modalities if m not in scores]
    scores["fused"] = (evaluator.fused(rule, test.present), test.labels)
    rows, left_out = rows_of(run, predictions, rule)
    weighed = test.present.sum(1) > 1
    history = read_history(run)
    if history is None:
        notes.append("the run has no history: it was not trained here, so there are no learning curves")
    elif not history["diagnostic"].isin(["train_accuracy"]).any():
        notes.append("the run was trained without diagnostics (`train.diagnostics: false`)")
    return RunFacts(
        run=run,
        recipe=recipe,
        record=record,
        classes=[str(name) for name in test.facts["classes"]],
        test=test,
        rule=rule,
        scores=scores,
        weights=fusion_weights(test, recipe, rule, weighed),
        weighed=weighed,
        rows=rows,
        history=history,
        chosen=epoch_of(record.checkpoint) if history is not None else 0,
        notes=notes + left_out,
    )


def read_record(run: Run) -> Record:
    """`run.json`, checked. Raises MlaError naming what is damaged."""
    try:
        return Record.model_validate(run.info())
    except ValidationError as error:
        raise MlaError(f"`{run.path / 'run.json'}`: {misfit(error)}", run.start_again) from error


def epoch_of(checkpoint: str) -> int:
    """The epoch in `best@12`; 0 where none is named."""
    number = checkpoint.partition("@")[2]
    return int(number) if number.isdecimal() else 0


def read_history(run: Run) -> pd.DataFrame | None:
    """`history_rows`; None for a run without an epoch. Raises MlaError for figures that are none."""
    if not run.history():
        return None
    try:
        return history_rows(run)
    except (ValueError, TypeError) as error:
        raise MlaError(f"`{run.path / 'history.jsonl'}`: {error}", run.start_again) from error


def refuse_smoke(name: str, smoke: bool, command: str) -> None:
    """Raise MlaError for what was cut short on purpose: its numbers mean nothing, and a report would be quoted."""
    if smoke:
        raise MlaError(f"`{name}` is a smoke run: its numbers are no results", f"run `{command}` without `--smoke`")


def rows_of(run: Run, predictions: Predictions, rule: str) -> tuple[pd.DataFrame, list[str]]:
    """Tidy rows of val and test with nothing missing (of test every metric), of test at every rate and subset; and
    what was left out."""
    splits = [s for s in ("val", SPLIT) if (predictions.splits == s).any()]
    wanted = {"val": DEFAULT, SPLIT: METRICS}
    parts = [evaluate(run, Request(split=s, rules=(rule,), metrics=wanted[s]), predictions) for s in splits]
    if len(predictions.modalities) < 2:
        return pd.concat(parts, ignore_index=True), ["one modality: nothing of it can be missing, nothing is fused"]
    unmet, reason = [], ""
    for rate in RATES:
        request = Request(rates=(rate,), mask_seeds=MASK_SEEDS, rules=(rule,), alone=False)
        try:
            parts.append(evaluate(run, request, predictions))
        except MlaError as error:
            unmet.append(f"{rate:g}")
            reason = error.message
    parts.append(evaluate(run, Request(patterns=("subset",), rules=(rule,), alone=False), predictions))
    notes = [f"missing rates {', '.join(unmet)} are left out: {reason}"] if unmet else []
    return pd.concat(parts, ignore_index=True), notes


def fusion_weights(p: Predictions, recipe: Recipe, rule: str, rows: np.ndarray) -> np.ndarray | None:
    """Fusion weights (sample, modality) of some samples; None where a method mixes its modalities inside."""
    if rule == "native" and p.subsets:
        return None
    actual = p.facts["native_rule"] if rule == "native" else rule
    fixed = fixed_weights(recipe, p.modalities) if actual == "fixed" else None
    # all samples, since `entropy_batch` weighs a sample by its neighbours
    return fusion.Fuser(p.logits, p.present).weights(p.present, actual, fixed, recipe.fusion.batch_size)[rows]


def fused_scores(run: Run, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Fused logits (sample, class) and labels of a run's test samples, nothing missing."""
    p = read_predictions(run.predictions).of_split(SPLIT)
    p = p.take(p.present.any(1) & (p.labels >= 0))
    return Evaluator(p, run.recipe(), {}).fused(rule, p.present), p.labels
