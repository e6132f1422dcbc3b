"""Measures of imbalance against autograd, scikit-learn and numbers worked by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier

from mla_cli.core import imbalance


def drawn(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_the_head_gradient_is_autograds() -> None:
    features, labels = drawn(20, 6), torch.arange(20) % 4
    head = torch.nn.Linear(6, 4)
    logits = head(features)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    found = imbalance.head_gradient(features, logits.detach(), labels)
    assert head.weight.grad is not None
    torch.testing.assert_close(found, head.weight.grad.double(), atol=1e-7, rtol=1e-5)


def test_cosines_are_taken_for_every_pair() -> None:
    gradients = {
        "a": torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        "b": torch.tensor([[-2.0, 0.0], [0.0, -2.0]]),
        "c": torch.tensor([[1.0, 0.0], [0.0, 0.0]]),
        "d": torch.zeros(2, 2),
    }
    found = imbalance.pair_cosines(gradients)
    assert list(found) == ["a+b", "a+c", "a+d", "b+c", "b+d", "c+d"]
    assert found["a+b"] == pytest.approx(-1)
    assert found["a+c"] == pytest.approx(1 / math.sqrt(2))
    assert math.isnan(found["a+d"])
    assert imbalance.pair_cosines({"a": torch.ones(1, 1)}) == {}


def test_certainty_is_the_mean_probability_of_the_right_class() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    assert imbalance.certainty(logits, torch.tensor([1, 0])) == pytest.approx((0.75 + 0.5) / 2)


def test_rho_divides_by_the_mean_of_the_others() -> None:
    found = imbalance.ratios({"a": 0.6, "b": 0.2, "c": 0.4})
    assert found == pytest.approx({"a": 0.6 / 0.3, "b": 0.2 / 0.5, "c": 0.4 / 0.4})
    assert imbalance.ratios({"a": 0.6}) == {}


def test_the_gap_is_between_means_of_unit_vectors() -> None:
    features = {"a": torch.tensor([[3.0, 0.0], [0.0, 5.0]]), "b": torch.tensor([[-7.0, 0.0]])}
    assert imbalance.modality_gaps(features) == pytest.approx({"a+b": math.hypot(1.5, 0.5)})


@pytest.mark.parametrize("shift", [0.0, 0.3, 3.0])
def test_separability_is_what_a_ridge_classifier_scores(shift: float) -> None:
    features = {"a": drawn(80, 5, 1), "b": drawn(90, 5, 2) + shift, "c": drawn(80, 5, 3)}
    found = imbalance.separability(features)
    rows = [imbalance.unit(x[:80]).numpy() for x in features.values()]
    fit, held = (np.concatenate([part[start::2] for part in rows]) for start in (0, 1))
    labels = np.repeat(np.arange(3), 40)
    assert found == pytest.approx(RidgeClassifier(alpha=imbalance.RIDGE).fit(fit, labels).score(held, labels))
    if shift == 3.0:
        assert found > 0.5  # a third by chance


def test_separability_needs_two_modalities_and_rows_to_fit_and_score() -> None:
    assert imbalance.separability({"a": drawn(10, 3)}) is None
    assert imbalance.separability({"a": drawn(10, 3), "b": drawn(1, 3)}) is None


def test_features_of_zero_stay_zero() -> None:
    assert torch.equal(imbalance.unit(torch.zeros(2, 3)), torch.zeros(2, 3, dtype=torch.float64))
