"""`sum`: linear heads whose logits are added; a `concat` with M biases."""

from pathlib import Path

import pytest
import torch
from tiny import difference, frozen_copy, make_session, mfeat_recipe, trained

from mla_cli.engine.predictions import read_predictions

VIEWS = ("mor", "fou", "zer")


def test_it_is_concat_with_the_biases_added_up(mfeat_store, data_dir: Path) -> None:
    method = make_session(mfeat_recipe(VIEWS, method={"name": "sum"}), data_dir).method
    joint = make_session(mfeat_recipe(VIEWS, method={"name": "concat"}), data_dir).method
    with torch.no_grad():
        joint.heads["joint"].weight.copy_(torch.cat([method.heads[m].weight for m in VIEWS], dim=1))
        joint.heads["joint"].bias.copy_(sum(method.heads[m].bias for m in VIEWS))
    features = {m: torch.randn(5, 8) for m in VIEWS}
    torch.testing.assert_close(method.combine(features), joint.combine(features))


def test_a_modality_alone_is_its_own_head_and_the_parts_sum_to_the_whole(
    mfeat_store, data_dir: Path, tmp_path: Path
) -> None:
    predictions = read_predictions(trained(mfeat_recipe(VIEWS, method={"name": "sum"}), data_dir, tmp_path).predictions)
    assert difference(predictions.logits.sum(1), predictions.subsets[frozenset(VIEWS)]) < 1e-4
    assert predictions.facts["alone_readout"] == "own head, bias included"
    # another modality imputed is not left out: its head still has a say
    assert difference(predictions.logits[:, 0], predictions.subsets[frozenset(VIEWS[:1])]) > 0.01


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_a_step_moves_everything_by_one_loss(mfeat_store, data_dir: Path, rate: float) -> None:
    session = make_session(mfeat_recipe(method={"name": "sum"}, train={"missing_rate": rate}), data_dir)
    before = frozen_copy(session.method)
    losses = session.method.step(next(iter(session.train_loader.epoch(1))))
    assert list(losses) == ["fused"]
    assert not any(torch.equal(before[name], value) for name, value in frozen_copy(session.method).items())
