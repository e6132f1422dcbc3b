"""From a recipe and a store to samples: what the data decide, pairs, missing modalities, normalisation."""

from pathlib import Path

import numpy as np
import pytest
from tiny import digits_recipe, finish, mfeat_recipe

from mla_cli.engine.data import complete, ensure_prepared, load_data, open_store
from mla_cli.errors import MlaError
from mla_cli.recipe import load_recipe, validate
from mla_cli.schema import Recipe


def loaded(recipe: Recipe, data_dir: Path, aligned: bool = False):
    store = open_store(recipe, data_dir)
    return load_data(complete(recipe, store), store, aligned)


def test_a_recipe_is_completed_from_the_store(mfeat_store, data_dir: Path) -> None:
    recipe = load_recipe(None, base={"dataset": {"name": "mfeat"}})
    found = complete(recipe, mfeat_store)
    views = ["mor", "fou", "zer", "kar", "fac", "pix"]
    assert found.dataset.modalities == views
    assert found.method.order == views
    assert found.dataset.protocol == "shipped"
    assert {m: e.name for m, e in found.encoders.items()} == dict.fromkeys(views, "mlp")
    assert found.features["mor"].width == 6
    assert recipe.dataset.modalities is None  # a copy was completed
    assert complete(found, mfeat_store) == found
    assert validate(found.model_dump(), "again") == found


def test_other_modalities_are_dropped_from_every_section(mfeat_store) -> None:
    content = {
        "dataset": {"name": "mfeat", "modalities": ["fou", "mor"]},
        "encoders": {m: {"name": "mlp", "hidden": 3} for m in ("mor", "fou", "pix")},
        "augment": {"pix": {"noise": 0.1}, "mor": {"noise": 0.2}},
    }
    found = complete(load_recipe(None, base=content), mfeat_store)
    assert list(found.encoders) == list(found.features) == ["fou", "mor"]
    assert list(found.augment) == ["mor"]


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ({"dataset": {"modalities": ["mor", "fuo"]}}, "no modality `fuo`", "did you mean `fou`?"),
        ({"features": {"mor": {"kind": "vector", "width": 7}}}, "another feature spec for `mor`", "mla prepare mfeat"),
        ({"dataset": {"protocol": "randon"}}, "no protocol `randon`", "did you mean `random`?"),
        ({"method": {"order": ["mor"]}}, "`method.order`", "every modality"),
    ],
)
def test_what_the_data_lack_is_named(mfeat_store, content: dict, message: str, hint: str) -> None:
    content = {**content, "dataset": {"name": "mfeat", **content.get("dataset", {})}}
    with pytest.raises(MlaError) as error:
        complete(load_recipe(None, base=content), mfeat_store)
    assert message in error.value.message
    assert hint in error.value.hint


def test_unknown_and_unprepared_data(tmp_path: Path) -> None:
    with pytest.raises(MlaError, match="no dataset named `mfaet`") as error:
        open_store(load_recipe(None, base={"dataset": {"name": "mfaet"}}), tmp_path)
    assert "`mfeat`" in error.value.hint
    with pytest.raises(MlaError, match="`cremad` is not prepared") as error:
        open_store(load_recipe(None, base={"dataset": {"name": "cremad"}}), tmp_path)
    assert "mla prepare cremad" in error.value.hint
    assert "--root" in error.value.hint
    with pytest.raises(MlaError) as error:
        open_store(mfeat_recipe(), tmp_path)
    assert "--root" not in error.value.hint  # built in


def test_only_built_in_data_are_prepared_on_demand(tmp_path: Path) -> None:
    finish(ensure_prepared(load_recipe(None, base={"dataset": {"name": "cremad"}}), tmp_path))
    assert not list(tmp_path.iterdir())


def test_splits_are_disjoint_and_have_every_class(mfeat_store, data_dir: Path) -> None:
    data = loaded(mfeat_recipe(dataset={"limit": None}), data_dir)
    sizes = {split: len(samples) for split, samples in data.splits.items()}
    assert sizes == {"train": 1000, "val": 400, "test": 600}
    ids = np.concatenate([samples.ids for samples in data.splits.values()])
    assert len(set(ids)) == 2000
    assert all(set(samples.labels) == set(range(10)) for samples in data.splits.values())
    assert data.facts["test"]["samples"] == 600


