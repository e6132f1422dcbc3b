"""Tiny experiments for the engine's tests: small recipes on the built-in data, trained in a fraction of a second."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mla_cli import registry
from mla_cli.core.method import Batch
from mla_cli.core.ranks import ALONE, Ranks
from mla_cli.engine.data import complete, load_data, open_store
from mla_cli.engine.run import Run
from mla_cli.engine.session import Session
from mla_cli.engine.train import train
from mla_cli.recipe import load_recipe
from mla_cli.schema import Recipe

VIEWS = ("mor", "fou", "zer", "kar", "fac", "pix")
CPU = torch.device("cpu")


def finish(steps: Any) -> Any:
    """Exhaust a generator of events; its value."""
    return events_and_value(steps)[1]


def events_and_value(steps: Any) -> tuple[list[Any], Any]:
    events = []
    while True:
        try:
            events.append(next(steps))
        except StopIteration as stop:
            return events, stop.value


def deep(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested mappings merged, a copy."""
    merged = copy.deepcopy(content)
    for key, value in changes.items():
        merged[key] = (
            deep(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
        )
    return merged


def mfeat_recipe(views: tuple[str, ...] = ("mor", "fou"), dropout: float = 0.0, **changes: Any) -> Recipe:
    """MLPs on views of `mfeat`: 96 training samples in 3 rounds, 2 epochs, SGD with momentum and decay, one thread."""
    content = {
        "name": "tiny",
        "dataset": {"name": "mfeat", "modalities": list(views), "limit": 96},
        "encoders": {m: {"name": "mlp", "hidden": 12, "dropout": dropout} for m in views},
        "shared_width": 8,
        "train": {"epochs": 2, "batch_size": 32, "lr": 0.05, "threads": 1},
    }
    return load_recipe(None, base=deep(content, changes))


def emoji_recipe(**changes: Any) -> Recipe:
    """A convolutional network with batch normalisation and an n-gram bag on `emoji`: 64 samples in 2 rounds."""
    content = {
        "name": "tiny",
        "dataset": {"name": "emoji", "limit": 64},
        "encoders": {
            "visual": {"name": "convnet", "channels": 2, "stages": 2},
            "text": {"name": "ngram_bag", "width": 6},
        },
        "shared_width": 8,
        "train": {"epochs": 1, "batch_size": 32, "lr": 0.05, "threads": 1},
    }
    return load_recipe(None, base=deep(content, changes))


def digits_recipe(**changes: Any) -> Recipe:
    """Unpaired audio and images: 50 recordings and 60 images to train on, in 4 rounds of 16 (audio starts again)."""
    content = {
        "name": "tiny",
        "dataset": {"name": "digits", "limit": 60},
        "encoders": {
            "audio": {"name": "mlp", "hidden": 8},
            "visual": {"name": "mlp", "hidden": 8},
        },
        "shared_width": 8,
        "method": {"batching": "independent"},
        "train": {"epochs": 1, "batch_size": 16, "lr": 0.01, "threads": 1},
    }
    return load_recipe(None, base=deep(content, changes))


def trained(recipe: Recipe, data_dir: Path, run_dir: Path, **options: Any) -> Run:
    """Train to the end."""
    run: Run = finish(train(recipe, data_dir, run_dir, "cpu", **options))
    return run


def make_session(recipe: Recipe, data_dir: Path, training: bool = True, ranks: Ranks = ALONE) -> Session:
    """A session as `train` builds it."""
    store = open_store(recipe, data_dir)
    recipe = complete(recipe, store)
    aligned = registry.load("methods", recipe.method.name).Method.aligned
    torch.set_num_threads(1)
    return Session(recipe, load_data(recipe, store, aligned=aligned), CPU, training, ranks=ranks)


def one_modality(batch: Batch, modality: str) -> Batch:
    """The same round with one modality's samples only: one step of an alternating method."""
    return Batch(
        batch.epoch, batch.round, batch.rounds, {modality: batch.inputs[modality]}, {modality: batch.labels[modality]}
    )


def frozen_copy(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, copied."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def optimizer_copy(optimizer: torch.optim.Optimizer) -> dict[tuple[int, str], torch.Tensor]:
    """An optimiser's state, copied."""
    return {
        (number, key): value.clone()
        for number, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def same_bits(one: dict[Any, torch.Tensor], other: dict[Any, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def run_bytes(run: Run) -> dict[str, bytes]:
    """What two equal runs share byte for byte: predictions, history, recipe, results and all checkpoint files."""
    names = ["predictions.parquet", "history.jsonl", "recipe.yaml", "results.csv"]
    files = [run.path / name for name in names] + sorted((run.path / "checkpoints").iterdir())
    return {str(file.relative_to(run.path)): file.read_bytes() for file in files}


def unsealed(folder: Path) -> None:
    """Take the checksums out of a run or a prepared set, as earlier versions wrote none: a test changes its files."""
    for name in ("run.json", "manifest.json"):
        if (folder / name).is_file():
            content = json.loads((folder / name).read_text("utf-8"))
            kept = {key: value for key, value in content.items() if key not in ("seal", "files", "index_sha256")}
            (folder / name).write_text(json.dumps(kept), "utf-8")


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Largest absolute difference; NaN in the same places is no difference."""
    np.testing.assert_array_equal(np.isnan(one), np.isnan(other))
    return float(np.nanmax(np.abs(one - other), initial=0.0))
