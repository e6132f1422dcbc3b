"""`concat`: one head on all features; logits for every subset of modalities, absent inputs imputed."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import difference, digits_recipe, frozen_copy, make_session, mfeat_recipe, trained

from mla_cli.data.missing import draw_present
from mla_cli.engine.predictions import Predictions, read_predictions
from mla_cli.engine.scoring import score
from mla_cli.errors import MlaError

VIEWS = ("mor", "fou", "zer")


@pytest.fixture(scope="module", params=["zeros", "train_mean"])
def scored(request, mfeat_store, data_dir: Path, tmp_path_factory):
    """A trained run with noise on its inputs, its session with the selected weights, and its predictions of test."""
    recipe = mfeat_recipe(VIEWS, method={"name": "concat"}, impute=request.param, dropout=0.2)
    run = trained(recipe, data_dir, tmp_path_factory.mktemp("runs"))
    session = make_session(recipe, data_dir)
    session.load_model(run.load_checkpoint("best")[0])
    session.method.eval()
    return session, read_predictions(run.predictions).of_split("test")


def direct(session, present: np.ndarray) -> np.ndarray:
    """One plain pass of the model over the test split, inputs of absent entries replaced before the encoder."""
    method, loader = session.method, session.split_loader("test")
    features = []
    for i, m in enumerate(method.modalities):
        inputs = loader.modalities[m].batch(np.arange(len(present)))
        shape = (-1, *[1] * (inputs.dim() - 1))
        here = torch.from_numpy(present[:, i]).reshape(shape)
        features.append(method.encoders[m](torch.where(here, inputs, session.blanks[m])))
    with torch.no_grad():
        return method.heads["joint"](torch.cat(features, 1)).numpy()


def test_every_subset_column_equals_a_pass_with_imputed_inputs(scored) -> None:
    session, predictions = scored
    subsets = [frozenset(s) for size in (1, 2, 3) for s in combinations(VIEWS, size)]
    assert set(predictions.subsets) == set(subsets)
    for subset in subsets:
        present = np.tile([m in subset for m in VIEWS], (len(predictions), 1))
        assert difference(predictions.subsets[subset], direct(session, present)) < 1e-5
    full = predictions.subsets[frozenset(VIEWS)]
    assert difference(predictions.subsets[frozenset(VIEWS[:1])], full) > 0.01  # imputing does change the logits


def test_missing_rates_by_look_up_equal_running_the_model_again(scored) -> None:
    from mla_cli.engine.evaluate import Evaluator, mixed_logits

    session, p = scored
    draw = draw_present(p.present, p.ids, p.modalities, pattern="kept_one", rate=0.4, seed=3, split="test")
    assert draw.realised > 0
    again = direct(session, draw.present)
    assert difference(mixed_logits(p, draw.present), again) < 1e-5
    assert difference(Evaluator(p, session.recipe, {}).fused("native", draw.present), again) < 1e-5


def test_a_modality_alone_is_its_columns_of_the_head_and_its_share_of_the_bias(scored) -> None:
    session, predictions = scored
    head, width = session.method.heads["joint"], session.recipe.shared_width
    loader = session.split_loader("test")
    total = np.zeros_like(predictions.logits[:, 0])
    for i, m in enumerate(VIEWS):
        with torch.no_grad():
            features = session.method.encoders[m](loader.modalities[m].batch(np.arange(len(predictions))))
            own = features @ head.weight[:, i * width : (i + 1) * width].T + head.bias / 3
        assert difference(predictions.logits[:, i], own.numpy()) < 1e-5
        total += predictions.logits[:, i]
    assert difference(total, predictions.subsets[frozenset(VIEWS)]) < 1e-4  # the parts sum to the whole


def test_a_step_moves_everything(mfeat_store, data_dir: Path) -> None:
    session = make_session(mfeat_recipe(method={"name": "concat"}), data_dir)
    before = frozen_copy(session.method)
    losses = session.method.step(next(iter(session.train_loader.epoch(1))))
    assert list(losses) == ["fused"]
    assert not any(torch.equal(before[name], value) for name, value in frozen_copy(session.method).items())


def test_training_imputes_what_is_missing(mfeat_store, data_dir: Path) -> None:
    changes = {"train": {"missing_rate": 0.4}, "impute": "train_mean", "method": {"name": "concat"}}
    session = make_session(mfeat_recipe(**changes), data_dir)
    absent = 0
    for batch in session.train_loader.epoch(1):
        assert batch.present is not None
        assert len({len(inputs) for inputs in batch.inputs.values()}) == 1
        for i, m in enumerate(session.method.modalities):
            gone = ~batch.present[:, i]
            absent += int(gone.sum())
            assert (batch.inputs[m][gone] == session.blanks[m]).all()
            assert (batch.inputs[m][~gone] != session.blanks[m]).any(1).all()
    assert absent == round(0.4 * 96 * 2)


def test_the_imputed_mean_is_that_of_the_training_samples_which_have_it(mfeat_store, data_dir: Path) -> None:
    changes = {"train": {"missing_rate": 0.4}, "impute": "train_mean", "method": {"name": "concat"}}
    session = make_session(mfeat_recipe(**changes), data_dir)
    split = session.split_loader("train")
    for i, m in enumerate(("mor", "fou")):
        has = np.flatnonzero(session.data.train_present[:, i])
        torch.testing.assert_close(session.blanks[m], split.modalities[m].batch(has).mean(0), rtol=1e-4, atol=1e-5)
        assert session.blanks[m].abs().max() > 0.01


def test_unpaired_data_are_paired_for_it(digits_store, data_dir: Path, tmp_path: Path) -> None:
    run = trained(digits_recipe(method={"name": "concat"}), data_dir, tmp_path)
    predictions = read_predictions(run.predictions)
    assert predictions.present.all()
    assert run.info()["data"]["train"]["samples"] == 60
    assert run.info()["data"]["train"]["distinct"]["audio"] <= 50


def test_more_than_six_modalities_are_refused_before_training(
    mfeat_store, data_dir: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("mla_cli.engine.scoring.MAX_MIXED", 2)
    recipe = mfeat_recipe(VIEWS, method={"name": "concat"})
    monkeypatch.setattr("mla_cli.engine.session.Session.train_rounds", lambda *_: pytest.fail("it trained"))
    with pytest.raises(MlaError, match="7 subsets") as error:
        trained(recipe, data_dir, tmp_path)
    assert "dataset.modalities" in error.value.hint


def test_batch_normalisation_skips_a_batch_of_one(emoji_store, data_dir: Path) -> None:
    from tiny import emoji_recipe

    session = make_session(emoji_recipe(method={"name": "concat"}, dataset={"limit": 33}), data_dir)
    session.method.train()
    batches = list(session.train_loader.epoch(1))
    assert [len(batch.inputs) for batch in batches] == [2, 0]
    before = frozen_copy(session.method)
    assert session.method.step(batches[1]) == {}
    assert all(torch.equal(before[n], v) for n, v in frozen_copy(session.method).items())
    assert session.train_loader.skipped == {"visual": 1, "text": 1}


def test_validation_scores_only_what_is_there(mfeat_store, data_dir: Path) -> None:
    session = make_session(mfeat_recipe(method={"name": "concat"}), data_dir)
    found = score(session, "val", every_subset=False)
    assert isinstance(found, Predictions)
    assert set(found.subsets) == {frozenset(("mor", "fou"))}
