"""Head gradient modification (HGM): the shared head learns one modality without unlearning the previous one.

Method: MLA (Zhang et al., CVPR 2024, arXiv 2311.10707); the recursion is that of orthogonal weights modification
(Zeng et al. 2019). With h the mean feature of the previous step's modality and P starting as the identity:

    q = P h / (alpha + h^T P h)      a scalar denominator
    P <- P - q (h^T P)               symmetric, eigenvalues in (0, 1]
    grad_W <- grad_W P               the head's weight only; bias and encoder keep their gradients

so that P = (I + sum_i h_i h_i^T / alpha_i)^-1. `released` and `released_add` are what circulating code would do: an
elementwise (d, d) denominator, P divided by its Frobenius norm after every update, and grad P^T or grad + grad P^T.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mla_cli.errors import MlaError

VARIANTS = ("off", "rls", "released", "released_add")


class HeadGradientModifier:
    """The matrix P: what has been absorbed decides how the head's weight gradient is changed.

    dim: the features' width d. dtype: None is float64, on MPS (which has none) float32.
    Nothing here waits for the device; a step costs O(d^2) and O(C d^2) for C classes.
    """

    def __init__(
        self, dim: int, variant: str = "rls", device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ):
        if variant not in VARIANTS:
            raise MlaError(f"unknown HGM variant `{variant}`", f"`method.hgm` is one of {', '.join(VARIANTS)}")
        self.dim, self.variant, self.device = dim, variant, torch.device(device)
        self.dtype = dtype or (torch.float32 if self.device.type == "mps" else torch.float64)
        self.reset()

    def reset(self) -> None:
        """Forget everything: P becomes the identity."""
        self._matrix = torch.eye(self.dim, dtype=self.dtype, device=self.device)
        self.untouched = True  # nothing absorbed since: gradients pass bit for bit

    @property
    def matrix(self) -> Tensor:
        """P, (d, d): the live tensor, changed in place by `absorb`."""
        return self._matrix

    def absorb(self, features: Tensor, alpha: float) -> None:
        """Absorb the mean of a batch of features (B, d), detached. alpha > 0: the smaller, the harder h is blocked."""
        if features.ndim != 2 or features.shape[0] == 0:
            raise MlaError(f"features must be (B, {self.dim}) with B >= 1, got {tuple(features.shape)}")
        self.absorb_mean(features.detach().mean(0, dtype=self.dtype), alpha)

    def absorb_mean(self, h: Tensor, alpha: float) -> None:
        """Absorb one mean feature h (d,). Does nothing with `off`."""
        if h.shape != (self.dim,):
            raise MlaError(f"the mean feature must be ({self.dim},), got {tuple(h.shape)}")
        if not alpha > 0:
            raise MlaError(f"alpha must be positive, got `{alpha}`", "set `method.alpha_start` and `method.alpha_end`")
        if self.variant == "off":
            return
        h, matrix = h.detach().to(self.device, self.dtype), self._matrix  # detached: no graph grows with the steps
        k = torch.mv(matrix, h)
        if self.variant == "rls":
            # h^T P h >= 0; huge features must not let rounding turn the sign. u u^T is q (h^T P), symmetric to the bit.
            u = k * torch.dot(h, k).clamp_min_(0.0).add_(alpha).rsqrt_()
            matrix.addr_(u, u, alpha=-1.0)
            if self.device.type == "mps":
                matrix.copy_((matrix + matrix.T) / 2)
        else:
            matrix.sub_(torch.outer(k, k).div_(torch.outer(k, h).add_(alpha)))  # (d, d) / (d, d), as released
            matrix.div_(torch.linalg.matrix_norm(matrix))
        self.untouched = False

    def modify(self, grad: Tensor) -> Tensor:
        """The modified gradient of a weight (C, d): a new tensor of the same dtype and device.

        Before anything is absorbed, the gradient as it is. The product is taken in P's precision.
        """
        if grad.ndim != 2 or grad.shape[1] != self.dim:
            raise MlaError(f"the head's gradient must be (C, {self.dim}), got {tuple(grad.shape)}")
        if self.untouched:
            return grad.detach().clone()
        wide = grad.detach().to(self.device, self.dtype)
        modified = wide @ (self._matrix if self.variant == "rls" else self._matrix.T)
        if self.variant == "released_add":
            modified += wide
        return modified.to(grad.device, grad.dtype)

    def spectrum(self) -> dict[str, float]:
        """Asymmetry |P - P^T| / |P| (Frobenius), smallest and median eigenvalue of P's symmetric part.

        The symmetric part decides whether g P^T can point against g: for `rls` it is P itself. NaN where P overflowed.
        """
        if self.untouched:
            return {"hgm_asymmetry": 0.0, "hgm_eigenvalue_min": 1.0, "hgm_eigenvalue_median": 1.0}
        matrix = self._matrix.cpu().double()
        eigenvalues = torch.full((1,), float("nan"))
        if bool(torch.isfinite(matrix).all()):  # LAPACK raises on NaN
            eigenvalues = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
        return {
            "hgm_asymmetry": float((matrix - matrix.T).norm() / matrix.norm()),
            "hgm_eigenvalue_min": float(eigenvalues.min()),
            "hgm_eigenvalue_median": float(eigenvalues.quantile(0.5)),
        }

    def state(self) -> dict[str, Tensor]:
        """A copy of P, for a checkpoint."""
        return {"matrix": self._matrix.clone()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore `state`."""
        identity = torch.eye(self.dim, dtype=self.dtype, device=self.device)
        matrix = tensors["matrix"].to(self.device, self.dtype, copy=True)
        if matrix.shape != identity.shape:
            raise MlaError(f"the stored matrix is {tuple(matrix.shape)}, the head needs {tuple(identity.shape)}")
        self._matrix, self.untouched = matrix, torch.equal(matrix, identity)
