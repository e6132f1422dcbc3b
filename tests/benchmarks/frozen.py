"""What an epoch costs with a frozen encoder's features stored, against computing them in every batch.

    python tests/benchmarks/frozen.py [SIZE ...]

The built-in image set: `emoji` with its drawings at SIZE px (default: 32, as its recipe has them, and 64), `resnet18`
frozen for them, and everything else as the recipe `emoji` has it, MLA, batch 64, one thread. Timed, in seconds of
processor time, is what `mla train` does in an epoch: all training steps with their diagnostics, and the validation.
Both sides run the same code, one with the network in every batch (`Session(stored=False)`), in turns; medians count.
Both train alike, and how far apart their weights end is printed, as is the one-time cost of the features: of every row
of the store, train, val and test. Exit code 1 where the drawings alone do not keep the limit. With the names too, whose
n-gram bag trains in either case and is most of an epoch from stored features, the ratio is only shown.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from mla_cli.engine.data import complete, ensure_prepared, load_data, open_store
from mla_cli.engine.session import Session
from mla_cli.engine.train import validate
from mla_cli.recipe import load_recipe

LIMIT = 20  # times cheaper
TURNS = 5  # epochs of either side


def epoch(session: Session) -> float:
    """Seconds of one epoch: training, diagnostics, validation."""
    begin = time.process_time()
    session.train_epoch()
    validate(session, "val")
    session.end_epoch()
    return time.process_time() - begin


def compare(size: int, modalities: list[str]) -> bool:
    """Print one setting; True if its ratio keeps the limit, 1/20."""
    encoders = {"encoders.visual": {"name": "resnet18", "frozen": True}}
    recipe = load_recipe("emoji", flags={"features.visual.size": size, "dataset.modalities": modalities, **encoders})
    with tempfile.TemporaryDirectory(prefix="mla-benchmark-") as folder:
        for _ in ensure_prepared(recipe, Path(folder)):
            pass
        store = open_store(recipe, Path(folder))
        recipe = complete(recipe, store)
        data = load_data(recipe, store)
        stored, computed = (Session(recipe, data, torch.device("cpu"), stored=side) for side in (True, False))
        begin = time.process_time()
        for _ in stored.inputs.compute_features():
            pass
        once = time.process_time() - begin
        times: dict[Session, list[float]] = {stored: [], computed: []}
        for _ in range(1 + TURNS):
            for session, seconds in times.items():
                seconds.append(epoch(session))
    pairs = zip(stored.weights(False).values(), computed.weights(False).values(), strict=True)
    apart = max(float((one - other).abs().max()) for one, other in pairs)
    fast, slow = (statistics.median(seconds[1:]) for seconds in times.values())  # the first opens the store
    counts = f"{len(data.splits['train'])} train, {len(data.splits['val'])} val, {len(store.index)} rows"
    print(f"emoji, {' + '.join(modalities)}, {size} px ({counts}): 1/{slow / fast:.0f} of the epoch's cost")
    print(f"  epoch {fast:.3f} s from stored features, {slow:.3f} s computing them; medians of {TURNS}, in turns")
    print(f"  features stored once in {once:.3f} s; weights {apart:.0e} apart after {1 + TURNS} epochs")
    limit = f"<={1 / LIMIT}" if modalities == ["visual"] else "-"
    compared = "processor time of an epoch from stored features / with the frozen network in every batch"
    print(f"RESULT {'+'.join(modalities)}, {size} px | {fast / slow:.4f} | ratio | {limit} | {compared}")
    return slow >= LIMIT * fast


def main() -> int:
    """Compare at every size; 0 if all limits are kept."""
    torch.set_num_threads(1)
    kept = True
    for size in map(int, sys.argv[1:] or (32, 64)):
        kept &= compare(size, ["visual"])
        compare(size, ["visual", "text"])
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
