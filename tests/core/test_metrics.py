"""Metrics against scikit-learn, by hand, and the properties that their definitions promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics
from sklearn.calibration import calibration_curve

from mla_cli.core import metrics
from mla_cli.core.fusion import entropy_weights, log_softmax, softmax
from mla_cli.errors import MlaError

PLAIN = {
    name: getattr(metrics, name)
    for name in ("accuracy", "macro_f1", "nll", "brier", "ece", "aurc", "mean_average_precision")
}


@st.composite
def scored(draw: st.DrawFn, rounded: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Logits (sample, class) and labels; rounded ones have many ties."""
    samples, classes = draw(st.integers(1, 60)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = rng.normal(scale=draw(st.sampled_from([0.1, 2.0, 50.0])), size=(samples, classes))
    return np.round(logits) if rounded or draw(st.booleans()) else logits, rng.integers(0, classes, samples)


def test_by_hand() -> None:
    logits = np.array([[2, 1, 0], [2, 1, 0], [0, 1, 0], [0, 1, 0]], dtype=float)  # predicted 0 0 1 1
    labels = np.array([0, 1, 1, 1])
    assert metrics.accuracy(logits, labels) == 0.75
    assert metrics.macro_f1(logits, labels) == pytest.approx((2 / 3 + 4 / 5) / 2)  # class 2 is neither label nor guess
    assert metrics.confusion(logits, labels).tolist() == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    np.testing.assert_array_equal(metrics.recalls(logits, labels), [1.0, 2 / 3, np.nan])


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(scale=2, size=(60, 9)), rng.integers(0, 6, 60)
    if seed == 3:
        logits = np.round(logits)  # ties
    p, predicted, classes = softmax(logits), logits.argmax(1), range(9)
    hot = np.eye(9)[labels]
    # classes without a sample have no average precision
    precision = [sklearn_metrics.average_precision_score(labels == c, p[:, c]) for c in np.unique(labels)]
    assert metrics.accuracy(logits, labels) == pytest.approx(sklearn_metrics.accuracy_score(labels, predicted))
    f1 = sklearn_metrics.f1_score(labels, predicted, average="macro")
    assert metrics.macro_f1(logits, labels) == pytest.approx(f1)
    assert metrics.nll(logits, labels) == pytest.approx(sklearn_metrics.log_loss(labels, p, labels=classes))
    brier = sum(sklearn_metrics.brier_score_loss(hot[:, c], p[:, c]) for c in classes)
    assert metrics.brier(logits, labels) == pytest.approx(brier)
    assert metrics.mean_average_precision(logits, labels) == pytest.approx(np.mean(precision))
    matrix = sklearn_metrics.confusion_matrix(labels, predicted, labels=classes)
    np.testing.assert_array_equal(metrics.confusion(logits, labels), matrix)
    recall = sklearn_metrics.recall_score(labels, predicted, average=None, labels=classes, zero_division=np.nan)
    np.testing.assert_allclose(metrics.recalls(logits, labels), recall)


# ------------------------------------------------------------ calibration


def test_bins_of_equal_mass_by_hand() -> None:
    """Six samples, three bins of two; confidences .5 to 1 in order, right or wrong as written."""
    p = np.array([0.55, 0.60, 0.70, 0.80, 0.90, 0.99])
    correct = np.array([1, 0, 1, 1, 1, 1])
    logits = np.log(np.stack([p, 1 - p], axis=1))
    confidence, accuracy, count = metrics.reliability(logits, 1 - correct, bins=3)
    np.testing.assert_allclose(confidence, [0.575, 0.75, 0.945])
    np.testing.assert_allclose(accuracy, [0.5, 1.0, 1.0])
    assert count.tolist() == [2, 2, 2]
    assert metrics.ece(logits, 1 - correct, bins=3) == pytest.approx((0.075 + 0.25 + 0.055) / 3)


def test_bins_are_those_of_scikit_learns_quantiles() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.5, 1, 1500)
    correct = (rng.random(1500) < p).astype(int)
    confidence, accuracy, count = metrics.reliability(np.log(np.stack([p, 1 - p], axis=1)), 1 - correct)
    share, mean = calibration_curve(correct, p, n_bins=15, strategy="quantile")
    np.testing.assert_allclose(accuracy, share)
    np.testing.assert_allclose(confidence, mean)
    assert set(count) == {100}


def test_samples_of_equal_confidence_stay_together() -> None:
    """Five of eight samples tie; they all go to the bin of the middle one, and one bin of four stays empty."""
    p = np.array([0.6, 0.7, 0.7, 0.7, 0.7, 0.7, 0.8, 0.9])
    logits = np.log(np.stack([p, 1 - p], axis=1))
    confidence, _, count = metrics.reliability(logits, np.zeros(8, int), bins=4)
    assert count.tolist() == [1, 5, 2]
    np.testing.assert_allclose(confidence, [0.6, 0.7, 0.85])


@given(scored(), st.integers(1, 20))
def test_bins_hold_everything_in_order(pair: tuple[np.ndarray, np.ndarray], bins: int) -> None:
    logits, labels = pair
    confidence, accuracy, count = metrics.reliability(logits, labels, bins)
    assert count.sum() == len(labels)
    assert len(count) <= bins and (count > 0).all()
    assert (np.diff(confidence) > 0).all()
    assert (accuracy * count).sum() == pytest.approx(len(labels) * metrics.accuracy(logits, labels))
    if len(np.unique(softmax(logits).max(1))) == len(labels):
        assert count.max() - count.min() <= 1 or len(labels) < bins


