"""`encoders.<m>.normalise` in training, checkpoints, rescoring and the run's hash."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import emoji_recipe, finish, make_session, trained

from mla_cli.engine.data import complete, load_data
from mla_cli.engine.predictions import read_predictions
from mla_cli.engine.rescore import score_dataset
from mla_cli.errors import MlaError
from mla_cli.recipe import recipe_hash

IMAGENET = {"visual": {"normalise": "imagenet"}}


def test_inputs_are_normalised_by_the_rule_and_the_checkpoint_keeps_it(emoji_store, data_dir: Path) -> None:
    session = make_session(emoji_recipe(encoders=IMAGENET), data_dir)
    loader = session.split_loader("train").modalities["visual"]
    stored = torch.from_numpy(loader.store.take(loader.rows[:4])).float() / 255
    mean, sd = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (stored - mean[:, None, None]) / sd[:, None, None]
    torch.testing.assert_close(loader.batch(np.arange(4)), expected, rtol=1e-5, atol=1e-5)
    kept = session.model_state()
    torch.testing.assert_close(kept["mean.visual"].ravel(), 255 * mean.double(), check_dtype=False)
    torch.testing.assert_close(kept["sd.visual"].ravel(), 255 * sd.double(), check_dtype=False)
    assert kept["mean.text"].item() == 0


def test_the_rule_is_part_of_the_runs_hash() -> None:
    assert recipe_hash(emoji_recipe(encoders=IMAGENET), "data") != recipe_hash(emoji_recipe(), "data")


def test_another_set_is_scored_as_the_run_was_trained(emoji_store, data_dir: Path, tmp_path: Path) -> None:
    run = trained(emoji_recipe(encoders=IMAGENET, dataset={"limit": None}, train={"max_rounds": 2}), data_dir, tmp_path)
    own, again = read_predictions(run.predictions), finish(score_dataset(run, "emoji", data_dir))
    assert own.ids.tolist() == again.ids.tolist()
    np.testing.assert_allclose(again.logits, own.logits, rtol=1e-4, atol=1e-5)


def test_a_rule_that_does_not_fit_stops_before_training(emoji_store, data_dir: Path) -> None:
    recipe = complete(emoji_recipe(encoders={"text": {"normalise": "none"}}), emoji_store)
    with pytest.raises(MlaError, match=r"`encoders\.text\.normalise: none` does not fit features of kind `text`"):
        load_data(recipe, emoji_store)
