"""What joint training shares: one cross-entropy on what `combine` makes of all modalities."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from mla_cli.core.method import BaseMethod, Batch


class JointMethod(BaseMethod):
    """One cross-entropy on logits that `combine` makes of all modalities; absent inputs are imputed.

    A modality alone is read with the others absent, unless a method can take its logits apart.
    """

    fewest_modalities = 2
    aligned = True
    mixes = True
    one_head_optimizer = True
    alone_readout = "others absent (imputed)"

    def step(self, batch: Batch) -> dict[str, Tensor]:
        if not batch.inputs:  # too few samples for batch normalisation
            return {}
        with self.autocast():
            features = {m: self.features(m, batch) for m in self.modalities}
            logits = self.combine(features)
        first = self.modalities[0]
        loss = self.share_of_loss(logits, batch.labels[first], batch.totals.get(first))
        loss, *sums = self.backward(loss, sums=self.sums(batch, features))
        self.modulate(batch, sums)
        self.update()
        return {"fused": loss}

    def sums(self, batch: Batch, features: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """What `modulate` needs of the batch: sums over its samples, which several ranks add up."""
        return ()

    def modulate(self, batch: Batch, sums: Sequence[Tensor]) -> None:
        """Called between the gradients and the optimisers' steps."""

    def alone(self, modality: str, features: Tensor) -> Tensor:
        count = len(features)
        return self.combine({m: features if m == modality else self.imputed(m, count) for m in self.modalities})
