"""The feature store: what `mla prepare` writes and training reads.

    data/NAME/
      manifest.json          written last: feature specs, shapes, versions, counts, classes, fingerprint, checksums of
                             all files below (index.parquet's is compared whenever it is read) and its own (`seal`)
      index.parquet          one row per sample: the manifest's columns; per modality its row in the shards (-1: none),
                             length (real frames or tokens), sum, sum of squares and count of its values, and, where
                             it comes from files, the hash of its row: equal ones look the same to every encoder
      leakage.json           what the splits of every protocol share; made anew when they are reported
      <modality>/NNNNN.npy   shards of a fixed number of rows, one row per sample that has the modality

The store knows no splits and is not normalised, so changing fold or protocol decodes nothing.
"""

import hashlib
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from pydantic import TypeAdapter

from mla_cli.data.modality_store import ModalityStore
from mla_cli.errors import MlaError
from mla_cli.files import read_sealed
from mla_cli.specs import FeatureSpec, Section

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
SWAP_LOOKS = 25  # at a store that is being replaced, 20 ms apart: between two renames it is not there
SHARD_BYTES = 4 << 20  # a shard finished is a shard never redone, so it should take seconds, not minutes
LARGE_SHARD_BYTES = 64 << 20  # for many samples: a shard is held in memory, and every open one takes a file handle
MANY_SHARDS = 256
UNSCALED = ("text", "extractor")  # kinds that are not normalised by the training data
_SPEC: TypeAdapter = TypeAdapter(FeatureSpec)


