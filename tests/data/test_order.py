import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_cli.data.order import Blocks, Rounds, shuffled
from mla_cli.errors import MlaError
from mla_cli.schema import MethodSection

PAIRED = np.ones((23, 2), bool)
UNPAIRED = np.repeat([[True, False], [False, True]], [7, 20], axis=0)
NAMES = ["audio", "visual"]


def rounds(present: np.ndarray, batching: str, which: str = "max", seed: int = 0, batch: int = 4, **more) -> Rounds:
    section = MethodSection.model_validate({"batching": batching, "rounds": which})
    return Rounds(present, more.pop("names", NAMES), section, batch, seed, **more)


def listed(found) -> list[dict[str, list[int]]]:
    return [{m: batch.tolist() for m, batch in chosen.items()} for chosen in found]


# ---------------------------------------------------------------- shared


def test_a_shared_epoch_is_a_permutation_in_equal_batches() -> None:
    plan = rounds(PAIRED, "shared")
    for epoch in (1, 2):
        batches = list(plan.epoch(epoch))
        assert len(batches) == len(plan) == 6
        assert [len(b["audio"]) for b in batches] == [4] * 5 + [3]
        for batch in batches:
            assert batch["audio"].tolist() == batch["visual"].tolist()
        assert sorted(np.concatenate([b["audio"] for b in batches])) == list(range(23))


def test_epochs_and_seeds_have_their_own_order() -> None:
    orders = {
        tuple(np.concatenate([b["audio"] for b in rounds(PAIRED, "shared", seed=seed).epoch(epoch)]))
        for seed, epoch in itertools.product(range(3), range(1, 4))
    }
    assert len(orders) == 9


def test_absent_modalities_are_left_out_of_a_shared_batch() -> None:
    present = PAIRED.copy()
    present[:10, 1] = False
    present[20:, 0] = False
    batches = list(rounds(present, "shared").epoch(1))
    for column, name in enumerate(NAMES):
        seen = np.concatenate([b[name] for b in batches])
        assert sorted(seen) == np.flatnonzero(present[:, column]).tolist()
    # the batches are those of complete data, less what is absent
    for batch, whole in zip(batches, rounds(PAIRED, "shared").epoch(1), strict=True):
        for column, name in enumerate(NAMES):
            expected = whole[name][present[whole[name], column]]
            assert batch[name].tolist() == expected.tolist()


def test_aligned_rounds_keep_absent_modalities() -> None:
    present = PAIRED.copy()
    present[:10, 1] = False
    whole = listed(rounds(PAIRED, "shared").epoch(1))
    assert listed(rounds(present, "shared", aligned=True).epoch(1)) == whole
    assert listed(rounds(present, "independent", aligned=True).epoch(1)) == whole


# ---------------------------------------------------------------- independent


@pytest.mark.parametrize(("which", "count"), [("max", 5), ("min", 2), ("mean", 4)])
def test_the_number_of_independent_rounds(which: str, count: int) -> None:
    plan = rounds(UNPAIRED, "independent", which)  # 7 samples are 2 batches, 20 are 5; the mean 3.5 is rounded to even
    assert len(plan) == count
    assert len(list(plan.epoch(1))) == count


def test_each_modality_runs_through_its_own_samples() -> None:
    batches = list(rounds(UNPAIRED, "independent").epoch(1))
    audio, visual = (np.concatenate([b[name] for b in batches]) for name in NAMES)
    assert sorted(visual) == list(range(7, 27))
    assert [len(b["audio"]) for b in batches] == [4, 3, 4, 3, 4]
    assert sorted(audio[:7]) == sorted(audio[7:14]) == list(range(7))
    assert audio[:7].tolist() != audio[7:14].tolist()  # shuffled anew when it starts again
    assert len(set(audio[14:])) == 4


def test_paired_data_can_be_drawn_independently() -> None:
    first = next(iter(rounds(PAIRED, "independent").epoch(1)))
    assert first["audio"].tolist() != first["visual"].tolist()


def test_the_order_of_one_modality_depends_on_seed_epoch_and_its_name_only() -> None:
    def audio(plan: Rounds, epoch: int = 1) -> list[int]:
        return np.concatenate([b["audio"] for b in plan.epoch(epoch)])[:7].tolist()

    alone = audio(rounds(UNPAIRED, "independent"))
    swapped = rounds(UNPAIRED[:, ::-1], "independent", names=NAMES[::-1])
    assert audio(swapped) == alone
    renamed = rounds(UNPAIRED, "independent", names=["audio", "text"])
    assert audio(renamed) == alone
    assert audio(rounds(UNPAIRED, "independent", "min")) == alone
    assert audio(rounds(UNPAIRED, "independent", batch=3)) == alone
    more = np.concatenate([UNPAIRED, [[False, True]] * 9])
    assert audio(rounds(more, "independent")) == alone
    assert audio(rounds(UNPAIRED, "independent"), epoch=2) != alone
    assert audio(rounds(UNPAIRED, "independent", seed=1)) != alone


