"""Data that make numbers say little: told before training, kept in `run.json`; numbers beyond float32 are errors."""

from pathlib import Path

import numpy as np
import pytest
from tiny import finish, mfeat_recipe, trained

from mla_cli.engine.cautions import cautions
from mla_cli.engine.data import check_scale, complete, load_data, open_store
from mla_cli.engine.executor import Local
from mla_cli.engine.prepare import prepare
from mla_cli.engine.progress import diverged_hint
from mla_cli.engine.run import Run
from mla_cli.errors import MlaError
from mla_cli.recipe import load_recipe
from mla_cli.schema import Recipe

POINTS = np.random.default_rng(0).normal(size=(40, 4))


def own_recipe(tmp_path: Path, points: np.ndarray, classes: str = "ab", **changes) -> Recipe:
    """A prepared table `t` with one vector per row, whose labels take turns."""
    np.save(tmp_path / "x.npy", points)
    rows = "".join(f"s{i:02d},{classes[i % len(classes)]},x.npy::{i}\n" for i in range(len(points)))
    (tmp_path / "t.csv").write_text(f"id,label,point\n{rows}", "utf-8")
    content = {
        "name": "own",
        "dataset": {"name": "table", "store": "t"},
        "encoders": {"point": {"name": "mlp", "hidden": 4}},
        "shared_width": 4,
        "train": {"epochs": 1, "batch_size": 8, "threads": 1},
    }
    recipe = load_recipe(None, base=content | changes)
    options = {"table": tmp_path / "t.csv"}
    finish(prepare("table", tmp_path, recipe, tmp_path, executor=Local(1), scan_options=options))
    return recipe


def lines_of(recipe: Recipe, data_dir: Path) -> list[str]:
    store = open_store(recipe, data_dir)
    recipe = complete(recipe, store)
    return cautions(recipe, load_data(recipe, store))


def test_good_data_have_none(mfeat_store, data_dir: Path, tmp_path: Path) -> None:
    assert lines_of(mfeat_recipe(("mor", "fou"), dataset={"limit": None}), data_dir) == []
    ones = np.where(np.arange(40)[:, None] % 2, POINTS, -POINTS)
    assert lines_of(own_recipe(tmp_path, ones), tmp_path) == []


def test_a_column_that_never_changes(tmp_path: Path) -> None:
    points = POINTS.copy()
    points[:, 1] = 7.3
    recipe = own_recipe(tmp_path, points)
    line = "point tells little: 1 of 4 columns or channels are constant over the training samples, and become 0"
    assert lines_of(recipe, tmp_path) == [line]
    run = trained(recipe, tmp_path, tmp_path / "runs")
    assert line in run.info()["warnings"]
    recipe.encoders["point"].normalise = "none"
    assert lines_of(recipe, tmp_path) == []


def test_features_that_are_the_same_everywhere(tmp_path: Path) -> None:
    recipe = own_recipe(tmp_path, np.full((40, 4), -3e5))
    assert lines_of(recipe, tmp_path)[0].startswith("point tells little: its values are constant")
    run = trained(recipe, tmp_path, tmp_path / "runs")
    assert run.state == "finished", "every input is 0, and the majority class wins"


def test_a_single_class(tmp_path: Path) -> None:
    recipe = own_recipe(tmp_path, POINTS, classes="a")
    assert lines_of(recipe, tmp_path) == [
        "the data have one class, `a`: every prediction is right, whatever was learned"
    ]


def test_a_limit_that_leaves_classes_out(mfeat_store, data_dir: Path) -> None:
    lines = lines_of(mfeat_recipe(("mor",), dataset={"limit": 1}), data_dir)
    assert len(lines) == 3 and all("cut down by `dataset.limit`" in line for line in lines)
    assert lines[0].startswith("9 of 10 classes (first: `0`) have no sample in split `train`")


