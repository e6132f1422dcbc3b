"""From the store to normalised batches on the device.

Small modalities are normalised once and kept in memory. Larger ones are read from the memory map batch by batch, each
row normalised on its way while it is in the processor's cache; training has the next batches made in background threads
while it computes. Every draw is keyed, so the bytes are the same with and without them.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from mla_cli.core.method import Batch
from mla_cli.core.ranks import ALONE, Ranks
from mla_cli.data.augment import Draws, augment
from mla_cli.data.background import Chosen, ahead, read_ahead
from mla_cli.data.mapped import FAULT_BYTES
from mla_cli.data.modality_store import ModalityStore
from mla_cli.data.moving import moved
from mla_cli.data.order import Rounds
from mla_cli.data.room import Room
from mla_cli.data.samples import Samples
from mla_cli.schema import AugmentSection
from mla_cli.seeding import derive, generator

RESIDENT_BYTES = 256 << 20  # modalities of a split that fit in this together, as float32, are kept in memory
BLOCK_BYTES = 256 << 10  # as float32, of rows normalised at once: they stay in the cache from one pass to the next
MAPPED_BYTES = 256 << 20  # so much of a modality stays mapped at most: mapped pages count as this process's memory


class ModalityLoader:
    """Normalised inputs of one modality of one split: positions of samples -> (n, ...) on the device.

    rows: int64 (sample,), -1 where absent (such samples get `blank`). Text stays int32 token numbers, padding -1.
    small: whether all inputs are kept in memory.
    """

    def __init__(
        self,
        store: ModalityStore,
        rows: np.ndarray,
        mean: np.ndarray,
        sd: np.ndarray,
        device: torch.device,
        small: bool = True,
    ):
        self.store, self.rows, self.device, self.small = store, rows, device, small
        self.is_text = store.kind == "text"
        self.mean, self.scale = mean.astype(np.float32), (1.0 / sd).astype(np.float32)
        self.room = Room()
        self.touched = 0  # bytes mapped since the map was last let go, at most
        self.blank = self.blank_input()

    @cached_property
    def resident(self) -> Tensor | None:
        """All inputs, where they are small; made when they are first asked for: features may be stored until then."""
        return self.gather(np.arange(len(self.rows))) if self.small else None

    def blank_input(self) -> Tensor:
        """What stands for an absent input: the mean of the training data, 0 after normalisation; padding for text."""
        if self.is_text:
            return torch.full(self.store.shape, -1, dtype=torch.int32, device=self.device)
        return torch.zeros(self.store.shape, device=self.device)

    def gather(self, positions: np.ndarray) -> Tensor:
        """(n, ...) inputs of the samples at these positions, from the store.

        On a CPU each block of rows is converted and normalised straight from the map. Other devices get the stored
        numbers, fewer bytes, and normalise them.
        """
        rows = self.rows[positions]
        on_cpu = self.device.type == "cpu"
        dtype = np.dtype(np.float32) if on_cpu and not self.is_text else self.store.dtype
        if self.device.type == "cuda":
            raw = torch.from_numpy(np.empty(0, dtype)).dtype
            batch = torch.empty(len(rows), *self.store.shape, dtype=raw, pin_memory=True)
        else:
            batch = torch.from_numpy(self.room.array((len(rows), *self.store.shape), dtype))
        self.read(np.maximum(rows, 0), batch.numpy(), normalise=on_cpu and not self.is_text)
        if not on_cpu:
            batch = moved(batch, self.device)
            if not self.is_text:
                mean, scale = (moved(torch.from_numpy(value), self.device) for value in (self.mean, self.scale))
                batch = batch.float().sub_(mean).mul_(scale)
        absent = np.flatnonzero(rows < 0)
        if len(absent):
            batch[moved(torch.from_numpy(absent), self.device)] = self.blank
        return batch

    def read(self, rows: np.ndarray, out: np.ndarray, normalise: bool) -> None:
        """Copy rows of the store into `out`, (n, ...), converted to its dtype."""
        size = max(1, BLOCK_BYTES // max(1, out[:1].nbytes))
        for start in range(0, len(rows), size):
            part = out[start : start + size]
            source = self.store.view(rows[start : start + size])
            if source.dtype != part.dtype or not normalise:
                np.copyto(part, source, casting="same_kind")
                source = part
            if normalise:
                with np.errstate(over="ignore", invalid="ignore"):  # the loss will be infinite or NaN, and say so
                    np.subtract(source, self.mean, out=part)
                    np.multiply(part, self.scale, out=part)
        self.touched += len(rows) * max(self.store.row_bytes, FAULT_BYTES)
        if self.touched > MAPPED_BYTES:
            self.store.let_go()
            self.touched = 0

    def will_need(self, positions: np.ndarray) -> None:
        """Have these samples' inputs read from the disk while we go on."""
        rows = np.unique(self.rows[positions])
        self.store.will_need(rows[rows >= 0])

    def batch(self, positions: np.ndarray) -> Tensor:
        """(n, ...) inputs of the samples at these positions."""
        if self.resident is not None:
            return self.resident.index_select(0, moved(torch.from_numpy(positions), self.device))
        return self.gather(positions)


