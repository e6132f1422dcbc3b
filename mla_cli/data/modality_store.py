"""The shards of one modality of a feature store (`store.py`), as they are read."""

import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from mla_cli.data.mapped import MappedShard
from mla_cli.errors import MlaError
from mla_cli.specs import Section


@dataclass(frozen=True)
class ModalityStore:
    """One modality's shards: row i lies in shard i // rows_per_shard. Shards are memory-mapped, never copied whole."""

    folder: Path
    kind: str
    spec: Section
    shape: tuple[int, ...]
    dtype: np.dtype
    num_rows: int
    shard_rows: int
    tokens: int | None = None  # of text: its numbers are below this, and -1 where there is none

    @cached_property
    def maps(self) -> list[MappedShard]:
        """The files, opened. Raises MlaError for one that is not what the manifest says."""
        count = -(-self.num_rows // self.shard_rows)
        paths = [self.folder / f"{number:05d}.npy" for number in range(count)]
        try:
            maps = [MappedShard(path) for path in paths]
        # TokenError: NumPy parses the header of a damaged file with Python's own tokenizer
        except (OSError, ValueError, EOFError, OverflowError, tokenize.TokenError) as error:
            raise MlaError(
                f"cannot read `{self.folder}`: {error}", "prepare the data set again with --force"
            ) from error
        for number, shard in enumerate(mapped.rows for mapped in maps):
            rows = min(self.shard_rows, self.num_rows - number * self.shard_rows)
            if shard.shape != (rows, *self.shape) or shard.dtype != self.dtype:
                raise MlaError(
                    f"`{paths[number]}` holds {shard.dtype} {shard.shape}, not {self.dtype} {(rows, *self.shape)}",
                    "prepare the data set again with --force",
                )
            # an encoder would look the number up beyond its table
            if self.tokens is not None and shard.size and not -1 <= shard.min() <= shard.max() < self.tokens:
                raise MlaError(
                    f"`{paths[number]}` holds token numbers outside of -1 to {self.tokens - 1}",
                    "prepare the data set again with --force",
                )
        return maps

    @cached_property
    def shards(self) -> list[np.ndarray]:
        return [mapped.rows for mapped in self.maps]

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def view(self, rows: np.ndarray) -> np.ndarray:
        """The rows as `take` gives them; where they follow each other in one shard, a read-only view of the map."""
        number, offset = divmod(int(rows[0]), self.shard_rows) if len(rows) else (0, 0)
        end = offset + len(rows)
        if not len(rows) or end > self.shard_rows or not self.shards or (np.diff(rows) != 1).any():
            return self.take(rows)
        return self.shards[number][offset:end]

    def will_need(self, rows: np.ndarray) -> None:
        """Have the kernel read these rows from the disk while we go on. rows: sorted, each once."""
        for number in np.unique(rows // self.shard_rows).tolist():
            offsets = rows[rows // self.shard_rows == number] % self.shard_rows
            for run in np.split(offsets, np.flatnonzero(np.diff(offsets) != 1) + 1):
                self.maps[number].will_need(int(run[0]), int(run[-1]) + 1)

    def let_go(self) -> None:
        """Unmap what was read, so that it does not count as this process's memory."""
        for mapped in self.maps:
            mapped.let_go()

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Gather rows: int (n,) -> (n, *shape), a copy in the order asked for; zeros of a modality that nobody has."""
        if not self.shards:
            return np.zeros((len(rows), *self.shape), self.dtype)
        if len(self.shards) == 1:
            return self.shards[0][rows]
        out = np.empty((len(rows), *self.shape), self.dtype)
        number, offset = np.divmod(rows, self.shard_rows)
        for shard in np.unique(number):
            chosen = np.flatnonzero(number == shard)
            out[chosen] = self.shards[shard][offset[chosen]]
        return out

    def blocks(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """The rows in order, a bounded block at a time."""
        for start in range(0, len(rows), self.shard_rows):
            yield self.take(rows[start : start + self.shard_rows])
