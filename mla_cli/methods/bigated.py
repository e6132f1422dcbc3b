"""Joint training with gates in both directions (Kiela et al., AAAI 2018, arXiv 1802.02892; MLA's Table 1).

With h_m = FC_m x_m: logits = head(sigmoid(h_1) * h_2), and the reverse, averaged. For M > 2: the average over every
ordered pair. A modality alone is read with the inputs of all others imputed, as absent ones are.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mla_cli.core.joint_method import JointMethod
from mla_cli.core.model import build_head


class Method(JointMethod):
    """One layer d -> d per modality, which is both gate and content, and one head."""

    def build_heads(self) -> nn.ModuleDict:
        c = self.context
        layers = {f"gate_{m}": build_head(c.width, c.width, c.seed, "gate", m) for m in self.modalities}
        return nn.ModuleDict(layers | {"joint": build_head(c.width, c.num_classes, c.seed, "joint")})

    def combine(self, features: Mapping[str, Tensor]) -> Tensor:
        hidden = torch.stack([self.heads[f"gate_{m}"](features[m]) for m in self.modalities])  # (modality, batch, d)
        gates, count = hidden.sigmoid(), len(self.modalities)
        # sum over i != j of gate_i h_j; the head is linear, so the mean may be taken before it
        pairs = ((gates.sum(0) - gates) * hidden).sum(0)
        return self.heads["joint"](pairs / (count * (count - 1)))
