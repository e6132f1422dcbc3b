"""When head gradient modification acts: around every step of a shared head, with its diagnostics and its checkpoint.

The matrix and its recursion are `core/hgm.py`'s; who is absorbed when is MLA's alternation (arXiv 2311.10707).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mla_cli.core.hgm import HeadGradientModifier

# Head diagnostics are taken in every STRIDE-th round, in long epochs in about SAMPLED_ROUNDS evenly spaced ones, and
# always in the last: a few norms cost as much as the modifier itself where the model is tiny.
STRIDE, SAMPLED_ROUNDS = 4, 32
_norm = torch.linalg.vector_norm
FROZEN_BELOW = 0.01  # epoch mean of |modified gradient| / |gradient| that earns a warning


class HeadSchedule:
    """Who is absorbed when: HGM around the steps of a shared head, with its diagnostics and checkpoint.

    A step of modality m with features (B, d), where `weight` is the head's weight Parameter (C, d):

        loss.backward()
        schedule.before_step(m, features, weight, round_index, rounds)   # absorb, modify weight.grad
        optimizers.step()
        schedule.after_step(weight)                                      # hgm_apply: update; measure; remember h

    and around an epoch `schedule.start_epoch(epoch)` and `facts, warning = schedule.end_epoch()`. A step that the
    method skips is not told. Where several processes share a step, `before_step` takes the sum of all their features
    and `count`, the number of samples. Keys as in the recipe's `method` section:

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
        self,
        modality: str,
        features: Tensor,
        weight: torch.nn.Parameter,
        round_index: int,
        rounds: int,
        count: int | None = None,
    ) -> None:
        """After backward, before the optimiser: absorb what is due and modify `weight.grad`.

        features: (B, d), or with `count` their sum (d,) over that many samples.
        """
        h, modifier = self._mean(modality, features, count), self.modifier
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

    def _mean(self, modality: str, features: Tensor, count: int | None) -> Tensor:
        """h (d,) of this step, in P's precision and free of the graph."""
        features, dtype = features.detach(), self.modifier.dtype
        if self.hgm_mean == "batch":
            return features.mean(0, dtype=dtype) if count is None else features.to(dtype) / count
        total = features.sum(0, dtype=dtype) if count is None else features.to(dtype)
        self.sums[modality] = self.sums[modality] + total if modality in self.sums else total
        self.counts[modality] = self.counts.get(modality, 0) + (len(features) if count is None else count)
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
        length 0 are left out, as are those whose float16 gradient overflowed, and a fact without any step is missing.
        P's spectrum is taken at the epoch's end.
        """
        facts = self.modifier.spectrum()
        if self.norms:
            grad, modified, h, left, change, leak = torch.stack(self.norms).cpu().double().unbind(1)
            parts = {"hgm_h_left": (left, h), "hgm_grad_ratio": (modified, grad), "head_leak": (leak, change * h)}
            for name, (numerator, denominator) in parts.items():
                measured = (denominator != 0) & torch.isfinite(denominator)
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
