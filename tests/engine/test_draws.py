"""The training draw: the same for every method and batch size, stored with the run, and never seen by anything."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny import digits_recipe, emoji_recipe, events_and_value, make_session, mfeat_recipe, run_bytes, trained

from mla_cli.data.missing import draw_present
from mla_cli.engine.data import complete, load_data, open_store
from mla_cli.engine.draws import STORED, draw_training
from mla_cli.engine.evaluate import Request, evaluate
from mla_cli.engine.events import Note
from mla_cli.engine.train import train
from mla_cli.errors import MlaError
from mla_cli.recipe import load_recipe

DRAWN = {"missing_rate": 0.4, "missing_seed": 3}


def test_the_table_is_stored_with_the_run_and_can_be_drawn_again(mfeat_store, data_dir: Path, tmp_path: Path) -> None:
    events, run = events_and_value(train(mfeat_recipe(train=DRAWN), data_dir, tmp_path, "cpu"))
    facts = run.info()["data"]["train_missing"]
    table = pq.read_table(run.path / STORED).to_pandas()
    assert list(table) == ["id", "available.mor", "available.fou", "present.mor", "present.fou"]
    ids = table["id"].to_list()
    assert ids == sorted(ids) and len(ids) == 96
    available, present = (table[[f"{name}.mor", f"{name}.fou"]].to_numpy() for name in ("available", "present"))
    asked = {"pattern": facts["pattern"], "rate": facts["requested"], "seed": facts["seed"]}
    np.testing.assert_array_equal(present, draw_present(available, ids, ["mor", "fou"], split="train", **asked).present)
    assert facts["requested"] == 0.4
    assert facts["realised"] == (~present).mean() == round(0.4 * 192) / 192
    assert facts["realised_by_modality"] == {"mor": (~present[:, 0]).mean(), "fou": (~present[:, 1]).mean()}
    assert facts["natural_absence"] == 0 and facts["expected"] is None
    assert "missing in training (kept_one): 0.4 asked, 0.401 taken" in [e.text for e in events if isinstance(e, Note)]


def test_without_absences_there_is_no_table(mfeat_store, data_dir: Path, tmp_path: Path) -> None:
    run = trained(mfeat_recipe(train={"epochs": 1}), data_dir, tmp_path)
    assert not (run.path / STORED).exists()
    assert "train_missing" not in run.info()["data"]


def test_the_draw_does_not_depend_on_method_batch_size_or_order(mfeat_store, data_dir: Path) -> None:
    changes = [
        {"method": {"name": "mla"}},
        {"method": {"name": "mla", "batching": "independent"}},
        {"method": {"name": "late"}, "train": {"batch_size": 7}},
        {"method": {"name": "concat"}, "seed": 5, "impute": "train_mean"},
    ]
    drawn = []
    for change in changes:
        settings = change.pop("train", {})
        drawn.append(make_session(mfeat_recipe(train=DRAWN | settings, **change), data_dir).data.draw)
    assert len({draw.digest() for draw in drawn}) == 1
    samples, order = drawn[0].samples, np.random.default_rng(0).permutation(96)
    shuffled = draw_training(mfeat_recipe(train=DRAWN), samples.take(order))
    np.testing.assert_array_equal(shuffled.present, drawn[0].present[order])
    assert shuffled.digest() == drawn[0].digest()
    assert draw_training(mfeat_recipe(train=DRAWN | {"missing_seed": 4}), samples).digest() != drawn[0].digest()


def test_rates_by_modality_are_exact_and_named_in_tables(mfeat_store, data_dir: Path, tmp_path: Path) -> None:
    rates = {"missing_rate": {"fou": 0.75}, "missing_pattern": "per_modality", "epochs": 1}
    run = trained(mfeat_recipe(train=rates), data_dir, tmp_path)
    facts = run.info()["data"]["train_missing"]
    assert facts["requested"] == {"mor": 0.0, "fou": 0.75}
    assert facts["realised_by_modality"] == {"mor": 0.0, "fou": 0.75}
    assert set(evaluate(run, Request())["train_missing_rate"]) == {"fou=0.75"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.missing_rate=1", "`train.missing_rate`: must be a fraction from 0 to below 1, got 1"),
        ("train.missing_rate=30", "must be a fraction from 0 to below 1, got 30"),
        ("train.missing_rate=half", "must be a fraction, got 'half'"),
        ("train.missing_rate=true", "must be a fraction, got True"),
        ("train.missing_rate={mor: 1.5}", "must be a fraction from 0 to below 1, got 1.5"),
    ],
)
def test_what_is_no_rate_is_refused_before_anything_is_read(override: str, message: str) -> None:
    with pytest.raises(MlaError, match=r"missing_rate") as error:
        load_recipe(None, [override])
    assert message in error.value.message
    assert "such as 0.3" in error.value.hint
    assert load_recipe(None, ["train.missing_rate.mor=0.5"]).train.missing_rate == {"mor": 0.5}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"missing_rate": {"mor": 0.5}}, "pattern `kept_one` takes one rate"),
        ({"missing_rate": {"mar": 0.5}, "missing_pattern": "per_modality"}, "no modality named `mar`"),
        ({"missing_rate": {"mor": 0.6, "fou": 0.6}, "missing_pattern": "per_modality"}, "sum to `1.2`"),
        ({"missing_rate": 0.6}, "missing rate `0.6` cannot be met"),
    ],
)
def test_rates_that_cannot_be_met_start_no_run(
    mfeat_store, data_dir: Path, tmp_path: Path, settings: dict, message: str
) -> None:
    with pytest.raises(MlaError) as error:
        trained(mfeat_recipe(train=settings), data_dir, tmp_path)
    assert message in error.value.message and error.value.hint
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------ nothing of what is absent is seen


def spoilt_copy(recipe, data_dir: Path, folder: Path) -> Path:
    """The data directory of `recipe` with every entry that its training draw takes away overwritten, in the store."""
    store = open_store(recipe, data_dir)
    shutil.copytree(store.path, folder / store.path.name)
    data = load_data(complete(recipe, store), store)
    train = data.splits["train"]
    for i, m in enumerate(data.modalities):
        gone = train.rows[train.present[:, i] & ~data.train_present[:, i], i]
        assert len(gone) > 10
        number, offset = np.divmod(gone, store.modality(m).shard_rows)
        for shard in np.unique(number):
            path = next((folder / store.path.name).rglob(f"{m}/{shard:05d}.npy"))
            values = np.load(path)
            tokens = store.modality(m).tokens  # the store refuses others
            wrong = np.nan if values.dtype.kind == "f" else (tokens or np.iinfo(values.dtype).max) // 2
            values[offset[number == shard]] = wrong
            np.save(path, values)
    return folder


@pytest.mark.parametrize(
    ("made", "changes"),
    [
        (mfeat_recipe, {"method": {"name": "mla"}, "train": DRAWN | {"optimizer": "adamw", "lr": 0.01}}),
        (mfeat_recipe, {"method": {"name": "mla", "batching": "independent"}, "train": DRAWN}),
        (mfeat_recipe, {"method": {"name": "mla", "hgm": "released"}, "train": DRAWN}),
        (mfeat_recipe, {"method": {"name": "late"}, "train": DRAWN | {"missing_pattern": "bernoulli"}}),
        (mfeat_recipe, {"method": {"name": "concat"}, "train": DRAWN, "impute": "train_mean"}),
        (emoji_recipe, {"train": DRAWN | {"epochs": 2}}),
    ],
    ids=["mla adamw", "independent", "released", "late", "concat", "batch norm"],
)
def test_nan_in_the_store_leaves_the_whole_run_bit_identical(
    mfeat_store, emoji_store, data_dir: Path, tmp_path: Path, made, changes: dict
) -> None:
    """Parameters, buffers, optimiser states, head, P, h, normalisation, imputed inputs, history and predictions."""
    recipe = made(**changes)
    clean = trained(recipe, data_dir, tmp_path / "clean")
    spoilt = trained(recipe, spoilt_copy(recipe, data_dir, tmp_path / "data"), tmp_path / "spoilt")
    assert clean.name == spoilt.name
    one, other = run_bytes(clean), run_bytes(spoilt)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
    tensors, _ = clean.load_checkpoint("last")
    kinds = {name.partition(".")[0] for name in tensors}
    assert {"model", "optim", "mean", "sd", "blank"} <= kinds
    if recipe.method.name == "mla":
        assert "extra" in kinds  # P and the features of the step before


def test_normalisation_is_of_what_is_left(mfeat_store, emoji_store, data_dir: Path) -> None:
    data = make_session(mfeat_recipe(dataset={"limit": None}, train=DRAWN), data_dir).data
    left = data.splits["train"].rows[data.train_present[:, 1], 1]
    rows = mfeat_store.modality("fou").take(left).astype(np.float64)
    np.testing.assert_allclose(data.normalisation["fou"][0], rows.mean(0))
    np.testing.assert_allclose(data.normalisation["fou"][1], rows.std(0))
    data = make_session(emoji_recipe(dataset={"limit": None}, train=DRAWN), data_dir).data
    left = data.splits["train"].rows[data.train_present[:, 0], 0]
    pixels = emoji_store.modality("visual").take(left).astype(np.float64)
    np.testing.assert_allclose(data.normalisation["visual"][0].ravel(), pixels.mean((0, 2, 3)), rtol=1e-9)


def test_a_recording_that_is_left_in_another_pair_counts(digits_store, data_dir: Path) -> None:
    """Drawn pairs share recordings: one pair's absence does not make the recording unknown to the others."""
    recipe = digits_recipe(method={"name": "concat", "batching": "shared"}, train={"missing_rate": 0.2})
    plain = digits_recipe(method={"name": "concat", "batching": "shared"})
    drawn, whole = (make_session(r, data_dir).data for r in (recipe, plain))
    audio = drawn.splits["train"].rows[:, 0]
    assert set(audio[drawn.train_present[:, 0]]) < set(audio)  # some recordings are gone from every pair
    assert not np.array_equal(drawn.normalisation["audio"][0], whole.normalisation["audio"][0])


def test_run_json_is_json(mfeat_store, data_dir: Path, tmp_path: Path) -> None:
    settings = DRAWN | {"missing_pattern": "bernoulli", "epochs": 1}
    facts = json.loads((trained(mfeat_recipe(train=settings), data_dir, tmp_path).path / "run.json").read_text())
    drawn = facts["data"]["train_missing"]
    assert drawn["expected"] == pytest.approx((0.4 - 0.4**2) / (1 - 0.4**2))
    assert drawn["realised"] == pytest.approx(drawn["expected"], abs=0.1)
    assert len(drawn["sha256"]) == 64
