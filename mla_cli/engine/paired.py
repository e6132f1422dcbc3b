"""Paired comparison of two methods on the same test items. NumPy, no torch.

An item's score is its correctness, averaged over the seeds that both methods have; the difference of the two scores is
averaged over items. Its distribution comes from a bootstrap that resamples groups of items (speaker, family) where the
data name groups, and items where they do not (Efron & Tibshirani 1993, ch. 16): ten units at the least.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mla_cli.engine.evaluate import Evaluator
from mla_cli.engine.predictions import read_predictions
from mla_cli.engine.run import Run
from mla_cli.errors import MlaError
from mla_cli.seeding import generator

DRAWS = 10_000
FEWEST_GROUPS = 10


def correct_items(runs: Sequence[Run], rule: str) -> pd.DataFrame:
    """Share of the runs that get each test item right, complete modalities: index `id`, columns `group`, `score`.

    Raises MlaError if the runs were not scored on the same items.
    """
    scores = []
    for run in runs:
        p = read_predictions(run.predictions).of_split("test")
        p = p.take(np.flatnonzero(p.present.any(1)))
        logits = Evaluator(p, run.recipe(), {}).fused(rule, p.present)
        right = (logits.argmax(1) == p.labels).astype(float)
        scores.append(pd.DataFrame({"group": p.groups, "score": right}, index=pd.Index(p.ids, name="id")))
    first = scores[0]
    for run, other in zip(runs, scores, strict=True):
        if not other.index.equals(first.index):
            raise MlaError(
                f"`{run.name}` was scored on other test items than `{runs[0].name}`",
                "compare runs of one protocol, fold and pair_seed",
            )
    return first.assign(score=np.mean([s["score"] for s in scores], axis=0))


def bootstrap(difference: np.ndarray, groups: np.ndarray, seed: int = 0) -> tuple[float, int]:
    """Two-sided p of a mean difference of 0, and the number of units resampled; NaN where there are too few.

    difference: (item,) in [-1, 1]; groups: (item,) names; an item without one is a unit of its own. Groups that share
    a part of their name (the speaker of a drawn pair, `speaker+writer`) count as independent, so p is too small there.
    p = 2 min(share of draws <= 0, share >= 0), counting the data themselves as one draw, at most 1.
    """
    names = [g or f"\0{i}" for i, g in enumerate(groups)]  # who has no group is one
    codes = np.unique(np.asarray(names, dtype=str), return_inverse=True)[1]
    sums, sizes = np.bincount(codes, difference), np.bincount(codes)
    units = len(sums)
    if units < FEWEST_GROUPS:
        return float("nan"), units
    rng = generator(seed, "paired_bootstrap")
    low = high = 1
    for _ in range(0, DRAWS, 1000):
        weights = rng.multinomial(units, np.full(units, 1 / units), size=1000)
        means = (weights @ sums) / (weights @ sizes)
        low, high = low + int((means <= 1e-12).sum()), high + int((means >= -1e-12).sum())
    return min(1.0, 2 * min(low, high) / (DRAWS + 1)), units


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): the adjusted p of each, in the given order; NaN stays out of the family."""
    tested = [i for i, p in enumerate(p_values) if not np.isnan(p)]
    adjusted, highest = [float("nan")] * len(p_values), 0.0
    for rank, i in enumerate(sorted(tested, key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(tested) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def compare(runs: Mapping[str, Sequence[Run]], rules: Mapping[str, str], full: str) -> pd.DataFrame:
    """Every setting against `full`, fused: setting, difference, p, p_holm, num_samples, units, seeds.

    runs: the finished runs of each setting; only seeds that both have are compared. units: groups, or items.
    """
    found = []
    for setting, own in runs.items():
        if setting == full:
            continue
        seeds = {run.recipe().seed: run for run in own}
        pairs = [(seeds[s], run) for run in runs.get(full, ()) if (s := run.recipe().seed) in seeds]
        if not pairs:
            continue
        one = correct_items([pair[0] for pair in pairs], rules[setting])
        other = correct_items([pair[1] for pair in pairs], rules[full])
        if set(one.index) != set(other.index):
            raise MlaError(f"`{setting}` was scored on other test items than `{full}`", "compare runs of one protocol")
        difference = one["score"] - other["score"].reindex(one.index)
        p, units = bootstrap(difference.to_numpy(), one["group"].to_numpy())
        facts = {"setting": setting, "difference": float(difference.mean()), "p": p}
        found.append({**facts, "num_samples": len(one), "units": units, "seeds": len(pairs)})
    columns = ["setting", "difference", "p", "num_samples", "units", "seeds"]
    table = pd.DataFrame(found, columns=columns)
    table.insert(3, "p_holm", holm(table["p"].tolist()))
    return table
