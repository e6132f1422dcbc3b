"""The metrics of one output by name, with 95 % intervals: what a tidy row says about logits. No torch.

Most metrics are ratios of sums over samples, so that a resample of units costs one product of matrices; the two that
rank the samples (`aurc`, `map`) are counted again in every resample. `ece` has no interval: resampling inflates it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from mla_cli.core import intervals, metrics
from mla_cli.errors import MlaError
from mla_cli.registry import did_you_mean

DEFAULT = ("accuracy", "macro_f1")
CALIBRATION = ("accuracy", "macro_f1", "nll", "ece")
METRICS = ("accuracy", "macro_f1", "nll", "brier", "ece", "aurc", "map", "recall", "entropy_choice", "oracle_gap")
CHOICES = ("entropy_choice", "oracle_gap")  # compare the modalities, so only fused outputs have them
PLAIN = ("nll", "brier", "ece", "aurc")  # shown as they are; the others are shares, shown in percent
LARGEST = 250_000  # samples times classes that `map` is resampled for: a quarter of a minute
COUNTED = {"accuracy": metrics.accuracy_of, "macro_f1": metrics.macro_f1_of}  # of the confusion matrix
SIMPLE = {
    "nll": metrics.nll,
    "brier": metrics.brier,
    "ece": metrics.ece,
    "aurc": metrics.aurc,
    "map": metrics.mean_average_precision,
}


def parse_metrics(text: str | None, default: Sequence[str] = DEFAULT) -> list[str]:
    """`accuracy,nll` or `all` as names. Raises MlaError naming one that does not exist or stands twice."""
    if text is None:
        return list(default)
    if text.strip() == "all":
        return list(METRICS)
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in METRICS:
            raise MlaError(f"no metric named `{name}`", did_you_mean(name, [*METRICS, "all"]))
        if names.count(name) > 1:
            raise MlaError(f"metric `{name}` is named twice", "name each once, or write `--metrics all`")
    return names


@dataclass
class Output:
    """One output on the samples that have it.

    logits: float (sample, class); labels: int (sample,); units: int (sample,), what is resampled together. parts: of a
    fused output, the logits (sample, modality, class) and presence (sample, modality) it is made from.
    """

    logits: np.ndarray
    labels: np.ndarray
    units: np.ndarray
    parts: tuple[np.ndarray, np.ndarray] | None = None

    @cached_property
    def cells(self) -> np.ndarray:
        """The confusion matrix: int (class, class)."""
        return metrics.confusion(self.logits, self.labels)


def score_rows(output: Output, names: Sequence[str], classes: Sequence[str], bounded: bool) -> Iterator[dict[str, Any]]:
    """`metric`, `value`, `low` and `high` of every metric that is defined for the output, and `num_samples` where it is
    over fewer samples than the output has. bounded: with intervals, where there are enough units."""
    if bounded:
        output = replace(output, units=np.unique(output.units, return_inverse=True)[1].reshape(-1))
    for name in names:
        if name in CHOICES and (output.parts is None or output.parts[1].shape[1] < 2):
            continue
        if name in SIMPLE or name in COUNTED:
            value = COUNTED[name](output.cells) if name in COUNTED else SIMPLE[name](output.logits, output.labels)
            low, high = bounds_of(name, output, value) if bounded else (np.nan, np.nan)
            yield {"metric": name, "value": value, "low": low, "high": high}
            continue
        part, whole = fractions(name, output)
        count = part.shape[1]  # `recall` has a column per class, the others have one
        if bounded:
            sums = intervals.per_unit(np.concatenate([part, whole], axis=1), output.units)
            draws = intervals.resampled(sums)
        for c in np.flatnonzero(whole.any(axis=0)).tolist():
            value, low, high = float(part[:, c].sum() / whole[:, c].sum()), np.nan, np.nan
            if bounded:
                low, high = ratio_bounds(draws[:, [c, count + c]], sums[:, count + c], value)
            label = f"recall.{classes[c]}" if name == "recall" else name
            yield {"metric": label, "value": value, "low": low, "high": high, "num_samples": int(whole[:, c].sum())}


def bounds_of(name: str, output: Output, value: float) -> tuple[float, float]:
    """The interval of one of the plain metrics; NaN for `ece`."""
    if name == "ece":
        return np.nan, np.nan
    if name in ("aurc", "map"):
        return ranked_bounds(name, output, value)
    sums = intervals.per_unit(np.concatenate(fractions(name, output), axis=1), output.units)
    return ratio_bounds(intervals.resampled(sums), np.bincount(output.units), value)


def fractions(name: str, output: Output) -> tuple[np.ndarray, np.ndarray]:
    """Numerators and denominators (sample, column) of which the metric is the ratio of sums, or the mean of the ratios
    (macro-F1). Recall has a column per class."""
    logits, labels, parts = output.logits, output.labels, output.parts
    one = np.ones((len(labels), 1))
    if name in ("macro_f1", "recall"):
        predicted, label = (np.eye(logits.shape[1])[which] for which in (logits.argmax(1), labels))
        hits = predicted * label
        return (2 * hits, predicted + label) if name == "macro_f1" else (hits, label)
    if name == "accuracy":
        return metrics.right(logits, labels)[:, None].astype(np.float64), one
    if name in ("nll", "brier"):
        each = metrics.nll_of_each if name == "nll" else metrics.brier_of_each
        return each(logits, labels)[:, None], one
    assert parts is not None
    if name == "oracle_gap":
        return metrics.oracle_gap_of_each(*parts, labels, logits)[:, None], one
    picked, counted = metrics.entropy_choice_of_each(*parts, labels)
    return picked[:, None], counted[:, None].astype(np.float64)


def ratio_bounds(draws: np.ndarray, sizes: np.ndarray, value: float) -> tuple[float, float]:
    """The interval of a ratio of sums, or of the mean of those ratios that are defined.

    draws: (draw, column), resampled numerators and then as many denominators; sizes: (unit,); value: of all units.
    """
    part, whole = np.split(draws, 2, axis=1)
    defined = whole > 0
    ratios = np.where(defined, part / np.where(defined, whole, 1), 0).sum(1) / np.maximum(defined.sum(1), 1)
    return intervals.bounds(np.where(defined.any(1), ratios, np.nan), sizes, value)


def ranked_bounds(name: str, output: Output, value: float) -> tuple[float, float]:
    """The interval of `aurc` or `map`: the samples are ranked once, and counted in every resample.

    NaN for `map` of very many samples and classes, which would take minutes.
    """
    p, labels, units = metrics.probabilities(output.logits), output.labels, output.units
    sizes = np.bincount(units)
    if len(sizes) < intervals.FEWEST_UNITS or (name == "map" and p.size > LARGEST):
        return np.nan, np.nan
    counts = intervals.draw_counts(len(sizes))
    area: Callable[[np.ndarray, np.ndarray], np.ndarray]
    if name == "aurc":
        area, rankings = metrics.area_under_risk, [(p.max(1), output.logits.argmax(1) != labels)]
    else:
        area, rankings = metrics.area_under_precision, [(p[:, c], labels == c) for c in np.unique(labels)]
    found = np.full((len(rankings), len(counts)), np.nan)
    for row, (score, marked) in zip(found, rankings, strict=True):
        order = np.argsort(-score, kind="stable")
        starts = np.flatnonzero(np.diff(score[order], prepend=np.inf))  # of every level of equal scores
        size = max(1, 4_000_000 // len(labels))
        for start in range(0, len(counts), size):
            times = counts[start : start + size, units[order]].astype(np.int32)
            levels = np.add.reduceat(times, starts, axis=1)
            row[start : start + size] = area(np.add.reduceat(times * marked[order], starts, axis=1), levels)
    some = ~np.isnan(found)
    draws = np.where(some, found, 0).sum(0) / np.maximum(some.sum(0), 1)
    return intervals.bounds(draws, sizes, value)
