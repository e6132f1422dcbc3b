"""OGM with generalisation enhancement (OGM-GE, Peng et al., CVPR 2022, arXiv 2203.15332; MLA's Table 1).

`ogm`, and then zero-mean Gaussian noise on every gradient that OGM may scale, k = 1 included, in the same epochs. The
noise's standard deviation is that of the unscaled gradient plus 1e-8. It is drawn for (seed, "ogm_ge", epoch, round,
parameter name). Keys, and the extension to any M >= 2, as `ogm`.
"""

import torch
from torch import Tensor

from mla_cli.core.method import Batch, Context
from mla_cli.methods.ogm import Method as Ogm
from mla_cli.seeding import derive


class Method(Ogm):
    """`ogm` with noise."""

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
        super().__init__(
            context, alpha=alpha, start_epoch=start_epoch, end_epoch=end_epoch, others=others, parameters=parameters
        )

    def change(self, gradient: Tensor, scale: Tensor, name: str, batch: Batch) -> None:
        source = torch.Generator(gradient.device)
        source.manual_seed(derive(self.context.seed, "ogm_ge", batch.epoch, batch.round, name))
        sd = gradient.std(correction=min(1, gradient.numel() - 1)) + 1e-8
        noise = torch.randn(gradient.shape, generator=source, device=gradient.device, dtype=gradient.dtype)
        gradient.mul_(scale).addcmul_(noise, sd)
