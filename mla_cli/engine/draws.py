"""The training draw of missing modalities: made, described in `run.json`, and stored with the run.

`present.parquet` holds one row per training sample, sorted by id: `id`, `available.<modality>` (really there) and
`present.<modality>` (left by the draw). Draws at test time are not stored: each row of a table names pattern, rate,
mask seed and split, which with the ids in `predictions.parquet` give the same draw again.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mla_cli.data.missing import Draw, draw_present
from mla_cli.data.rates import rate_text
from mla_cli.data.samples import Samples
from mla_cli.files import whole_file
from mla_cli.schema import Recipe

STORED = "present.parquet"


@dataclass(frozen=True)
class TrainingDraw:
    """What was taken away from the training samples."""

    samples: Samples
    draw: Draw

    @property
    def present(self) -> np.ndarray:
        """bool (sample, modality), in the samples' order."""
        return self.draw.present

    def facts(self) -> dict[str, Any]:
        """For `run.json`: rates asked for and reached, by modality too, natural absence apart, and the table's hash."""
        available, draw = self.samples.present, self.draw
        removed, there = (available & ~draw.present).sum(0), available.sum(0)
        by_modality = {m: int(n) / max(int(t), 1) for m, n, t in zip(self.modalities, removed, there, strict=True)}
        return {
            "pattern": draw.pattern,
            "requested": draw.requested,
            "realised": draw.realised,
            "realised_by_modality": by_modality,
            "expected": draw.expected,
            "natural_absence": draw.natural_absence,
            "seed": draw.seed,
            "sha256": self.digest(),
        }

    def line(self) -> str:
        """What a user is told: asked for, reached, and absent by nature."""
        draw = self.draw
        expected = "" if draw.expected is None else f" (expected {draw.expected:.3f})"
        natural = f", apart from {100 * draw.natural_absence:.1f} % absent by nature" if draw.natural_absence else ""
        asked = rate_text(draw.requested)
        return f"missing in training ({draw.pattern}): {asked} asked, {draw.realised:.3f} taken{expected}{natural}"

    @property
    def modalities(self) -> list[str]:
        return list(self.samples.modalities)

    def digest(self) -> str:
        """SHA-256 over modality names, sorted ids and the table, whatever order they came in."""
        order = np.argsort(self.samples.ids.astype(str), kind="stable")
        columns = np.argsort(np.array(self.modalities), kind="stable")
        hashed = hashlib.sha256("\0".join(sorted(self.modalities)).encode())
        hashed.update("\0".join(self.samples.ids[order].tolist()).encode())
        hashed.update(self.present[np.ix_(order, columns)].tobytes())
        return hashed.hexdigest()

    def write(self, path: Path) -> None:
        """Write the whole table; equal draws give equal bytes."""
        order = np.argsort(self.samples.ids.astype(str), kind="stable")
        columns: dict[str, Any] = {"id": pa.array(self.samples.ids[order], pa.string())}
        for name, table in (("available", self.samples.present), ("present", self.present)):
            columns |= {f"{name}.{m}": pa.array(table[order, i]) for i, m in enumerate(self.modalities)}
        with whole_file(path) as file:
            pq.write_table(pa.table(columns), file)


def draw_training(recipe: Recipe, train: Samples) -> TrainingDraw | None:
    """Take training entries away as `train.missing_*` says; None where every rate is 0.

    Raises MlaError for a rate that cannot be met.
    """
    settings = recipe.train
    rate: Any = settings.missing_rate
    if not any(rate.values() if isinstance(rate, dict) else [rate]):
        return None
    if settings.missing_pattern == "per_modality" and not isinstance(rate, dict):
        rate = dict.fromkeys(train.modalities, rate)
    draw = draw_present(
        train.present,
        train.ids,
        train.modalities,
        pattern=settings.missing_pattern,
        rate=rate,
        seed=settings.missing_seed,
        split="train",
    )
    return TrainingDraw(train, draw)


def train_rate(recipe: Recipe) -> float | str:
    """`train.missing_rate` as a table shows it: a fraction, or `audio=0.5,text=0`."""
    rate = recipe.train.missing_rate
    return rate_text(rate) if isinstance(rate, dict) else rate
