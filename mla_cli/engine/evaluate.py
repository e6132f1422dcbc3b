"""`mla eval`: predictions -> tidy rows, for any missing rate, pattern, mask seed and fusion rule. No torch."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from mla_cli.core import fusion, intervals
from mla_cli.data.missing import draw_present, parse_rates, subset_present
from mla_cli.engine import curves, results
from mla_cli.engine.draws import train_rate
from mla_cli.engine.predictions import Predictions, mixed_logits, read_predictions, scored_subsets
from mla_cli.engine.request import Request
from mla_cli.engine.run import Run
from mla_cli.engine.scores import CHOICES, DEFAULT, Output, score_rows
from mla_cli.engine.scoring_rules import fixed_weights
from mla_cli.engine.temperature import Temperatures, fit_modalities, fit_temperature, scale_modalities, scaled
from mla_cli.errors import MlaError
from mla_cli.schema import Recipe


@dataclass
class Evaluator:
    """One run's predictions on one split, with what can be computed once: entropies, fusers, subset groups, units.

    temperatures: the predictions' logits are scaled by those of the modalities already.
    """

    predictions: Predictions
    recipe: Recipe
    common: dict[str, Any]
    fuser: fusion.Fuser | None = None
    metrics: Sequence[str] = DEFAULT
    intervals: bool | None = None
    temperatures: Temperatures | None = None

    @cached_property
    def units(self) -> np.ndarray:
        """What a bootstrap resamples together: int (sample,)."""
        return units_of(self.predictions)

    def fused(self, rule: str, present: np.ndarray) -> np.ndarray:
        """Fused logits (sample, class) where only `present` is given."""
        p = self.predictions
        if rule == "native" and p.subsets:
            return mixed_logits(p, present)
        fusing = self.recipe.fusion
        actual = p.facts["native_rule"] if rule == "native" else rule
        if self.fuser is None:
            self.fuser = fusion.Fuser(p.logits, p.present)
        weights = fixed_weights(self.recipe, p.modalities) if actual == "fixed" else None
        return self.fuser.fuse(present, actual, of=fusing.of, weights=weights, batch_size=fusing.batch_size)

    def row(self, **facts: Any) -> dict[str, Any]:
        return self.common | {"num_samples": len(self.predictions)} | facts

    def rows(self, scored: Output, drawn: bool, **facts: Any) -> Iterable[dict[str, Any]]:
        """One row per metric; where absences are drawn, intervals only if they are asked for."""
        counts = {"num_samples": len(scored.labels), "num_groups": count_groups(scored.units)}
        bounded = self.intervals if self.intervals is not None else not drawn
        for found in score_rows(scored, self.metrics, self.predictions.facts["classes"], bounded):
            yield self.row(**facts | counts | found)

    def alone_rows(self) -> Iterable[dict[str, Any]]:
        """Rows of each modality, over the samples that have it."""
        p = self.predictions
        for i, m in enumerate(p.modalities):
            has = p.present[:, i]
            if not has.any():
                continue
            facts = {"alone_readout": p.facts["alone_readout"], "missing_rate": 0.0, "realised_rate": 0.0, "fusion": ""}
            if self.temperatures is not None:
                facts["temperature"] = self.temperatures.modalities.get(m, 1.0)
            yield from self.rows(Output(p.logits[has, i], p.labels[has], self.units[has]), False, output=m, **facts)

    def fused_rows(self, rule: str, present: np.ndarray, **facts: Any) -> Iterable[dict[str, Any]]:
        """Rows of the fused output over the samples that keep something."""
        p, some = self.predictions, np.asarray(present.any(1))
        if not some.any():
            return
        if some.all():
            logits = self.fused(rule, present)
        else:  # a subset of modalities that some samples naturally lack
            logits = Evaluator(p.take(some), self.recipe, self.common).fused(rule, present[some])
        if self.temperatures is not None:
            facts["temperature"] = self.temperatures.fused[rule]
            logits = scaled(logits, facts["temperature"])
        parts = (p.logits[some], present[some]) if set(CHOICES) & set(self.metrics) else None  # a copy, so not for all
        scored = Output(logits, p.labels[some], self.units[some], parts)
        yield from self.rows(scored, "mask_seed" in facts, output="fused", fusion=rule, **facts)


def units_of(p: Predictions) -> np.ndarray:
    """The unit of every sample that a bootstrap resamples: its group, or itself; of pairs drawn by class, what hangs
    together by a common source. int (sample,)."""
    described = [p.facts.get("splits", {}).get(split, {}) for split in np.unique(p.splits)]
    drawn = any(facts.get("pair_seed") is not None for facts in described)
    return intervals.units_of(p.groups, p.ids if drawn else None)


def count_groups(units: np.ndarray) -> int:
    """Units among these samples, where any holds several; 0 where every sample is one of its own."""
    count = int((np.bincount(units) > 0).sum())
    return count if count < len(units) else 0


def item_hash(p: Predictions) -> str:
    """8 hex digits that tell sets of test items apart: of ids and labels, in any order."""
    lines = sorted(f"{name}\t{label}" for name, label in zip(p.ids, p.labels, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


def is_smoke(recipe: Recipe) -> bool:
    """Whether a run was cut short on purpose (`--smoke`): its numbers are no results."""
    return recipe.train.max_rounds is not None


def common_facts(run: Run, recipe: Recipe, predictions: Predictions, split: str) -> dict[str, Any]:
    """The columns that all rows of a run share."""
    drawn = predictions.facts.get("train_missing")
    return {
        "dataset": predictions.facts["dataset"],
        "protocol": predictions.facts["protocol"],
        "fold": recipe.dataset.fold,
        "split": split,
        "items": item_hash(predictions.of_split(split)),
        "recipe": recipe.name,
        "method": recipe.method.name,
        "hgm": recipe.method.hgm if recipe.method.name == "mla" else "",
        "seed": recipe.seed,
        "run": run.name,
        "checkpoint": predictions.facts["checkpoint"],
        "selected_on": predictions.facts.get("selected_on", recipe.train.select_on),  # other where it was imported
        "train_missing_rate": train_rate(recipe),
        "train_missing_pattern": recipe.train.missing_pattern if drawn else "",
        "natural_absence": float(1 - predictions.present[predictions.splits == split].mean()),
        "absent": recipe.train.absent,
        "impute": recipe.impute if predictions.subsets else "",
        "smoke": is_smoke(recipe),
    }


def evaluate(run: Run, request: Request, predictions: Predictions | None = None) -> pd.DataFrame:
    """Tidy rows of a finished run, from its own predictions or others of its model.

    Raises MlaError for rates that cannot be met, and for metrics of which none is defined for the run.
    """
    recipe = run.recipe()
    if request.weights is not None:
        recipe.fusion.weights = request.weights
    predictions = predictions or read_predictions(run.predictions)
    p = predictions.of_split(request.split)
    p = p.take(
        np.flatnonzero(p.present.any(1))
    )  # rows that lack everything cannot be scored; num_samples says how many could
    rules = list(request.rules) or [recipe.fusion.rule or p.facts["default_rule"]]
    common = common_facts(run, recipe, predictions, request.split)
    evaluators = [Evaluator(p, recipe, common, metrics=request.metrics, intervals=request.intervals)]
    if request.temperature:
        fitted = fit_temperatures(run, recipe, rules)
        scaled_p = scale_modalities(p, fitted.modalities)
        evaluators.append(replace(evaluators[0], predictions=scaled_p, fuser=None, temperatures=fitted))
    rows: list[dict[str, Any]] = []
    if request.alone:
        rows += [row for evaluator in evaluators for row in evaluator.alone_rows()]
    for evaluator in evaluators:
        rows += requested_rows(evaluator, rules, request)
    if not rows:
        names = ", ".join(f"`{name}`" for name in request.metrics)
        raise MlaError(f"none of the metrics is defined for this run: {names}", "ask for others, such as `accuracy`")
    table = results.frame(rows)
    for part in (curves.pooled, curves.areas):  # the pooled curve has an area too
        if len(more := part(table)):
            table = pd.concat([table, more], ignore_index=True)
    return table


def fit_temperatures(run: Run, recipe: Recipe, rules: Sequence[str]) -> Temperatures:
    """The temperatures of a run's modalities and of its fused output under each rule, on its own validation samples."""
    p = read_predictions(run.predictions).of_split("val")
    p = p.take(np.flatnonzero(p.present.any(1)))
    modalities = fit_modalities(p)
    evaluator = Evaluator(scale_modalities(p, modalities), recipe, {})
    fused = {rule: fit_temperature(evaluator.fused(rule, p.present), p.labels) for rule in rules}
    return Temperatures(modalities, fused)


