"""Joint training: the sum of per-modality linear heads, one cross-entropy (a baseline of MLA's Table 1).

logits = sum_m (W_m x_m + b_m), any M >= 2. This is `concat` with M biases and another initial scale, so the two are not
independent evidence. A modality alone is read from its own head, bias included. Where a modality is absent, its input
is imputed.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mla_cli.core.joint_method import JointMethod


class Method(JointMethod):
    """One linear head per modality; their logits are added."""

    alone_readout = "own head, bias included"

    def combine(self, features: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([self.heads[m](features[m]) for m in self.modalities]).sum(0)

    def alone(self, modality: str, features: Tensor) -> Tensor:
        return self.heads[modality](features)
