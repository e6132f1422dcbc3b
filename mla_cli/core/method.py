"""What a training method is. A method is one file in `methods/` with a class `Method(BaseMethod)`.

The engine builds the encoders, the optimisers and the batches; a method says how one round trains them and how its
logits are read. Keyword-only arguments of a method's `__init__` are its own recipe keys (`method.NAME.key`).
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mla_cli.core.model import Encoder, build_head
from mla_cli.errors import MlaError
from mla_cli.schema import MethodSection
from mla_cli.seeding import derive


@dataclass
class Batch:
    """One round of training.

    inputs: modality -> (n_m, ...), labels: modality -> (n_m,) int64. Alternating methods get each modality's present
    samples only, so n_m may differ. Aligned methods get the same samples everywhere, absent inputs imputed, and
    present, bool (n, modality), unless every sample has every modality.
    positions: modality -> (n_m,) int64, which of the training samples these are.
    """

    epoch: int
    round: int
    rounds: int
    inputs: dict[str, Tensor]
    labels: dict[str, Tensor]
    present: Tensor | None = None
    positions: dict[str, Tensor] = field(default_factory=dict)


class Watch(Protocol):
    """Looks at a method's updates from outside, and changes nothing."""

    def before_update(self, optimizers: tuple[str, ...]) -> None:
        """Called with the names of the optimisers about to step."""


@dataclass
class Context:
    """What a method is built from."""

    modalities: list[str]
    encoders: nn.ModuleDict
    num_classes: int
    width: int
    seed: int
    section: MethodSection
    device: torch.device
    label_smoothing: float = 0.0
    autocast: torch.dtype | None = None
    warnings: list[str] = field(default_factory=list)
    num_samples: int = 0  # of the training split: `Batch.positions` are below it
    epochs: int = 0  # the budget; 0 where nothing is trained


