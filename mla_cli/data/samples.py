"""The samples of one split: which store row each has in every modality, and pairs for data that come unpaired."""

from dataclasses import dataclass, replace

import numpy as np

from mla_cli.errors import MlaError
from mla_cli.seeding import generator


@dataclass(frozen=True)
class Samples:
    """One split, in manifest order.

    rows: int64 (sample, modality), the row in each modality's shards, -1 where the sample does not have it.
    distinct: modality -> number of different recordings among the samples.
    """

    split: str
    modalities: list[str]
    ids: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    rows: np.ndarray
    paired_with_seed: int | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def present(self) -> np.ndarray:
        """bool (sample, modality)."""
        return self.rows >= 0

    @property
    def distinct(self) -> dict[str, int]:
        return {m: len(np.unique(column[column >= 0])) for m, column in zip(self.modalities, self.rows.T, strict=True)}

    def take(self, chosen: np.ndarray) -> "Samples":
        """Some of the samples, by position."""
        return replace(
            self,
            ids=self.ids[chosen],
            labels=self.labels[chosen],
            groups=self.groups[chosen],
            rows=self.rows[chosen],
        )

    def limited(self, limit: int | None, seed: int) -> "Samples":
        """At most `limit` samples of each pattern of presence, drawn by id, in manifest order."""
        if limit is None:
            return self
        _, pattern = np.unique(self.present, axis=0, return_inverse=True)
        by_id = np.argsort(self.ids, kind="stable")
        order = by_id[generator(seed, "limit", self.split).permutation(len(self))]
        chosen = [order[pattern.ravel()[order] == p][:limit] for p in range(pattern.max(initial=-1) + 1)]
        return self.take(np.sort(np.concatenate(chosen))) if chosen else self


def unpaired(present: np.ndarray) -> bool:
    """True where every sample has exactly one of several modalities."""
    return present.shape[1] > 1 and len(present) > 0 and bool((present.sum(1) == 1).all())


def pair_by_class(samples: Samples, classes: list[str], seed: int) -> Samples:
    """Join unpaired samples: each one of the most frequent modality meets a random one of its class of every other.

    The draw is keyed by `dataset.pair_seed`, split, modality and class, never by a run's seed, so that every run is
    scored on the same pairs; the order of rows or modalities changes none. Pairs are sorted by id. Raises MlaError for
    a class that a modality lacks in this split.
    """
    present = samples.present
    counts = present.sum(0)
    columns = range(len(samples.modalities))
    anchor, *others = sorted(columns, key=lambda c: (-counts[c], samples.modalities[c]))
    by_id = np.argsort(samples.ids, kind="stable")
    base = by_id[present[by_id, anchor]]
    partners = np.empty((len(base), len(samples.modalities)), np.int64)
    partners[:, anchor] = base
    for column in others:
        modality = samples.modalities[column]
        for label in np.unique(samples.labels[base]):
            pool = by_id[(present[:, column] & (samples.labels == label))[by_id]]
            if not len(pool):
                raise MlaError(
                    f"class `{classes[label]}` has no {modality} sample in split `{samples.split}` to pair with",
                    "add samples of that class, or choose another protocol with --set dataset.protocol=...",
                )
            wanted = np.flatnonzero(samples.labels[base] == label)
            rng = generator(seed, "pair", samples.split, modality, classes[label])
            partners[wanted, column] = rng.choice(pool, len(wanted))
    order = [anchor, *others]
    groups = samples.groups[partners]
    return Samples(
        split=samples.split,
        modalities=samples.modalities,
        ids=np.array(["+".join(samples.ids[row[order]]) for row in partners], dtype=object),
        labels=samples.labels[base],
        # the speaker of the recording and the writer of the digit, where they are known
        groups=np.array(["+".join(dict.fromkeys(g for g in row if g)) for row in groups], dtype=object),
        rows=np.stack([samples.rows[partners[:, c], c] for c in columns], axis=1),
        paired_with_seed=seed,
    )
