"""`late` is an ensemble of `unimodal` runs: separate heads and summed losses decouple, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import (
    digits_recipe,
    emoji_recipe,
    frozen_copy,
    make_session,
    mfeat_recipe,
    one_modality,
    optimizer_copy,
    same_bits,
    trained,
)

from mla_cli.engine.predictions import read_predictions

NOISE = {"noise": 0.3}
LAST = {"train": {"select_on": "last"}}
CASES = {
    "shared": (mfeat_recipe, {"dropout": 0.3, "augment": {"mor": NOISE, "fou": NOISE}}),
    "independent": (mfeat_recipe, {"dropout": 0.3, "augment": {"mor": NOISE}, "method": {"batching": "independent"}}),
    "missing": (mfeat_recipe, {"dropout": 0.3, "train": {"missing_rate": 0.3, "optimizer": "adamw", "lr": 0.01}}),
    "zeros": (mfeat_recipe, {"dropout": 0.3, "train": {"missing_rate": 0.3, "absent": "zeros"}}),
    "emoji": (
        emoji_recipe,
        {
            "encoders": {"visual": {"dropout": 0.2}, "text": {"dropout": 0.2}},
            "augment": {"visual": {"crop": 0.6, "shift": 2}, "text": {"drop_tokens": 0.2}},
        },
    ),
    "unpaired": (digits_recipe, {"augment": {"audio": {"time_mask": 8}, "visual": {"shift": 1}}}),
}


@pytest.mark.parametrize("case", CASES)
def test_part_m_equals_the_unimodal_run_bit_for_bit(
    mfeat_store, emoji_store, digits_store, data_dir: Path, tmp_path: Path, case: str
) -> None:
    make, changes = CASES[case]
    changes = {**changes, "train": {**changes.get("train", {}), **LAST["train"], "epochs": 2}}
    method = changes.get("method", {})

    def run(**keys):
        return trained(make(**{**changes, "method": {**method, **keys}}), data_dir, tmp_path)

    late = run(name="late")
    state, _ = late.load_checkpoint("last")
    predictions = read_predictions(late.predictions)
    for i, m in enumerate(predictions.modalities):
        alone = run(name="unimodal", unimodal={"modality": m})
        own, _ = alone.load_checkpoint("last")
        parts = {k for k in state if k.startswith((f"model.encoders.{m}.", f"model.heads.{m}."))}
        assert parts == {k for k in own if k.startswith("model.")}
        assert all(torch.equal(state[key], own[key]) for key in parts)
        scored = read_predictions(alone.predictions)
        assert scored.modalities == [m]
        np.testing.assert_array_equal(scored.logits[:, 0], predictions.logits[:, i])
        assert np.isfinite(scored.logits).any()


def test_dropout_and_augmentation_are_really_on(mfeat_store, data_dir: Path) -> None:
    """Otherwise the bit-identity above would say nothing about their draws."""
    losses = []
    for changes in ({}, {"dropout": 0.3}, {"augment": {"mor": NOISE}}):
        session = make_session(mfeat_recipe(method={"name": "late"}, **changes), data_dir)
        session.method.train()
        losses.append(float(session.method.step(next(iter(session.train_loader.epoch(1))))["mor"]))
    assert len(set(losses)) == 3


def test_a_step_of_one_part_moves_nothing_of_the_other(emoji_store, data_dir: Path) -> None:
    session = make_session(emoji_recipe(method={"name": "late"}), data_dir)
    session.method.train()
    first, second = session.train_loader.epoch(1)
    session.method.step(first)
    names = ("encoder.visual", "head.visual")
    before = {n: optimizer_copy(session.optimizers[n]) for n in names}
    parts = [session.method.encoders["visual"], session.method.heads["visual"]]
    weights = [frozen_copy(part) for part in parts]
    session.method.step(one_modality(second, "text"))
    assert all(same_bits(before[n], optimizer_copy(session.optimizers[n])) for n in names)
    assert all(same_bits(old, frozen_copy(part)) for old, part in zip(weights, parts, strict=True))


def test_the_fused_logits_are_the_mean_over_present_modalities(mfeat_store, data_dir: Path, tmp_path: Path) -> None:
    from mla_cli.engine.evaluate import Evaluator

    run = trained(mfeat_recipe(method={"name": "late"}), data_dir, tmp_path)
    predictions = read_predictions(run.predictions)
    evaluator = Evaluator(predictions, run.recipe(), {})
    both = evaluator.fused("native", predictions.present)
    np.testing.assert_allclose(both, predictions.logits.mean(1), rtol=1e-5, atol=1e-6)
    present = predictions.present.copy()
    present[:, 0] = False
    np.testing.assert_allclose(evaluator.fused("native", present), predictions.logits[:, 1])
