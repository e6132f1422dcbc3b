"""Temperature scaling (Guo et al. 2017): logits divided by one number, fitted on validation for the smallest NLL.

Every modality gets its own temperature, which is applied before fusion: no prediction of a modality alone changes, but
the entropies do, so what fusion predicts may. The fused output then gets one of its own per fusion rule, fitted on the
complete validation samples and used at every missing rate; it changes no prediction. Logits that a method mixes inside
(`native` of `concat`) only get the latter.
"""

from dataclasses import dataclass, replace

import numpy as np

from mla_cli.core import metrics
from mla_cli.engine.predictions import Predictions

LOWEST, HIGHEST = 0.05, 20.0


@dataclass(frozen=True)
class Temperatures:
    """Of each modality, and of the fused output by fusion rule; all in [0.05, 20], and 1 changes nothing."""

    modalities: dict[str, float]
    fused: dict[str, float]


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature in [0.05, 20] with the smallest NLL of logits / temperature.

    logits: (sample, class), labels: (sample,). The NLL is convex in 1 / temperature, so there is one minimum.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return metrics.nll(scaled(logits, np.exp(log_temperature)), labels)

    found = minimize_scalar(loss, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def scaled(logits: np.ndarray, temperature: float | np.ndarray) -> np.ndarray:
    """logits / temperature in float64, where different float32 logits stay different: no largest one changes."""
    return logits.astype(np.float64) / temperature


def scale_modalities(p: Predictions, temperatures: dict[str, float]) -> Predictions:
    """Predictions with the logits of each modality divided by its temperature (1 where it has none)."""
    column = np.array([temperatures.get(m, 1.0) for m in p.modalities])
    return replace(p, logits=scaled(p.logits, column[None, :, None]))


def fit_modalities(p: Predictions) -> dict[str, float]:
    """The temperature of each modality, on the samples of `p` that have it; none for one that none has."""
    return {
        m: fit_temperature(p.logits[p.present[:, i], i], p.labels[p.present[:, i]])
        for i, m in enumerate(p.modalities)
        if p.present[:, i].any()
    }
