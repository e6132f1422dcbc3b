"""What several ranks must do alike: small trainings in float64, and ranks that are threads of this process."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import emoji_recipe, make_session, mfeat_recipe
from torch import Tensor

from mla_cli.core.ranks import ALONE, RankLost, Ranks
from mla_cli.engine.scoring import score
from mla_cli.engine.session import Session
from mla_cli.schema import Recipe

STEPS, FEW = 20, 6
FEWER = {"mla released": 6}  # its elementwise division doubles a rounding error many times in each step
SEEDED = threading.Lock()  # initialisation seeds torch's one generator, which threads share
THREE = ("mor", "fou", "kar")
# 96 samples in batches of 19: the last one holds one sample, so that the second rank has none
UNEVEN = {"batch_size": 19, "epochs": 4}
SPARSE = {"missing_rate": 0.5, "batch_size": 13, "epochs": 4}
STAGES = {"name": "reconboost", "reconboost": {"epochs_alone": 1, "epochs_joint": 1}}

CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "mla": (("mor", "fou"), {"train": UNEVEN}),
    "mla of three": (THREE, {"train": UNEVEN}),
    "mla with absent samples": (THREE, {"train": SPARSE}),
    "mla with imputed samples": (THREE, {"train": SPARSE | {"absent": "zeros"}}),
    "mla running": (THREE, {"train": UNEVEN, "method": {"hgm_mean": "running", "hgm_apply": "update"}}),
    "mla released": (("mor", "fou"), {"train": UNEVEN, "method": {"hgm": "released"}}),
    "mla independent": (THREE, {"train": SPARSE, "method": {"batching": "independent"}}),
    "mla synchronised": (("mor", "fou"), {"train": UNEVEN | {"sync_batchnorm": True}}),  # nothing to synchronise
    "mla noisy": (("mor", "fou"), {"train": UNEVEN, "augment": {"mor": {"noise": 0.5}}}),
    "mla adamw": (("mor", "fou"), {"train": UNEVEN | {"optimizer": "adamw", "lr": 0.01}}),
    "unimodal": (("mor", "fou"), {"train": UNEVEN, "method": {"name": "unimodal", "unimodal": {"modality": "fou"}}}),
    "late": (THREE, {"train": SPARSE, "method": {"name": "late"}}),
    "sum": (THREE, {"train": UNEVEN, "method": {"name": "sum"}}),
    "concat": (THREE, {"train": SPARSE | {"modality_dropout": 0.3}, "method": {"name": "concat"}}),
    "film": (THREE, {"train": UNEVEN, "method": {"name": "film"}}),
    "bigated": (THREE, {"train": UNEVEN, "method": {"name": "bigated"}}),
    "ogm": (THREE, {"train": UNEVEN, "method": {"name": "ogm"}}),
    "ogm_ge": (("mor", "fou"), {"train": UNEVEN, "method": {"name": "ogm_ge"}}),
    "mmpareto": (THREE, {"train": SPARSE, "method": {"name": "mmpareto"}}),
    "reconboost": (THREE, {"train": UNEVEN | {"missing_rate": 0.5}, "method": STAGES}),
}


@dataclass
class Outcome:
    """What a training leaves: parameters and losses in float64, gradient exchanges and steps, logits of val."""

    parameters: dict[str, np.ndarray]
    losses: list[dict[str, float]]
    exchanges: int
    logits: Any
    shares: list[int]


def recipe_of(case: str) -> Recipe:
    views, changes = CASES[case]
    return mfeat_recipe(views, **changes)


def outcome(case: str, data_dir: Path, ranks: Ranks = ALONE, steps: int = STEPS) -> Outcome:
    """Train `steps` rounds in float64, over as many whole epochs as that takes."""
    steps = min(steps, FEWER.get(case, steps))
    with SEEDED:
        session = make_session(recipe_of(case), data_dir, ranks=ranks)
    session.method.double()
    losses, shares, epoch = [], [], 0
    while len(losses) < steps:
        epoch += 1
        session.method.train()
        session.method.start_epoch(epoch)
        for batch in session.train_loader.epoch(epoch):
            batch.inputs = {m: x.double() for m, x in batch.inputs.items()}
            shares += [len(x) for x in batch.inputs.values()]
            losses.append({name: float(loss) for name, loss in session.method.step(batch).items()})
        session.method.end_epoch()
    parameters = {name: p.detach().numpy().copy() for name, p in session.method.named_parameters()}
    session.method.float()
    return Outcome(parameters, losses, ranks.exchanges, score(session, "val", every_subset=False), shares)


def check_equal(alone: Outcome, ranks: list[Outcome], tolerance: float = 1e-10) -> None:
    """Every rank equals the process alone, and all ranks each other to the bit."""
    for one in ranks:
        for name, value in alone.parameters.items():
            np.testing.assert_allclose(one.parameters[name], value, rtol=tolerance, atol=tolerance, err_msg=name)
            assert np.array_equal(one.parameters[name], ranks[0].parameters[name]), "ranks never drift apart"
        assert [list(losses) for losses in one.losses] == [list(losses) for losses in alone.losses]
        for mine, theirs in zip(one.losses, alone.losses, strict=True):
            assert mine == pytest.approx(theirs, rel=tolerance, abs=tolerance)
        assert one.logits.ids.tolist() == alone.logits.ids.tolist()
        np.testing.assert_array_equal(one.logits.present, alone.logits.present)
        np.testing.assert_allclose(one.logits.logits, alone.logits.logits, rtol=1e-4, atol=1e-5)
        for subset, logits in alone.logits.subsets.items():
            np.testing.assert_allclose(one.logits.subsets[subset], logits, rtol=1e-4, atol=1e-5)
    counts = zip(*(one.shares for one in ranks), strict=True)
    assert [sum(parts) for parts in counts] == alone.shares


def normalised_session(data_dir: Path, ranks: Ranks = ALONE) -> Session:
    """Batch normalisation, and an epoch behind it."""
    with SEEDED:
        session = make_session(emoji_recipe(), data_dir, ranks=ranks)
    session.train_epoch()
    session.share_buffers()
    return session


class Table:
    """Where threads lay down what they tell each other."""

    def __init__(self, world: int):
        self.barrier = threading.Barrier(world)
        self.places: list[Any] = [None] * world


class Threads(Ranks):
    """A rank that is a thread."""

    def __init__(self, rank: int, world: int, table: Table):
        super().__init__(rank, world)
        self.table = table
        self.sizes: list[int] = []  # numbers in each exchange

    def gather(self, value: Any) -> list[Any]:
        try:
            self.table.places[self.rank] = value
            self.table.barrier.wait(60)
            found = list(self.table.places)
            self.table.barrier.wait(60)
        except threading.BrokenBarrierError as error:
            raise RankLost("another thread has failed") from error
        return found

    def told(self, value: Any) -> Any:
        return self.gather(value)[0]

    def add(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        self.exchanges += 1
        self.sizes.append(sum(t.numel() for t in tensors))
        everyone = self.gather([t.detach().clone() for t in tensors])
        return [torch.stack(parts).sum(0) for parts in zip(*everyone, strict=True)]

    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        for mine, first in zip(tensors, self.told([t.clone() for t in tensors]), strict=True):
            mine.copy_(first)


def as_threads(world: int, work: Callable[[Ranks], Any]) -> list[Any]:
    """Do some work on every rank; the ranks' results, or the first error."""
    table, results, errors = Table(world), [None] * world, []

    def one(rank: int) -> None:
        try:
            results[rank] = work(Threads(rank, world, table))
        except Exception as error:
            errors.append(error)
            table.barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((error for error in errors if not isinstance(error, RankLost)), errors[0])
    return results
