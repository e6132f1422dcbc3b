"""What logits are worth: accuracy, ranking, probabilities and the choice between modalities, in NumPy.

Everywhere `logits` is float (sample, class), finite, and `labels` int (sample,), at least one sample, each label the
number of a class. Probabilities are softmax(logits) in float64, the prediction is the first of the largest logits, and
the confidence of a prediction is its probability. No value depends on the order of the samples: those with equal scores
are treated as one. Every function raises MlaError for logits and labels that do not fit together.
"""

import numpy as np

from mla_cli.core.fusion import entropy, log_softmax, softmax
from mla_cli.errors import MlaError

BINS = 15  # of the calibration error (Guo et al. 2017, who take bins of equal width)


def check_scores(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays. Raises MlaError for other shapes, no sample, or a label without a class."""
    logits, labels = np.asarray(logits), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise MlaError(
            f"logits `{logits.shape}` and labels `{labels.shape}` do not fit together",
            "give (sample, class) logits and one label per sample, for at least one sample",
        )
    if not 0 <= labels.min() <= labels.max() < logits.shape[1]:
        wrong = labels[(labels < 0) | (labels >= logits.shape[1])][0]
        raise MlaError(
            f"label `{wrong}` is none of {logits.shape[1]} classes", "leave out the samples that have no label"
        )
    return logits, labels


def right(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether each prediction is the label: bool (sample,)."""
    logits, labels = check_scores(logits, labels)
    return logits.argmax(1) == labels


# ---------------------------------------------------------------- of the predicted classes


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of the samples whose prediction is their label."""
    return accuracy_of(confusion(logits, labels))


def accuracy_of(cells: np.ndarray) -> float:
    """`accuracy` of the samples that a confusion matrix counts."""
    return float(cells.diagonal().sum() / cells.sum())


def confusion(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many samples of a class (row) are predicted as a class (column): int (class, class)."""
    logits, labels = check_scores(logits, labels)
    count = logits.shape[1]
    cells = np.bincount(labels * count + logits.argmax(1), minlength=count * count)
    return cells.reshape(count, count)


def macro_f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Unweighted mean of the F1 of every class that is a label or a prediction here."""
    return macro_f1_of(confusion(logits, labels))


def macro_f1_of(cells: np.ndarray) -> float:
    """`macro_f1` of the samples that a confusion matrix counts."""
    seen = cells.sum(0) + cells.sum(1)
    return float((2 * cells.diagonal()[seen > 0] / seen[seen > 0]).mean())


def recalls(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Share of every class' samples that are predicted as it: (class,), NaN for a class without a sample."""
    cells = confusion(logits, labels)
    with np.errstate(invalid="ignore"):
        return cells.diagonal() / cells.sum(1)


# ---------------------------------------------------------------- of the probabilities


def probabilities(logits: np.ndarray) -> np.ndarray:
    """softmax(logits) in float64: (sample, class), rows sum to 1."""
    return softmax(np.asarray(logits, dtype=np.float64))


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log(probability of the label), in nats."""
    return float(nll_of_each(logits, labels).mean())


def nll_of_each(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-log(probability of the label) of every sample, in nats: float64 (sample,)."""
    logits, labels = check_scores(logits, labels)
    return -log_softmax(logits.astype(np.float64))[np.arange(len(labels)), labels]


def brier(logits: np.ndarray, labels: np.ndarray) -> float:
    """Squared error of the probabilities, summed over classes, mean over samples: in [0, 2] (Brier 1950)."""
    return float(brier_of_each(logits, labels).mean())


def brier_of_each(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Squared error of the probabilities summed over classes, of every sample: float64 (sample,)."""
    logits, labels = check_scores(logits, labels)
    return ((probabilities(logits) - np.eye(logits.shape[1])[labels]) ** 2).sum(1)


def reliability(logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean confidence, accuracy and number of samples in every bin that holds any, the least confident first.

    Bins of equal mass (adaptive calibration error, Nixon et al. 2019, over the predicted class only): with the N
    samples in order of confidence, number i = 0 .. N - 1 belongs to bin floor(bins (i + 1/2) / N). Samples of equal
    confidence stay together, in the bin of the middle one, so bins hold N / bins samples but for ties and rounding.
    Raises MlaError for fewer than one bin.
    """
    logits, labels = check_scores(logits, labels)
    if bins < 1:
        raise MlaError(f"`{bins}` bins hold nothing", "give at least one bin")
    levels, level, count = np.unique(probabilities(logits).max(1), return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    middle = last - count / 2  # of each level: i + 1/2 of its middle sample
    place = np.minimum((bins * middle / len(labels)).astype(int), bins - 1)
    hits = np.bincount(level, logits.argmax(1) == labels, minlength=len(levels))
    size = np.bincount(place, count, minlength=bins)
    some = size > 0
    confidence = np.bincount(place, levels * count, minlength=bins)[some] / size[some]
    return confidence, np.bincount(place, hits, minlength=bins)[some] / size[some], size[some].astype(int)


def ece(logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: |accuracy - mean confidence| of the bins of `reliability`, weighted by their samples.

    In [0, 1]. Bins have equal mass, not equal width, so that none rests on a handful of samples. Even a perfectly
    calibrated model has an ECE above 0: about sqrt(2 / pi) times the standard error of one bin's accuracy.
    """
    confidence, share, count = reliability(logits, labels, bins)
    return float((count * np.abs(share - confidence)).sum() / count.sum())


# ---------------------------------------------------------------- of their order


def aurc(logits: np.ndarray, labels: np.ndarray) -> float:
    """Area under the risk-coverage curve: mean over k of the error rate among the k most confident samples.

    In [0, 1], lower is better (Geifman & El-Yaniv 2017). Among samples of equal confidence, the mean over their orders.
    """
    logits, labels = check_scores(logits, labels)
    _, level, count = np.unique(-probabilities(logits).max(1), return_inverse=True, return_counts=True)
    wrong = np.bincount(level, logits.argmax(1) != labels)
    return float(area_under_risk(wrong, count))


def area_under_risk(wrong: np.ndarray, count: np.ndarray) -> np.ndarray:
    """AURC from the errors and the samples of every level of confidence, the most confident first.

    wrong, count: (..., level), count integers >= 0; returns (...). A level of m samples, e of them wrong, after k
    samples with E errors adds the sum over j = 1 .. m of (E + j e/m) / (k + j), which is e + (E - k e/m) (H(k + m) -
    H(k)) with harmonic numbers H.
    """
    after = np.cumsum(count, axis=-1)
    before, errors_before = after - count, np.cumsum(wrong, axis=-1) - wrong
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, int(after.max()) + 1))])
    share = wrong / np.maximum(count, 1)
    total = wrong + (errors_before - before * share) * (harmonic[after] - harmonic[before])
    return total.sum(axis=-1) / after[..., -1]


def mean_average_precision(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes that have a sample of their average precision, one against the rest.

    A class ranks the samples by its probability; its average precision is the sum over thresholds of the precision
    there times the recall gained (no interpolation). Samples of equal probability share a threshold.
    """
    logits, labels = check_scores(logits, labels)
    p = probabilities(logits)
    return float(np.mean([average_precision(p[:, c], labels == c) for c in np.unique(labels)]))


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Average precision of scores (sample,) for bool (sample,) of which at least one is True."""
    _, level, count = np.unique(-scores, return_inverse=True, return_counts=True)
    return float(area_under_precision(np.bincount(level, positive), count))


def area_under_precision(hits: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Average precision from the positives and the samples of every level of the score, the highest first.

    hits, count: (..., level) -> (...); NaN where there is no positive.
    """
    found = np.cumsum(hits, axis=-1)
    with np.errstate(invalid="ignore"):
        return (hits * found / np.maximum(np.cumsum(count, axis=-1), 1)).sum(axis=-1) / found[..., -1]


# ---------------------------------------------------------------- of the choice between modalities


def right_alone(logits: np.ndarray, present: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether each present modality predicts the label alone: bool (sample, modality), False where absent.

    logits: (sample, modality, class), of which absent entries may hold anything; present: bool (sample, modality).
    """
    filled = np.where(present[..., None], logits, 0.0)
    return present & (filled.argmax(-1) == np.asarray(labels)[:, None])


def entropy_choice(logits: np.ndarray, present: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
    """How often the modality that the entropy rule trusts most is the right one, where exactly one is right.

    logits: (sample, modality, class); present: bool (sample, modality). Returns the share and the number of samples it
    is over: those with two present modalities or more, exactly one of which predicts the label. NaN and 0 where there
    are none. Chance is one over the number of modalities present.
    """
    picked, counted = entropy_choice_of_each(logits, present, labels)
    return (float(picked.sum() / counted.sum()) if counted.any() else float("nan")), int(counted.sum())


def entropy_choice_of_each(
    logits: np.ndarray, present: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Share of the most trusted modalities that are right (1 or 0 but for ties; 0 where it does not count), and whether
    the sample counts: float64 (sample,), bool (sample,)."""
    correct = right_alone(logits, present, labels)
    counted = (correct.sum(1) == 1) & (present.sum(1) > 1)
    unsure = np.where(present, entropy(np.where(present[..., None], logits, 0.0)), np.inf)
    chosen = unsure == unsure.min(axis=1, keepdims=True)
    return np.where(counted, (chosen & correct).sum(1) / chosen.sum(1), 0.0), counted


def oracle_gap(logits: np.ndarray, present: np.ndarray, labels: np.ndarray, fused: np.ndarray) -> float:
    """Accuracy of an oracle that is right where any present modality is right alone, minus that of the fused output.

    logits: (sample, modality, class); present: bool (sample, modality); fused: (sample, class). What a perfect choice
    between the modalities would add; below 0 where fusion is right although no modality is.
    """
    return float(oracle_gap_of_each(logits, present, labels, fused).mean())


def oracle_gap_of_each(logits: np.ndarray, present: np.ndarray, labels: np.ndarray, fused: np.ndarray) -> np.ndarray:
    """Whether any present modality is right, minus whether the fused output is: float64 (sample,) in -1, 0, 1."""
    return right_alone(logits, present, labels).any(1).astype(np.float64) - right(fused, labels)
