"""The missing-modality matrix from stored predictions, against re-running the model for every entry.

Run by hand: python tests/benchmarks/missing_matrix.py
Part 1: `mla eval` of 10 missing rates x 10 mask seeds x 4 fusion rules on 10,000 samples x 3 modalities x 100 classes;
seconds include Python's start, memory is the process's peak. Part 2, on built-in data: the same 400 entries by table
look-up and by 400 passes of the model (one pass is timed and multiplied), one thread each.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SAMPLES, CLASSES, MODALITIES = 10_000, 100, ["audio", "visual", "text"]
RATES = [0.05 * i for i in range(1, 11)]
RULES = ["entropy", "uniform", "fixed", "energy"]


def write_run(folder: Path) -> None:
    """A finished run with random predictions of the stated size."""
    from mla_cli.engine.predictions import Predictions
    from mla_cli.recipe import dump_yaml, load_recipe

    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, SAMPLES).astype(np.int32)
    logits = rng.normal(size=(SAMPLES, len(MODALITIES), CLASSES)).astype(np.float32)
    logits[np.arange(SAMPLES)[:, None], np.arange(3)[None], labels[:, None]] += 2
    facts = {
        "classes": [f"class {i}" for i in range(CLASSES)],
        "native_rule": "uniform",
        "default_rule": "entropy",
        "alone_readout": "shared head",
        "dataset": "synthetic",
        "protocol": "none",
        "checkpoint": "best@1",
        "train_missing": None,
    }
    ids = np.array([f"{i:06d}" for i in range(SAMPLES)], dtype=object)
    present = np.ones((SAMPLES, len(MODALITIES)), bool)
    test, nothing = np.full(SAMPLES, "test", dtype=object), np.full(SAMPLES, "", dtype=object)
    folder.mkdir(parents=True)
    Predictions(ids, test, nothing, labels, MODALITIES, present, logits, {}, facts).write(
        folder / "predictions.parquet"
    )
    (folder / "recipe.yaml").write_text(dump_yaml(load_recipe(None, base={"name": "synthetic"})))
    (folder / "run.json").write_text(json.dumps({"state": "finished"}))


def arguments(run: Path) -> list[str]:
    """The command that makes the whole matrix."""
    rates = [word for rate in RATES for word in ("--missing-rate", f"{rate:g}")]
    rules = [word for rule in RULES for word in ("--fusion", rule)]
    command = [sys.executable, "-m", "mla_cli", "eval", str(run), "--mask-seeds", "0..9", "--format", "csv"]
    return [*command, *rates, *rules]


def matrix_from_predictions(folder: Path) -> None:
    """Part 1."""
    write_run(folder / "run")
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        done = subprocess.run(arguments(folder / "run"), capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - begin)
    rows = done.stdout.count("\n") - 1
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"mla eval: {rows} rows in {statistics.median(seconds):.2f} s (median of 5), peak memory {peak:.0f} MB")
    told = f"`mla eval`: {rows} rows of {SAMPLES:,} samples"
    print(f"RESULT matrix | {statistics.median(seconds):.3f} | s | <=6 | {told}")
    print(f"RESULT matrix, peak memory | {peak:.0f} | MiB | <=1000 | the same command's resident memory")


def matrix_on_built_in_data(folder: Path) -> None:
    """Part 2."""
    import torch

    from mla_cli.engine.data import complete, load_data, open_store
    from mla_cli.engine.evaluate import Request, evaluate
    from mla_cli.engine.run import Run
    from mla_cli.engine.scoring import score
    from mla_cli.engine.session import Session
    from mla_cli.engine.train import train
    from mla_cli.recipe import load_recipe

    torch.set_num_threads(1)
    for name in ("emoji", "mfeat"):
        recipe = load_recipe(name, ["train.epochs=1"])
        steps = train(recipe, folder / "data", folder / "runs", device="cpu", threads=1)
        try:
            while True:
                next(steps)
        except StopIteration as stop:
            run: Run = stop.value
        count = len(run.recipe().features)
        rates = [rate for rate in RATES if rate <= 1 - 1 / count]
        request = Request(
            rates=rates, mask_seeds=range(10), rules=("entropy", "uniform", "energy", "native"), alone=False
        )
        begin = time.perf_counter()
        rows = evaluate(run, request)
        looked_up = time.perf_counter() - begin
        store = open_store(recipe, folder / "data")
        done = complete(recipe, store)
        session = Session(done, load_data(done, store), torch.device("cpu"))
        session.load_model(run.load_checkpoint("best")[0])
        passes = []
        for _ in range(7):
            session.loaders.pop("test", None)  # a pass reads its inputs, as a run of the model would
            begin = time.perf_counter()
            score(session, "test", every_subset=False)
            passes.append(time.perf_counter() - begin)
        entries = len(rates) * 10 * 4
        naive = entries * statistics.median(passes)
        print(
            f"{name}: {entries} entries, {len(rows)} rows: look-up {looked_up:.2f} s, "
            f"{entries} model passes {naive:.1f} s, ratio {naive / looked_up:.0f}"
        )
        print(f"RESULT {name} | {looked_up / naive:.5f} | ratio | - | look-up of {entries} entries / model passes")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as place:
        matrix_from_predictions(Path(place) / "synthetic")
        matrix_on_built_in_data(Path(place) / "built-in")
