"""From the store to normalised batches on the device: whole batches are gathered, nothing runs per sample.

Small modalities are normalised once and kept in memory; larger ones are gathered from the memory map batch by batch.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mla_cli.core.method import Batch
from mla_cli.core.ranks import ALONE, Ranks
from mla_cli.data.augment import Draws, augment
from mla_cli.data.order import Rounds
from mla_cli.data.samples import Samples
from mla_cli.data.store import ModalityStore
from mla_cli.schema import AugmentSection
from mla_cli.seeding import derive, generator

RESIDENT_BYTES = 256 << 20  # a modality below this, as float32, is kept in memory


class ModalityLoader:
    """Normalised inputs of one modality of one split: positions of samples -> (n, ...) on the device.

    rows: int64 (sample,), -1 where absent (such samples get `blank`). Text stays int32 token numbers, padding -1.
    """

    def __init__(self, store: ModalityStore, rows: np.ndarray, mean: np.ndarray, sd: np.ndarray, device: torch.device):
        self.store, self.rows, self.device = store, rows, device
        self.is_text = store.kind == "text"
        self.mean = torch.from_numpy(mean.astype(np.float32)).to(device)
        self.scale = torch.from_numpy((1.0 / sd).astype(np.float32)).to(device)
        self.blank = self.blank_input()

    @cached_property
    def resident(self) -> Tensor | None:
        """All inputs, where they are small; made when they are first asked for: features may be stored until then."""
        size = 4 * len(self.rows) * int(np.prod(self.store.shape))
        return self.gather(np.arange(len(self.rows))) if size <= RESIDENT_BYTES else None

    def blank_input(self) -> Tensor:
        """What stands for an absent input: the mean of the training data, 0 after normalisation; padding for text."""
        if self.is_text:
            return torch.full(self.store.shape, -1, dtype=torch.int32, device=self.device)
        return torch.zeros(self.store.shape, device=self.device)

    def gather(self, positions: np.ndarray) -> Tensor:
        rows = self.rows[positions]
        raw = torch.from_numpy(self.store.take(np.maximum(rows, 0))).to(self.device)
        batch = raw if self.is_text else raw.float().sub_(self.mean).mul_(self.scale)
        absent = np.flatnonzero(rows < 0)
        if len(absent):
            batch[torch.from_numpy(absent).to(self.device)] = self.blank
        return batch

    def batch(self, positions: np.ndarray) -> Tensor:
        """(n, ...) inputs of the samples at these positions."""
        if self.resident is not None:
            return self.resident.index_select(0, torch.from_numpy(positions).to(self.device))
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
        self.modalities = {
            m: ModalityLoader(stores[m], samples.rows[:, i], *normalisation[m], device)
            for i, m in enumerate(samples.modalities)
            if m in stores
        }


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
        for number, chosen in zip(range(start, count), self.rounds.epoch(epoch, start), strict=False):
            batch = Batch(epoch, number, count, {}, {})
            given = self.given(epoch, number, next(iter(chosen.values()))) if self.fill else None
            for m, positions in chosen.items():
                if m not in self.split.modalities:
                    continue
                if len(positions) < self.least[m]:
                    self.skipped[m] += 1
                    continue
                mine = slice(None)
                if not self.ranks.is_alone:
                    batch.totals[m] = len(positions)
                    mine = self.ranks.share(len(positions), self.least_share or self.least[m])
                batch.inputs[m] = self.inputs(epoch, number, m, positions, mine)
                if given is not None:
                    batch.inputs[m] = self.imputed(batch.inputs[m], m, given[mine])
                where = torch.from_numpy(positions[mine]).to(self.split.device)
                batch.labels[m], batch.positions[m] = self.split.labels.index_select(0, where), where
            if given is not None and not given.all() and batch.inputs:
                batch.present = torch.from_numpy(given[mine]).to(self.split.device)
                if not self.ranks.is_alone:
                    batch.everyone = torch.from_numpy(given).to(self.split.device)
            yield batch

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
        return batch.index_copy(0, torch.from_numpy(absent).to(self.split.device), blank)
