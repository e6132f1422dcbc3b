"""Paired comparison of two methods on the same test items. NumPy and SciPy, no torch.

An item's score is its correctness, averaged over the seeds that both methods have; the difference of the two scores is
averaged over items. Two tests ask whether it is 0. Both take the trained runs as given and the items as random, so they
say whether these runs would differ on other items, not whether other seeds would.

The paired bootstrap (Efron & Tibshirani 1993, ch. 16) resamples groups of items (speaker, family) where the data name
groups, and items where they do not, ten units at the least. Its interval and p are those of `core/intervals.py`: the
95 % interval excludes 0 where p < .05, up to the draws' own error.

McNemar's test (1947) in its exact form asks whether one method is better on as many items as the other: binomial with
1/2. With several seeds better means right in more of them (a sign test). It takes every item as independent, so where
items come in groups it is not valid and not given.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mla_cli.core import intervals
from mla_cli.engine import results
from mla_cli.engine.evaluate import Evaluator, common_facts, units_of
from mla_cli.engine.predictions import read_predictions
from mla_cli.engine.run import Run
from mla_cli.errors import MlaError

DRAWS = 10_000  # so that p can be as small as 2 / DRAWS: a table corrects it for many comparisons
COLUMNS = ["setting", "difference", "low", "high", "p", "better", "worse", "p_mcnemar", "num_samples", "units", "seeds"]


def correct_items(runs: Sequence[Run], rule: str) -> pd.DataFrame:
    """Share of the runs that get each test item right, complete modalities: index `id`, columns `unit`, `score`.

    unit: what is resampled together (`core/intervals.py`). Raises MlaError for runs that were scored on other items.
    """
    scores = []
    for run in runs:
        p = read_predictions(run.predictions).of_split("test")
        p = p.take(np.flatnonzero(p.present.any(1)))
        logits = Evaluator(p, run.recipe(), {}).fused(rule, p.present)
        right = (logits.argmax(1) == p.labels).astype(float)
        scores.append(pd.DataFrame({"unit": units_of(p), "score": right}, index=pd.Index(p.ids, name="id")))
    first = scores[0]
    for run, other in zip(runs, scores, strict=True):
        if not other.index.equals(first.index):
            raise MlaError(
                f"`{run.name}` was scored on other test items than `{runs[0].name}`",
                "compare runs of one protocol, fold and pair_seed",
            )
    return first.assign(score=np.mean([s["score"] for s in scores], axis=0))


def bootstrap(difference: np.ndarray, units: np.ndarray) -> dict[str, Any]:
    """Two-sided `p` of a mean difference of 0, its 95 % interval `low`, `high`, and the number of `units` resampled.

    difference: (item,) in [-1, 1]; units: int (item,), what is resampled together. p and bounds are NaN for fewer than
    ten units; bounds too where all units agree, and p is 1 where they agree on 0.
    """
    sums = intervals.per_unit(
        np.stack([difference, np.ones(len(difference))], axis=1), np.unique(units, return_inverse=True)[1]
    )
    total, size = intervals.resampled(sums, DRAWS).T
    low, high = intervals.bounds(total / size, sums[:, 1])
    return {"p": intervals.two_sided(total / size, sums[:, 1]), "low": low, "high": high, "units": len(sums)}


def mcnemar(difference: np.ndarray, units: np.ndarray) -> dict[str, Any]:
    """`better` and `worse`: items of positive and of negative difference; `p_mcnemar`: exact, two-sided.

    p is NaN where any unit holds several items; 1 where no item differs.
    """
    from scipy.stats import binomtest

    better, worse = int((difference > 1e-12).sum()), int((difference < -1e-12).sum())
    single = len(np.unique(units)) == len(units)
    p = binomtest(better, better + worse).pvalue if better + worse else 1.0
    return {"better": better, "worse": worse, "p_mcnemar": float(p) if single else float("nan")}


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): the adjusted p of each, in the given order; NaN stays out of the family."""
    tested = [i for i, p in enumerate(p_values) if not np.isnan(p)]
    adjusted, highest = [float("nan")] * len(p_values), 0.0
    for rank, i in enumerate(sorted(tested, key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(tested) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def check_runs(runs: Sequence[Run]) -> None:
    """Raise MlaError for smoke runs, and for runs that differ in data set, protocol, test items or selection."""
    rows = [common_facts(run, run.recipe(), read_predictions(run.predictions), "test") for run in runs]
    table = results.frame(rows)
    results.refuse_smoke(table)
    results.check_comparable(table, results.SIDE_BY_SIDE)


def compare(runs: Mapping[str, Sequence[Run]], rules: Mapping[str, str], full: str) -> pd.DataFrame:
    """Every setting against `full`, fused, complete modalities: one row each, with the columns

    `setting, difference, low, high` (its 95 % interval), `p, p_holm` (paired bootstrap), `better, worse` (items),
    `p_mcnemar, p_mcnemar_holm` (NaN where items come in groups), `num_samples, units, seeds`.

    runs: the finished runs of each setting; only seeds that both have are compared. rules: the fusion rule that each is
    read with. units: groups, or items. Holm's corrections are over the table. Raises MlaError for runs that may not be
    compared: other data set, protocol, test items or selection rule, an imported run, a smoke run.
    """
    found = []
    for setting, own in runs.items():
        if setting == full:
            continue
        seeds = {run.recipe().seed: run for run in own}
        pairs = [(seeds[s], run) for run in runs.get(full, ()) if (s := run.recipe().seed) in seeds]
        if not pairs:
            continue
        check_runs([run for pair in pairs for run in pair])
        one = correct_items([pair[0] for pair in pairs], rules[setting])
        other = correct_items([pair[1] for pair in pairs], rules[full])
        if set(one.index) != set(other.index):
            raise MlaError(f"`{setting}` was scored on other test items than `{full}`", "compare runs of one protocol")
        difference = (one["score"] - other["score"].reindex(one.index)).to_numpy()
        units = one["unit"].to_numpy()
        facts = {
            "setting": setting,
            "difference": float(difference.mean()),
            "num_samples": len(one),
            "seeds": len(pairs),
        }
        found.append(facts | bootstrap(difference, units) | mcnemar(difference, units))
    table = pd.DataFrame(found, columns=COLUMNS)
    for column in ("p", "p_mcnemar"):
        table.insert(table.columns.get_loc(column) + 1, f"{column}_holm", holm(table[column].tolist()))
    return table
