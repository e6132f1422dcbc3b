"""What a step of every method costs, relative to `concat` on the same batches: `python tests/benchmarks/methods.py`.

Two settings, batch 64, one thread: `emoji` as its recipe has it (a convolutional network and an n-gram bag), and two
MLPs on `mfeat`, where a step takes a millisecond and most of it is the overhead of calling tensor operations, so that
every operation a method adds shows: the worst case. The methods take turns and medians are compared, so that what else
the machine does hits all alike. Exit code 1 where a ratio is above its limit. MMPareto needs a second backward pass by
definition; ReconBoost trains in two parts, timed apart.
"""

import gc
import statistics
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from mla_cli import registry
from mla_cli.core.method import Batch
from mla_cli.engine.data import complete, ensure_prepared, load_data, open_store
from mla_cli.engine.session import Session
from mla_cli.recipe import load_recipe

EPOCHS = {"reconboost": {"reconboost, alone": 9, "reconboost, joint": 13}}  # of its second stage
VIEWS = ("mor", "fou")
MFEAT = {
    "name": "benchmark",
    "dataset": {"name": "mfeat", "modalities": list(VIEWS)},
    "encoders": {m: {"name": "mlp"} for m in VIEWS},  # two layers of 128 units
    "shared_width": 128,
    "train": {"epochs": 1_000_000, "batch_size": 64, "lr": 0.001},
}
# setting: recipe or its name, batches a turn, turns, limit (times `concat`), limits of those that need more
SETTINGS: dict[str, tuple[Any, int, int, float, dict[str, float]]] = {
    "emoji": ("emoji", 3, 9, 1.5, {"mmpareto": 3.0}),
    "mfeat": (MFEAT, 16, 41, 1.5, {"mmpareto": 3.5, "ogm_ge": 2.0, "mla": 2.0, "qmf": 1.75}),
}


def make_session(name: str, setting: Any, folder: Path) -> Session:
    """One method over a store prepared in `folder`."""
    method = {f"method.{name}.modality": "visual" if setting == "emoji" else "fou"} if name == "unimodal" else {}
    flags = {"method.name": name, "train.batch_size": 64, **method}
    recipe = load_recipe(setting, flags=flags) if isinstance(setting, str) else load_recipe(base=setting, flags=flags)
    for _ in ensure_prepared(recipe, folder):
        pass
    store = open_store(recipe, folder)
    recipe = complete(recipe, store)
    aligned = registry.load("methods", name).Method.aligned
    return Session(recipe, load_data(recipe, store, aligned=aligned), torch.device("cpu"))


class Case:
    """One method and its batches, built before the clock runs: loading is the same for all."""

    def __init__(self, session: Session, epoch: int, count: int):
        self.session, self.epoch = session, epoch
        self.batches: list[Batch] = list(islice(session.train_loader.epoch(epoch), count))
        self.times: list[float] = []

    def turn(self) -> float:
        """Milliseconds of processor time per step."""
        method = self.session.method
        method.train()
        method.start_epoch(self.epoch)
        begin = time.process_time()
        for batch in self.batches:
            method.step(batch)
        return 1000 * (time.process_time() - begin) / len(self.batches)


def compare(name: str, folder: Path) -> bool:
    """Print a line per method; True if every ratio keeps its limit."""
    setting, count, turns, limit, own_limits = SETTINGS[name]
    cases = {}
    for method in registry.names("methods"):
        for label, epoch in EPOCHS.get(method, {method: 2}).items():
            cases[label] = Case(make_session(method, setting, folder), epoch, count)
    for case in cases.values():
        case.turn()  # the first turn pays for allocations and lazy imports
    gc.disable()  # a collection would hit one of them by chance
    for number in range(turns):
        for case in list(cases.values())[:: 1 if number % 2 else -1]:
            case.times.append(case.turn())
    gc.enable()
    medians = {label: statistics.median(case.times) for label, case in cases.items()}
    print(f"{name}: medians of {turns} turns of {count} steps, batch 64, one thread")
    kept = True
    for label, median in sorted(medians.items(), key=lambda item: item[1]):
        ratio, most = median / medians["concat"], own_limits.get(label, limit)
        kept &= ratio <= most
        print(f"  {label:<18} {median:7.3f} ms a step, {ratio:.2f} times concat, limit {most}")
        print(f"RESULT {label} on {name} | {ratio:.3f} | ratio | <={most} | processor time of a step / `concat`'s")
    return kept


def main() -> int:
    """Compare in both settings; 0 if all limits are kept."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mla-benchmark-") as folder:
        kept = [compare(name, Path(folder)) for name in SETTINGS]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
