"""What joint and alternating training do to each modality: one set of figures per epoch, for every method alike.

| key of `history.jsonl`     | what it is                                                                              |
|----------------------------|-----------------------------------------------------------------------------------------|
| `train_accuracy.M`         | accuracy of modality M alone on the probe                                               |
| `rho.M`, `head_cosine.A+B` | `core.imbalance` on the probe: OGM's ratio, and agreement of the head gradients         |
| `gradient_norm.M`          | length of encoder M's gradient as its optimiser gets it, mean over about 8 rounds       |
| `forgetting.M`             | what the steps of the OTHER modalities added to M's loss alone, in the middle round     |
| `round_change.M`           | what that whole round added to it (joint methods have no steps of others to tell apart) |
| `modality_gap.A+B`         | `core.imbalance` on the held samples, and `modality_separability`                       |

The probe is up to 256 training samples of each modality, without augmentation; the held samples are up to 128 of val.
Losses are mean cross-entropies in nats; what a round adds to them is in proportion to its learning rate. Nothing here
changes a run: the model is only read, in evaluation mode.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mla_cli.core import imbalance
from mla_cli.core.method import BaseMethod, Batch
from mla_cli.data.loader import SplitLoader
from mla_cli.data.moving import moved
from mla_cli.seeding import generator

PROBE, HELD = 256, 128  # samples of each modality: enough for an accuracy, and for a mean
GRADIENT_ROUNDS = 8  # rounds of an epoch, about, in which gradients are measured


class Diagnostics:
    """Watches the rounds of an epoch, and measures the model at its end."""

    def __init__(self, method: BaseMethod, train: SplitLoader, train_present: np.ndarray, held: SplitLoader, seed: int):
        """train_present: bool (sample, modality of the split), after any draw of missing ones."""
        self.method = method
        self.probe = Sampled(train, train_present, method.modalities, PROBE, seed)
        self.held = Sampled(held, held.samples.present, method.modalities, HELD, seed)
        self.norms: dict[str, list[Tensor]] = {}
        self.is_sampled = False  # whether this round's gradients are measured
        self.losses: dict[str, float] = {}  # of the held samples, during the middle round
        self.features: dict[str, Tensor] = {}
        self.stepped: list[str] = []  # modalities of a step whose effect is not yet measured
        self.added: dict[str, float] = {}  # to the losses, by steps of other modalities
        self.facts: dict[str, float] = {}

    # ------------------------------------------------------------ inside an epoch

    def watching(self, batch: Batch) -> AbstractContextManager[None]:
        """Around a method's `step`: watches its updates in some rounds, and does nothing in the others.

        The last round may be a small one, so losses are measured around the middle one.
        """
        self.is_sampled = (batch.rounds - 1 - batch.round) % max(1, batch.rounds // GRADIENT_ROUNDS) == 0
        is_middle = batch.round == (batch.rounds - 1) // 2
        return self._watch(is_middle) if self.is_sampled or is_middle else nullcontext()

    @contextmanager
    def _watch(self, is_middle: bool) -> Iterator[None]:
        if is_middle:
            self.added, self.stepped = {}, []
            self._measure(self.method.modalities)
        start = dict(self.losses)
        self.method.watch = self
        try:
            yield
        finally:
            self.method.watch = None
        if is_middle:
            self._settle()
            self.facts = {f"forgetting.{m}": self.added[m] for m in start if m in self.added}
            self.facts |= {f"round_change.{m}": self.losses[m] - start[m] for m in start}
            self.losses, self.features = {}, {}

    def before_update(self, optimizers: tuple[str, ...]) -> None:
        """Gradients are there, and nothing has moved yet. optimizers: the names about to step."""
        self._settle()
        moving = [m for m in self.method.modalities if f"encoder.{m}" in optimizers]
        for m in moving if self.is_sampled else ():
            if (optimizer := self.method.optimizers.get(f"encoder.{m}")) is not None:  # else nothing in it trains
                found = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
                self.norms.setdefault(m, []).append(torch.nn.utils.get_total_norm(found).detach().float())
        self.stepped = moving if self.losses else []

    def _settle(self) -> None:
        """Measure what the step before did. Not at its own end: `hgm_apply: update` still changes the head then."""
        if not self.stepped:
            return
        before, stepped = dict(self.losses), self.stepped
        self._measure(stepped)
        self.stepped = []
        if len(stepped) == 1:
            for m in (m for m in before if m != stepped[0]):
                self.added[m] = self.added.get(m, 0.0) + self.losses[m] - before[m]

    def _measure(self, moved: list[str]) -> None:
        """Losses alone of the held samples; features only of the encoders that moved."""
        with torch.no_grad(), evaluating(self.method):
            for m in moved:
                if len(self.held.positions[m]):
                    self.features[m] = self.method.encode(m, self.held.inputs(m))
            for m, features in self.features.items():
                logits = self.method.alone(m, features).float()
                self.losses[m] = float(F.cross_entropy(logits, self.held.labels(m)))

    # ------------------------------------------------------------ at its end

    def end_epoch(self) -> dict[str, float]:
        """The epoch's figures; what is not defined for a method or its modalities is left out."""
        facts: dict[str, float] = {f"gradient_norm.{m}": mean(norms) for m, norms in self.norms.items()}
        facts |= self.facts
        self.norms, self.facts = {}, {}
        certainties, gradients, features = {}, {}, {}
        with torch.no_grad(), evaluating(self.method):
            for m in self.method.modalities:
                if len(self.probe.positions[m]):
                    x = self.method.encode(m, self.probe.inputs(m))
                    logits, labels = self.method.alone(m, x).float().cpu(), self.probe.labels(m).cpu()
                    facts[f"train_accuracy.{m}"] = float((logits.argmax(1) == labels).double().mean())
                    certainties[m] = imbalance.certainty(logits, labels)
                    gradients[m] = imbalance.head_gradient(x.cpu(), logits, labels)
                if len(self.held.positions[m]):
                    features[m] = self.method.encode(m, self.held.inputs(m)).cpu()
        named = {
            "rho": imbalance.ratios(certainties),
            "head_cosine": imbalance.pair_cosines(gradients),
            "modality_gap": imbalance.modality_gaps(features),
        }
        facts |= {f"{name}.{of}": value for name, values in named.items() for of, value in values.items()}
        separable = imbalance.separability(features) if features else None
        return facts if separable is None else facts | {"modality_separability": separable}

    # ------------------------------------------------------------ checkpoints

    def state(self) -> dict[str, Tensor]:
        """What an epoch under way has measured so far."""
        tensors = {f"gradient_norm.{m}": torch.stack(norms) for m, norms in self.norms.items()}
        return tensors | {f"measured.{key}": torch.tensor(v, dtype=torch.float64) for key, v in self.facts.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore `state`, in the order in which it is told."""
        self.norms, self.facts = {}, {}
        for m in self.method.modalities:
            if (norms := tensors.get(f"gradient_norm.{m}")) is not None:
                self.norms[m] = list(norms.to(self.method.context.device))
        for key in (f"{name}.{m}" for name in ("forgetting", "round_change") for m in self.method.modalities):
            if f"measured.{key}" in tensors:
                self.facts[key] = float(tensors[f"measured.{key}"])


class Sampled:
    """The same few samples of a split in every epoch, of each modality those that have it."""

    def __init__(self, split: SplitLoader, present: np.ndarray, modalities: list[str], most: int, seed: int):
        self.split = split
        order = generator(seed, "diagnostics", split.samples.split).permutation(len(present))
        column = {m: i for i, m in enumerate(split.samples.modalities)}
        self.positions = {m: np.sort(order[present[order, column[m]]][:most]) for m in modalities}

    def inputs(self, modality: str) -> Tensor:
        return self.split.modalities[modality].batch(self.positions[modality])

    def labels(self, modality: str) -> Tensor:
        return self.split.labels[moved(torch.from_numpy(self.positions[modality]), self.split.device)]


@contextmanager
def evaluating(method: BaseMethod) -> Iterator[None]:
    """Evaluation mode, and afterwards every part's own mode again: a method may train some and not others."""
    modes = [(part, part.training) for part in method.modules()]
    method.eval()
    try:
        yield
    finally:
        for part, training in modes:
            if part.training != training:  # setting it costs more than looking
                part.training = training


def mean(values: list[Tensor]) -> float:
    """The mean of single numbers on one device; those that overflowed in float16, so that no step was taken, aside."""
    found = torch.stack(values).cpu().double()
    return float(found[torch.isfinite(found)].mean())
