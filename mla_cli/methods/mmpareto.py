"""Pareto integration of multimodal and unimodal gradients (MMPareto, Wei & Hu, ICML 2024, arXiv 2405.17730).

A baseline of MLA's Table 1, for any M >= 2: a joint linear head on the concatenated features and an own head per
modality. Per encoder, over all its parameters: g_mm, the gradient of the joint head's cross-entropy, and g_u, that of
the modality's own. If their inner product is positive, w1 = w2 = .5; else w1 g_mm + w2 g_u is the shortest mixture of
the two (w1 + w2 = 1), with w1 clipped to [.001, .999]. d = 2 (w1 g_mm + w2 g_u). Then each parameter's part of d is
multiplied by gamma max(1, |g_mm + g_u| / |d|), the norms of that parameter's parts; d = 0 stays 0. Heads take the plain
sum of the losses.

Before the rescaling d has non-negative inner products with both gradients (but for the clipping, where one is more than
999 times longer than the other and opposed to it); after it that need not hold. Two backward passes per step instead of
one. Absent inputs are imputed for the joint head and left out of the modality's own loss.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mla_cli.core.joint_method import JointMethod
from mla_cli.core.method import Batch, Context
from mla_cli.core.model import build_head
from mla_cli.errors import MlaError


class Method(JointMethod):
    """Encoders, a joint head (class, M d), and own heads (class, d)."""

    alone_readout = "own head"

    def __init__(self, context: Context, *, gamma: float = 1.5):
        super().__init__(context)
        if gamma <= 0:
            raise MlaError(f"`method.mmpareto.gamma` must be positive, got `{gamma}`", "1.5 is the published value")
        self.gamma = gamma

    def build_heads(self) -> nn.ModuleDict:
        c = self.context
        own = {f"own_{m}": build_head(c.width, c.num_classes, c.seed, m) for m in self.modalities}
        joint = build_head(c.width * len(self.modalities), c.num_classes, c.seed, "joint")
        return nn.ModuleDict(own | {"joint": joint})

    def step(self, batch: Batch) -> dict[str, Tensor]:
        if not batch.inputs:  # too few samples for batch normalisation
            return {}
        labels = batch.labels[self.modalities[0]]
        with self.autocast():
            features = {m: self.features(m, batch) for m in self.modalities}
            joint = self.combine(features)
            own = torch.stack([self.alone(m, features[m]) for m in self.modalities], dim=1)
        fused_loss = self.share_of_loss(joint, labels, batch.totals.get(self.modalities[0]))
        own_losses = self.losses(own, labels, batch.present, batch.counts())
        encoders = {m: [p for p in self.encoders[m].parameters() if p.requires_grad] for m in self.modalities}
        shared = [p for parameters in encoders.values() for p in parameters]
        scaled = [fused_loss, own_losses.sum()]
        if self.scale is not None:  # the mixture of gradients is in proportion to their length
            scaled = [self.scale.scaled(loss) for loss in scaled]
        multimodal = gradients(scaled[0], shared, self.heads["joint"].parameters(), retain_graph=True)
        unimodal = gradients(scaled[1], shared, self.own_parameters(), retain_graph=False)
        reported = [fused_loss.detach(), own_losses.detach()]
        if self.ranks.world > 1:  # the mixture is of the whole batch's gradients
            heads = list(self.heads.parameters())
            found = self.ranks.add_gradients(heads, [*multimodal, *unimodal, *reported])
            multimodal, unimodal, reported = found[: len(shared)], found[len(shared) : -2], found[-2:]
        start = 0
        for parameters in encoders.values():
            end = start + len(parameters)
            if parameters:
                mixed = integrate(multimodal[start:end], unimodal[start:end], self.gamma)
                for parameter, gradient in zip(parameters, mixed, strict=True):
                    parameter.grad = gradient
            start = end
        if self.scale is not None:
            self.scale.unscale(self.optimizers.values())
        self.update()
        return {"fused": reported[0], **dict(zip(self.modalities, reported[1], strict=True))}

    def own_parameters(self) -> list[nn.Parameter]:
        return [p for m in self.modalities for p in self.heads[f"own_{m}"].parameters()]

    def combine(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.heads["joint"](torch.cat([features[m] for m in self.modalities], dim=1))

    def alone(self, modality: str, features: Tensor) -> Tensor:
        return self.heads[f"own_{modality}"](features)


def gradients(loss: Tensor, encoders: list[nn.Parameter], heads, retain_graph: bool) -> list[Tensor]:
    """Gradients of one loss: the encoders' returned, the heads' (which no other loss reaches) set in place."""
    heads = list(heads)
    found = torch.autograd.grad(loss, encoders + heads, retain_graph=retain_graph, materialize_grads=True)
    for parameter, gradient in zip(heads, found[len(encoders) :], strict=True):
        parameter.grad = gradient
    return list(found[: len(encoders)])


def integrate(multimodal: Sequence[Tensor], unimodal: Sequence[Tensor], gamma: float) -> list[Tensor]:
    """One encoder's gradients from those of the two losses, parameter by parameter."""
    shapes = [g.shape for g in multimodal]
    sizes = [g.numel() for g in multimodal]
    flat_mm = torch.cat([g.flatten() for g in multimodal])
    flat_u = torch.cat([g.flatten() for g in unimodal])
    direction = pareto_direction(flat_mm, flat_u).split(sizes)
    total = (flat_mm + flat_u).split(sizes)
    mixed = []
    for d, g, shape in zip(direction, total, shapes, strict=True):
        length = d.norm()
        stretch = torch.where(length > 0, g.norm() / length, 1.0).clamp_min(1.0)
        mixed.append((gamma * stretch * d).view(shape))
    return mixed


def pareto_direction(multimodal: Tensor, unimodal: Tensor) -> Tensor:
    """d = 2 (w1 g_mm + w2 g_u) of one encoder's flattened gradients, (parameter,), before the rescaling."""
    product = multimodal @ unimodal
    long_mm, long_u = multimodal @ multimodal, unimodal @ unimodal
    apart = (long_mm + long_u - 2 * product).clamp_min(torch.finfo(product.dtype).tiny)  # |g_mm - g_u|^2
    w1 = ((long_u - product) / apart).clamp(0.001, 0.999)
    w1 = torch.where(product > 0, 0.5, w1)
    return 2 * (w1 * multimodal + (1 - w1) * unimodal)
