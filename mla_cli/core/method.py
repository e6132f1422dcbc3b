"""What a training method is. A method is one file in `methods/` with a class `Method(BaseMethod)`.

The engine builds the encoders, the optimisers and the batches; a method says how one round trains them and how its
logits are read. Keyword-only arguments of a method's `__init__` are its own recipe keys (`method.NAME.key`).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mla_cli.core.loss_scale import LossScale
from mla_cli.core.model import Encoder, build_head, needs_two
from mla_cli.core.ranks import ALONE, Ranks
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

    With several ranks all this is one rank's share, possibly of no sample, and totals, modality -> samples of that step
    on all ranks, and everyone, `present` of them all, say what a mean is over. Alone, totals is empty.
    """

    epoch: int
    round: int
    rounds: int
    inputs: dict[str, Tensor]
    labels: dict[str, Tensor]
    present: Tensor | None = None
    positions: dict[str, Tensor] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)
    everyone: Tensor | None = None

    def counts(self) -> "int | Tensor | None":
        """Of an aligned round with several ranks: samples, or samples per modality (modality,) where some lack any."""
        return next(iter(self.totals.values()), None) if self.everyone is None else self.everyone.sum(0)


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
    ranks: Ranks = ALONE
    sync_batchnorm: bool = False


class BaseMethod(nn.Module):
    """Separate heads, late fusion: what most methods share. Override what differs."""

    fewest_modalities = 1
    aligned = False  # trains on whole samples (pairs), absent inputs imputed
    mixes = False  # fuses inside: has its own logits for every subset of modalities
    one_head_optimizer = False  # its heads always move together
    one_process = False  # its loss is more than a mean over samples: several ranks would not train the same
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
        self.ranks = context.ranks
        self.scale: LossScale | None = None  # with float16
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
        """Mean cross-entropy in nats, computed in float32, or in float64 where the logits are."""
        return F.cross_entropy(widened(logits), labels, label_smoothing=self.context.label_smoothing)

    def share_of_loss(self, logits: Tensor, labels: Tensor, total: int | None) -> Tensor:
        """This rank's part of the mean over `total` samples; the mean itself, where total is None."""
        if total is None:
            return self.loss(logits, labels)
        smoothing = self.context.label_smoothing
        return F.cross_entropy(widened(logits), labels, label_smoothing=smoothing, reduction="sum") / total

    def losses(
        self, logits: Tensor, labels: Tensor, present: Tensor | None, counts: int | Tensor | None = None
    ) -> Tensor:
        """Mean cross-entropy of each modality over the samples that have it, (modality,); 0 where none has.

        logits: (n, modality, class), labels: (n,), present: bool (n, modality), or None where all have all. counts: of
        the samples that a mean is over, where they are not all here.
        """
        return mean_where(self.sample_losses(widened(logits).log_softmax(-1), labels), present, counts)

    def sample_losses(self, log_p: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy in nats of log-probabilities (n, modality, class), per sample and modality: (n, modality)."""
        right = labels[:, None, None].expand(*log_p.shape[:2], 1)
        found, smoothing = -log_p.gather(2, right)[..., 0], self.context.label_smoothing
        return (1 - smoothing) * found - smoothing * log_p.mean(-1) if smoothing else found

    def features(self, modality: str, batch: Batch) -> Tensor:
        """Training features (n_m, d). Dropout draws from torch's generator, seeded here per round and modality.

        A rank without a sample has (0, d), and its encoder does not run, unless others wait for its batch statistics.
        """
        inputs, c = batch.inputs[modality], self.context
        if batch.totals and not len(inputs) and not (c.sync_batchnorm and needs_two(self.encoders[modality])):  # type: ignore[arg-type]
            return next(self.heads.parameters()).new_zeros(0, c.width)
        if self.random_parts:
            own = (f"rank {self.ranks.rank}",) if self.ranks.rank else ()
            seed = derive(c.seed, "dropout", batch.epoch, batch.round, modality, *own)
            if c.device.type == "cpu":  # torch.manual_seed seeds every backend, and takes milliseconds
                torch.default_generator.manual_seed(seed)
            else:
                torch.manual_seed(seed)
        encoder = self.compiled.get(modality) or self.encoders[modality]
        return encoder(inputs)

    def unimodal_step(self, modality: str, batch: Batch, head: nn.Module, head_name: str) -> Tensor:
        """One modality's encoder and a head, nothing else: cross-entropy, backward, two optimiser steps."""
        with self.autocast():
            logits = head(self.features(modality, batch))
        names = (f"encoder.{modality}", head_name)
        (loss,) = self.backward(self.share_of_loss(logits, batch.labels[modality], batch.totals.get(modality)), names)
        self.update(*names)
        return loss

    def backward(self, loss: Tensor, names: tuple[str, ...] = (), sums: Sequence[Tensor] = ()) -> list[Tensor]:
        """Fill the gradients of the named groups, all where none is named: over all ranks, and without a loss scale.

        sums: further tensors to add up over the ranks. Returns the loss and them, detached.
        """
        (loss if self.scale is None else self.scale.scaled(loss)).backward()
        return self.settle((loss.detach(), *sums), names)

    def settle(self, sums: Sequence[Tensor], names: tuple[str, ...] = ()) -> list[Tensor]:
        """The second half of `backward`, for a method that has filled its gradients itself."""
        if self.ranks.world == 1 and self.scale is None:
            return list(sums)
        chosen = [self.optimizers[name] for name in names or self.optimizers if name not in self.idle]
        if self.ranks.world > 1:
            parameters = [p for optimizer in chosen for group in optimizer.param_groups for p in group["params"]]
            sums = self.ranks.add_gradients(parameters, sums)
        if self.scale is not None:
            self.scale.unscale(chosen)
        return list(sums)

    def update(self, *names: str) -> None:
        """Step the named optimisers, all where none is named, and clear (not zero) their gradients.

        A cleared gradient moves nothing later. Groups in which nothing trains may be named too.
        """
        names = names or (*self.optimizers, *self.idle)
        if self.watch is not None:
            self.watch.before_update(names)
        for name in names:
            if name not in self.idle:
                optimizer = self.optimizers[name]
                optimizer.step() if self.scale is None else self.scale.step(optimizer)
                optimizer.zero_grad(set_to_none=True)
        if self.scale is not None:
            self.scale.update()

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


def widened(logits: Tensor) -> Tensor:
    """Logits in float32, or in float64 where they are."""
    return logits if logits.dtype == torch.float64 else logits.float()


def mean_where(values: Tensor, chosen: Tensor | None, counts: "int | Tensor | None" = None) -> Tensor:
    """Mean over the samples, column by column, of those chosen: (n, k) -> (k,); 0 where none is. chosen: bool.

    counts: how many are chosen on all ranks, one number or (k,), where these samples are one rank's.
    """
    if chosen is None:
        return values.mean(0) if counts is None else values.sum(0) / counts
    counts = chosen.sum(0) if counts is None else torch.as_tensor(counts)
    return values.masked_fill(~chosen, 0.0).sum(0) / counts.clamp_min(1)


def option_error(name: str, value: object, choices: list[str]) -> MlaError:
    """A method's own key holds something else than one of its choices."""
    return MlaError(f"`method.{name}` must be one of {', '.join(choices)}, got {value!r}", "see `mla recipes`")
