"""Late fusion: separate heads, the sum of their cross-entropies, the mean of their logits.

This is MLA without sharing, without HGM and without dynamic fusion: the control. Separate heads and summed losses
decouple, so the modalities are trained one after the other, and part m is bit-identical to `unimodal` m
(`select_on: last`).
"""

from torch import Tensor

from mla_cli.core.method import BaseMethod, Batch


class Method(BaseMethod):
    """One encoder and one linear head per modality."""

    def step(self, batch: Batch) -> dict[str, Tensor]:
        return {
            m: self.unimodal_step(m, batch, self.heads[m], f"head.{m}") for m in self.modalities if m in batch.inputs
        }
