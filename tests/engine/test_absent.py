"""Training with absent modalities: skipped ones leave no trace, imputed ones do, dropped ones are drawn as stated."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_session, mfeat_recipe

from mla_cli.core.fusion import fuse
from mla_cli.engine.session import Session
from mla_cli.errors import MlaError


def poison(session: Session) -> int:
    """Replace every absent training input by NaN; returns how many."""
    split, count = session.train_loader.split, 0
    for i, loader in enumerate(split.modalities.values()):
        absent = np.flatnonzero(~session.data.train_present[:, i])
        assert loader.resident is not None, "small data are kept in memory"
        loader.resident[torch.from_numpy(absent)] = float("nan")
        count += len(absent)
    return count


def everything(session: Session) -> dict[str, torch.Tensor]:
    """Parameters, buffers, optimiser states, P, h and the losses: all that a checkpoint holds."""
    return session.state()[0]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("batching", ["shared", "independent"])
@pytest.mark.parametrize("method", ["mla", "late"])
@pytest.mark.parametrize("pattern", ["kept_one", "bernoulli"])
def test_absent_inputs_leave_no_trace(mfeat_store, data_dir: Path, method: str, batching: str, pattern: str) -> None:
    recipe = mfeat_recipe(
        method={"name": method, "batching": batching},
        train={"missing_rate": 0.4, "missing_pattern": pattern, "optimizer": "adamw", "lr": 0.002},
    )
    clean, poisoned = make_session(recipe, data_dir), make_session(recipe, data_dir)
    assert poison(poisoned) > 50
    for _ in range(2):
        assert clean.train_epoch() == poisoned.train_epoch()
        assert clean.method.end_epoch() == poisoned.method.end_epoch()
    assert same(everything(clean), everything(poisoned))


def test_batch_norm_statistics_see_present_samples_only(emoji_store, data_dir: Path) -> None:
    from tiny import emoji_recipe

    recipe = emoji_recipe(train={"missing_rate": 0.4, "max_rounds": 3})
    clean, poisoned = make_session(recipe, data_dir), make_session(recipe, data_dir)
    absent = np.flatnonzero(~poisoned.data.train_present[:, 0])
    poisoned.train_loader.split.modalities["visual"].resident[torch.from_numpy(absent)] = float("nan")
    tokens = poisoned.train_loader.split.modalities["text"].resident
    tokens[torch.from_numpy(np.flatnonzero(~poisoned.data.train_present[:, 1]))] = 3  # tokens have no NaN
    clean.train_epoch()
    poisoned.train_epoch()
    assert any("running_mean" in key for key in everything(clean))
    assert same(everything(clean), everything(poisoned))


def test_zeros_trains_on_blanks_and_differs_from_skip(mfeat_store, data_dir: Path) -> None:
    skip = make_session(mfeat_recipe(train={"missing_rate": 0.4}), data_dir)
    zeros = make_session(mfeat_recipe(train={"missing_rate": 0.4, "absent": "zeros"}), data_dir)
    first = next(iter(zeros.train_loader.epoch(1)))
    assert {m: len(x) for m, x in first.inputs.items()} == dict.fromkeys(first.inputs, zeros.recipe.train.batch_size)
    blank = ~first.present[:, 0]
    assert blank.any()
    assert not first.inputs["mor"][blank].any()
    assert first.inputs["mor"][~blank].any(1).all()
    short = next(iter(skip.train_loader.epoch(1)))
    assert len(short.inputs["mor"]) == int((~blank).sum())
    skip.train_epoch()
    zeros.train_epoch()
    assert not same(everything(skip), everything(zeros))


def test_zeros_needs_whole_samples(mfeat_store, data_dir: Path) -> None:
    recipe = mfeat_recipe(method={"batching": "independent"}, train={"missing_rate": 0.4, "absent": "zeros"})
    with pytest.raises(MlaError, match="absent: zeros"):
        make_session(recipe, data_dir)


def test_train_mean_is_the_mean_of_present_training_inputs(mfeat_store, data_dir: Path) -> None:
    recipe = mfeat_recipe(method={"name": "concat"}, train={"missing_rate": 0.4}, impute="train_mean")
    session = make_session(recipe, data_dir)
    loader = session.train_loader.split.modalities["fou"]
    present = session.data.train_present[:, 1]
    expected = loader.batch(np.flatnonzero(present)).double().mean(0)
    torch.testing.assert_close(session.blanks["fou"].double(), expected, rtol=0, atol=1e-6)
    assert session.blanks["fou"].abs().max() > 1e-3  # not the zeros of `impute: zeros`


def test_modality_dropout_hides_at_its_rate_and_never_everything(mfeat_store, data_dir: Path) -> None:
    recipe = mfeat_recipe(dataset={"limit": 500}, method={"name": "concat"}, train={"modality_dropout": 0.3})
    loader = make_session(recipe, data_dir).train_loader
    drawn = np.concatenate([loader.given(epoch, 0, np.arange(500)) for epoch in range(20)])
    assert drawn.any(1).all()
    # both are hidden with probability 0.09 and one then comes back: each is hidden with 0.3 - 0.09 / 2
    assert (~drawn).mean() == pytest.approx(0.255, abs=0.01)
    again = make_session(recipe, data_dir).train_loader
    assert np.array_equal(again.given(3, 0, np.arange(500)), loader.given(3, 0, np.arange(500)))
    assert not np.array_equal(loader.given(3, 0, np.arange(500)), loader.given(4, 0, np.arange(500)))


def test_modality_dropout_is_refused_where_it_does_nothing(mfeat_store, data_dir: Path) -> None:
    with pytest.raises(MlaError, match="modality_dropout"):
        make_session(mfeat_recipe(train={"modality_dropout": 0.3}), data_dir)


def test_joint_training_never_sees_what_is_absent(mfeat_store, data_dir: Path) -> None:
    recipe = mfeat_recipe(method={"name": "concat"}, train={"missing_rate": 0.4})
    clean, poisoned = make_session(recipe, data_dir), make_session(recipe, data_dir)
    poison(poisoned)
    clean.train_epoch()
    poisoned.train_epoch()
    assert same(everything(clean), everything(poisoned))


def test_an_absent_modality_never_influences_a_fused_prediction() -> None:
    rng = np.random.default_rng(0)
    logits, present = rng.normal(size=(50, 3, 4)), rng.random((50, 3)) < 0.6
    present[np.arange(50), rng.integers(0, 3, 50)] = True
    spoilt = np.where(present[..., None], logits, np.nan)
    for rule in ("entropy", "uniform", "energy"):
        assert np.array_equal(fuse(logits, present, rule), fuse(spoilt, present, rule))