def requested_rows(evaluator: Evaluator, rules: Sequence[str], request: Request) -> list[dict[str, Any]]:
    """Rows of the fused output: every pattern of absence, rate, mask seed and rule."""
    p = evaluator.predictions
    rows: list[dict[str, Any]] = []
    for pattern in request.patterns:
        if pattern == "subset":
            for subset in scored_subsets(p, rules):
                present = subset_present(p.present, subset, p.modalities)
                realised = 1 - present.sum() / max(p.present.sum(), 1)
                for rule in rules:
                    name = f"subset:{'+'.join(subset)}"
                    rows += evaluator.fused_rows(rule, present, missing_pattern=name, realised_rate=float(realised))
            continue
        for rate in request.rates:
            rows += rate_rows(evaluator, rules, pattern, rate, request)
    return rows


def rate_rows(
    evaluator: Evaluator, rules: Sequence[str], pattern: str, rate: float | str, request: Request
) -> list[dict[str, Any]]:
    """Rows of one pattern and rate over all mask seeds. At rate 0 nothing is drawn, so there is one row per rule."""
    p = evaluator.predictions
    if rate == 0:
        return [
            row
            for rule in rules
            for row in evaluator.fused_rows(
                rule, p.present, missing_rate=0.0, realised_rate=0.0, missing_pattern=pattern
            )
        ]
    wanted: Any = rate
    if pattern == "per_modality":
        wanted = parse_rates(str(rate), p.modalities) if isinstance(rate, str) else dict.fromkeys(p.modalities, rate)
    some = p.present.any(1)
    rows: list[dict[str, Any]] = []
    for mask_seed in request.mask_seeds:
        present = p.present.copy()
        draw = draw_present(
            p.present[some],
            p.ids[some],
            p.modalities,
            pattern=pattern,
            rate=wanted,
            seed=mask_seed,
            split=request.split,
        )
        present[some] = draw.present
        for rule in rules:
            rows += evaluator.fused_rows(
                rule,
                present,
                missing_rate=rate,
                realised_rate=draw.realised,
                expected_rate=draw.expected,
                missing_pattern=pattern,
                mask_seed=mask_seed,
            )
    return rows


def default_rows(run: Run) -> list[dict[str, Any]]:
    """Complete modalities, the run's own fusion, val and test."""
    predictions = read_predictions(run.predictions)
    parts = [evaluate(run, Request(split=split), predictions) for split in ("val", "test")]
    return pd.concat(parts).to_dict("records")


def write_results(run: Run) -> list[dict[str, Any]]:
    """Write `results.csv` of a run and return its rows; `results.md` is rendered from it by `render.py`."""
    rows = default_rows(run)
    results.write_csv(results.frame(rows), run.path / "results.csv")
    return rows
