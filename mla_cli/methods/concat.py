"""Joint training: one linear head on the concatenated features, one cross-entropy (a baseline of MLA's Table 1).

A modality alone is read from the joint head as W_m x_m + b / M. Where a modality is absent, its input is imputed.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mla_cli.core.joint_method import JointMethod
from mla_cli.core.model import build_head


class Method(JointMethod):
    """Concatenation of M features of width d: the head is (class, M d)."""

    fewest_modalities = 1
    alone_readout = "W_m x_m + b/M"

    def build_heads(self) -> nn.ModuleDict:
        c = self.context
        return nn.ModuleDict({"joint": build_head(c.width * len(self.modalities), c.num_classes, c.seed, "joint")})

    def combine(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.heads["joint"](torch.cat([features[m] for m in self.modalities], dim=1))

    def alone(self, modality: str, features: Tensor) -> Tensor:
        head, width, place = self.heads["joint"], self.context.width, self.modalities.index(modality)
        weight = head.weight[:, place * width : (place + 1) * width]  # type: ignore[index]
        return features @ weight.T + head.bias / len(self.modalities)  # type: ignore[operator]
