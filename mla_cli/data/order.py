"""Which samples each round of an epoch trains on, from (seed, epoch, modality name) alone.

`shared`: the modalities of a round use one batch, each only those of its samples that have it.
`independent`: every modality has its own reshuffled stream of the samples that have it; a round is one step of each;
short streams start again (`method.rounds` sets how many rounds an epoch has).

`train.shuffle: full` puts an epoch's samples in any order. `blocks` is for data larger than memory, which a disk reads
well only in pieces: blocks of neighbouring samples come in random order, and so many of them at a time are mixed.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mla_cli.errors import MlaError
from mla_cli.schema import MethodSection
from mla_cli.seeding import generator


class Blocks(NamedTuple):
    """How an order is kept friendly to a disk. rows: neighbouring samples of a block. mixed: blocks read at a time."""

    rows: int
    mixed: int


def shuffled(count: int, seed: int, epoch: int, name: str, again: int = 0, blocks: Blocks | None = None) -> np.ndarray:
    """The order of `count` samples in one epoch; `again` counts the times a short stream has started over.

    With blocks: the blocks in random order, and within each group of `mixed` of them all samples in random order. Two
    samples that follow each other are then of one block with probability (rows - 1) / (rows * mixed - 1) in place of
    (rows - 1) / (count - 1), about 1 / mixed.
    """
    if blocks is None:
        return generator(seed, "order", epoch, name, again).permutation(count)
    rng = generator(seed, "blocks", epoch, name, again)
    order = rng.permutation(-(-count // blocks.rows))
    groups = []
    for start in range(0, len(order), blocks.mixed):
        chosen = order[start : start + blocks.mixed, None]
        members = (chosen * blocks.rows + np.arange(blocks.rows)).ravel()
        groups.append(rng.permutation(members[members < count]))
    return np.concatenate(groups) if groups else order


class Rounds:
    """The rounds of every epoch over a split.

    present: bool (sample, modality). aligned: every modality of a round gets the whole shared batch, absent ones
    included (they are imputed later). blocks: of the samples in manifest order, or of each modality's own with
    `independent` batching; None shuffles fully. window: rounds whose samples are read from the disk together, 0 without
    blocks. Raises MlaError for a modality without samples, and where `shared` batching meets data in which no sample
    has all modalities.
    """

    def __init__(
        self,
        present: np.ndarray,
        modalities: list[str],
        section: MethodSection,
        batch_size: int,
        seed: int,
        aligned: bool = False,
        blocks: Blocks | None = None,
    ):
        self.present, self.modalities = present, modalities
        self.batch_size, self.seed, self.aligned, self.blocks = batch_size, seed, aligned, blocks
        self.window = -(-blocks.rows * blocks.mixed // batch_size) if blocks else 0
        self.independent = section.batching == "independent" and not aligned
        empty = [m for m, column in zip(modalities, present.T, strict=True) if not column.any()]
        if empty:
            raise MlaError(f"no training sample has modality `{empty[0]}`", "leave it out of `dataset.modalities`")
        if not self.independent and not aligned and not present.all(1).any():
            raise MlaError(
                "`method.batching: shared` needs samples that have every modality, and no training sample does",
                "train with `--set method.batching=independent`",
            )
        self.everywhere = [aligned or bool(column.all()) for column in present.T]  # modalities that no sample lacks
        self.pools = {m: np.flatnonzero(column) for m, column in zip(modalities, present.T, strict=True)}
        sizes = [-(-len(pool) // batch_size) for pool in self.pools.values()]
        if self.independent:
            mean = round(sum(sizes) / len(sizes))
            self.count = {"max": max(sizes), "min": min(sizes), "mean": mean}[section.rounds]
        else:
            self.count = -(-len(present) // batch_size)

    def __len__(self) -> int:
        return self.count

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Rounds `start`, start + 1, ... of an epoch: modality -> positions of samples, possibly none."""
        if self.independent:
            streams = {m: self.stream(m, epoch) for m in self.modalities}
            for number in range(self.count):
                chosen = {m: next(streams[m]) for m in self.modalities}
                if number >= start:
                    yield chosen
            return
        order = shuffled(len(self.present), self.seed, epoch, "shared", blocks=self.blocks)
        for number in range(start, self.count):
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield {
                m: batch if self.everywhere[i] else batch[self.present[batch, i]] for i, m in enumerate(self.modalities)
            }

    def stream(self, modality: str, epoch: int) -> Iterator[np.ndarray]:
        """Batches of one modality's samples, reshuffled each time they run out."""
        pool, again = self.pools[modality], 0
        while True:
            order = pool[shuffled(len(pool), self.seed, epoch, modality, again, self.blocks)]
            yield from (order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size))
            again += 1