def test_a_calibrated_model_has_the_error_that_the_docstring_says() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(40):
        p = rng.uniform(0.75, 0.85, 1500)
        labels = (rng.random(1500) > p).astype(int)
        found.append(metrics.ece(np.log(np.stack([p, 1 - p], axis=1)), labels))
    assert np.mean(found) == pytest.approx(np.sqrt(2 / np.pi) * np.sqrt(0.8 * 0.2 / 100), rel=0.1)


# ------------------------------------------------------------ properties


@given(scored())
def test_ranges(pair: tuple[np.ndarray, np.ndarray]) -> None:
    found = {name: metric(*pair) for name, metric in PLAIN.items()}
    assert all(0 <= found[name] <= 1 + 1e-12 for name in found if name not in ("nll", "brier"))
    assert found["nll"] >= 0
    assert 0 <= found["brier"] <= 2 + 1e-12


@given(scored(), st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(pair: tuple[np.ndarray, np.ndarray], random) -> None:
    logits, labels = pair
    order = random.sample(range(len(labels)), len(labels))
    for name, metric in PLAIN.items():
        assert metric(logits[order], labels[order]) == pytest.approx(metric(logits, labels), abs=1e-12), name


@given(scored())
def test_a_perfect_predictor(pair: tuple[np.ndarray, np.ndarray]) -> None:
    _, labels = pair
    logits = 80.0 * np.eye(labels.max() + 1)[labels]
    found = {name: metric(logits, labels) for name, metric in PLAIN.items()}
    wanted = {name: 1.0 if name in ("accuracy", "macro_f1", "mean_average_precision") else 0.0 for name in found}
    assert found == pytest.approx(wanted, abs=1e-12)


@given(scored(rounded=True))
def test_aurc_is_the_mean_over_the_orders_of_ties(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """Against the plain definition: in a level of ties every sample counts as wrong by the level's share."""
    logits, labels = pair
    confidence, wrong = softmax(logits).max(1), (logits.argmax(1) != labels).astype(float)
    expected = np.array([wrong[confidence == level].mean() for level in confidence])
    ranked = expected[np.argsort(-confidence, kind="stable")]
    plain = (np.cumsum(ranked) / np.arange(1, len(labels) + 1)).mean()
    assert metrics.aurc(logits, labels) == pytest.approx(plain)


# ------------------------------------------------------------ the choice between modalities

LABELS = np.array([0, 0, 0, 0, 1])
LOGITS = np.array(
    [
        [[3, 0], [0, 1]],  # the surer modality is right, the other is not
        [[1, 0], [0, 3]],  # the surer one is wrong
        [[3, 0], [3, 0]],  # both are right: does not count
        [[3, 0], [np.nan, np.nan]],  # one is present: no choice
        [[0, 2], [2, 0]],  # equally sure
    ],
    dtype=float,
)
PRESENT = np.isfinite(LOGITS).all(-1)


def test_the_choice_of_the_entropy_rule_by_hand() -> None:
    share, count = metrics.entropy_choice(LOGITS, PRESENT, LABELS)
    assert count == 3
    assert share == pytest.approx((1 + 0 + 0.5) / 3)
    alone, none = metrics.entropy_choice(LOGITS[:, :1], PRESENT[:, :1], LABELS)
    assert np.isnan(alone) and none == 0


def test_the_choice_is_the_largest_fusion_weight() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(scale=2, size=(300, 3, 4)), rng.integers(0, 4, 300)
    present = rng.random((300, 3)) < 0.8
    present[:, 0] = True
    counted = ((logits.argmax(2) == labels[:, None]) & present).sum(1) == 1
    counted &= present.sum(1) > 1
    chosen = entropy_weights(logits, present).argmax(1)
    plain = logits.argmax(2)[np.arange(300), chosen] == labels
    share, count = metrics.entropy_choice(logits, present, labels)
    assert (share, count) == (pytest.approx(plain[counted].mean()), counted.sum())


def test_the_oracle_by_hand() -> None:
    fused = np.array([[1, 0], [0, 1], [1, 0], [1, 0], [1, 0]], dtype=float)  # right: yes no yes yes no
    assert metrics.oracle_gap(LOGITS, PRESENT, LABELS, fused) == pytest.approx(1.0 - 0.6)
    wrong = LOGITS[1:2, 1:]
    assert metrics.oracle_gap(wrong, PRESENT[1:2, 1:], LABELS[1:2], fused[:1]) == -1.0  # right although no part is


# ------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), "logits `(0, 3)` and labels `(0,)` do not fit"),
        (np.zeros((2, 3)), np.zeros(3, int), "logits `(2, 3)` and labels `(3,)` do not fit"),
        (np.zeros((2, 2, 3)), np.zeros(2, int), "logits `(2, 2, 3)`"),
        (np.zeros((2, 3)), np.array([0, -1]), "label `-1` is none of 3 classes"),
        (np.zeros((2, 3)), np.array([0, 3]), "label `3` is none of 3 classes"),
    ],
)
def test_scores_that_do_not_fit(logits: np.ndarray, labels: np.ndarray, message: str) -> None:
    for metric in (*PLAIN.values(), metrics.confusion, metrics.recalls, metrics.reliability):
        with pytest.raises(MlaError) as error:
            metric(logits, labels)
        assert message in error.value.message
        assert error.value.hint


def test_at_least_one_bin() -> None:
    with pytest.raises(MlaError, match="`0` bins"):
        metrics.ece(np.zeros((2, 3)), np.zeros(2, int), bins=0)


def test_logits_of_any_size_give_finite_probabilities() -> None:
    logits = np.array([[1e5, 0.0], [-1e5, 0.0]], dtype=np.float32)
    assert metrics.nll(logits, np.array([0, 1])) == 0.0
    assert metrics.nll(logits, np.array([1, 1])) == pytest.approx(-log_softmax(logits.astype(float))[0, 1] / 2)
