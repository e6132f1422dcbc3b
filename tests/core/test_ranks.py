"""Data parallelism is exact: several ranks, here threads, move the parameters as one process does, for every method."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rank_cases import CASES, FEW, SEEDED, STEPS, as_threads, check_equal, normalised_session, outcome, recipe_of
from tiny import emoji_recipe, frozen_copy, make_session, mfeat_recipe

from mla_cli import registry
from mla_cli.core.ranks import ALONE, RankLost, Ranks, talking
from mla_cli.engine.cost import on_paper
from mla_cli.engine.data import complete
from mla_cli.engine.shared_run import check_ranks
from mla_cli.errors import MlaError


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_move_the_parameters_as_one_process(mfeat_store, data_dir: Path, case: str) -> None:
    steps = STEPS if case in ("mla of three", "reconboost") else FEW  # reconboost: so that a stage has one before it
    alone = outcome(case, data_dir, steps=steps)
    ranks = as_threads(2, lambda ranks: outcome(case, data_dir, ranks, steps))
    check_equal(alone, ranks)
    assert alone.exchanges == 0
    start = frozen_copy(make_session(recipe_of(case), data_dir).method)
    assert any(np.abs(alone.parameters[n] - start[n].numpy()).max() > 1e-3 for n in start), "something was learned"


def test_five_ranks_and_ranks_without_samples(mfeat_store, data_dir: Path) -> None:
    case = "mla with absent samples"
    ranks = as_threads(5, lambda ranks: outcome(case, data_dir, ranks, FEW))
    check_equal(outcome(case, data_dir, steps=FEW), ranks)
    assert all(0 in one.shares for one in ranks[1:])
    assert 0 not in ranks[0].shares


@pytest.mark.parametrize("case", ["mla of three", "late", "concat", "ogm", "mmpareto"])
def test_gradients_are_exchanged_once_in_each_step(mfeat_store, data_dir: Path, case: str) -> None:
    for one in as_threads(2, lambda ranks: outcome(case, data_dir, ranks, steps=3)):
        joint = "fused" in one.losses[0]
        assert one.exchanges == (len(one.losses) if joint else sum(len(losses) for losses in one.losses))


@pytest.mark.parametrize("case", ["mla of three", "concat"])
def test_the_bytes_of_an_exchange_on_paper_are_those_of_a_step(mfeat_store, data_dir: Path, case: str) -> None:
    def sizes(ranks: Ranks) -> list[int]:
        with SEEDED:
            session = make_session(recipe_of(case), data_dir, ranks=ranks)
        session.method.step(next(session.train_loader.epoch(1)))
        return ranks.sizes

    wanted = list(on_paper(complete(recipe_of(case), mfeat_store), mfeat_store).reduced().values())
    assert [[4 * size for size in found] for found in as_threads(2, sizes)] == [wanted, wanted]


def test_batch_statistics_are_rank_0s_wherever_something_is_scored(emoji_store, data_dir: Path) -> None:
    first, second = as_threads(2, lambda ranks: frozen_copy(normalised_session(data_dir, ranks).method))
    assert any("running_mean" in name for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_part_of_a_batch_is_augmented_as_in_the_whole(emoji_store, data_dir: Path) -> None:
    augment = {
        "visual": {"crop": 0.5, "flip": True, "shift": 2, "noise": 0.1},
        "text": {"drop_tokens": 0.3},
    }
    recipe = emoji_recipe(augment=augment)
    whole = next(make_session(recipe, data_dir).train_loader.epoch(1))
    parts = [next(make_session(recipe, data_dir, ranks=Ranks(rank, 3)).train_loader.epoch(1)) for rank in range(3)]
    for m in ("visual", "text"):
        assert torch.equal(torch.cat([part.inputs[m] for part in parts]), whole.inputs[m])
        assert torch.equal(torch.cat([part.labels[m] for part in parts]), whole.labels[m])
        assert {part.totals[m] for part in parts} == {32}
    assert whole.totals == {}


@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 3))
def test_shares_are_a_partition(count: int, world: int, least: int) -> None:
    shares = [Ranks(rank, world).share(count, least) for rank in range(world)]
    assert [i for share in shares for i in range(count)[share]] == list(range(count))
    sizes = [len(range(count)[share]) for share in shares]
    assert all(size == 0 or size >= min(least, count) for size in sizes)
    some = [size for size in sizes if size]
    assert max(some, default=0) - min(some, default=0) <= 1
    assert sizes[0] > 0 or count == 0


def test_a_loss_that_is_kept_does_not_keep_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.mul_(2))
    weight = torch.nn.Parameter(torch.ones(1000))
    weight.grad = torch.ones(1000)
    loss, features = Ranks(0, 2).add_gradients([weight], [torch.tensor(3.0), torch.ones(4, dtype=torch.float64)])
    assert torch.equal(weight.grad, torch.full((1000,), 2.0))
    assert float(loss) == 6.0
    assert torch.equal(features, torch.full((4,), 2.0))
    assert (loss.untyped_storage().nbytes(), features.untyped_storage().nbytes()) == (4, 16)


def test_a_rank_alone_says_nothing() -> None:
    assert ALONE.is_alone
    assert ALONE.is_first
    assert ALONE.told("x") == "x"
    assert ALONE.gather("x") == ["x"]
    assert ALONE.share(7, 2) == slice(0, 7)


def test_what_torch_says_of_a_lost_rank_is_one_error() -> None:
    with pytest.raises(RankLost, match="lost another process of this run: Connection closed by peer"), talking():
        raise RuntimeError("Connection closed by peer\nand more")


CPU = torch.device("cpu")
REFUSED = [
    ({"method": {"name": "qmf"}}, 2, CPU, "`qmf` trains in one process only"),
    ({"train": {"batch_size": 3}}, 4, CPU, "4 processes share batches of 3 samples"),
    ({"train": {"sync_batchnorm": True}}, 2, CPU, "`train.sync_batchnorm` works on CUDA only"),
    ({"train": {"sync_batchnorm": True}}, 1, CPU, "`train.sync_batchnorm` works on CUDA only"),
    ({}, 2, torch.device("mps"), "several processes cannot share `mps`"),
]


@pytest.mark.parametrize(("changes", "world", "device", "message"), REFUSED)
def test_what_ranks_cannot_do_is_an_error(changes: dict, world: int, device: torch.device, message: str) -> None:
    with pytest.raises(MlaError, match=message):
        check_ranks(mfeat_recipe(**changes), device, Ranks(0, world))


def test_every_method_is_exact_or_refused() -> None:
    tested = {recipe_of(case).method.name for case in CASES}
    for name in registry.names("methods"):
        refused = registry.load("methods", name).Method.one_process
        assert refused != (name in tested), name
