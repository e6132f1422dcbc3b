"""How near does training come to what its encoders allow?

    python tests/benchmarks/throughput.py [--quick]

CREMA-D-shaped data, batch 16, on the CPU, torch's own number of threads, in seconds of the clock:

- `cremad`: audio 1 x 1024 x 128 and three 224 x 224 frames, ResNet-18 for both, SGD. The engine
  (`Session.train_epoch` without `train.diagnostics`: training steps only) reads a store on the disk and augments; the
  bare limit is forward, backward and SGD of the same two encoders, each with a linear head, on one random batch in
  memory. `outside the model` is the share of the engine's time that its main thread spends waiting for batches and in
  the head's gradient modification.
- `cremad_small`: its encoders at 64 px, AdamW; likewise.
- bf16: the first engine in `train.precision: bf16` against itself in 32.

All sides of a comparison take turns; medians of 5 repetitions (--quick: 2) of a few steps each. Exit code 1 where a
limit is missed.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _clips import experiment
from torch import nn

from mla_cli.core.method import Batch
from mla_cli.data import loader
from mla_cli.data.loader import TrainLoader
from mla_cli.engine.data import Data
from mla_cli.engine.session import Session
from mla_cli.schema import Recipe

BATCH = 16
LEAST = {"cremad": 0.95, "cremad_small": 0.90}  # engine / bare limit, samples a second
# Rounds of a repetition, which is an epoch: threads start, and the first batch is waited for. Real ones have hundreds.
STEPS = {"cremad": 3, "cremad_small": 24}
CLIPS = {"cremad": 160, "cremad_small": 560}
OUTSIDE, BF16 = 0.02, 1.8
REPETITIONS = 2 if "--quick" in sys.argv[1:] else 5


class Bare:
    """The same encoders, each with a head, trained on one batch that never changes."""

    def __init__(self, session: Session):
        # other networks of the same kind and size: training one side must not touch the other
        networks = Session(session.recipe, session.data, session.device).method.encoders
        classes, train = len(session.data.classes), session.recipe.train
        self.parts = {}
        for m, network in networks.items():
            head = nn.Linear(session.recipe.shared_width, classes)
            values = [*network.parameters(), *head.parameters()]
            optimizer: torch.optim.Optimizer
            if train.optimizer == "adamw":
                optimizer = torch.optim.AdamW(values, lr=train.lr, weight_decay=train.weight_decay, fused=True)
            else:
                optimizer = torch.optim.SGD(
                    values, lr=train.lr, momentum=train.momentum, weight_decay=train.weight_decay, fused=True
                )
            inputs = torch.randn(BATCH, *session.stores[m].shape)
            self.parts[m] = (network.train(), head, optimizer, inputs)
        self.labels = torch.randint(classes, (BATCH,))

    def steps(self, count: int) -> None:
        for _ in range(count):
            for network, head, optimizer, inputs in self.parts.values():
                F.cross_entropy(head(network(inputs)), self.labels).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)


class Watched:
    """An engine, and what its main thread spends outside its networks."""

    def __init__(self, recipe: Recipe, data: Data):
        self.session = Session(recipe, data, torch.device("cpu"))
        self.waiting = self.modifying = 0.0
        self.session.train_loader.epoch = self.timed_epoch  # type: ignore[method-assign]
        schedule: Any = self.session.method.schedule
        schedule.before_step, schedule.after_step = map(self.timed, (schedule.before_step, schedule.after_step))

    def timed_epoch(self, *args: Any) -> Iterator[Batch]:
        batches = TrainLoader.epoch(self.session.train_loader, *args)
        while True:
            begin = time.perf_counter()
            batch = next(batches, None)
            self.waiting += time.perf_counter() - begin
            if batch is None:
                return
            yield batch

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            begin = time.perf_counter()
            try:
                return call(*args)
            finally:
                self.modifying += time.perf_counter() - begin

        return run

    def steps(self, count: int) -> None:
        self.session.recipe.train.max_rounds = count
        self.session.train_epoch()


def seconds(steps: Callable[[int], None], count: int) -> float:
    """Seconds per step."""
    begin = time.perf_counter()
    steps(count)
    return (time.perf_counter() - begin) / count


def in_turn(sides: dict[str, Callable[[int], None]], count: int) -> dict[str, float]:
    """Median seconds per step of every side."""
    for steps in sides.values():
        steps(1)  # the first step pays for allocations and lazy imports
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(REPETITIONS):
        for name in list(sides)[:: 1 if repetition % 2 else -1]:
            times[name].append(seconds(sides[name], count))
    return {name: statistics.median(values) for name, values in times.items()}


def result(name: str, value: float, limit: str, kept: bool, what: str) -> bool:
    print(f"RESULT {name} | {value:.3f} | ratio | {limit} | {what}", flush=True)
    return kept


def compare(name: str, folder: Path) -> bool:
    """One recipe against its bare limit, and in bf16 against itself; True if all limits are kept."""
    size = {"features.audio.frames": 1024} if name == "cremad" else {}
    recipe, data = experiment(folder / name, name, CLIPS[name], {"train.batch_size": BATCH, **size})
    engine, bare = Watched(recipe, data), Bare(Session(recipe, data, torch.device("cpu")))
    sides = {"engine": engine.steps, "bare": bare.steps}
    if name == "cremad":
        half = recipe.model_copy(deep=True)
        half.train.precision = "bf16"
        sides["bf16"] = Watched(half, data).steps
    engine.waiting = engine.modifying = 0.0
    begin = time.perf_counter()
    found = in_turn(sides, STEPS[name])
    print(
        f"{name}: "
        + ", ".join(f"{side} {1000 * value:.0f} ms a step" for side, value in found.items())
        + f" of {BATCH} samples; {time.perf_counter() - begin:.0f} s",
        flush=True,
    )
    ratio, least = found["bare"] / found["engine"], LEAST[name]
    what = f"samples/s of the engine against the bare encoders, batch {BATCH}, {torch.get_num_threads()} threads"
    kept = result(f"throughput {name}", ratio, f">={least}", ratio >= least, what)
    if name == "cremad":
        rounds = 1 + REPETITIONS * STEPS[name]
        outside = (engine.waiting + engine.modifying) / (rounds * found["engine"])
        waiting, modifying = engine.waiting / rounds, engine.modifying / rounds
        what = f"share of a step outside the model: waiting {waiting:.4f} s, HGM {modifying:.4f} s"
        kept &= result("outside the model", outside, f"<={OUTSIDE}", outside <= OUTSIDE, what)
        gain = found["engine"] / found["bf16"]
        kept &= result("bf16", gain, f">={BF16}", gain >= BF16, "engine in 32 against engine in bf16, seconds a step")
    return kept


def main() -> int:
    """Compare both recipes; 0 if all limits are kept."""
    loader.RESIDENT_BYTES = 0  # so few samples would stay in memory: all are read from the store
    with tempfile.TemporaryDirectory(prefix="mla-benchmark-") as folder:
        kept = [compare(name, Path(folder)) for name in LEAST]  # all of them, whatever the first says
        return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
