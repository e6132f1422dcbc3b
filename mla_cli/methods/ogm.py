"""On-the-fly gradient modulation of `concat` (OGM, Peng et al., CVPR 2022, arXiv 2203.15332; MLA's Table 1).

s_m = sum over the batch of softmax(W_m x_m + b/M)[y]; rho_m = s_m / mean of the others' s; k_m = 1 - tanh(alpha rho_m)
where rho_m > 1, else 1. The gradients of encoder m are multiplied by k_m in the epochs start_epoch..end_epoch (both
included; default: the whole run).

The paper has two modalities; the mean over the others extends it to any M >= 2 (`others: sum` divides by their sum, as
MLA's code for three does). The released code scales only weights with four axes, convolutions (`parameters: conv4d`);
the default `matrices` is every weight with two or more axes, so that it acts on other encoders too. Good values of
alpha depend on the data: 0.1 to 0.8. Absent inputs are imputed, in the scores s as in the loss.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mla_cli.core.method import Batch, Context, option_error, widened
from mla_cli.errors import MlaError
from mla_cli.methods.concat import Method as Concat

AXES = {"matrices": (2, 3, 4, 5), "conv4d": (4,)}  # axes of the weights that are scaled


class Method(Concat):
    """`concat` whose encoders' gradients are scaled before the optimisers step."""

    fewest_modalities = 2

    def __init__(
        self,
        context: Context,
        *,
        alpha: float = 0.3,
        start_epoch: int = 1,
        end_epoch: int | None = None,
        others: str = "mean",
        parameters: str = "matrices",
    ):
        super().__init__(context)
        name = context.section.name
        if others not in ("mean", "sum"):
            raise option_error(f"{name}.others", others, ["mean", "sum"])
        if end_epoch is not None and end_epoch < start_epoch:
            message = f"`method.{name}`: no epoch lies between `start_epoch` {start_epoch} and `end_epoch` {end_epoch}"
            raise MlaError(message, "end it later, or leave `end_epoch` out")
        if parameters not in AXES:
            raise option_error(f"{name}.parameters", parameters, list(AXES))
        self.alpha, self.others = alpha, others
        self.first_epoch, self.last_epoch = start_epoch, end_epoch
        self.scaled: dict[str, list[tuple[str, nn.Parameter]]] = {
            m: [
                (f"{m}.{n}", p)
                for n, p in self.encoders[m].named_parameters()
                if p.requires_grad and p.dim() in AXES[parameters]
            ]
            for m in self.modalities
        }
        for m in (m for m, scaled in self.scaled.items() if not scaled):
            context.warnings.append(f"`{name}.parameters: {parameters}` finds nothing to scale in the encoder of {m}")
        self.totals = torch.zeros(2, len(self.modalities), device=context.device)  # rho and k, summed over the rounds
        self.rounds = 0

    def modulate(self, batch: Batch, sums: Sequence[Tensor]) -> None:
        with torch.no_grad():
            ratios = self.ratios(sums[0])
            scales = torch.where(ratios > 1, 1 - torch.tanh(self.alpha * ratios), 1.0)
            if not self.is_active(batch.epoch):
                scales = torch.ones_like(scales)
            else:
                for m, scale in zip(self.modalities, scales, strict=True):
                    for name, parameter in self.scaled[m]:
                        if parameter.grad is not None:
                            self.change(parameter.grad, scale, name, batch)
            self.totals += torch.stack([ratios, scales])
            self.rounds += 1

    def change(self, gradient: Tensor, scale: Tensor, name: str, batch: Batch) -> None:
        """Modulate one weight's gradient in place."""
        gradient.mul_(scale)

    @torch.no_grad()
    def sums(self, batch: Batch, features: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """s, (modality,)."""
        labels = batch.labels[self.modalities[0]]
        logits = torch.stack([self.alone(m, widened(features[m])) for m in self.modalities])  # (modality, batch, class)
        right = labels.expand(len(logits), -1)[..., None]
        return (logits.softmax(-1).gather(2, right).sum((1, 2)),)

    def ratios(self, scores: Tensor) -> Tensor:
        """rho, (modality,): how much surer of the right class each modality is than the others."""
        others = scores.sum() - scores
        return scores / (others / (len(scores) - 1) if self.others == "mean" else others)

    def is_active(self, epoch: int) -> bool:
        return self.first_epoch <= epoch and (self.last_epoch is None or epoch <= self.last_epoch)

    def end_epoch(self) -> dict[str, float]:
        """The epoch's mean rho and k per modality."""
        if not self.rounds:
            return {}
        means = (self.totals / self.rounds).tolist()
        self.totals, self.rounds = torch.zeros_like(self.totals), 0
        return {
            f"{what}.{m}": value
            for what, row in zip(("ogm_rho", "ogm_k"), means, strict=True)
            for m, value in zip(self.modalities, row, strict=True)
        }

    def extra_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"totals": self.totals}, {"rounds": self.rounds}

    def load_extra_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.totals, self.rounds = tensors["totals"].clone(), values["rounds"]
