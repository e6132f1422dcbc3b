"""Quality-aware multimodal fusion (QMF, Zhang et al., ICML 2023, arXiv 2306.02050; a baseline of MLA's Table 1).

Own heads; confidence c_m = logsumexp(logits_m) / 10, detached, weights the logits: fused = sum_m c_m logits_m.
loss = CE(fused) + sum_m CE_m + weight * sum_m rank_m (`weight` is lambda: 1, or 0.1 as in MLA's CREMA-D code).
Ranking: h_i = modality m's cross-entropy of sample i, accumulated over the epochs and min-max normalised over the
training set (0 where all are equal). For the pairs (i, j) of neighbours in the batch, the last with the first, and
t = sign(h_i - h_j): rank = mean over the pairs with t != 0 of max(0, t (c_i - c_j) - |h_i - h_j|), with gradient
through c.

Defined for any M >= 2. Absent modalities are masked: they add nothing to the fused logits, to CE_m, to any pair or to
the history, where they stay at 0, the least that the min-max can find. At test time the method fuses by its own
confidence (rule `energy`).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mla_cli.core.method import BaseMethod, Batch, Context, mean_where, widened
from mla_cli.errors import MlaError


class Method(BaseMethod):
    """One encoder and one linear head per modality, trained together on whole samples."""

    fewest_modalities = 2
    aligned = True
    one_process = True  # the ranking compares neighbours of the whole batch
    one_head_optimizer = True
    native_rule = "energy"

    def __init__(self, context: Context, *, weight: float = 1.0):
        super().__init__(context)
        if weight < 0:
            raise MlaError(f"`method.qmf.weight` must not be negative, got `{weight}`", "1 is the published value")
        self.weight = weight
        self.history = torch.zeros(context.num_samples, len(self.modalities), device=context.device)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        if not batch.inputs:  # too few samples for batch normalisation
            return {}
        first, present = self.modalities[0], batch.present
        labels, positions = batch.labels[first], batch.positions[first]
        with self.autocast():
            logits = torch.stack([self.heads[m](self.features(m, batch)) for m in self.modalities], dim=1)
        logits = widened(logits)  # (n, modality, class)
        log_p = logits.log_softmax(-1)
        confidence = (logits - log_p)[..., 0] / 10  # logits - log_p is logsumexp(logits), in every class
        each = self.sample_losses(log_p, labels)
        own = mean_where(each, present)
        fused = self.loss(fuse(logits, confidence.detach(), present), labels)
        loss = fused + own.sum()
        if self.weight:
            loss = loss + self.weight * ranking_loss(confidence, self.normalised(positions), present).sum()
        self.backward(loss)
        self.update()
        seen = each.detach() if present is None else each.detach().masked_fill(~present, 0.0)
        self.history[positions] += seen  # a sample is in a batch once; index_add_ takes ten times as long
        return {"fused": fused.detach(), **dict(zip(self.modalities, own.detach(), strict=True))}

    def normalised(self, positions: Tensor) -> Tensor:
        """The history of these samples, min-max normalised over the training set: (n, modality) in [0, 1]."""
        low, high = self.history.aminmax(dim=0)
        return (self.history[positions] - low) / (high - low).clamp_min(torch.finfo(high.dtype).tiny)

    def extra_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"history": self.history}, {}

    def load_extra_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.history = tensors["history"].clone()


def fuse(logits: Tensor, confidence: Tensor, present: Tensor | None) -> Tensor:
    """sum_m c_m logits_m over the present modalities: (n, modality, class), (n, modality) -> (n, class)."""
    if present is not None:
        confidence = confidence.masked_fill(~present, 0.0)
    return (confidence[..., None] * logits).sum(1)


def ranking_loss(confidence: Tensor, history: Tensor, present: Tensor | None) -> Tensor:
    """rank_m, (modality,), over the pairs (i, next) of a batch; confidence, history (in [0, 1]): (n, modality)."""
    difference = history - history.roll(-1, 0)
    sign = difference.sign()
    if present is not None:
        sign = sign.masked_fill(~(present & present.roll(-1, 0)), 0.0)
    terms = torch.addcmul(-difference.abs(), sign, confidence - confidence.roll(-1, 0)).relu()  # 0 where t is
    return terms.sum(0) / sign.abs().sum(0).clamp_min(1)
