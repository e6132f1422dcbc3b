"""Batches: gathered, normalised, augmented and imputed; what they hold depends on their keys alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CPU, digits_recipe, emoji_recipe, make_session, mfeat_recipe

from mla_cli.core.method import Batch
from mla_cli.data.loader import ModalityLoader
from mla_cli.data.mapped import FAULT_BYTES
from mla_cli.data.modality_store import ModalityStore
from mla_cli.errors import MlaError


def same_batch(one: Batch, other: Batch) -> bool:
    return (one.epoch, one.round, one.rounds) == (other.epoch, other.round, other.rounds) and all(
        mine.keys() == theirs.keys() and all(torch.equal(mine[m], theirs[m]) for m in mine)
        for mine, theirs in ((one.inputs, other.inputs), (one.labels, other.labels))
    )


def test_vectors_are_normalised_by_the_given_mean_and_sd(mfeat_store) -> None:
    store = mfeat_store.modality("mor")
    rows = np.array([3, -1, 0, 3])
    mean, sd = np.arange(6.0), np.arange(1.0, 7.0)
    loader = ModalityLoader(store, rows, mean, sd, CPU)
    batch = loader.batch(np.array([2, 0, 1]))
    expected = (store.take(np.array([0, 3])) - mean) / sd
    torch.testing.assert_close(batch[:2], torch.from_numpy(expected.astype(np.float32)))
    assert (batch[2] == 0).all()  # absent: the training mean
    assert batch.dtype == torch.float32


def test_images_become_float_with_zero_mean_per_channel(emoji_store, data_dir: Path) -> None:
    session = make_session(emoji_recipe(dataset={"limit": None}), data_dir)
    split = session.split_loader("train")
    images = split.modalities["visual"].batch(np.arange(len(split.samples)))
    assert images.shape == (len(split.samples), 3, 16, 16)
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(images.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
    tokens = split.modalities["text"].batch(np.arange(4))
    assert tokens.dtype == torch.int32
    assert tokens.min() == -1
    np.testing.assert_array_equal(
        tokens.numpy(), emoji_store.modality("text").take(split.samples.rows[:4, 1])
    )  # token numbers stay what they are


def test_large_modalities_are_gathered_batch_by_batch_to_the_same_bits(
    mfeat_store, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = mfeat_recipe(augment={"mor": {"noise": 0.2}})
    resident = make_session(recipe, data_dir)
    monkeypatch.setattr("mla_cli.data.loader.RESIDENT_BYTES", 0)
    mapped = make_session(recipe, data_dir)
    assert resident.split_loader("train").modalities["fou"].resident is not None
    assert mapped.split_loader("train").modalities["fou"].resident is None
    pairs = zip(resident.train_loader.epoch(1), mapped.train_loader.epoch(1), strict=True)
    assert all(same_batch(one, other) for one, other in pairs)


def test_the_smallest_modalities_share_the_memory_there_is(
    mfeat_store, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = ("pix", "mor", "fou")  # 240, 6 and 76 columns
    for columns, kept in ((5, set()), (6, {"mor"}), (81, {"mor"}), (82, {"mor", "fou"}), (322, {"mor", "fou", "pix"})):
        monkeypatch.setattr("mla_cli.data.loader.RESIDENT_BYTES", 4 * 96 * columns)
        split = make_session(mfeat_recipe(views), data_dir).split_loader("train")
        assert {m for m, loader in split.modalities.items() if loader.resident is not None} == kept
        assert split.is_mapped == (len(kept) < 3)
        mapped = sum(width for m, width in (("pix", 240), ("mor", 6), ("fou", 76)) if m not in kept)
        assert split.mapped_bytes == mapped * 96 * mfeat_store.modality("mor").dtype.itemsize


def test_a_modality_larger_than_memory_and_blocks_for_small_ones_are_warned_of(
    mfeat_store, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make_session(mfeat_recipe(), data_dir).inputs.order_warnings() == []
    blocks = mfeat_recipe(train={"shuffle": "blocks"})
    assert "`full` costs nothing" in make_session(blocks, data_dir).inputs.order_warnings()[0]
    monkeypatch.setattr("mla_cli.data.loader.RESIDENT_BYTES", 0)
    assert make_session(blocks, data_dir).inputs.order_warnings() == []
    assert make_session(mfeat_recipe(), data_dir).inputs.order_warnings() == []
    monkeypatch.setattr("mla_cli.engine.measure.physical_memory", lambda: 40_000)
    found = make_session(mfeat_recipe(), data_dir).inputs.order_warnings()
    assert "--set train.shuffle=blocks" in found[0]
    monkeypatch.setattr("mla_cli.engine.measure.physical_memory", lambda: None)
    assert make_session(mfeat_recipe(), data_dir).inputs.order_warnings() == []


def test_a_map_is_let_go_after_a_bounded_number_of_bytes(
    emoji_store, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mla_cli.data.loader.RESIDENT_BYTES", 0)
    monkeypatch.setattr("mla_cli.data.loader.MAPPED_BYTES", 10 * FAULT_BYTES)
    loader = make_session(emoji_recipe(), data_dir).split_loader("train").modalities["visual"]
    calls: list[int] = []
    let_go = ModalityStore.let_go

    def noting(store: ModalityStore) -> None:
        calls.append(loader.touched)
        let_go(store)

    monkeypatch.setattr(ModalityStore, "let_go", noting)
    first = loader.batch(np.arange(10))
    assert calls == []
    loader.batch(np.arange(10, 11))
    assert calls == [11 * FAULT_BYTES]
    assert torch.equal(loader.batch(np.arange(10)), first)
    assert len(calls) == 1


def test_an_absent_text_is_padding_only(emoji_store, data_dir: Path) -> None:
    session = make_session(emoji_recipe(), data_dir)
    blank = session.split_loader("train").modalities["text"].blank
    assert blank.shape == (48,)
    assert (blank == -1).all()
    assert session.blanks["text"] is blank


@pytest.mark.parametrize("batching", ["shared", "independent"])
def test_starting_at_a_round_gives_the_rounds_that_follow(mfeat_store, data_dir: Path, batching: str) -> None:
    recipe = mfeat_recipe(method={"batching": batching}, augment={"mor": {"noise": 0.2}})
    session = make_session(recipe, data_dir)
    whole = list(session.train_loader.epoch(2))
    assert [batch.round for batch in whole] == [0, 1, 2]
    rest = list(session.train_loader.epoch(2, start=1))
    assert [batch.round for batch in rest] == [1, 2]
    assert all(same_batch(one, other) for one, other in zip(whole[1:], rest, strict=True))


def test_order_and_augmentation_come_from_seed_epoch_and_modality_alone(mfeat_store, data_dir: Path) -> None:
    def batches(epoch: int, views: tuple[str, ...] = ("mor", "fou"), **changes) -> list[Batch]:
        session = make_session(mfeat_recipe(views, augment={"fou": {"noise": 0.2}}, **changes), data_dir)
        torch.rand(3)  # another state of torch's own generator each time
        return list(session.train_loader.epoch(epoch))

    def fou(found: list[Batch]) -> torch.Tensor:
        return torch.cat([batch.inputs["fou"] for batch in found])

    first = fou(batches(1))
    assert torch.equal(first, fou(batches(1)))
    assert torch.equal(first, fou(batches(1, ("fou", "zer", "mor"))))  # whatever else there is
    assert not torch.equal(first, fou(batches(2)))
    assert not torch.equal(first, fou(batches(1, seed=1)))
    plain = make_session(mfeat_recipe(), data_dir)
    assert not torch.equal(first, fou(list(plain.train_loader.epoch(1))))


def test_shared_batches_hold_the_same_samples_independent_ones_their_own(mfeat_store, data_dir: Path) -> None:
    shared = make_session(mfeat_recipe(), data_dir)
    for batch in shared.train_loader.epoch(1):
        assert torch.equal(batch.labels["mor"], batch.labels["fou"])
    apart = make_session(mfeat_recipe(method={"batching": "independent"}), data_dir)
    assert not any(torch.equal(b.labels["mor"], b.labels["fou"]) for b in apart.train_loader.epoch(1))


def test_a_shared_round_gives_each_modality_the_samples_that_have_it(mfeat_store, data_dir: Path) -> None:
    session = make_session(mfeat_recipe(train={"missing_rate": 0.3}), data_dir)
    present = session.data.train_present
    batches = list(session.train_loader.epoch(1))
    for i, m in enumerate(("mor", "fou")):
        assert sum(len(batch.inputs[m]) for batch in batches) == present[:, i].sum()
    assert all(batch.present is None for batch in batches)


def test_short_streams_start_again_with_another_order(digits_store, data_dir: Path) -> None:
    session = make_session(digits_recipe(dataset={"limit": 200}), data_dir)
    chosen = [positions["audio"].tolist() for positions in session.train_loader.rounds.epoch(1)]
    assert len(chosen) == 13  # 200 images in batches of 16; 50 recordings make 4 batches
    assert [len(c) for c in chosen[:4]] == [16, 16, 16, 2]
    first, second = np.concatenate(chosen[:4]).tolist(), np.concatenate(chosen[4:8]).tolist()
    assert sorted(first) == sorted(second)
    assert first != second


def test_a_batch_too_small_for_batch_normalisation_is_skipped_and_counted(emoji_store, data_dir: Path) -> None:
    session = make_session(emoji_recipe(dataset={"limit": 33}), data_dir)
    batches = list(session.train_loader.epoch(1))
    assert [list(batch.inputs) for batch in batches] == [["visual", "text"], ["text"]]
    assert session.train_loader.skipped == {"visual": 1, "text": 0}


def test_batches_of_one_that_train_nothing_are_refused(emoji_store, data_dir: Path) -> None:
    """Every step would be skipped, and the untrained network scored."""
    with pytest.raises(
        MlaError, match=r"`train\.batch_size: 1` trains nothing of `visual`: batch normalisation"
    ) as error:
        make_session(emoji_recipe(train={"batch_size": 1}), data_dir)
    assert "--set train.batch_size=2" in error.value.hint
    assert make_session(emoji_recipe(train={"batch_size": 2}), data_dir).train_loader.skipped["visual"] == 0
    assert len(make_session(mfeat_recipe(train={"batch_size": 1}), data_dir).train_loader.rounds) == 96


def test_zeros_for_what_is_absent_trains_on_whole_batches(mfeat_store, data_dir: Path) -> None:
    session = make_session(mfeat_recipe(train={"missing_rate": 0.3, "absent": "zeros"}), data_dir)
    absent = 0
    for batch in session.train_loader.epoch(1):
        assert batch.present is not None
        for i, m in enumerate(("mor", "fou")):
            assert len(batch.inputs[m]) == 32
            gone = ~batch.present[:, i]
            absent += int(gone.sum())
            assert (batch.inputs[m][gone] == 0).all()
            assert (batch.inputs[m][~gone] != 0).any(1).all()
    assert absent == (~session.data.train_present).sum()


def test_zeros_and_independent_batches_exclude_each_other(mfeat_store, data_dir: Path) -> None:
    recipe = mfeat_recipe(train={"missing_rate": 0.3, "absent": "zeros"}, method={"batching": "independent"})
    with pytest.raises(MlaError, match="independent"):
        make_session(recipe, data_dir)


def test_modality_dropout_hides_inputs_and_always_leaves_one(mfeat_store, data_dir: Path) -> None:
    recipe = mfeat_recipe(method={"name": "concat"}, train={"modality_dropout": 0.5}, dataset={"limit": None})
    session = make_session(recipe, data_dir)
    masks = {}
    for epoch in (1, 2):
        batches = list(session.train_loader.epoch(epoch))
        masks[epoch] = torch.cat([b.present for b in batches])
        for batch in batches:
            for i, m in enumerate(("mor", "fou")):
                assert (batch.inputs[m][~batch.present[:, i]] == session.blanks[m]).all()
    assert masks[1].any(1).all()
    share = (~masks[1]).float().mean(0)
    # each is hidden with probability 1/2, but one of the two stays: 1/4 + half of 1/4 for the coin
    assert torch.allclose(share, torch.full((2,), 0.375), atol=0.06)
    assert not torch.equal(masks[1], masks[2])
    assert torch.equal(masks[1], torch.cat([b.present for b in session.train_loader.epoch(1)]))
    with pytest.raises(MlaError, match="modality_dropout"):
        make_session(mfeat_recipe(train={"modality_dropout": 0.5}), data_dir)