def test_a_draw_that_takes_all_of_a_class(mfeat_store, data_dir: Path) -> None:
    recipe = mfeat_recipe(dataset={"limit": None})
    store = open_store(recipe, data_dir)
    recipe = complete(recipe, store)
    data = load_data(recipe, store)
    data.train_present[data.splits["train"].labels == 3, 0] = False
    assert cautions(recipe, data) == ["1 of 10 classes (first: `3`) has no training sample with mor"]


def test_values_too_close_for_float32(tmp_path: Path) -> None:
    recipe = own_recipe(tmp_path, POINTS * 1e-40)
    with pytest.raises(MlaError, match="`point` cannot be normalised in float32: the sd") as error:
        trained(recipe, tmp_path, tmp_path / "runs")
    assert "--set encoders.point.normalise=none" in error.value.hint
    assert not (tmp_path / "runs").exists()
    recipe.encoders["point"].normalise = "none"
    assert trained(recipe, tmp_path, tmp_path / "runs").state == "finished"
    check_scale("point", np.array([1.0, 1e-37]))


def test_a_value_that_overflows_is_named_by_its_sample(tmp_path: Path) -> None:
    """Within float32, but not after the encoder."""
    recipe = own_recipe(tmp_path, POINTS)
    store = open_store(recipe, tmp_path)
    victim = load_data(complete(recipe, store), store).splits["val"].ids[1]
    points = POINTS.copy()
    points[int(victim[1:])] = 3.4e38
    (tmp_path / "again").mkdir()
    recipe = own_recipe(tmp_path / "again", points)
    with pytest.raises(MlaError, match=f"1 of 8 samples of split `val` .* infinite .first: `{victim}`"):
        trained(recipe, tmp_path / "again", tmp_path / "runs")
    (run,) = map(Run, (tmp_path / "runs").iterdir())
    assert run.state == "failed" and not run.predictions.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"lr": 1e-300}},
        {"train": {"lr": 1e-45, "optimizer": "adamw"}},
        {"train": {"weight_decay": 1e-300}},
        {"train": {"label_smoothing": 1 - 2**-53}},
        {"train": {"batch_size": 100_000, "epochs": 1}},
        {"train": {"batch_size": 1, "epochs": 1}, "dataset": {"limit": 1}},
        {"train": {"warmup": 1e300, "epochs": 1}},
        {"method": {"alpha_start": 1e-300, "alpha_end": 1e-300}},
        {"method": {"alpha_start": 1e300, "alpha_end": 1e300}},
        {"method": {"hgm": "released", "alpha_start": 1e-300, "alpha_end": 1e-300}},
        {"shared_width": 1, "encoders": {"mor": {"hidden": 1}}},
    ],
)
def test_extreme_settings_end_with_finite_numbers(mfeat_store, data_dir: Path, tmp_path: Path, changes: dict) -> None:
    run = trained(mfeat_recipe(**changes), data_dir, tmp_path)
    history = run.history()
    assert run.state == "finished"
    assert all(np.isfinite(value) for row in history for name, value in row.items() if name.startswith("train_loss"))


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"lr": 1e300}, "--set train.lr=0.01"),
        ({"lr": 1e300, "optimizer": "adamw"}, "--set train.lr=0.01"),
        ({"weight_decay": 1e300}, "--set train.weight_decay=0.0001"),
    ],
)
def test_what_diverges_hints_at_a_value_that_does_not(
    mfeat_store, data_dir: Path, tmp_path: Path, changes: dict, hint: str
) -> None:
    with pytest.raises(MlaError, match="at epoch 1, step") as error:
        trained(mfeat_recipe(train=changes), data_dir, tmp_path)
    assert hint in error.value.hint
    key, _, value = hint.removeprefix("--set train.").partition("=")
    assert trained(mfeat_recipe(train=changes | {key: float(value)}), data_dir, tmp_path).state == "finished"
    assert diverged_hint(0.05, 1e-4) == "lower `train.lr`, for example `--set train.lr=0.005`, or check the features"
