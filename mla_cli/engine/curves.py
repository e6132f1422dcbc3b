"""What missing-rate curves sum up to: areas, and means over patterns of absence. Tidy rows in and out."""

import numpy as np
import pandas as pd

from mla_cli.engine.results import COLUMNS

POOLED = "pooled"


def pooled(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over the patterns of absence, for every rate and mask seed that all of them have.

    None where fewer than two patterns take a rate. Realised rates are averaged alike,
    and so are the samples that a metric is over (`entropy_choice`: other ones in every draw).
    """
    drawn = rows[(rows["output"] == "fused") & rows["missing_rate"].map(is_number)]
    if drawn["missing_pattern"].nunique() < 2:
        return rows.iloc[:0]
    keys = [
        c
        for c in COLUMNS
        if c not in ("missing_pattern", "value", "realised_rate", "expected_rate", "low", "high", "num_samples")
    ]
    grouped = drawn.groupby(keys, dropna=False, sort=False)
    found = grouped[["value", "realised_rate", "num_samples"]].mean()
    found = found[grouped["value"].count() == drawn["missing_pattern"].nunique()]
    found["num_samples"] = found["num_samples"].round().astype(int)
    return found.reset_index().assign(missing_pattern=POOLED).reindex(columns=list(COLUMNS))


def areas(rows: pd.DataFrame) -> pd.DataFrame:
    """Area under each metric's curve over the missing rates, divided by their span: a mean accuracy, in [0, 1].

    Trapezoids between the rates asked for; one row per fusion rule, temperature, pattern and mask seed (the point at
    rate 0, where nothing is drawn, belongs to every mask seed). The metric is called `area_<metric>`. None with fewer
    than two rates.
    """
    fused = rows[(rows["output"] == "fused") & rows["missing_rate"].map(is_number)]
    found = []
    for _, part in fused.groupby(["fusion", "temperature", "missing_pattern", "metric"], dropna=False, sort=False):
        rates = sorted(part["missing_rate"].astype(float).unique())
        if len(rates) < 2:
            continue
        start = part[part["mask_seed"].isna()]
        for mask_seed, curve in part[part["mask_seed"].notna()].groupby("mask_seed"):
            curve = pd.concat([start, curve])
            x, y = curve["missing_rate"].to_numpy(float), curve["value"].to_numpy(float)
            order = np.argsort(x)
            x, y = x[order], y[order]
            if len(x) != len(rates):
                continue
            area = float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum() / (x[-1] - x[0]))
            first = curve.iloc[-1]
            found.append(
                first.to_dict()
                | {
                    "metric": f"area_{first['metric']}",
                    "value": area,
                    "low": None,
                    "high": None,
                    "missing_rate": f"{x[0]:g}..{x[-1]:g}",
                    "realised_rate": None,
                    "expected_rate": None,
                    "mask_seed": mask_seed,
                }
            )
    return pd.DataFrame(found, columns=list(COLUMNS)) if found else rows.iloc[:0]


def is_number(rate: object) -> bool:
    """Whether a missing rate is one fraction (not rates per modality, not a span, not nothing)."""
    return isinstance(rate, int | float) and not isinstance(rate, bool) and not np.isnan(rate)
