"""A finished run's model on other data: the same data give the same logits, and nothing is overwritten."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import difference, events_and_value, finish, mfeat_recipe, trained, unsealed

from mla_cli import registry
from mla_cli.engine.evaluate import Request, evaluate
from mla_cli.engine.events import Note
from mla_cli.engine.predictions import read_predictions
from mla_cli.engine.rescore import score_dataset, score_table
from mla_cli.engine.run import Run
from mla_cli.errors import MlaError

RAW = registry.PACKAGE / "demo" / "mfeat"
WHOLE = {"limit": None}


@pytest.fixture(scope="module")
def runs(mfeat_store, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    one = {"train": {"epochs": 1, "batch_size": 128}, "dataset": WHOLE}
    return {
        "mla": trained(mfeat_recipe(**one), data_dir, folder),
        "concat": trained(mfeat_recipe(method={"name": "concat"}, impute="train_mean", **one), data_dir, folder),
        "unimodal": trained(
            mfeat_recipe(method={"name": "unimodal", "unimodal": {"modality": "fou"}}, **one), data_dir, folder
        ),
    }


def copied_store(data_dir: Path, target: Path, **changes) -> Path:
    """The mfeat store under another name, with keys of its manifest changed."""
    shutil.copytree(data_dir / "mfeat", target)
    unsealed(target)
    manifest = json.loads((target / "manifest.json").read_text())
    for key, change in changes.items():
        manifest[key] = change(manifest[key])
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


# ------------------------------------------------------------ another prepared set


@pytest.mark.parametrize("method", ["mla", "concat", "unimodal"])
def test_the_same_data_give_the_same_logits(runs, data_dir: Path, method: str) -> None:
    own = read_predictions(runs[method].predictions)
    events, found = events_and_value(score_dataset(runs[method], "mfeat", data_dir))
    assert any(isinstance(event, Note) and "protocol shipped" in event.text for event in events)
    assert found.ids.tolist() == own.ids.tolist()
    np.testing.assert_array_equal(found.logits, own.logits)
    assert found.subsets.keys() == own.subsets.keys()
    for key in own.subsets:
        np.testing.assert_array_equal(found.subsets[key], own.subsets[key])
    rows = evaluate(runs[method], Request(), found)
    assert set(rows["dataset"]) == {"mfeat"}
    assert rows["value"].tolist() == evaluate(runs[method], Request())["value"].tolist()


def test_inputs_are_normalised_as_in_training_not_by_the_new_data(runs, data_dir: Path, tmp_path: Path) -> None:
    """The other set has other training rows, so its own statistics would differ."""

    copied_store(data_dir, tmp_path / "mine", counts=lambda c: c)
    index = pd.read_parquet(tmp_path / "mine" / "index.parquet")
    keep = (index["split"] != "train") | (index["label"] == "3")
    index[keep].to_parquet(tmp_path / "mine" / "index.parquet")
    own = read_predictions(runs["mla"].predictions)
    found = finish(score_dataset(runs["mla"], "mine", tmp_path))
    assert found.ids.tolist() == own.ids.tolist()
    np.testing.assert_array_equal(found.logits, own.logits)
    assert found.facts["dataset"] == "mine"


def test_a_set_that_lacks_a_modality_is_refused(runs, digits_store, data_dir: Path) -> None:
    with pytest.raises(MlaError, match="no modality `mor`") as error:
        finish(score_dataset(runs["mla"], "digits", data_dir))
    assert "audio, visual" in error.value.hint


def test_other_classes_and_other_features_are_refused(runs, data_dir: Path, tmp_path: Path) -> None:
    copied_store(data_dir, tmp_path / "swapped", classes=lambda names: names[::-1])
    with pytest.raises(MlaError, match="other classes") as error:
        finish(score_dataset(runs["mla"], "swapped", tmp_path))
    assert "--table" in error.value.hint

    def wider(entries):
        entries["mor"]["spec"]["width"] = 9
        return entries

    copied_store(data_dir, tmp_path / "wider", modalities=wider)
    with pytest.raises(MlaError, match="another feature spec for `mor`"):
        finish(score_dataset(runs["mla"], "wider", tmp_path))


def test_a_set_that_is_not_prepared_is_refused(runs, tmp_path: Path) -> None:
    with pytest.raises(MlaError, match="no prepared data"):
        finish(score_dataset(runs["mla"], "nothing", tmp_path))


# ------------------------------------------------------------ the rows of a table


def write_table(folder: Path, numbers: list[int], columns: tuple[str, ...] = ("mor", "fou"), **cells: str) -> Path:
    """A table of rows of the raw mfeat arrays, as a user writes it; cells: `mor_3=""` empties one."""
    lines = [",".join(["id", *columns])]
    for n in numbers:
        lines.append(",".join([f"row-{n:04d}", *(cells.get(f"{m}_{n}", f"{m}.npz::{n}") for m in columns)]))
    path = folder / "new.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("method", ["mla", "concat", "unimodal"])
def test_rows_of_a_table_get_the_logits_of_the_run(runs, mfeat_store, tmp_path: Path, method: str) -> None:
    run = runs[method]
    own = read_predictions(run.predictions).of_split("test")
    index = mfeat_store.index.set_index("id")
    numbers = [int(index.loc[sample, "ref.mor"].split("::")[1]) for sample in own.ids]
    out = tmp_path / "predictions.parquet"
    lines = finish(score_table(run, write_table(tmp_path, numbers), RAW, out))
    assert f"scored {len(own)} rows" in lines[0]
    found = read_predictions(out)
    assert found.ids.tolist() == [f"row-{n:04d}" for n in sorted(numbers)]
    order = np.argsort(numbers)
    assert difference(found.logits, own.logits[order]) == 0
    for key, logits in own.subsets.items():
        assert difference(found.subsets[key], logits[order]) == 0
    assert set(found.labels) == {-1}
    assert set(found.splits) == {"new"}
    table = pd.read_parquet(out)
    fused = np.stack(table["logits.fused"].to_list())
    assert table["predicted"].tolist() == [str(c) for c in fused.argmax(1)]  # class names are the digits
    right = (fused.argmax(1) == own.labels[order]).mean()
    rows = evaluate(run, Request(alone=False))
    assert right == rows[rows["metric"] == "accuracy"]["value"].item()
    assert not list(tmp_path.glob("mla-*"))


def test_a_row_may_lack_a_modality(runs, tmp_path: Path) -> None:
    path = write_table(tmp_path, [0, 1, 2], mor_1="", fou_2="")
    out = tmp_path / "out.parquet"
    finish(score_table(runs["mla"], path, RAW, out))
    found = read_predictions(out)
    assert found.present.tolist() == [[True, True], [False, True], [True, False]]
    fused = np.stack(pd.read_parquet(out)["logits.fused"].to_list())
    np.testing.assert_allclose(fused[1], found.logits[1, 1])
    np.testing.assert_allclose(fused[2], found.logits[2, 0])


def test_all_rows_may_lack_one_and_the_same_modality(runs, tmp_path: Path) -> None:
    """Vectors, whose width nothing in the table tells."""
    given, out = tmp_path / "given.parquet", tmp_path / "out.parquet"
    finish(score_table(runs["mla"], write_table(tmp_path, [0, 1, 2]), RAW, given))
    path = write_table(tmp_path, [0, 1, 2], **{f"mor_{row}": "" for row in range(3)})
    finish(score_table(runs["mla"], path, RAW, out))
    found = read_predictions(out)
    assert found.present.tolist() == [[False, True]] * 3
    np.testing.assert_array_equal(found.logits[:, 1], read_predictions(given).logits[:, 1])
    fused = np.stack(pd.read_parquet(out)["logits.fused"].to_list())
    np.testing.assert_allclose(fused, found.logits[:, 1])


def test_a_unimodal_run_leaves_out_rows_without_its_modality(runs, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    finish(score_table(runs["unimodal"], write_table(tmp_path, [0, 1, 2], fou_1=""), RAW, out))
    assert read_predictions(out).ids.tolist() == ["row-0000", "row-0002"]


def test_rows_that_cannot_be_read_are_listed_and_not_scored(runs, tmp_path: Path) -> None:
    path = write_table(tmp_path, [0, 1, 2], mor_1="mor.npz::99999")
    out = tmp_path / "out.parquet"
    lines = finish(score_table(runs["mla"], path, RAW, out))
    assert any("row-0001" in line and "mor" in line for line in lines)
    assert read_predictions(out).ids.tolist() == ["row-0000", "row-0002"]


def test_the_output_is_never_overwritten(runs, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    out.write_text("mine")
    with pytest.raises(MlaError, match="exists") as error:
        finish(score_table(runs["mla"], write_table(tmp_path, [0]), RAW, out))
    assert "--out" in error.value.hint
    assert out.read_text() == "mine"


def test_a_table_without_a_modality_is_refused(runs, tmp_path: Path) -> None:
    with pytest.raises(MlaError, match="no modality `fou`"):
        finish(score_table(runs["mla"], write_table(tmp_path, [0, 1], ("mor",)), RAW, tmp_path / "out.parquet"))
    assert not (tmp_path / "out.parquet").exists()
