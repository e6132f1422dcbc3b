"""Metrics by name with their intervals: what is defined for which output, over which samples, by which unit."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score

from mla_cli.core import intervals, metrics
from mla_cli.core.fusion import softmax
from mla_cli.engine.scores import METRICS, Output, parse_metrics, score_rows
from mla_cli.errors import MlaError

NAMES = ("a", "b", "c")


def made(samples: int = 120, modalities: int = 2, seed: int = 0, units: np.ndarray | None = None) -> Output:
    """A fused output whose logits know something of the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, samples)
    parts = rng.normal(size=(samples, modalities, 3)) + 1.2 * np.eye(3)[labels][:, None]
    units = np.arange(samples) if units is None else units
    return Output(parts.mean(1), labels, units, (parts, np.ones((samples, modalities), bool)))


def rows(output: Output, names=METRICS, bounded: bool = True) -> dict[str, dict]:
    return {row["metric"]: row for row in score_rows(output, names, NAMES, bounded)}


def test_values_are_those_of_the_metrics() -> None:
    output = made()
    found = rows(output, bounded=False)
    assert list(found) == [
        "accuracy", "macro_f1", "nll", "brier", "ece", "aurc", "map", "recall.a", "recall.b", "recall.c",
        "entropy_choice", "oracle_gap",
    ]  # fmt: skip
    for name in ("accuracy", "macro_f1", "nll", "brier", "ece", "aurc"):
        assert found[name]["value"] == getattr(metrics, name)(output.logits, output.labels)
    assert found["map"]["value"] == metrics.mean_average_precision(output.logits, output.labels)
    share, count = metrics.entropy_choice(*output.parts, output.labels)
    assert (found["entropy_choice"]["value"], found["entropy_choice"]["num_samples"]) == (pytest.approx(share), count)
    gap = metrics.oracle_gap(*output.parts, output.labels, output.logits)
    assert found["oracle_gap"]["value"] == pytest.approx(gap)
    for c, name in enumerate(NAMES):
        row = found[f"recall.{name}"]
        assert row["value"] == pytest.approx(metrics.recalls(output.logits, output.labels)[c])
        assert row["num_samples"] == (output.labels == c).sum()
    assert all(np.isnan(row["low"]) and np.isnan(row["high"]) for row in found.values())


def test_what_is_not_defined_is_left_out() -> None:
    output = made()
    alone = Output(output.logits, output.labels, output.units)
    assert not set(rows(alone)) & {"entropy_choice", "oracle_gap"}
    assert not set(rows(made(modalities=1))) & {"entropy_choice", "oracle_gap"}
    some = Output(output.logits[output.labels > 0], output.labels[output.labels > 0], output.units[output.labels > 0])
    assert "recall.a" not in rows(some)
    certain = output.parts[0].copy()
    certain[:] = 9 * np.eye(3)[output.labels][:, None]  # both are right everywhere
    every = rows(Output(output.logits, output.labels, output.units, (certain, output.parts[1])))
    assert "entropy_choice" not in every and "oracle_gap" in every


def test_every_interval_holds_its_value_but_ece_has_none() -> None:
    for name, row in rows(made()).items():
        if name == "ece":
            assert np.isnan(row["low"])
        else:
            assert row["low"] < row["value"] < row["high"], name


def theirs(statistic, samples: int) -> tuple[float, float]:
    """SciPy's percentile interval over samples, other draws."""
    index = (np.arange(samples),)
    found = stats.bootstrap(index, statistic, n_resamples=600, method="percentile", vectorized=False, rng=5)
    return found.confidence_interval.low, found.confidence_interval.high


@pytest.mark.parametrize("name", ["macro_f1", "nll", "aurc", "map", "recall.b", "entropy_choice"])
def test_intervals_are_close_to_those_of_scipy(name: str) -> None:
    """The same statistic of resampled samples, computed by the plain metric in SciPy's loop."""
    output = made(200)
    logits, labels, (parts, present) = output.logits, output.labels, output.parts
    plain = {
        "recall.b": lambda i: metrics.recalls(logits[i], labels[i])[1],
        "map": lambda i: metrics.mean_average_precision(logits[i], labels[i]),
        "entropy_choice": lambda i: metrics.entropy_choice(parts[i], present[i], labels[i])[0],
    }.get(name, lambda i: getattr(metrics, name)(logits[i], labels[i]))
    low, high = theirs(plain, 200)
    row = rows(output, [name.partition(".")[0]])[name]
    assert (row["low"], row["high"]) == pytest.approx((low, high), abs=0.2 * (high - low))


def test_resampled_rankings_are_those_of_the_repeated_samples() -> None:
    """Two of the resamples written out, ties included, against the plain metric and scikit-learn."""
    output = made(40)
    output.logits = np.round(output.logits)
    counts = intervals.draw_counts(40)[:2]
    p = softmax(output.logits)
    for times in counts:
        again = np.repeat(np.arange(40), times)
        logits, labels = output.logits[again], output.labels[again]
        plain = np.mean([average_precision_score(labels == c, p[again, c]) for c in np.unique(labels)])
        assert metrics.mean_average_precision(logits, labels) == pytest.approx(plain)
        levels, level = np.unique(-p.max(1), return_inverse=True)
        wrong = np.bincount(level, times * (output.logits.argmax(1) != output.labels), minlength=len(levels))
        whole = np.bincount(level, times, minlength=len(levels)).astype(int)
        assert metrics.area_under_risk(wrong, whole) == pytest.approx(metrics.aurc(logits, labels))


def test_groups_widen_the_intervals_of_repeated_samples() -> None:
    """Ten copies of every sample: as one unit each they say no more than the samples once."""
    once = made(60)
    copied = np.repeat(np.arange(60), 10)
    logits, labels, parts = once.logits[copied], once.labels[copied], (once.parts[0][copied], once.parts[1][copied])
    grouped, apart = rows(Output(logits, labels, copied, parts)), rows(Output(logits, labels, np.arange(600), parts))
    for name, row in rows(once).items():
        if name in ("ece", "aurc"):  # the curve has more points
            continue
        assert (grouped[name]["low"], grouped[name]["high"]) == pytest.approx((row["low"], row["high"])), name
        assert apart[name]["high"] - apart[name]["low"] < 0.5 * (row["high"] - row["low"]), name


def test_too_few_units_have_no_interval() -> None:
    for row in rows(made(90, units=np.arange(90) % 9)).values():
        assert np.isnan(row["low"]) and np.isnan(row["high"])
    few = made(100)
    few.labels[:] = 0
    few.labels[:9] = 1
    found = rows(few, ["recall"])
    assert np.isnan(found["recall.b"]["low"]) and np.isfinite(found["recall.a"]["low"])


def test_very_many_samples_and_classes_have_no_interval_of_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mla_cli.engine.scores.LARGEST", 100)
    found = rows(made(), ["map", "aurc"])
    assert np.isnan(found["map"]["low"]) and np.isfinite(found["aurc"]["low"])


def test_names_of_metrics_are_read() -> None:
    assert parse_metrics(None) == ["accuracy", "macro_f1"]
    assert parse_metrics("all") == list(METRICS)
    assert parse_metrics("nll, ece") == ["nll", "ece"]
    for text, message in (("nll,acuracy", "no metric named `acuracy`"), ("nll,nll", "`nll` is named twice")):
        with pytest.raises(MlaError, match=message) as error:
            parse_metrics(text)
        assert error.value.hint
