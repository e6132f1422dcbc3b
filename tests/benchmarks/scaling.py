"""How does the cost of a step grow with the number of modalities, and with the size of the data set?

    python tests/benchmarks/scaling.py

1. `mla` on M = 1 to 6 modalities that are alike: the cost of a round (one step per modality) against the straight line
   through those of M = 2 to 6, fitted by least squares. No point lies further from the line than 10 %, but that of one
   modality may lie below it: HGM absorbs nothing there.
2. The same two modalities with 10,240 and with 102,400 training samples in batches of 16: the cost of a round in whole
   epochs, of 640 and of 6,400 rounds, at most 1.10 times. Ten of the one are done within one of the other.

Made-up vectors of 64 numbers go through `mla prepare`'s and `mla train`'s own code (`Session.train_epoch`, without
diagnostics); the larger set names the same rows again and again. Perceptrons, one torch thread, processor
time, medians of alternating repetitions, each of as many rounds for every case. Exit code 1 above a limit.
"""

import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mla_cli.engine.data import complete, load_data, open_store
from mla_cli.engine.executor import Local
from mla_cli.engine.prepare import prepare
from mla_cli.engine.session import Session
from mla_cli.recipe import load_recipe

LINE_LIMIT, SIZE_LIMIT = 0.10, 1.10
REPETITIONS, LONG_REPETITIONS = 15, 5
MODALITIES = [f"view{i}" for i in range(6)]
SIZES, BATCH = (10_240, 102_400), 16  # whole batches


def write_table(folder: Path) -> Path:
    """2,000 samples of 10 classes, six modalities of 64 numbers each."""
    rng = np.random.default_rng(0)
    for m in MODALITIES:
        np.save(folder / f"{m}.npy", rng.standard_normal((2000, 64), np.float32))
    lines = [",".join(["id", "label", *MODALITIES])]
    lines += [",".join([f"s{i}", str(i % 10), *(f"{m}.npy::{i}" for m in MODALITIES)]) for i in range(2000)]
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder / "table.csv"


def session(modalities: list[str], size: int, batch: int, folder: Path) -> Session:
    """`mla` over `size` training samples in batches of `batch`."""
    content = {
        "name": "scaling",
        "dataset": {"name": "table", "modalities": modalities},
        "encoders": {m: {"name": "mlp"} for m in modalities},
        "train": {"epochs": 1_000_000, "batch_size": batch, "diagnostics": False},
    }
    recipe = load_recipe(base=content)
    store = open_store(recipe, folder)
    recipe = complete(recipe, store)
    data = load_data(recipe, store)
    again = np.resize(np.arange(len(data.splits["train"])), size)
    splits = {**data.splits, "train": data.splits["train"].take(again)}
    return Session(recipe, replace(data, splits=splits, train_present=data.train_present[again]), torch.device("cpu"))


def rounds_cost(cases: Mapping[str, Session]) -> dict[str, float]:
    """Milliseconds of processor time of a round, by case, over as many whole epochs as the longest has rounds."""
    longest = max(case.rounds for case in cases.values())
    for case in cases.values():
        case.train_epoch()  # the first pays for allocations
    times: dict[str, list[float]] = {name: [] for name in cases}
    gc.disable()
    for repetition in range(REPETITIONS):
        for name in list(cases)[:: 1 if repetition % 2 else -1]:
            begin = time.process_time()
            for _ in range(longest // cases[name].rounds):
                cases[name].train_epoch()
            times[name].append(1000 * (time.process_time() - begin) / longest)
    gc.enable()
    return {name: statistics.median(values) for name, values in times.items()}


def by_modalities(folder: Path) -> float:
    """Print the costs for M = 1 to 6; the largest relative distance from their line."""
    counts = np.arange(1, len(MODALITIES) + 1)
    found = rounds_cost({str(m): session(MODALITIES[:m], 960, 64, folder) for m in counts})
    costs = np.array([found[str(m)] for m in counts])
    slope, start = np.polyfit(counts[1:], costs[1:], 1)
    distances = costs / (start + slope * counts) - 1
    away = float(max(distances[0], *np.abs(distances[1:])))
    told = ", ".join(f"M = {m}: {cost:.2f}" for m, cost in zip(counts, costs, strict=True))
    print(
        f"a round in ms: {told}; line {start:.2f} + {slope:.2f} M, farthest point {100 * away:.1f} %; "
        f"one modality {100 * distances[0]:+.1f} %"
    )
    print(
        f"RESULT step cost against a line in M = 1..6 | {away:.3f} | relative | <={LINE_LIMIT:.2f} "
        f"| largest distance from {start:.2f} + {slope:.2f} M ms a round (processor time)"
    )
    return away


def interleaved(large: Session, small: Session) -> tuple[float, float]:
    """Milliseconds of processor time of a round of an epoch of `large`, and of as many rounds of `small`.

    Whole epochs of `small` are done within that of `large`, about one a second, so that both meet the same machine.
    """
    alone = 0.0

    def after_round() -> None:
        nonlocal alone
        if large.progress.round % small.rounds == 0:
            begin = time.process_time()
            small.train_epoch()
            alone += time.process_time() - begin

    begin = time.process_time()
    large.train_rounds(after_round)
    large.close_epoch()
    both = time.process_time() - begin
    return 1000 * (both - alone) / large.rounds, 1000 * alone / large.rounds


def by_size(folder: Path) -> float:
    """Print the costs for both sizes; their ratio."""
    small, large = (session(MODALITIES[:2], size, BATCH, folder) for size in SIZES)
    small.train_epoch()  # the first pays for allocations
    gc.disable()
    pairs = [interleaved(large, small) for _ in range(LONG_REPETITIONS)]
    gc.enable()
    ratio = statistics.median(large_cost / small_cost for large_cost, small_cost in pairs)
    costs = [statistics.median(pair[i] for pair in pairs) for i in (1, 0)]
    for size, cost in zip(SIZES, costs, strict=True):
        print(f"{size} samples, {size // BATCH} rounds an epoch: a round {cost:.3f} ms")
    print(
        f"RESULT step cost, {SIZES[1]} samples to {SIZES[0]} | {ratio:.3f} | ratio | <={SIZE_LIMIT:.2f} "
        f"| {costs[1]:.2f} and {costs[0]:.2f} ms a round of two modalities (processor time)"
    )
    return ratio


def main() -> int:
    """Measure both; 0 if both keep their limits."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mla-benchmark-") as name:
        folder = Path(name)
        options = {"table": write_table(folder)}
        for _ in prepare("table", folder / "data", root=folder, executor=Local(1), scan_options=options):
            pass
        away, ratio = by_modalities(folder / "data"), by_size(folder / "data")
    return 0 if away <= LINE_LIMIT and ratio <= SIZE_LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
