"""`film` equals its definition written by hand; a modality alone has the others imputed."""

from pathlib import Path

import numpy as np
import torch
from tiny import make_session, mfeat_recipe, trained

from mla_cli.engine.predictions import read_predictions

VIEWS = ("mor", "fou", "zer")


def test_two_modalities_equal_the_two_line_reference(mfeat_store, data_dir: Path) -> None:
    method = make_session(mfeat_recipe(method={"name": "film"}), data_dir).method
    x1, x2 = torch.randn(6, 8), torch.randn(6, 8)
    out = method.heads["film_fou"](x1)
    reference = method.heads["joint"](out[:, :8] * x2 + out[:, 8:])
    assert torch.equal(method.combine({"mor": x1, "fou": x2}), reference)
    assert not torch.allclose(method.combine({"mor": x2, "fou": x1}), reference)


def test_three_are_chained_in_order(mfeat_store, data_dir: Path) -> None:
    method = make_session(mfeat_recipe(VIEWS, method={"name": "film"}), data_dir).method
    x = {m: torch.randn(6, 8) for m in VIEWS}
    one = method.heads["film_fou"](x["mor"])
    z = one[:, :8] * x["fou"] + one[:, 8:]
    two = method.heads["film_zer"](z)
    assert torch.equal(method.combine(x), method.heads["joint"](two[:, :8] * x["zer"] + two[:, 8:]))


def test_alone_is_the_subset_of_one_bit_for_bit(mfeat_store, data_dir: Path, tmp_path: Path) -> None:
    for name in ("film", "bigated"):
        recipe = mfeat_recipe(VIEWS, method={"name": name}, impute="train_mean", dropout=0.2)
        predictions = read_predictions(trained(recipe, data_dir, tmp_path).predictions)
        assert predictions.facts["alone_readout"] == "others absent (imputed)"
        for i, m in enumerate(VIEWS):
            np.testing.assert_array_equal(predictions.logits[:, i], predictions.subsets[frozenset((m,))])
            assert np.ptp(predictions.logits[:, i], axis=0).max() > 0.01  # it depends on the sample
