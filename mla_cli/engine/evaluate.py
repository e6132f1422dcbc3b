"""`mla eval`: predictions -> tidy rows, for any missing rate, pattern, mask seed and fusion rule. No torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mla_cli.core import fusion, metrics
from mla_cli.data.missing import PATTERNS, draw_present, parse_rates, subset_present
from mla_cli.engine import curves, results
from mla_cli.engine.draws import train_rate
from mla_cli.engine.numbers import parse_numbers, parse_weights
from mla_cli.engine.predictions import Predictions, mixed_logits, read_predictions, scored_subsets
from mla_cli.engine.run import Run
from mla_cli.engine.scoring_rules import fixed_weights
from mla_cli.errors import MlaError
from mla_cli.registry import did_you_mean
from mla_cli.schema import Recipe


@dataclass
class Request:
    """What to evaluate.

    rates: fractions, or for `per_modality` texts such as `audio=0.5,text=0`. rules: fusion rules; empty: the run's.
    weights: of rule `fixed`, by modality; None means the recipe's.
    """

    split: str = "test"
    rates: Sequence[float | str] = (0.0,)
    patterns: Sequence[str] = ("kept_one",)
    mask_seeds: Sequence[int] = (0,)
    rules: Sequence[str] = ()
    alone: bool = True
    weights: dict[str, float] | None = None


@dataclass
class Evaluator:
    """One run's predictions on one split, with what can be computed once: entropies, fusers, subset groups."""

    predictions: Predictions
    recipe: Recipe
    common: dict[str, Any]
    fuser: fusion.Fuser | None = None

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

    def alone_rows(self) -> Iterable[dict[str, Any]]:
        """Accuracy and macro-F1 of each modality, over the samples that have it."""
        p = self.predictions
        for i, m in enumerate(p.modalities):
            has = p.present[:, i]
            if not has.any():
                continue
            facts = {
                "output": m,
                "alone_readout": p.facts["alone_readout"],
                "missing_rate": 0.0,
                "realised_rate": 0.0,
                "num_samples": int(has.sum()),
                "num_groups": count_groups(p.groups[has]),
            }
            for metric, value in scores(p.logits[has, i], p.labels[has]).items():
                yield self.row(metric=metric, value=value, fusion="", **facts)

    def fused_rows(self, rule: str, present: np.ndarray, **facts: Any) -> Iterable[dict[str, Any]]:
        """Accuracy and macro-F1 of the fused output over the samples that keep something."""
        p, some = self.predictions, np.asarray(present.any(1))
        if not some.any():
            return
        if some.all():
            logits = self.fused(rule, present)
        else:  # a subset of modalities that some samples naturally lack
            logits = Evaluator(p.take(some), self.recipe, self.common).fused(rule, present[some])
        counts = {"num_samples": int(some.sum()), "num_groups": count_groups(p.groups[some])}
        for metric, value in scores(logits, p.labels[some]).items():
            yield self.row(output="fused", fusion=rule, metric=metric, value=value, **counts, **facts)


def scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return {"accuracy": metrics.accuracy(logits, labels), "macro_f1": metrics.macro_f1(logits, labels)}


def count_groups(groups: np.ndarray) -> int:
    """Distinct named groups; 0 where the data have none."""
    return len({g for g in groups if g})


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
        "recipe": recipe.name,
        "method": recipe.method.name,
        "hgm": recipe.method.hgm if recipe.method.name == "mla" else "",
        "seed": recipe.seed,
        "run": run.name,
        "checkpoint": predictions.facts["checkpoint"],
        "selected_on": recipe.train.select_on,
        "train_missing_rate": train_rate(recipe),
        "train_missing_pattern": recipe.train.missing_pattern if drawn else "",
        "natural_absence": float(1 - predictions.present[predictions.splits == split].mean()),
        "absent": recipe.train.absent,
        "impute": recipe.impute if predictions.subsets else "",
        "smoke": is_smoke(recipe),
    }


def parse_request(
    split: str,
    rates: Sequence[str] | None,
    patterns: Sequence[str] | None,
    mask_seeds: str,
    rules: Sequence[str] | None,
    weights: str | None = None,
) -> Request:
    """The command line's texts as a Request. Raises MlaError naming what is wrong with one."""
    if split not in ("val", "test"):
        raise MlaError(f"no split named `{split}` to evaluate", "choose `--split val` or `--split test`")
    for word, choices in ((w, c) for words, c in ((patterns, PATTERNS), (rules, fusion.RULES)) for w in words or ()):
        if word not in choices and not (word == "native" and choices is fusion.RULES):
            kind = "fusion rule" if choices is fusion.RULES else "missing pattern"
            raise MlaError(f"no {kind} named `{word}`", did_you_mean(word, list(choices)))
    parsed: list[float | str] = []
    for text in rates or ("0",):
        try:
            parsed.append(text if "=" in text else float(text))
        except ValueError:
            hint = "write a fraction such as 0.3; for several rates repeat the option"
            raise MlaError(f"`--missing-rate {text}` is not a number", hint) from None
    given = list(patterns or ("kept_one",))
    if any(isinstance(rate, str) for rate in parsed) and given != ["per_modality"]:
        shown = ", ".join(rates or ())
        raise MlaError(f"rates per modality (`{shown}`) need their pattern", "add `--pattern per_modality`")
    fixed = parse_weights(weights) if weights is not None else None
    return Request(split, parsed, given, parse_numbers(mask_seeds, "--mask-seeds"), list(rules or ()), True, fixed)


def warnings_of(request: Request) -> list[str]:
    """What the reader of the tables must know about the rules asked for."""
    return [fusion.NEIGHBOUR_WARNING] if "entropy_batch" in request.rules else []


def evaluate(run: Run, request: Request, predictions: Predictions | None = None) -> pd.DataFrame:
    """Tidy rows of a finished run, from its own predictions or others of its model.

    Raises MlaError for rates that cannot be met.
    """
    recipe = run.recipe()
    if request.weights is not None:
        recipe.fusion.weights = request.weights
    predictions = predictions or read_predictions(run.predictions)
    p = predictions.of_split(request.split)
    p = p.take(
        np.flatnonzero(p.present.any(1))
    )  # rows that lack everything cannot be scored; num_samples says how many could
    evaluator = Evaluator(p, recipe, common_facts(run, recipe, predictions, request.split))
    rules = list(request.rules) or [recipe.fusion.rule or p.facts["default_rule"]]
    rows = list(evaluator.alone_rows()) if request.alone else []
    natural = p.present
    for pattern in request.patterns:
        if pattern == "subset":
            for subset in scored_subsets(p, rules):
                present = subset_present(natural, subset, p.modalities)
                realised = 1 - present.sum() / max(natural.sum(), 1)
                for rule in rules:
                    name = f"subset:{'+'.join(subset)}"
                    rows += evaluator.fused_rows(rule, present, missing_pattern=name, realised_rate=float(realised))
            continue
        for rate in request.rates:
            rows += rate_rows(evaluator, rules, pattern, rate, request)
    table = results.frame(rows)
    for part in (curves.pooled, curves.areas):  # the pooled curve has an area too
        if len(more := part(table)):
            table = pd.concat([table, more], ignore_index=True)
    return table


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
    parts = [evaluate(run, Request(split=split)) for split in ("val", "test")]
    return pd.concat(parts).to_dict("records")


def write_results(run: Run) -> None:
    """`results.csv` of a run; `results.md` is rendered from it by `render.py`."""
    results.write_csv(results.frame(default_rows(run)), run.path / "results.csv")
