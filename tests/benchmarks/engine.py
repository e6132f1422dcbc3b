"""How much slower is an epoch through the engine than the same epoch written by hand?

    python tests/benchmarks/engine.py

`mla` on the views mor + fou of `mfeat`, perceptrons, batches of 64, one torch thread. The engine runs training steps
only (`Session.train_epoch` without `train.diagnostics`); validation, checkpoints and files are apart. The bare loop is
what one would write in a script: tensors in memory, a permutation per epoch, the same optimiser class and settings, HGM
in float64. Both are timed in turn and the medians compared. Exit code 1 if the engine takes more than `LIMIT` times as
long.
"""

import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mla_cli.engine.data import complete, ensure_prepared, load_data, open_store
from mla_cli.engine.session import Session
from mla_cli.recipe import load_recipe
from mla_cli.schema import Recipe

LIMIT = 1.25  # engine / bare loop
EPOCHS, REPETITIONS = 5, 21
RECIPE = {
    "name": "benchmark",
    "dataset": {"name": "mfeat", "modalities": ["mor", "fou"]},
    "encoders": {"mor": {"name": "mlp"}, "fou": {"name": "mlp"}},  # two layers of 128 units
    "shared_width": 128,
    "train": {"epochs": 1_000_000, "batch_size": 64, "lr": 0.001, "diagnostics": False},
}


def engine_session(optimizer: str, folder: Path) -> Session:
    """The engine's side, over a store prepared in `folder`."""
    recipe = load_recipe(base=RECIPE, flags={"train.optimizer": optimizer})
    for _ in ensure_prepared(recipe, folder):
        pass
    store = open_store(recipe, folder)
    recipe = complete(recipe, store)
    return Session(recipe, load_data(recipe, store), torch.device("cpu"))


class BareLoop:
    """MLA with HGM as one would write it by hand for two modalities."""

    def __init__(self, inputs: dict[str, Tensor], labels: Tensor, num_classes: int, recipe: Recipe):
        self.inputs, self.labels, self.recipe = inputs, labels, recipe
        width = recipe.shared_width
        self.encoders = {
            m: nn.Sequential(nn.Linear(x.shape[1], width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
            for m, x in inputs.items()
        }
        self.head = nn.Linear(width, num_classes)
        self.optimizers = {m: self.optimizer(encoder) for m, encoder in self.encoders.items()}
        self.head_optimizer = self.optimizer(self.head)
        self.matrix = torch.eye(width, dtype=torch.float64)
        self.previous: Tensor | None = None

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        train = self.recipe.train
        if train.optimizer == "adamw":
            return torch.optim.AdamW(module.parameters(), lr=train.lr, weight_decay=train.weight_decay, fused=True)
        return torch.optim.SGD(
            module.parameters(), lr=train.lr, momentum=train.momentum, weight_decay=train.weight_decay, fused=True
        )

    def epoch(self) -> None:
        size = self.recipe.train.batch_size
        order = torch.randperm(len(self.labels))
        rounds = -(-len(order) // size)
        losses = []
        for number in range(rounds):
            chosen = order[number * size : (number + 1) * size]
            alpha = 0.1 * 0.1 ** (number / rounds)
            for m, encoder in self.encoders.items():
                features = encoder(self.inputs[m][chosen])
                loss = F.cross_entropy(self.head(features), self.labels[chosen])
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


def compare(optimizer: str, folder: Path) -> float:
    """Time both in turn, print the medians and return their ratio."""
    session = engine_session(optimizer, folder)
    train = session.split_loader("train")
    inputs = {m: loader.resident for m, loader in train.modalities.items() if loader.resident is not None}
    bare = BareLoop(inputs, train.labels, len(session.data.classes), session.recipe)
    rounds = {"engine": session.train_epoch, "bare": bare.epoch}
    for epoch in rounds.values():
        epoch()  # the first epoch pays for allocations and lazy imports
    times: dict[str, list[float]] = {name: [] for name in rounds}
    gc.disable()  # a collection would hit one of the two by chance
    for repetition in range(REPETITIONS):
        for name in list(rounds)[:: 1 if repetition % 2 else -1]:
            times[name].append(milliseconds(rounds[name]))
    gc.enable()
    median = {name: statistics.median(values) for name, values in times.items()}
    ratio = median["engine"] / median["bare"]
    print(
        f"{optimizer:<6} engine {median['engine']:6.1f} ms, bare loop {median['bare']:6.1f} ms an epoch of "
        f"{len(session.train_loader.rounds)} rounds (medians of {REPETITIONS}): ratio {ratio:.2f}, limit {LIMIT}"
    )
    print(f"RESULT epoch, {optimizer} | {ratio:.3f} | ratio | <={LIMIT} | processor time of an epoch / a bare loop's")
    return ratio


def main() -> int:
    """Compare under both optimisers; 0 if both ratios keep the limit."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mla-benchmark-") as folder:
        ratios = [compare(optimizer, Path(folder)) for optimizer in ("sgd", "adamw")]
    return 0 if max(ratios) <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