class SplitLoader:
    """All modalities of one split."""

    def __init__(
        self,
        samples: Samples,
        stores: Mapping[str, ModalityStore],
        normalisation: Mapping[str, tuple[np.ndarray, np.ndarray]],
        device: torch.device,
    ):
        self.samples, self.device = samples, device
        self.labels = torch.from_numpy(samples.labels.astype(np.int64)).to(device)
        columns = {m: samples.rows[:, i] for i, m in enumerate(samples.modalities) if m in stores}
        small = small_enough({m: 4 * len(samples) * int(np.prod(stores[m].shape)) for m in columns})
        self.modalities = {
            m: ModalityLoader(stores[m], rows, *normalisation[m], device, m in small) for m, rows in columns.items()
        }

    @property
    def is_mapped(self) -> bool:
        """Whether any modality is read from the disk; those that are not are taken into memory here, if need be."""
        return any(loader.resident is None for loader in self.modalities.values())

    @property
    def mapped_bytes(self) -> int:
        """What the samples take in the store, of modalities that are read from the disk."""
        return sum(
            int((loader.rows >= 0).sum()) * loader.store.row_bytes
            for loader in self.modalities.values()
            if not loader.small
        )


def small_enough(sizes: Mapping[str, int]) -> set[str]:
    """The modalities to keep in memory: the smallest that need at most RESIDENT_BYTES together. sizes: in bytes."""
    names = sorted(sizes, key=lambda m: (sizes[m], m))
    total = np.cumsum([sizes[m] for m in names])
    return {m for m, together in zip(names, total, strict=True) if together <= RESIDENT_BYTES}


