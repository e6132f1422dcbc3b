"""A simulated store of any number of samples x 3 modalities, written by the store's own code without raw files."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from mla_cli.data.manifest import Manifest
from mla_cli.engine.assemble import assemble_index, finish_store
from mla_cli.engine.shards import HASH_BYTES, shard_tasks, sidecar, write_array
from mla_cli.files import sha256, whole_file, write_json
from mla_cli.specs import FeatureSpec, ImageSpec, VectorSpec

CLASSES, GROUP = 10, 20  # samples of one group
WIDTH, SIZE = 512, 32
SPECS: dict[str, FeatureSpec] = {
    "audio": VectorSpec(width=WIDTH),
    "visual": ImageSpec(size=SIZE),
    "text": VectorSpec(width=WIDTH),
}
KINDS = {"audio": "vector", "visual": "image", "text": "vector"}


def labels_of(count: int) -> np.ndarray:
    """int (sample,): classes in turn, in an order drawn once."""
    return np.random.default_rng(0).permutation(np.arange(count) % CLASSES)


def vectors(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """float32 (sample, WIDTH): noise, and the class in the first values."""
    x = rng.standard_normal((len(labels), WIDTH), np.float32)
    x[np.arange(len(labels)), labels] += 2
    return x


def write_store(path: Path, count: int) -> None:
    """A store of the data set `table`, a shard in memory at a time."""
    labels = labels_of(count)
    names = [f"sample{i:07d}" for i in range(count)]
    rows = pd.DataFrame(
        {
            "id": names,
            "label": [str(label) for label in labels],
            "group": [f"group{i // GROUP:06d}" for i in range(count)],
            **{f"ref.{m}": [f"{m}/{name}" for name in names] for m in SPECS},
        }
    )
    manifest = Manifest(rows, dict(KINDS), tuple(map(str, range(CLASSES))))
    partial = path.with_name(f".{path.name}.partial")
    tasks = shard_tasks(manifest, SPECS, path.parent, partial)
    done = dict.fromkeys(SPECS, 0)
    for task in tasks:
        start, size = done[task.modality], len(task.refs)
        done[task.modality] += size
        rng = np.random.default_rng([list(SPECS).index(task.modality), task.number])
        own = labels[start : start + size]
        if task.kind == "vector":
            shard = vectors(rng, own)
            sums, squares, counts = (
                shard.sum(1, np.float64)[:, None],
                np.square(shard).sum(1, np.float64)[:, None],
                WIDTH,
            )
            hashes = [None] * size
        else:
            shard = rng.integers(0, 200, (size, 3, SIZE, SIZE), np.uint8)
            shard[np.arange(size), :, own, :] += 50
            wide = shard.astype(np.float64)
            sums, squares, counts = wide.sum((2, 3)), np.square(wide).sum((2, 3)), SIZE * SIZE
            hashes = [hashlib.blake2b(row.tobytes(), digest_size=HASH_BYTES).hexdigest() for row in shard]
        target = Path(task.folder) / f"{task.number:05d}.npy"
        with whole_file(target) as out:
            write_array(out, shard)
        facts = [
            {"length": 1, "sum": total, "sum_squares": square, "count": counts} | ({"hash": h} if h else {})
            for total, square, h in zip(sums.tolist(), squares.tolist(), hashes, strict=True)
        ]
        write_json(sidecar(task), {"sha256": sha256(target), "rows": facts})
    problems, index, modalities = assemble_index(manifest, SPECS, tasks, partial)
    assert not problems and len(index) == count
    finish_store(partial, path, "table", manifest, index, modalities, hashlib.sha256(b"simulated").hexdigest())


def write_table(root: Path, count: int) -> Path:
    """Raw data for `mla prepare table`: three arrays of vectors and a table that names their rows."""
    root.mkdir(parents=True)
    labels = labels_of(count)
    columns = {
        "id": [f"sample{i:07d}" for i in range(count)],
        "label": [str(label) for label in labels],
        "group": [f"group{i // GROUP:06d}" for i in range(count)],
    }
    for number, m in enumerate(SPECS):
        np.save(root / f"{m}.npy", vectors(np.random.default_rng(number), labels))
        columns[m] = [f"{m}.npy::{i}" for i in range(count)]
    pd.DataFrame(columns).to_parquet(root / "table.parquet")
    return root / "table.parquet"