class BaseMethod(nn.Module):
    """Separate heads, late fusion: what most methods share. Override what differs."""

    fewest_modalities = 1
    aligned = False  # trains on whole samples (pairs), absent inputs imputed
    mixes = False  # fuses inside: has its own logits for every subset of modalities
    one_head_optimizer = False  # its heads always move together
    native_rule = "uniform"  # the method's own fusion, as a rule over its modalities' logits
    default_rule = "native"  # `fusion.rule` where the recipe names none
    alone_readout = "own head"  # how a modality's accuracy alone is read

    def __init__(self, context: Context):
        super().__init__()
        if len(context.modalities) < self.fewest_modalities:
            raise MlaError(
                f"`{context.section.name}` needs at least {self.fewest_modalities} modalities, "
                f"got `{', '.join(context.modalities)}`",
                "name more with `dataset.modalities`, or train one alone with `--set method.name=unimodal`",
            )
        self.context = context
        self.modalities = context.modalities
        self.encoders = nn.ModuleDict({m: context.encoders[m] for m in context.modalities})
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.idle: tuple[str, ...] = ()  # groups without optimiser: nothing in them trains, such as a frozen encoder
        self.blanks: Mapping[str, Tensor] = {}  # modality -> its imputed input, from the session
        self.watch: Watch | None = None
        self.compiled: Mapping[str, Callable[[Tensor], Tensor]] = {}  # modality -> its encoder in training, if another
        self.heads = self.build_heads()
        self.random_parts = any(isinstance(part, nn.modules.dropout._DropoutNd) and part.p for part in self.modules())

    def build_heads(self) -> nn.ModuleDict:
        c = self.context
        return nn.ModuleDict({m: build_head(c.width, c.num_classes, c.seed, m) for m in self.modalities})

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Optimiser name -> parameters. Names starting with `head` take the recipe's `head` section."""
        groups = {f"encoder.{m}": list(self.encoders[m].parameters()) for m in self.modalities}
        if self.one_head_optimizer:  # an optimiser's step costs the same for one head and for many
            return groups | {"head.joint": list(self.heads.parameters())}
        return groups | {f"head.{m}": list(head.parameters()) for m, head in self.heads.items()}

    # ------------------------------------------------------------ training

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Train one round; returns the detached loss per output. No host sync."""
        raise NotImplementedError

    def start_epoch(self, epoch: int) -> None:
        """Called before the first round of an epoch, also of a resumed one."""

    def end_epoch(self) -> dict[str, float]:
        """Diagnostics of the epoch, for `history.jsonl`."""
        return {}

    def extra_state(self) -> tuple[dict[str, Tensor], dict]:
        """State beyond parameters and optimisers: tensors, and JSON values."""
        return {}, {}

    def load_extra_state(self, tensors: Mapping[str, Tensor], values: Mapping) -> None:
        """Restore `extra_state`."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy in nats, computed in float32."""
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.context.label_smoothing)

    def losses(self, logits: Tensor, labels: Tensor, present: Tensor | None) -> Tensor:
        """Mean cross-entropy of each modality over the samples that have it, (modality,); 0 where none has.

        logits: (n, modality, class), labels: (n,), present: bool (n, modality), or None where all have all.
        """
        return mean_where(self.sample_losses(logits.float().log_softmax(-1), labels), present)

    def sample_losses(self, log_p: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy in nats of log-probabilities (n, modality, class), per sample and modality: (n, modality)."""
        right = labels[:, None, None].expand(*log_p.shape[:2], 1)
        found, smoothing = -log_p.gather(2, right)[..., 0], self.context.label_smoothing
        return (1 - smoothing) * found - smoothing * log_p.mean(-1) if smoothing else found

    def features(self, modality: str, batch: Batch) -> Tensor:
        """Training features (n_m, d). Dropout draws from torch's generator, seeded here per round and modality."""
        if self.random_parts:
            seed = derive(self.context.seed, "dropout", batch.epoch, batch.round, modality)
            if self.context.device.type == "cpu":  # torch.manual_seed seeds every backend, and takes milliseconds
                torch.default_generator.manual_seed(seed)
            else:
                torch.manual_seed(seed)
        encoder = self.compiled.get(modality) or self.encoders[modality]
        return encoder(batch.inputs[modality])

    def unimodal_step(self, modality: str, batch: Batch, head: nn.Module, head_name: str) -> Tensor:
        """One modality's encoder and a head, nothing else: cross-entropy, backward, two optimiser steps."""
        with self.autocast():
            logits = head(self.features(modality, batch))
        loss = self.loss(logits, batch.labels[modality])
        loss.backward()
        self.update(f"encoder.{modality}", head_name)
        return loss.detach()

    def update(self, *names: str) -> None:
        """Step the named optimisers, all where none is named, and clear (not zero) their gradients.

        A cleared gradient moves nothing later. Groups in which nothing trains may be named too.
        """
        names = names or (*self.optimizers, *self.idle)
        if self.watch is not None:
            self.watch.before_update(names)
        for name in names:
            if name not in self.idle:
                self.optimizers[name].step()
                self.optimizers[name].zero_grad(set_to_none=True)

    def autocast(self) -> AbstractContextManager:
        """The recipe's precision. Without mixed precision nothing is entered: that costs a tiny model's step 5 %."""
        dtype = self.context.autocast
        return nullcontext() if dtype is None else torch.autocast(self.context.device.type, dtype=dtype)

    # ------------------------------------------------------------ prediction

    def frozen_features(self, modality: str, inputs: Tensor) -> Tensor:
        """What a frozen encoder's network gives, (batch, width) in float32, in the run's precision."""
        encoder: Encoder = self.encoders[modality]  # type: ignore[assignment]
        with self.autocast():
            return encoder.features(inputs).float()

    def encode(self, modality: str, inputs: Tensor) -> Tensor:
        """Features (batch, d) in float32."""
        with self.autocast():
            return self.encoders[modality](inputs).float()

    def imputed(self, modality: str, count: int) -> Tensor:
        """Features (count, d) of the input that stands for an absent one."""
        return self.encode(modality, self.blanks[modality][None]).expand(count, -1)

    def alone(self, modality: str, features: Tensor) -> Tensor:
        """A modality's logits alone, (batch, class)."""
        return self.heads[modality](features)

    def combine(self, features: Mapping[str, Tensor]) -> Tensor:
        """Fused logits (batch, class) of a method that mixes modalities inside; absent features are imputed ones."""
        raise NotImplementedError

    def predict(self, batch: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """Logits (batch, modality, class) of each modality alone; NaN where it is absent.

        batch: modality -> (batch, ...) inputs, whatever stands where absent; present: bool (batch, modality).
        """
        logits = torch.stack([self.alone(m, self.encode(m, batch[m])) for m in self.modalities], dim=1)
        return logits.masked_fill(~present[..., None], float("nan"))


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
        loss = self.loss(logits, batch.labels[self.modalities[0]])
        loss.backward()
        self.modulate(batch, features)
        self.update()
        return {"fused": loss.detach()}

    def modulate(self, batch: Batch, features: Mapping[str, Tensor]) -> None:
        """Called between the gradients and the optimisers' steps."""

    def alone(self, modality: str, features: Tensor) -> Tensor:
        count = len(features)
        return self.combine({m: features if m == modality else self.imputed(m, count) for m in self.modalities})


def mean_where(values: Tensor, chosen: Tensor | None) -> Tensor:
    """Mean over the samples, column by column, of those chosen: (n, k) -> (k,); 0 where none is. chosen: bool."""
    if chosen is None:
        return values.mean(0)
    return values.masked_fill(~chosen, 0.0).sum(0) / chosen.sum(0).clamp_min(1)


def option_error(name: str, value: object, choices: list[str]) -> MlaError:
    """A method's own key holds something else than one of its choices."""
    return MlaError(f"`method.{name}` must be one of {', '.join(choices)}, got {value!r}", "see `mla recipes`")