def test_another_split_seed_draws_another_split(mfeat_store, data_dir: Path) -> None:
    ids = [
        loaded(mfeat_recipe(dataset={"protocol": "random", "split_seed": s}), data_dir).splits["test"].ids.tolist()
        for s in (0, 0, 1)
    ]
    assert ids[0] == ids[1]
    assert ids[0] != ids[2]


def test_normalisation_is_that_of_the_training_rows(mfeat_store, data_dir: Path) -> None:
    data = loaded(mfeat_recipe(dataset={"limit": None}), data_dir)
    rows = mfeat_store.modality("fou").take(data.splits["train"].rows[:, 1]).astype(np.float64)
    mean, sd = data.normalisation["fou"]
    np.testing.assert_allclose(mean, rows.mean(0))
    np.testing.assert_allclose(sd, rows.std(0))


@pytest.mark.parametrize("pattern", ["kept_one", "bernoulli", "per_modality"])
def test_training_absences_follow_their_pattern_and_seed(mfeat_store, data_dir: Path, pattern: str) -> None:
    def drawn(**keys) -> np.ndarray:
        recipe = mfeat_recipe(train={"missing_rate": 0.25, "missing_pattern": pattern, **keys})
        data = loaded(recipe, data_dir)
        facts = data.facts["train_missing"]
        assert facts["pattern"] == pattern
        assert facts["realised"] == pytest.approx(1 - data.train_present.mean())
        return data.train_present

    present = drawn()
    assert present.any(1).all()
    assert 0.1 < 1 - present.mean() < 0.35
    if pattern != "bernoulli":
        assert 1 - present.mean() == 0.25
    if pattern == "per_modality":
        assert (1 - present.mean(0)).tolist() == [0.25, 0.25]
    np.testing.assert_array_equal(present, drawn())
    assert (present != drawn(missing_seed=1)).any()


def test_a_training_rate_that_cannot_be_met_is_refused(mfeat_store, data_dir: Path) -> None:
    with pytest.raises(MlaError, match=r"0\.6.* cannot be met"):
        loaded(mfeat_recipe(train={"missing_rate": 0.6}), data_dir)


def test_unpaired_data_are_paired_for_scoring_and_for_methods_that_need_pairs(digits_store, data_dir: Path) -> None:
    data = loaded(digits_recipe(dataset={"limit": None}), data_dir)
    assert data.splits["train"].present.sum(1).max() == 1
    assert data.splits["train"].paired_with_seed is None
    for split in ("val", "test"):
        assert data.splits[split].present.all()
        assert data.splits[split].paired_with_seed == 0
        assert len(data.splits[split]) == 500
        assert data.facts[split]["distinct"] == {"audio": 10, "visual": 500}
    paired = loaded(digits_recipe(dataset={"limit": None}), data_dir, aligned=True).splits["train"]
    assert paired.present.all()
    assert len(paired) == 2000
    assert paired.distinct == {"audio": 50, "visual": 2000}
    assert data.facts["pair_seed"] == 0


def test_training_pairs_come_from_the_pair_seed_alone(digits_store, data_dir: Path) -> None:
    ids = [
        loaded(digits_recipe(dataset={"pair_seed": pair}, seed=seed), data_dir, aligned=True).splits["train"].ids
        for pair, seed in ((0, 0), (0, 1), (1, 0))
    ]
    assert ids[0].tolist() == ids[1].tolist()
    assert ids[0].tolist() != ids[2].tolist()


def test_the_limit_holds_for_each_pattern_of_presence(digits_store, data_dir: Path) -> None:
    train = loaded(digits_recipe(dataset={"limit": 20}), data_dir).splits["train"]
    assert train.present.sum(0).tolist() == [20, 20]
    again = loaded(digits_recipe(dataset={"limit": 20}, seed=3), data_dir).splits["train"]
    assert train.ids.tolist() == again.ids.tolist()
    assert train.ids.tolist() == sorted(train.ids)


def test_a_class_that_a_split_lacks_is_an_error(mfeat_store, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mla_cli.datasets import mfeat

    real = mfeat.split

    def split(rows, protocol, seed, fold):
        side = real(rows, protocol, seed, fold)
        side[(rows["label"] == "7").to_numpy() & (side == "val")] = ""
        return side

    monkeypatch.setattr(mfeat, "split", split)
    with pytest.raises(MlaError, match="7") as error:
        loaded(mfeat_recipe(), data_dir)
    assert "val" in error.value.message
