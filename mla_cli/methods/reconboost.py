"""Boosting one modality at a time against the others (ReconBoost, Hua et al., ICML 2024, arXiv 2405.09321).

A baseline of MLA's Table 1, for any M >= 2. Own heads with logits phi_m. A stage is `epochs_alone` epochs of one
modality, then `epochs_joint` epochs of all on the cross-entropy of sum_m phi_m; the stages cycle over the modalities in
`method.order`. An epoch is one pass over the data, as everywhere, and its number alone says what is trained.

Loss of the active modality, C classes, p = softmax of the others' summed logits, detached:
-(w1 - w2 p_y) log softmax(phi_m)_y / C + alpha MSE(softmax phi_m, softmax phi_previous detached),
where `previous` is the modality of the stage before (the first stage has no such term). With `agreement: released` both
sides of the second term are detached, as in the authors' code: it shows in the loss and has no gradient.

Idle modalities run as in evaluation, and nothing of them moves. Absent modalities are masked: they add nothing to any
sum of logits, and the losses are means over the samples that have the modality (agreement: both). At test time the
logits' mean stands for their sum: the same classes, at 1/M of the scale. The other modalities are run only forward in
the first part of a stage, so a step costs less there and about as much as `concat`'s in the second.
"""

import torch
from torch import Tensor

from mla_cli.core.method import BaseMethod, Batch, Context, mean_where, option_error, widened
from mla_cli.errors import MlaError


class Method(BaseMethod):
    """One encoder and one linear head per modality, trained in stages."""

    fewest_modalities = 2
    aligned = True

    def __init__(
        self,
        context: Context,
        *,
        agreement: str = "live",
        epochs_alone: int = 4,
        epochs_joint: int = 4,
        w1: float = 5.0,
        w2: float = 1.0,
        alpha: float = 0.5,
    ):
        super().__init__(context)
        if agreement not in ("live", "released"):
            raise option_error("reconboost.agreement", agreement, ["live", "released"])
        if epochs_alone < 0 or epochs_joint < 0 or epochs_alone + epochs_joint == 0:
            raise MlaError(
                f"`method.reconboost`: a stage of {epochs_alone} + {epochs_joint} epochs trains nothing",
                "give `epochs_alone` or `epochs_joint` at least one epoch",
            )
        self.is_live = agreement == "live"
        self.epochs_alone, self.epochs_joint = epochs_alone, epochs_joint
        self.w1, self.w2, self.alpha = w1, w2, alpha
        self.order = context.section.order or self.modalities
        if 0 < context.epochs < (cycle := len(self.order) * (epochs_alone + epochs_joint)):
            context.warnings.append(
                f"reconboost takes {cycle} epochs to boost every modality once, and `train.epochs` is {context.epochs}"
            )

    def active(self, epoch: int) -> str | None:
        """The modality that epoch (from 1) trains alone, or None where it trains all together."""
        stage, inside = divmod(epoch - 1, self.epochs_alone + self.epochs_joint)
        return self.order[stage % len(self.order)] if inside < self.epochs_alone else None

    def previous(self, epoch: int) -> str | None:
        """The modality of the stage before the one that holds this epoch."""
        stage = (epoch - 1) // (self.epochs_alone + self.epochs_joint)
        return self.order[(stage - 1) % len(self.order)] if stage else None

    def start_epoch(self, epoch: int) -> None:
        active = self.active(epoch)
        for m in self.modalities:
            self.encoders[m].train(active in (None, m))

    def step(self, batch: Batch) -> dict[str, Tensor]:
        if not batch.inputs:  # too few samples for batch normalisation
            return {}
        active, labels = self.active(batch.epoch), batch.labels[self.modalities[0]]
        parts = []
        for m in self.modalities:
            with self.autocast(), torch.set_grad_enabled(active in (None, m)):
                parts.append(widened(self.heads[m](self.features(m, batch))))
        logits = torch.stack(parts, dim=1)  # (n, modality, class)
        if active is None:
            loss = self.share_of_loss(summed(logits, batch.present), labels, batch.totals.get(self.modalities[0]))
            (loss,) = self.backward(loss)
            self.update()
            return {"fused": loss}
        names = (f"encoder.{active}", f"head.{active}")
        loss = self.boosting_loss(logits, labels, batch.present, active, self.previous(batch.epoch), batch)
        (loss,) = self.backward(loss, names)
        self.update(*names)
        return {active: loss}

    def boosting_loss(
        self,
        logits: Tensor,
        labels: Tensor,
        present: Tensor | None,
        active: str,
        previous: str | None,
        batch: Batch | None = None,
    ) -> Tensor:
        """The active modality's loss; logits: (n, modality, class), gradients only through the active one.

        batch: what knows how many samples several ranks have.
        """
        total, everyone = (None, None) if batch is None else (batch.counts(), batch.everyone)
        place = self.modalities.index(active)
        own, has = logits[:, place], None if present is None else present[:, place]
        others = [i for i in range(len(self.modalities)) if i != place]
        rest = summed(logits[:, others].detach(), None if present is None else present[:, others])
        p = rest.softmax(-1).gather(1, labels[:, None])[:, 0]  # of the right class, (n,)
        each = (
            (self.w1 - self.w2 * p) * self.sample_losses(own[:, None].log_softmax(-1), labels)[:, 0] / logits.shape[-1]
        )
        count = total if everyone is None else everyone[:, place].sum(0)
        loss = mean_where(each, has, count)
        if previous is None:
            return loss
        before = self.modalities.index(previous)
        both = None if present is None else has & present[:, before]  # type: ignore[operator]
        count = total if everyone is None else (everyone[:, place] & everyone[:, before]).sum(0)
        mine = own if self.is_live else own.detach()
        apart = (mine.softmax(-1) - logits[:, before].detach().softmax(-1)).square().mean(-1)
        return loss + self.alpha * mean_where(apart, both, count)


def summed(logits: Tensor, present: Tensor | None) -> Tensor:
    """Sum of the present modalities' logits: (n, modality, class) -> (n, class)."""
    if present is not None:
        logits = logits.masked_fill(~present[..., None], 0.0)
    return logits.sum(1)