class TrainLoader:
    """Rounds of training batches, augmented. Every draw is keyed by (seed, "augment", epoch, round, modality)."""

    def __init__(
        self,
        split: SplitLoader,
        rounds: Rounds,
        present: np.ndarray,
        fill: bool,
        augmentation: Mapping[str, AugmentSection],
        blanks: Mapping[str, Tensor],
        least: Mapping[str, int],
        dropout: float = 0.0,
        ranks: Ranks = ALONE,
        least_share: int | None = None,
    ):
        """present: bool (sample, modality), after any draw of missing ones. fill: impute absent inputs by `blanks`.

        least: modality -> fewest samples a step can take (2 with batch normalisation). dropout: `modality_dropout`.
        ranks: who takes which part of every step; least_share: fewest samples of a part, in place of `least`.
        """
        self.ranks, self.least_share = ranks, least_share
        self.split, self.rounds, self.present, self.fill, self.dropout = split, rounds, present, fill, dropout
        self.augmentation, self.blanks, self.least = augmentation, blanks, least
        self.skipped: dict[str, int] = dict.fromkeys(split.modalities, 0)
        self.column = {m: i for i, m in enumerate(split.samples.modalities)}

    def epoch(self, epoch: int, start: int = 0, limit: int | None = None) -> Iterator[Batch]:
        """Yield the epoch's batches from round `start` on, at most `limit` rounds in all."""
        count = len(self.rounds) if limit is None else min(limit, len(self.rounds))
        jobs = self.jobs(epoch, start, count)
        for batch, skipped in ahead(jobs) if self.split.is_mapped else (job() for job in jobs):
            for m in skipped:  # counted when their round comes, not when it is made: a checkpoint may lie between
                self.skipped[m] += 1
            yield batch

    def jobs(self, epoch: int, start: int, count: int) -> Iterator[Callable[[], tuple[Batch, list[str]]]]:
        """What makes rounds `start`, ..., `count` - 1: functions that may run in any thread and change nothing here."""
        rounds: Iterator[Chosen] = islice(self.rounds.epoch(epoch, start), max(0, count - start))
        window, nothing = self.rounds.window, Chosen()
        pairs = read_ahead(rounds, window) if window else ((chosen, nothing) for chosen in rounds)
        for number, (chosen, soon) in enumerate(pairs, start):
            yield partial(self.made, Batch(epoch, number, count, {}, {}), chosen, soon)

    def made(self, batch: Batch, chosen: Chosen, soon: Chosen) -> tuple[Batch, list[str]]:
        """A round's batch, and the modalities that had too few samples. soon: what the rounds to come will read."""
        for m, positions in soon.items():
            if m in self.split.modalities and self.split.modalities[m].resident is None:
                self.split.modalities[m].will_need(positions)
        return self.filled(batch, chosen)

    def filled(self, batch: Batch, chosen: Chosen) -> tuple[Batch, list[str]]:
        """A round's batch with the samples chosen for it: the one place where positions become inputs."""
        skipped, number, epoch = [], batch.round, batch.epoch
        given = self.given(epoch, number, next(iter(chosen.values()))) if self.fill else None
        for m, positions in chosen.items():
            if m not in self.split.modalities:
                continue
            if len(positions) < self.least[m]:
                skipped.append(m)
                continue
            mine = slice(None)
            if not self.ranks.is_alone:
                batch.totals[m] = len(positions)
                mine = self.ranks.share(len(positions), self.least_share or self.least[m])
            batch.inputs[m] = self.inputs(epoch, number, m, positions, mine)
            if given is not None:
                batch.inputs[m] = self.imputed(batch.inputs[m], m, given[mine])
            where = moved(torch.from_numpy(positions[mine]), self.split.device)
            batch.labels[m], batch.positions[m] = self.split.labels.index_select(0, where), where
        if given is not None and not given.all() and batch.inputs:
            batch.present = moved(torch.from_numpy(given[mine]), self.split.device)
            if not self.ranks.is_alone:
                batch.everyone = moved(torch.from_numpy(given), self.split.device)
        return batch, skipped

    def given(self, epoch: int, number: int, positions: np.ndarray) -> np.ndarray:
        """bool (n, modality): what these samples show in this round.

        With modality dropout each present modality is hidden with that probability; a sample that would lose all keeps
        one of them, drawn uniformly.
        """
        present = self.present[positions]
        if not self.dropout:
            return present
        rng = generator(self.rounds.seed, "modality_dropout", epoch, number)
        kept = present & (rng.random(present.shape) >= self.dropout)
        lottery = np.where(present, rng.random(present.shape), -1.0)
        nothing = np.flatnonzero(~kept.any(1) & present.any(1))
        kept[nothing, lottery[nothing].argmax(1)] = True
        return kept

    def inputs(self, epoch: int, number: int, modality: str, positions: np.ndarray, mine: slice) -> Tensor:
        """Augmented inputs of a part of the samples at these positions; the draws are the same in every partition."""
        loader, settings = self.split.modalities[modality], self.augmentation.get(modality)
        batch = loader.batch(positions[mine])
        if settings is not None and len(batch):
            source = torch.Generator().manual_seed(derive(self.rounds.seed, "augment", epoch, number, modality))
            batch = augment(batch, loader.store.kind, settings, Draws(source, len(positions), mine))
        return batch

    def imputed(self, batch: Tensor, modality: str, given: np.ndarray) -> Tensor:
        """The batch with the imputed input wherever the modality is not given."""
        absent = np.flatnonzero(~given[:, self.column[modality]])
        if not len(absent):
            return batch
        blank = self.blanks[modality].to(batch.dtype).expand(len(absent), *batch.shape[1:])
        return batch.index_copy(0, moved(torch.from_numpy(absent), self.split.device), blank)
