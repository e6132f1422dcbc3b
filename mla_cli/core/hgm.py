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
from typing import Any

import torch
from torch import Tensor

from mla_cli.errors import MlaError

VARIANTS = ("off", "rls", "released", "released_add")

# Head diagnostics are taken in every STRIDE-th round, in long epochs in about SAMPLED_ROUNDS evenly spaced ones, and
# always in the last: a few norms cost as much as the modifier itself where the model is tiny.
STRIDE, SAMPLED_ROUNDS = 4, 32
_norm = torch.linalg.vector_norm
FROZEN_BELOW = 0.01  # epoch mean of |modified gradient| / |gradient| that earns a warning


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


class HeadSchedule:
    """Who is absorbed when: HGM around the steps of a shared head, with its diagnostics and checkpoint.

    A step of modality m with features (B, d), where `weight` is the head's weight Parameter (C, d):

        loss.backward()
        schedule.before_step(m, features, weight, round_index, rounds)   # absorb, modify weight.grad
        optimizers.step()
        schedule.after_step(weight)                                      # hgm_apply: update; measure; remember h

    and around an epoch `schedule.start_epoch(epoch)` and `facts, warning = schedule.end_epoch()`. A step that the
    method skips is not told. Keys as in the recipe's `method` section:

    hgm: `rls` absorbs the previous step's h if that step trained another modality (so P stays as it is with one
        modality, and in repeated entries of an order); `released*` absorb the current h, from the run's second step on.
    alpha_start, alpha_end: alpha falls between them geometrically over an epoch, as in the authors' code.
    hgm_reset: `epoch` sets P to the identity at every epoch start; the previous step stays known.
    hgm_mean: `batch`, or `running`, the mean over all samples of that modality since the epoch's start.
    hgm_apply: `gradient`, or `update`: the optimiser's step, momentum and weight decay included, goes through P.
    """

    def __init__(
        self,
        dim: int,
        *,
        hgm: str = "rls",
        alpha_start: float = 0.1,
        alpha_end: float = 0.01,
        hgm_reset: str = "never",
        hgm_mean: str = "batch",
        hgm_apply: str = "gradient",
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ):
        self.modifier = HeadGradientModifier(dim, hgm, device, dtype)
        self.alpha_start, self.alpha_end = alpha_start, alpha_end
        self.hgm_reset, self.hgm_mean, self.hgm_apply = hgm_reset, hgm_mean, hgm_apply
        self.epoch: int | None = None
        self.previous: str | None = None  # the last step's modality
        self.previous_h: Tensor | None = None  # (d,), and its h
        self.sums: dict[str, Tensor] = {}  # hgm_mean: running
        self.counts: dict[str, int] = {}
        self.norms: list[Tensor] = []  # (6,) per sampled step: see `_measure`
        self.warned = False
        self._clear_step()

    def _clear_step(self) -> None:
        self._step: tuple[str, Tensor] | None = None  # modality and h of the step under way
        self._sampled = False
        self._before: Tensor | None = None  # the weight before the step
        self._strengths: list[Tensor] = []  # norms of the gradient (or step) as it came, and modified

    def start_epoch(self, epoch: int) -> None:
        """Start an epoch; nothing happens when that epoch is already under way, as in a resumed run."""
        if epoch == self.epoch:
            return
        self.epoch, self.sums, self.counts, self.norms = epoch, {}, {}, []
        if self.hgm_reset == "epoch":
            self.modifier.reset()

    def alpha(self, round_index: int, rounds: int) -> float:
        """alpha in round `round_index` (from 0) of `rounds`."""
        return self.alpha_start * (self.alpha_end / self.alpha_start) ** (round_index / rounds)

    @torch.no_grad()
    def before_step(
        self, modality: str, features: Tensor, weight: torch.nn.Parameter, round_index: int, rounds: int
    ) -> None:
        """After backward, before the optimiser: absorb what is due and modify `weight.grad`."""
        h, modifier = self._mean(modality, features), self.modifier
        turned = self.previous is not None and self.previous != modality  # the previous step was of another modality
        if modifier.variant == "rls" and turned:
            assert self.previous_h is not None
            modifier.absorb_mean(self.previous_h, self.alpha(round_index, rounds))
        elif modifier.variant in ("released", "released_add") and self.previous is not None:
            modifier.absorb_mean(h, self.alpha(round_index, rounds))

        self._step = (modality, h)
        stride = max(STRIDE, rounds // SAMPLED_ROUNDS)
        self._sampled = turned and (round_index % stride == 0 or round_index == rounds - 1)
        if self._sampled or self.hgm_apply == "update":
            self._before = weight.detach().clone()
        if self.hgm_apply == "gradient":
            if weight.grad is None:  # the released step did nothing, silently; ours must not
                raise RuntimeError("the head's weight has no gradient: call before_step after backward")
            weight.grad = self._modify(weight.grad)

    @torch.no_grad()
    def after_step(self, weight: torch.nn.Parameter) -> None:
        """After the optimiser: project its step (`hgm_apply: update`), measure, remember this step's h."""
        assert self._step is not None, "after_step without before_step"
        if self.hgm_apply == "update" and self._before is not None:
            before = self._before.to(self.modifier.dtype)
            change = self._modify(weight.to(self.modifier.dtype) - before)
            if not self.modifier.untouched:  # before + (after - before) can differ from after in the last bit
                weight.copy_(before + change)
        if self._sampled:
            self._measure(weight)
        self.previous, self.previous_h = self._step
        self._clear_step()

    def _mean(self, modality: str, features: Tensor) -> Tensor:
        """h (d,) of this step, in P's precision and free of the graph."""
        features = features.detach()
        if self.hgm_mean == "batch":
            return features.mean(0, dtype=self.modifier.dtype)
        total = features.sum(0, dtype=self.modifier.dtype)
        self.sums[modality] = self.sums[modality] + total if modality in self.sums else total
        self.counts[modality] = self.counts.get(modality, 0) + len(features)
        return self.sums[modality] / self.counts[modality]

    def _modify(self, grad: Tensor) -> Tensor:
        modified = grad if self.modifier.untouched else self.modifier.modify(grad)
        if self._sampled:
            self._strengths = [_norm(grad), _norm(modified)]
        return modified

    def _measure(self, weight: Tensor) -> None:
        """Note |g|, |g modified|, |h|, |P h|, |dW|, |dW h| with the previous modality's h; no wait for the device."""
        assert self._before is not None  # a sampled step kept it, and followed another
        assert self.previous_h is not None
        h, dtype = self.previous_h, self.modifier.dtype
        change = weight.detach().to(dtype) - self._before.to(dtype)  # the actual change, whatever the optimiser did
        left, leak = self.modifier.matrix @ h, change @ h
        tail = [_norm(h), _norm(left), _norm(change), _norm(leak)]
        self.norms.append(torch.stack([n.to(dtype) for n in self._strengths + tail]))

    def end_epoch(self) -> tuple[dict[str, float], str]:
        """The epoch's facts and a warning ("" for none; at most one in a run).

        head_leak = |dW h| / (|dW| |h|), hgm_h_left = |P h| / |h|, hgm_grad_ratio = |modified| / |gradient| (of the
        step with `hgm_apply: update`), each the mean over the sampled steps that followed another modality's; those of
        length 0 are left out, and a fact without any step is missing. P's spectrum is taken at the epoch's end.
        """
        facts = self.modifier.spectrum()
        if self.norms:
            grad, modified, h, left, change, leak = torch.stack(self.norms).cpu().double().unbind(1)
            parts = {"hgm_h_left": (left, h), "hgm_grad_ratio": (modified, grad), "head_leak": (leak, change * h)}
            for name, (numerator, denominator) in parts.items():
                measured = denominator != 0
                if bool(measured.any()):
                    facts[name] = float((numerator[measured] / denominator[measured]).mean())
        ratio = facts.get("hgm_grad_ratio", 1.0)
        if self.warned or not ratio < FROZEN_BELOW:
            return facts, ""
        self.warned = True
        return facts, (
            f"the head is nearly frozen: HGM left {ratio:.2g} of its gradient's length in epoch {self.epoch}; "
            "try `method.hgm_reset: epoch`, or compare `method.hgm_apply: gradient` with `update`"
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a resumed run needs, between two steps: tensors, and JSON values."""
        tensors = self.modifier.state() | {f"sum.{m}": total.clone() for m, total in self.sums.items()}
        if self.previous_h is not None:
            tensors["previous_h"] = self.previous_h.clone()
        if self.norms:
            tensors["norms"] = torch.stack(self.norms)
        values = {"epoch": self.epoch, "previous": self.previous, "counts": dict(self.counts), "warned": self.warned}
        return tensors, values

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Restore `state`; the steps that follow are bit-identical to those of an uninterrupted run."""
        moved = {name: t.to(self.modifier.device, self.modifier.dtype, copy=True) for name, t in tensors.items()}
        self.modifier.load_state(moved)
        self.epoch, self.previous, self.warned = values["epoch"], values["previous"], values["warned"]
        self.previous_h = moved.get("previous_h")
        self.counts = dict(values["counts"])
        self.sums = {m: moved[f"sum.{m}"] for m in self.counts}
        self.norms = list(moved["norms"]) if "norms" in moved else []
        self._clear_step()
