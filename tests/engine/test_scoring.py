"""Scoring a split: what a model says of each sample, alone and fused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import difference, make_session, mfeat_recipe

from mla_cli.engine.predictions import Predictions
from mla_cli.engine.scoring import accuracies, fused_scores, score, wanted_subsets
from mla_cli.engine.scoring_rules import fixed_weights
from mla_cli.errors import MlaError


def test_logits_are_those_of_a_plain_pass(mfeat_store, data_dir: Path) -> None:
    session = make_session(mfeat_recipe(dropout=0.4), data_dir)
    found = score(session, "test", every_subset=True)
    assert not found.subsets
    assert found.ids.tolist() == session.data.splits["test"].ids.tolist()
    inputs = {m: session.split_loader("test").modalities[m].batch(np.arange(96)) for m in ("mor", "fou")}
    session.method.eval()  # dropout is off in scoring
    with torch.no_grad():
        plain = session.method.predict(inputs, torch.ones(96, 2, dtype=torch.bool))
    assert difference(found.logits, plain.numpy()) < 1e-5


def test_batches_of_scoring_do_not_matter(mfeat_store, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = make_session(mfeat_recipe(), data_dir)
    whole = score(session, "val", every_subset=True)
    monkeypatch.setattr("mla_cli.engine.scoring.SCORE_BATCH", 17)
    parts = score(session, "val", every_subset=True)
    assert difference(whole.logits, parts.logits) < 1e-5


def test_absent_modalities_are_nan_and_leave_the_others_alone(mfeat_store, data_dir: Path) -> None:
    session = make_session(mfeat_recipe(), data_dir)
    whole = score(session, "test", every_subset=True)
    samples = session.data.splits["test"]
    samples.rows[::3, 0] = -1
    session.loaders.clear()
    part = score(session, "test", every_subset=True)
    assert np.isnan(part.logits[::3, 0]).all()
    assert not part.present[::3, 0].any()
    assert difference(part.logits[:, 1], whole.logits[:, 1]) < 1e-6
    some = part.present[:, 0]
    assert difference(part.logits[some, 0], whole.logits[some, 0]) < 1e-6


def test_training_and_batch_statistics_are_left_alone(emoji_store, data_dir: Path) -> None:
    from tiny import emoji_recipe, frozen_copy, same_bits

    session = make_session(emoji_recipe(), data_dir)
    before = frozen_copy(session.method)
    score(session, "val", every_subset=True)
    assert same_bits(before, frozen_copy(session.method))


def test_a_broken_model_is_refused(mfeat_store, data_dir: Path) -> None:
    session = make_session(mfeat_recipe(), data_dir)
    with torch.no_grad():
        session.method.head.bias[3] = float("inf")
    with pytest.raises(MlaError, match="96 of 96 samples of split `val`"):
        score(session, "val", every_subset=False)


def table(logits: np.ndarray, present: np.ndarray, labels: list[int]) -> Predictions:
    count = len(labels)
    names = [f"m{i}" for i in range(logits.shape[1])]
    texts = np.array([f"s{i}" for i in range(count)], dtype=object)
    return Predictions(texts, texts, texts, np.array(labels), names, present, logits.astype(np.float32), {}, {})


def test_accuracies_count_each_modality_where_it_is_there() -> None:
    logits = np.array([[[2, 0], [0, 1]], [[2, 0], [0, 1]], [[0, 3], [0, 1]], [[0, 0], [0, 0]]], dtype=float)
    present = np.array([[True, True], [True, False], [False, True], [False, False]])
    found = table(logits, present, [0, 1, 1, 0])
    fused = fused_scores(found, present, mfeat_recipe(fusion={"rule": "uniform"}), "uniform", "native")
    assert np.isnan(fused[3]).all()
    np.testing.assert_allclose(fused[0], [1.0, 0.5])
    assert accuracies(found, fused) == {"m0": 0.5, "m1": 0.5, "fused": 2 / 3}


def test_the_fusion_rule_is_the_recipes_or_else_the_methods() -> None:
    logits = np.array([[[4.0, 0.0], [0.0, 1.0]]])
    found = table(logits, np.ones((1, 2), bool), [0])
    plain = mfeat_recipe()
    uniform = fused_scores(found, found.present, plain, "uniform", "native")
    entropy = fused_scores(found, found.present, plain, "uniform", "entropy")
    forced = fused_scores(found, found.present, mfeat_recipe(fusion={"rule": "uniform"}), "uniform", "entropy")
    np.testing.assert_allclose(uniform, [[2.0, 0.5]])
    np.testing.assert_array_equal(forced, uniform)
    assert entropy[0, 0] > uniform[0, 0]  # the sure modality weighs more
    weights = {"m0": 1.0, "m1": 3.0}
    fixed = mfeat_recipe(fusion={"rule": "fixed", "weights": weights})
    np.testing.assert_allclose(fused_scores(found, found.present, fixed, "uniform", "entropy"), [[1.0, 0.75]])


def test_fixed_weights_stand_in_the_order_of_the_modalities() -> None:
    recipe = mfeat_recipe(fusion={"weights": {"fou": 0.2, "mor": 0.8}})
    assert fixed_weights(recipe, ["mor", "fou"]) == [0.8, 0.2]
    assert fixed_weights(recipe, ["fou"]) == [0.2]
    assert fixed_weights(mfeat_recipe(), ["visual", "text"]) == [0.45, 0.55]  # as released
    with pytest.raises(MlaError, match="no weight for `zer`"):
        fixed_weights(recipe, ["mor", "zer"])
    with pytest.raises(MlaError, match="no released fixed weights"):
        fixed_weights(mfeat_recipe(), ["mor", "fou"])


def test_subsets_come_small_ones_first() -> None:
    assert wanted_subsets(mfeat_recipe(), ["a", "b"]) == [frozenset("a"), frozenset("b"), frozenset("ab")]
    assert len(wanted_subsets(mfeat_recipe(), list("abcdef"))) == 63


def test_only_requested_subsets_are_scored_and_they_may_be_of_more_than_six_modalities() -> None:
    letters = list("abcdefg")
    asked = mfeat_recipe(subsets=[["b", "a"], ["g"], ["a", "b"]])
    assert wanted_subsets(asked, letters) == [frozenset("g"), frozenset("ab"), frozenset("abcdefg")]
    assert wanted_subsets(mfeat_recipe(subsets=[]), letters) == [frozenset(letters)]
    with pytest.raises(MlaError, match="127 subsets to score, more than 63") as error:
        wanted_subsets(mfeat_recipe(), letters)
    assert "--set 'subsets=[[a], [a, b]]'" in error.value.hint
    with pytest.raises(MlaError, match="no modality named `h`"):
        wanted_subsets(mfeat_recipe(subsets=[["h"]]), letters)
    with pytest.raises(MlaError, match="empty subset"):
        wanted_subsets(mfeat_recipe(subsets=[[]]), letters)


@pytest.mark.parametrize("method", ["mla", "late", "concat", "film"])
@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_what_stands_where_an_input_is_absent_reaches_no_prediction(
    mfeat_store, data_dir: Path, method: str, value: float
) -> None:
    session = make_session(mfeat_recipe(method={"name": method}), data_dir)
    session.data.splits["test"].rows[::3, 0] = -1
    clean = score(session, "test", every_subset=True)
    resident = session.split_loader("test").modalities["mor"].resident
    resident[::3] = value
    spoilt = score(session, "test", every_subset=True)
    np.testing.assert_array_equal(clean.logits, spoilt.logits)
    assert clean.subsets.keys() == spoilt.subsets.keys()
    for subset, logits in clean.subsets.items():
        np.testing.assert_array_equal(logits, spoilt.subsets[subset])


@pytest.mark.parametrize("method", ["concat", "film", "bigated"])
def test_logits_of_a_subset_do_not_know_the_other_modalities(mfeat_store, data_dir: Path, method: str) -> None:
    session = make_session(mfeat_recipe(("mor", "fou", "zer"), method={"name": method}), data_dir)
    clean = score(session, "test", every_subset=True)
    session.split_loader("test").modalities["fou"].resident.mul_(-3.0)
    other = score(session, "test", every_subset=True)
    for subset, logits in clean.subsets.items():
        assert np.array_equal(logits, other.subsets[subset]) == ("fou" not in subset)


def test_only_requested_subsets_are_stored(mfeat_store, data_dir: Path) -> None:
    recipe = mfeat_recipe(("mor", "fou", "zer"), method={"name": "concat"}, subsets=[["zer"]])
    found = score(make_session(recipe, data_dir), "test", every_subset=True)
    assert list(found.subsets) == [frozenset(("zer",)), frozenset(("mor", "fou", "zer"))]
