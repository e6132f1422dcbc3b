"""How much slower is an epoch through the engine than the same epoch written by hand?

    python tests/benchmarks/engine.py

`mla` on `mfeat` with one torch thread: the recipe `mfeat` as it is shipped (six modalities), and its views mor + fou
alone under both optimisers. The engine runs training steps only (`Session.train_epoch` without `train.diagnostics`);
validation, checkpoints and files are apart. The bare loop is what one would write in a script: tensors in memory, a
permutation per epoch, the same optimiser class and settings, HGM in float64, the learning rate set once an epoch.

The bare loop runs twice: with `torch.optim`'s classes as a script would use them, for which the limit holds, and, to be
told, with the engine's own, which are the same classes without torch's wrappers (`engine/optimizers.py`). All three are
timed in turn and the medians compared. Exit code 1 if the engine takes more than `LIMIT` times as long as a script.
"""

import gc
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mla_cli.engine import optimizers
from mla_cli.engine.data import complete, ensure_prepared, load_data, open_store
from mla_cli.engine.session import Session
from mla_cli.recipe import load_recipe
from mla_cli.schema import Recipe

LIMIT = 1.10  # engine / bare loop
EPOCHS, REPETITIONS = 3, 21
SCRIPT = "torch.optim"  # what a script would use
PAIR = {
    "name": "benchmark",
    "dataset": {"name": "mfeat", "modalities": ["mor", "fou"]},
    "encoders": {"mor": {"name": "mlp"}, "fou": {"name": "mlp"}},  # two layers of 128 units
    "shared_width": 128,
    "train": {"batch_size": 64, "lr": 0.001},
}
RECIPES: dict[str, dict[str, Any]] = {
    "mfeat, 6 modalities, sgd": {"source": "mfeat"},
    "mor + fou, sgd": {"base": PAIR, "flags": {"train.optimizer": "sgd"}},
    "mor + fou, adamw": {"base": PAIR, "flags": {"train.optimizer": "adamw"}},
}


def engine_session(asked: Mapping[str, Any], folder: Path) -> Session:
    """The engine's side, over a store prepared in `folder`. asked: arguments of `load_recipe`."""
    endless = {"train.epochs": 1_000_000, "train.diagnostics": False}
    recipe = load_recipe(**{**asked, "flags": asked.get("flags", {}) | endless})
    for _ in ensure_prepared(recipe, folder):
        pass
    store = open_store(recipe, folder)
    recipe = complete(recipe, store)
    return Session(recipe, load_data(recipe, store), torch.device("cpu"))


def perceptron(inputs: int, width: int, hidden: int = 128, layers: int = 2, dropout: float = 0.0) -> nn.Sequential:
    """An `mlp` encoder as a script has it."""
    parts: list[nn.Module] = []
    for last in range(layers):
        fan_in, fan_out = hidden if last else inputs, width if last == layers - 1 else hidden
        parts += [nn.Linear(fan_in, fan_out), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*parts)


