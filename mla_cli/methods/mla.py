"""Alternating unimodal adaptation (MLA, CVPR 2024, arXiv 2311.10707): one modality at a time through one shared head.

A round is one step per modality of `method.order`: cross-entropy of head(encoder_m(x_m)); only that encoder and the
head move. Head gradient modification keeps the head's step away from what the previous modality's features occupy
(`core/hgm.py`, `core/head_schedule.py`); at test time the modalities are fused by their uncertainty (`core/fusion.py`).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mla_cli.core.head_schedule import HeadSchedule
from mla_cli.core.method import BaseMethod, Batch, Context
from mla_cli.core.model import build_head


class Method(BaseMethod):
    """One encoder per modality, one shared linear head, one optimiser for each."""

    default_rule = "entropy"
    alone_readout = "shared head"

    def __init__(self, context: Context):
        super().__init__(context)
        section = context.section
        self.order = section.order or self.modalities
        self.schedule = HeadSchedule(
            context.width,
            hgm=section.hgm,
            alpha_start=section.alpha_start,
            alpha_end=section.alpha_end,
            hgm_reset=section.hgm_reset,
            hgm_mean=section.hgm_mean,
            hgm_apply=section.hgm_apply,
            device=context.device,
        )

    def build_heads(self) -> nn.ModuleDict:
        c = self.context
        return nn.ModuleDict({"shared": build_head(c.width, c.num_classes, c.seed, "shared")})

    @property
    def head(self) -> nn.Linear:
        """The shared head (not an attribute: it would be stored twice)."""
        return self.heads["shared"]  # type: ignore[return-value]

    @property
    def weight(self) -> nn.Parameter:
        """Its weight (class, d): what HGM acts on."""
        return self.head.weight  # type: ignore[return-value]

    def step(self, batch: Batch) -> dict[str, Tensor]:
        losses, head, weight = {}, self.head, self.weight
        for modality in self.order:
            if modality not in batch.inputs:
                continue
            with self.autocast():
                features = self.features(modality, batch)
                logits = head(features)
            names, total = (f"encoder.{modality}", "head.shared"), batch.totals.get(modality)
            parts = [] if total is None else [features.detach().sum(0, dtype=self.schedule.modifier.dtype)]
            loss = self.share_of_loss(logits, batch.labels[modality], total)
            loss, *sums = self.backward(loss, names, parts)
            seen = sums[0] if sums else features
            self.schedule.before_step(modality, seen, weight, batch.round, batch.rounds, total)
            self.update(*names)
            self.schedule.after_step(weight)
            losses[modality] = loss
        return losses

    def alone(self, modality: str, features: Tensor) -> Tensor:
        return self.head(features)

    def start_epoch(self, epoch: int) -> None:
        self.schedule.start_epoch(epoch)

    def end_epoch(self) -> dict[str, float]:
        facts, warning = self.schedule.end_epoch()
        if warning:
            self.context.warnings.append(warning)
        return facts

    def extra_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self.schedule.state()

    def load_extra_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.schedule.load_state(tensors, values)
