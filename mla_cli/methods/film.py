"""Joint training with feature-wise linear modulation (Perez et al., AAAI 2018, arXiv 1709.07871; MLA's Table 1).

gamma, beta = FC(x_1); logits = head(gamma * x_2 + beta). For M > 2 the modalities are chained in their order, each
modulating the next: z_1 = x_1, z_m = gamma_m(z_(m-1)) * x_m + beta_m(z_(m-1)), logits = head(z_M). A modality alone is
read with the inputs of all others imputed, as absent ones are.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from mla_cli.core.joint_method import JointMethod
from mla_cli.core.model import build_head


class Method(JointMethod):
    """One layer d -> 2 d for each modality after the first, and one head."""

    def build_heads(self) -> nn.ModuleDict:
        c = self.context
        layers = {f"film_{m}": build_head(c.width, 2 * c.width, c.seed, "film", m) for m in self.modalities[1:]}
        return nn.ModuleDict(layers | {"joint": build_head(c.width, c.num_classes, c.seed, "joint")})

    def combine(self, features: Mapping[str, Tensor]) -> Tensor:
        chained = features[self.modalities[0]]
        for m in self.modalities[1:]:
            gamma, beta = self.heads[f"film_{m}"](chained).chunk(2, dim=1)  # each (batch, d)
            chained = gamma * features[m] + beta
        return self.heads["joint"](chained)
