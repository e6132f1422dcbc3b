"""What in the data makes a run's numbers say less than they seem: told before training, and kept in `run.json`."""

import numpy as np

from mla_cli.data.store import UNSCALED
from mla_cli.engine.data import Data
from mla_cli.schema import Recipe

FLAT = 1e-5  # spread of a constant column as a share of its values: what rounding to float32 leaves of one


def cautions(recipe: Recipe, data: Data) -> list[str]:
    """One line for each: a single class, classes that a split or a modality lacks, features that never change."""
    lines, train, count = [], data.splits["train"], len(data.classes)
    if count == 1:
        lines.append(f"the data have one class, `{data.classes[0]}`: every prediction is right, whatever was learned")
    for split, samples in data.splits.items():
        lacking = lacks(samples.labels, count)
        if len(lacking):  # of a whole split it is an error (`check_classes`)
            lines.append(f"{named(data, lacking)} no sample in split `{split}`, cut down by `dataset.limit`")
    for i, m in enumerate(data.modalities):
        lacking = np.setdiff1d(lacks(train.labels[data.train_present[:, i]], count), lacks(train.labels, count))
        if len(lacking):
            lines.append(f"{named(data, lacking)} no training sample with {m}")
        flat = constant(recipe, data, m)
        if flat.any():
            parts = "its values are" if flat.all() else f"{int(flat.sum())} of {len(flat)} columns or channels are"
            lines.append(f"{m} tells little: {parts} constant over the training samples, and become 0")
    return lines


def lacks(labels: np.ndarray, count: int) -> np.ndarray:
    """Numbers of the classes, of `count`, that are no label here."""
    return np.flatnonzero(np.bincount(labels, minlength=count) == 0)


def named(data: Data, lacking: np.ndarray) -> str:
    verb = "has" if len(lacking) == 1 else "have"
    return f"{len(lacking)} of {len(data.classes)} classes (first: `{data.classes[lacking[0]]}`) {verb}"


def constant(recipe: Recipe, data: Data, modality: str) -> np.ndarray:
    """Which columns of a vector, channels of an image or clip, or a sound as a whole never change: bool (part,).

    Normalisation gives them sd 1 (`Store.normalisation`); a vector's column may have it by chance, so it is looked at.
    """
    store = data.store.modality(modality)
    if store.kind in UNSCALED or recipe.encoders[modality].normalise != "train":
        return np.zeros(1, bool)
    unscaled = np.ravel(data.normalisation[modality][1]) == 1.0
    if store.kind != "vector" or not unscaled.any():
        return unscaled
    column = data.modalities.index(modality)
    rows = data.splits["train"].rows[data.train_present[:, column], column]
    low, high = np.full(store.shape, np.inf), np.full(store.shape, -np.inf)
    for block in store.blocks(rows):
        low, high = np.minimum(low, block.min(0)), np.maximum(high, block.max(0))
    return unscaled & (high - low <= FLAT * np.maximum(np.abs(low), np.abs(high)))
