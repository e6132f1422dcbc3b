"""The metrics of one output by name, with 95 % intervals: what a tidy row says about logits. No torch.

Most metrics are ratios of sums over samples, so that a resample of units costs one product of matrices; the two that
rank the samples (`aurc`, `map`) are counted again in every resample. `ece` has no interval: a resample makes any model
look less calibrated than it is.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mla_cli.core import intervals, metrics
from mla_cli.core.fusion import softmax
from mla_cli.errors import MlaError
from mla_cli.registry import did_you_mean

DEFAULT = ("accuracy", "macro_f1")
CALIBRATION = ("accuracy", "macro_f1", "nll", "ece")
METRICS = ("accuracy", "macro_f1", "nll", "brier", "ece", "aurc", "map", "recall", "entropy_choice", "oracle_gap")
CHOICES = ("entropy_choice", "oracle_gap")  # compare the modalities, so only fused outputs have them
PLAIN = ("nll", "brier", "ece", "aurc")  # shown as they are; the others are shares, shown in percent
SIMPLE = {
    "accuracy": metrics.accuracy,
    "macro_f1": metrics.macro_f1,
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

    def __post_init__(self) -> None:
        self.units = np.unique(self.units, return_inverse=True)[1].reshape(-1)


def score_rows(output: Output, names: Sequence[str], classes: Sequence[str], bounded: bool) -> Iterator[dict[str, Any]]:
    """`metric`, `value`, `low` and `high` of every metric that is defined for the output, and `num_samples` where it is
    over fewer samples than the output has. bounded: with intervals, where there are enough units."""
    for name in names:
        if name in CHOICES and (output.parts is None or output.parts[1].shape[1] < 2):
            continue
        if name in ("aurc", "map", "ece"):
            value = SIMPLE[name](output.logits, output.labels)
            low, high = ranked_bounds(name, output, value) if bounded and name != "ece" else (np.nan, np.nan)
            yield {"metric": name, "value": value, "low": low, "high": high}
            continue
        part, whole = fractions(name, output)
        sums = intervals.per_unit(np.concatenate([part, whole], axis=1), output.units)
        resampled = intervals.resampled(sums) if bounded else None
        if name in SIMPLE:
            value = SIMPLE[name](output.logits, output.labels)
            yield {"metric": name, "value": value} | _bounds(value, resampled, np.bincount(output.units))
            continue
        for c in np.flatnonzero(whole.any(axis=0)).tolist():  # `recall` has a column per class, the others have one
            pair = [c, part.shape[1] + c]
            value = float(part[:, c].sum() / whole[:, c].sum())
            found = _bounds(value, None if resampled is None else resampled[:, pair], sums[:, pair[1]])
            label = f"recall.{classes[c]}" if name == "recall" else name
            yield {"metric": label, "value": value, "num_samples": int(whole[:, c].sum())} | found


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


def _bounds(value: float, resampled: np.ndarray | None, sizes: np.ndarray) -> dict[str, float]:
    """`low` and `high` of resampled sums (draw, numerators and as many denominators)."""
    if resampled is None:
        return {"low": np.nan, "high": np.nan}
    part, whole = np.split(resampled, 2, axis=1)
    with np.errstate(invalid="ignore"):
        ratios = part / whole
    defined = whole > 0
    draws = np.where(defined, ratios, 0).sum(1) / np.maximum(defined.sum(1), 1)
    low, high = intervals.bounds(np.where(defined.any(1), draws, np.nan), sizes, value)
    return {"low": low, "high": high}


def ranked_bounds(name: str, output: Output, value: float) -> tuple[float, float]:
    """The interval of `aurc` or `map`: the samples are ranked once, and counted in every resample."""
    p, labels, units = softmax(output.logits.astype(np.float64)), output.labels, output.units
    sizes = np.bincount(units)
    if len(sizes) < intervals.FEWEST_UNITS:
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
            times = counts[start : start + size, units[order]].astype(np.int64)
            levels = np.add.reduceat(times, starts, axis=1)
            row[start : start + size] = area(np.add.reduceat(times * marked[order], starts, axis=1), levels)
    some = ~np.isnan(found)
    draws = np.where(some, found, 0).sum(0) / np.maximum(some.sum(0), 1)
    return intervals.bounds(draws, sizes, value)
