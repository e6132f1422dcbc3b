"""Features of frozen encoders: computed once for every row of a store, and found again by what they were made of.

    data/NAME/frozen/MODALITY-KEY/
      manifest.json   written last: what they were made of, their width, a checksum of every shard
      NNNNN.npy       float32 (row, width), rows as in the store

KEY hashes the network's weights (wherever they came from) and keys, the feature spec, the store's fingerprint, the
normalisation of the inputs, the precision, and what the last bits depend on: device, threads, versions of torch and of
the encoder's library. They vanish with a store that is built again.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mla_cli.core.method import BaseMethod
from mla_cli.data.loader import ModalityLoader
from mla_cli.data.modality_store import ModalityStore
from mla_cli.data.store import rows_per_shard
from mla_cli.engine.events import Note, Progress, Steps
from mla_cli.engine.packages import LIBRARIES, versions
from mla_cli.engine.shards import write_array
from mla_cli.errors import MlaError
from mla_cli.files import read_sealed, sha256, whole_file, write_sealed
from mla_cli.locks import FolderLock
from mla_cli.schema import Recipe
from mla_cli.specs import VectorSpec

if TYPE_CHECKING:
    from mla_cli.engine.data import Data

FORMAT = 1
BLOCK = 64  # samples that a network takes at once: what it holds in between is a hundred times its input
LOOK_AGAIN = 0.2  # seconds between two looks whether another process has ended


class FrozenFeatures:
    """What one frozen network gives for every row of its modality, under this recipe and these data."""

    def __init__(self, modality: str, recipe: Recipe, data: "Data", method: BaseMethod, device: torch.device):
        self.modality, self.method, self.device = modality, method, device
        raw, section = data.store.modality(modality), recipe.encoders[modality]
        network = method.encoders.get_submodule(f"{modality}.network")
        self.width = int(network.width)  # type: ignore[arg-type]
        mean, sd = data.normalisation[modality]
        self.inputs = ModalityLoader(raw, np.arange(raw.num_rows), mean, sd, device)
        self.facts = {
            "format": FORMAT,
            "modality": modality,
            "encoder": {"name": section.name, "width": section.width, **section.options()},
            "weights": state_digest(network.state_dict()),
            "spec": raw.spec.model_dump(),
            "store": data.store.fingerprint,
            "normalisation": hashlib.sha256(mean.tobytes() + sd.tobytes()).hexdigest(),
            "precision": recipe.train.precision,
            "device": device.type,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "library": versions((section.name,))[section.name] if section.name in LIBRARIES else None,
        }
        self.key = hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = data.store.path / "frozen" / f"{modality}-{self.key}"

    @cached_property
    def store(self) -> ModalityStore:
        """Where they lie, or will."""
        shape, dtype, rows = (self.width,), np.dtype(np.float32), self.inputs.store.num_rows
        spec = VectorSpec(width=self.width)
        return ModalityStore(self.folder, "vector", spec, shape, dtype, rows, rows_per_shard(shape, dtype, rows))

    # ------------------------------------------------------------ computing

    def compute(self) -> Steps[None]:
        """Make what is not there or damaged; one process at a time, the others wait for it."""
        lock = FolderLock(self.folder)
        if not lock.taken():
            yield Note(f"another run computes the features of {self.modality}{lock.told()}: {lock.waiting()}")
            while not lock.taken():
                time.sleep(LOOK_AGAIN)
        with lock:
            made, damaged = self.made_before()
            todo = [number for number in range(self.num_shards) if number not in made]
            for number in damaged:
                yield Note(f"`{self.shard(number)}` was damaged: computing it again", warning=True)
            where = f"in {self.folder}"
            if not todo and (self.folder / "manifest.json").is_file():
                yield Note(f"{self.modality}: the frozen encoder's features are stored {where}")
                return
            yield Note(f"{self.modality}: computing the frozen encoder's features once, to be kept {where}")
            yield from self.make(todo, made)

    @property
    def num_shards(self) -> int:
        return -(-self.store.num_rows // self.store.shard_rows)

    def shard(self, number: int) -> Path:
        return self.folder / f"{number:05d}.npy"

    def made_before(self) -> tuple[dict[int, str], list[int]]:
        """Checksums of the shards that are whole, and those that are damaged or lost, where all were made before.

        Without a manifest the work was interrupted: a shard appears whole or not at all.
        """
        path = self.folder / "manifest.json"
        known: list[str] | None = None
        if path.is_file():
            known = read_sealed(path, f"remove the folder `{self.folder}`; the features will be computed again")[
                "sha256"
            ]
        found = {n: sha256(self.shard(n)) for n in range(self.num_shards) if self.shard(n).is_file()}
        if known is None:
            return found, []
        whole = {n: digest for n, digest in found.items() if known[n : n + 1] == [digest]}
        return whole, [n for n in range(self.num_shards) if n not in whole]

    def make(self, todo: list[int], made: dict[int, str]) -> Steps[None]:
        """Compute some shards and write the manifest."""
        rows, size, what = self.store.num_rows, self.store.shard_rows, f"features of {self.modality}"
        counts = {number: min(size, rows - number * size) for number in range(self.num_shards)}
        done = sum(counts[number] for number in made)
        yield Progress(what, done, rows)
        for number in todo:
            shard = np.empty((counts[number], self.width), np.float32)
            for start in range(0, len(shard), BLOCK):
                places = np.arange(start, min(start + BLOCK, len(shard)))
                found = self.method.frozen_features(self.modality, self.inputs.gather(number * size + places))
                shard[places] = found.cpu().numpy()
                done += len(places)
                yield Progress(what, done, rows)
            if not np.isfinite(shard).all():
                raise MlaError(
                    f"the frozen encoder of `{self.modality}` gives features that are NaN or infinite",
                    f"check its weights, `encoders.{self.modality}.weights`, and `train.precision`",
                )
            with whole_file(self.shard(number)) as file:
                write_array(file, shard)
            made[number] = sha256(self.shard(number))
        write_sealed(
            self.folder / "manifest.json",
            {
                "made_of": self.facts,
                "width": self.width,
                "rows": rows,
                "rows_per_shard": size,
                "sha256": [made[number] for number in range(self.num_shards)],
                "versions": versions(),
            },
        )


def state_digest(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, kinds, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
