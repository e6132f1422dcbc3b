"""How unequal a model's modalities are: measures of features (n, d), of logits alone (n, class) and labels (n,).

Each modality brings samples of its own, so that unpaired data can be measured too; only `separability` takes as many of
one as of the other. Pairs of modalities are named `audio+visual`. Tensors are on the CPU (float64 is not everywhere).

| measure        | what it says                                                                                 |
|----------------|----------------------------------------------------------------------------------------------|
| head gradients | whether two modalities pull the weight between features and logits the same way (cosine)      |
| rho            | how much surer of the right class a modality is than the others (OGM, Peng et al., CVPR 2022) |
| gap            | distance between the modalities' mean unit-length features (Liang et al., NeurIPS 2022)       |
| separability   | how often a linear classifier can tell from a feature which modality it came from             |
"""

from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor

RIDGE = 1.0  # penalty of the linear classifier, as in scikit-learn's RidgeClassifier


def head_gradient(features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Gradient (class, d) of the mean cross-entropy with respect to the weight of logits = W x + b.

    It is (p - y)^T x / n, so it needs no backward pass. Where a method has no such W (`film`, `bigated`), it is that of
    a linear head which gives the same logits.
    """
    error = logits.double().softmax(-1)
    error[torch.arange(len(labels), device=labels.device), labels] -= 1
    return error.T @ features.double() / len(labels)


def pair_cosines(gradients: Mapping[str, Tensor]) -> dict[str, float]:
    """Cosine in [-1, 1] between the modalities' gradients, for every pair; NaN where one is zero."""
    flat = {m: g.flatten() / g.norm() for m, g in gradients.items()}
    return {f"{a}+{b}": float((flat[a] @ flat[b]).clamp(-1, 1)) for a, b in combinations(flat, 2)}


def certainty(logits: Tensor, labels: Tensor) -> float:
    """Mean probability of the right class, in [0, 1]."""
    return float(logits.double().softmax(-1).gather(1, labels[:, None]).mean())


def ratios(certainties: Mapping[str, float]) -> dict[str, float]:
    """rho of every modality: its certainty over the mean of the others'. Nothing for one modality."""
    total, others = sum(certainties.values()), len(certainties) - 1
    return {m: own * others / max(total - own, 1e-300) for m, own in certainties.items()} if others else {}


def modality_gaps(features: Mapping[str, Tensor]) -> dict[str, float]:
    """Distance in [0, 2] between the means of the unit-length features, for every pair of modalities."""
    means = {m: unit(x).mean(0) for m, x in features.items()}
    return {f"{a}+{b}": float((means[a] - means[b]).norm()) for a, b in combinations(means, 2)}


def separability(features: Mapping[str, Tensor]) -> float | None:
    """Accuracy in [0, 1] with which a ridge classifier tells the modality from a unit-length feature; chance is 1/M.

    Fitted on every second row and scored on the others, with equally many rows of each modality. None for one modality,
    or fewer than two rows each.
    """
    count = min(len(x) for x in features.values())
    if len(features) < 2 or count < 2:
        return None
    rows = torch.stack([unit(x[:count]) for x in features.values()])  # (modality, n, d)
    fit, held = rows[:, ::2].flatten(0, 1), rows[:, 1::2].flatten(0, 1)
    classes = torch.arange(len(rows), device=rows.device)
    wanted = torch.nn.functional.one_hot(classes.repeat_interleave(rows[:, ::2].shape[1])).double()
    centre = fit.mean(0)
    fit, held = fit - centre, held - centre
    identity = torch.eye(fit.shape[1], dtype=fit.dtype, device=fit.device)
    weight = torch.linalg.solve(fit.T @ fit + RIDGE * identity, fit.T @ (wanted - wanted.mean(0)))
    found = (held @ weight + wanted.mean(0)).argmax(1)
    return float((found == classes.repeat_interleave(rows[:, 1::2].shape[1])).double().mean())


def unit(features: Tensor) -> Tensor:
    """Rows of length 1; a row of zeros stays so."""
    return torch.nn.functional.normalize(features.double(), dim=1)