class BareLoop:
    """MLA with HGM as one would write it by hand. library: where its optimiser classes come from."""

    def __init__(self, inputs: dict[str, Tensor], labels: Tensor, num_classes: int, recipe: Recipe, library: Any):
        self.inputs, self.labels, self.recipe, self.library = inputs, labels, recipe, library
        width = recipe.shared_width
        self.encoders = {m: perceptron(x.shape[1], width, **recipe.encoders[m].options()) for m, x in inputs.items()}
        self.head = nn.Linear(width, num_classes)
        self.optimizers = {m: self.optimizer(encoder) for m, encoder in self.encoders.items()}
        self.head_optimizer = self.optimizer(self.head)
        self.matrix = torch.eye(width, dtype=torch.float64)
        self.previous: Tensor | None = None
        self.epochs = 0

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        train, parameters = self.recipe.train, list(module.parameters())
        settings = {"lr": train.lr, "weight_decay": train.weight_decay, "fused": True}
        if train.optimizer == "adamw":
            return self.library.AdamW(parameters, **settings)  # type: ignore[no-any-return]
        return self.library.SGD(parameters, momentum=train.momentum, **settings)  # type: ignore[no-any-return]

    def schedule(self) -> None:
        """The learning rate of the next epoch."""
        if self.recipe.train.schedule == "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * self.epochs / self.recipe.train.epochs))
            for optimizer in (*self.optimizers.values(), self.head_optimizer):
                optimizer.param_groups[0]["lr"] = self.recipe.train.lr * factor
        self.epochs += 1

    def epoch(self) -> None:
        self.schedule()
        size = self.recipe.train.batch_size
        order = torch.randperm(len(self.labels))
        rounds = -(-len(order) // size)
        losses = []
        for number in range(rounds):
            chosen = order[number * size : (number + 1) * size]
            labels = self.labels[chosen]
            alpha = 0.1 * 0.1 ** (number / rounds)
            for m, encoder in self.encoders.items():
                features = encoder(self.inputs[m][chosen])
                loss = F.cross_entropy(self.head(features), labels)
                loss.backward()
                if self.previous is not None:
                    with torch.no_grad():
                        k = self.matrix @ self.previous
                        self.matrix -= torch.outer(k, k) / (alpha + self.previous @ k)
                        assert self.head.weight.grad is not None
                        self.head.weight.grad = (self.head.weight.grad.double() @ self.matrix).float()
                for optimizer in (self.optimizers[m], self.head_optimizer):
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                self.previous = features.detach().double().mean(0)
                losses.append(loss.detach())
        torch.stack(losses).mean().item()


def milliseconds(epoch: Callable[[], object]) -> float:
    """One epoch's processor time, the mean of EPOCHS."""
    begin = time.process_time()  # of this process: what else the machine does counts less
    for _ in range(EPOCHS):
        epoch()
    return 1000 * (time.process_time() - begin) / EPOCHS


def compare(name: str, folder: Path) -> float:
    """Time the engine and both bare loops in turn, print the medians and return the ratio to a script's loop."""
    session = engine_session(RECIPES[name], folder)
    train = session.split_loader("train")
    inputs = {m: loader.resident for m, loader in train.modalities.items() if loader.resident is not None}
    timed: dict[str, Callable[[], object]] = {"engine": session.train_epoch}
    for kind, library in {SCRIPT: torch.optim, "the engine's classes": optimizers}.items():
        timed[kind] = BareLoop(inputs, train.labels, len(session.data.classes), session.recipe, library).epoch
    for epoch in timed.values():
        epoch()  # the first epoch pays for allocations and lazy imports
    times: dict[str, list[float]] = {kind: [] for kind in timed}
    gc.disable()  # a collection would hit one of them by chance
    for repetition in range(REPETITIONS):
        for kind in list(timed)[:: 1 if repetition % 2 else -1]:
            times[kind].append(milliseconds(timed[kind]))
    gc.enable()
    median = {kind: statistics.median(values) for kind, values in times.items()}
    engine = median.pop("engine")
    rounds = len(session.train_loader.rounds)
    print(f"{name}: engine {engine:.1f} ms an epoch of {rounds} rounds (medians of {REPETITIONS})")
    for kind, bare in median.items():
        limit = f"<={LIMIT:.2f}" if kind == SCRIPT else "-"
        print(f"  bare loop with {kind}: {bare:.1f} ms, ratio {engine / bare:.3f}, limit {limit}")
        print(
            f"RESULT epoch, {name} | {engine / bare:.3f} | ratio | {limit} "
            f"| engine {engine:.1f} ms, bare loop with {kind} {bare:.1f} ms (processor time)"
        )
    return engine / median[SCRIPT]


def main() -> int:
    """Compare all recipes; 0 if every ratio keeps the limit."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mla-benchmark-") as folder:
        ratios = [compare(name, Path(folder)) for name in RECIPES]
    return 0 if max(ratios) <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