# ---------------------------------------------------------------- both


@pytest.mark.parametrize(("present", "batching"), [(PAIRED, "shared"), (UNPAIRED, "independent")])
def test_an_epoch_goes_on_where_it_stopped(present: np.ndarray, batching: str) -> None:
    whole = listed(rounds(present, batching).epoch(3))
    for start in range(len(whole) + 1):
        assert listed(rounds(present, batching).epoch(3, start)) == whole[start:]


def test_shuffles_are_permutations_with_a_key() -> None:
    keys = [(0, 1, "a", 0), (1, 1, "a", 0), (0, 2, "a", 0), (0, 1, "b", 0), (0, 1, "a", 1)]
    orders = [tuple(shuffled(50, *key)) for key in keys]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len(set(orders)) == len(keys)
    assert tuple(shuffled(50, *keys[0])) == orders[0]


def test_data_that_cannot_be_batched() -> None:
    with pytest.raises(MlaError) as caught:
        rounds(UNPAIRED, "shared")
    assert caught.value.hint == "train with `--set method.batching=independent`"
    with pytest.raises(MlaError, match="no training sample has modality `visual`"):
        rounds(np.array([[True, False]] * 3), "independent")


# ---------------------------------------------------------------- shuffled blocks


@settings(deadline=None)
@given(
    count=st.integers(0, 90),
    blocks=st.builds(Blocks, st.integers(1, 12), st.integers(1, 6)),
    seed=st.integers(0, 3),
    epoch=st.integers(1, 3),
)
def test_blocks_order_every_sample_once_by_seed_and_epoch_alone(
    count: int, blocks: Blocks, seed: int, epoch: int
) -> None:
    order = shuffled(count, seed, epoch, "a", blocks=blocks)
    assert sorted(order) == list(range(count))
    np.random.default_rng(7).random(3)
    assert order.tolist() == shuffled(count, seed, epoch, "a", blocks=blocks).tolist()
    numbers = order // blocks.rows
    for block in np.unique(numbers):  # a block's samples come together, within one group of blocks
        places = np.flatnonzero(numbers == block)
        assert places[-1] - places[0] < blocks.rows * blocks.mixed


@settings(deadline=None)
@given(
    present=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60).filter(
        lambda rows: all(any(column) for column in zip(*rows, strict=True)) and any(all(row) for row in rows)
    ),
    blocks=st.builds(Blocks, st.integers(1, 7), st.integers(1, 4)),
    batching=st.sampled_from(["shared", "independent"]),
    batch=st.integers(1, 9),
)
def test_an_epoch_in_blocks_has_every_present_sample_once(
    present: list[tuple[bool, bool]], blocks: Blocks, batching: str, batch: int
) -> None:
    table = np.array(present)
    plan = rounds(table, batching, batch=batch, blocks=blocks)
    batches = list(plan.epoch(2))
    assert len(batches) == len(plan)
    for column, name in enumerate(NAMES):
        seen = np.concatenate([b[name] for b in batches])
        own = np.flatnonzero(table[:, column])
        assert sorted(seen[: len(own)]) == own.tolist()  # an independent stream that is short starts again
    for start in range(len(batches)):
        assert listed(plan.epoch(2, start)) == listed(batches[start:])
    assert plan.window * batch >= blocks.rows * blocks.mixed


def test_blocks_mix_as_far_as_they_say() -> None:
    blocks = Blocks(rows=16, mixed=64)
    near = []
    for epoch in range(1, 9):
        order = shuffled(20_000, 0, epoch, "a", blocks=blocks) // blocks.rows
        near.append(float((order[1:] == order[:-1]).mean()))
    assert abs(np.mean(near) - 15 / 1023) < 0.002
    orders = [
        tuple(shuffled(100, *key, blocks=Blocks(4, 3))) for key in ((0, 1, "a"), (1, 1, "a"), (0, 2, "a"), (0, 1, "b"))
    ]
    assert len(set(orders)) == 4
    assert tuple(shuffled(100, 0, 1, "a")) not in orders