def rows_per_shard(shape: tuple[int, ...], dtype: np.dtype, count: int = 0) -> int:
    """A power of two between 64 and 4,096 that keeps a shard near SHARD_BYTES; more where `count` rows are many."""
    row = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
    rows = max(SHARD_BYTES // row, min(count // MANY_SHARDS, LARGE_SHARD_BYTES // row))
    return 1 << min(12, max(6, rows.bit_length() - 1))


def moments(kind: str, array: np.ndarray, valid: int) -> tuple[list[float], list[float], int]:
    """Sum, sum of squares and count of one sample's values, per channel for images and video, over all else together.

    Audio counts its real frames only, not the padding. Text and extractors' arrays have none (count 0). Sums are exact
    for uint8.
    """
    if kind in UNSCALED:
        return [0.0], [0.0], 0
    values = array.astype(np.float64)
    if kind in ("image", "video"):
        axes = tuple(i for i in range(values.ndim) if i != values.ndim - 3)
        return values.sum(axes).tolist(), np.square(values).sum(axes).tolist(), int(values[..., 0, :, :].size)
    if kind == "fbank":
        values = values[:, :valid]
    return [float(values.sum())], [float(np.square(values).sum())], int(values.size)


def is_prepared(path: Path) -> bool:
    """Whether there is a complete store; one that is being replaced right now is waited for."""
    for _ in range(SWAP_LOOKS):
        if (path / "manifest.json").is_file():
            return True
        if not path.with_name(f".{path.name}.old").is_dir():
            break
        time.sleep(0.02)
    return (path / "manifest.json").is_file()


@dataclass
class Store:
    """A prepared data set. Open it with `Store.open`."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> "Store":
        """Open a complete store. Raises MlaError for one that is absent, unfinished or of another format."""
        if not is_prepared(path):
            raise MlaError(f"no prepared data under `{path}`", f"run `mla prepare {path.name}`")
        manifest = read_sealed(path / "manifest.json", f"the file was damaged: run `mla prepare {path.name} --force`")
        if manifest.get("format") != FORMAT:
            raise MlaError(
                f"`{path}` has store format `{manifest.get('format')}`, this version reads `{FORMAT}`",
                f"run `mla prepare {manifest.get('dataset', path.name)} --force`",
            )
        return cls(path, manifest)

    def check_unchanged(self) -> None:
        """Raise MlaError where the store was built again since it was opened."""
        if Store.open(self.path).manifest != self.manifest:
            raise MlaError(f"`{self.path}` was built again meanwhile", "run the same command again")

    @property
    def classes(self) -> list[str]:
        return self.manifest["classes"]

    @property
    def modalities(self) -> list[str]:
        """In the data set's order of training."""
        return list(self.manifest["order"])

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @cached_property
    def index(self) -> "pd.DataFrame":
        """One row per sample, sorted by id; without the sums, which `sums` reads."""
        import pandas as pd  # not at the top: the worker processes of `mla prepare` use the rest of this module
        import pyarrow.parquet as pq

        with self.reading_index() as file:
            names = pq.read_schema(file).names
            return pd.read_parquet(file, columns=[n for n in names if not n.startswith(("sum.", "sum_squares."))])

    def sums(self, modality: str, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each of these samples, which have the modality: sums and sums of squares (n, channel), counts (n,).

        Lists in a table of pandas would be an object for every sample, several times the size of all else.
        """
        import pyarrow.parquet as pq

        with self.reading_index() as file:
            names = [f"{quantity}.{modality}" for quantity in ("sum", "sum_squares", "count")]
            table = pq.read_table(file, columns=names).take(samples).combine_chunks()
        total, squares = (table[n].combine_chunks().flatten().to_numpy().reshape(len(samples), -1) for n in names[:2])
        return total, squares, table[names[2]].to_numpy()

    @contextmanager
    def reading_index(self) -> Iterator[BinaryIO]:
        """The index's content, by its digest. Raises MlaError where it cannot be read, or is not what was written."""
        path = self.path / "index.parquet"
        dataset = self.manifest.get("dataset", self.path.name)
        whose = f"table --table TABLE --name {self.path.name}" if dataset == "table" else dataset
        again = f"run `mla prepare {whose} --force`, with the options that it was prepared with"
        try:
            content = path.read_bytes()
            if self.manifest.get("index_sha256") not in (None, hashlib.sha256(content).hexdigest()):
                self.check_unchanged()
                raise MlaError(f"`{path}` is damaged: it is not what `mla prepare` wrote", again)
            yield io.BytesIO(content)
        except (OSError, ValueError) as error:
            raise MlaError(f"cannot read `{path}`: {error}", again) from error

    @cached_property
    def labels(self) -> np.ndarray:
        """int32 (sample,): position of each label in `classes`, -1 where there is none (new, unlabelled rows)."""
        number = {name: i for i, name in enumerate(self.classes)}
        return np.array([number.get(label, -1) for label in self.index["label"]], np.int32)

    def makers(self, modalities: list[str]) -> dict[str, str]:
        """Digests of the tokenizers and extractors of other models that made features; no entry where we did."""
        entries = {m: self.manifest["modalities"][m].get("made_by") for m in modalities}
        return {m: digest for m, digest in entries.items() if digest is not None}

    def spec(self, modality: str) -> Section:
        return _SPEC.validate_python(self.manifest["modalities"][modality]["spec"])

    def modality(self, name: str) -> ModalityStore:
        """The shards of one modality."""
        entry = self.manifest["modalities"][name]
        spec = self.spec(name)
        return ModalityStore(
            folder=self.path / name,
            kind=spec.kind,  # type: ignore[attr-defined]
            spec=spec,
            shape=tuple(entry["shape"]),
            dtype=np.dtype(entry["dtype"]),
            num_rows=entry["rows"],
            shard_rows=entry["rows_per_shard"],
            tokens=entry.get("tokens"),
        )

    def positions(self, modalities: list[str]) -> np.ndarray:
        """int64 (sample, modality): each sample's row in the modality's shards, -1 where it is absent."""
        return self.index[[f"row.{m}" for m in modalities]].to_numpy(np.int64)

    def normalisation(self, modality: str, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation over those of the given samples (the training rows) that have the modality.

        float64, summed in index order.
        Per channel for images (c, 1, 1), one number for audio, per column for vectors (width,); text and
        extractors' arrays, which are what their model expects: 0 and 1.
        Constant channels or columns get sd 1, so that they become 0.
        """
        store, positions = self.modality(modality), self.positions([modality])[:, 0]
        samples = np.sort(samples[positions[samples] >= 0])
        if store.kind in UNSCALED or not len(samples):
            return np.zeros(1), np.ones(1)
        if store.kind == "vector":  # per column: the rows themselves, in blocks
            rows = positions[samples]
            total, squares = np.zeros(store.shape), np.zeros(store.shape)
            with np.errstate(invalid="ignore"):  # infinity of both signs
                for block in store.blocks(rows):
                    total += block.sum(0, dtype=np.float64)
            if not np.isfinite(total).all():  # `mla prepare` refuses such a row
                raise MlaError(
                    f"the features of `{modality}` in `{self.path}` hold values that are not finite",
                    "prepare the data set again with --force",
                )
            mean = total / len(rows)
            for block in store.blocks(rows):  # two passes: columns differ by a factor of 100,000 in spread
                squares += np.square(block - mean).sum(0)
            variance = squares / len(rows)
        else:
            sums, squares_of_each, counts = self.sums(modality, samples)
            count = counts.sum()
            mean = sums.sum(0) / count
            variance = squares_of_each.sum(0) / count - np.square(mean)
            if store.kind in ("image", "video"):
                mean, variance = mean[:, None, None], variance[:, None, None]
        variance = np.maximum(variance, 0)
        constant = variance <= 1e-12 * np.square(mean)  # what rounding leaves, whatever the unit
        return mean, np.where(constant, 1.0, np.sqrt(variance))
