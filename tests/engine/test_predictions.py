"""`predictions.parquet`: what is written is what is read, with its metadata, and equal content is equal bytes."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mla_cli.engine.predictions import Predictions, join, read_predictions, subset_name
from mla_cli.errors import MlaError

CLASSES = ["cat", "dog", "owl"]


def made(count: int = 5, split: str = "test", mixes: bool = True) -> Predictions:
    rng = np.random.default_rng(count)
    present = np.ones((count, 2), bool)
    present[1, 0] = False
    logits = rng.normal(size=(count, 2, 3)).astype(np.float32)
    logits[~present] = np.nan
    pairs = [frozenset(("audio",)), frozenset(("text",)), frozenset(("audio", "text"))]
    return Predictions(
        np.array([f"{split}-{i}" for i in range(count)], dtype=object),
        np.full(count, split, dtype=object),
        np.array([f"g{i % 2}" for i in range(count)], dtype=object),
        rng.integers(0, 3, count).astype(np.int32),
        ["audio", "text"],
        present,
        logits,
        {p: rng.normal(size=(count, 3)).astype(np.float32) for p in pairs} if mixes else {},
        {"classes": CLASSES, "recipe_hash": "abc", "data_fingerprint": "def", "native_rule": "uniform"},
    )


def assert_equal(one: Predictions, other: Predictions) -> None:
    for name in ("ids", "splits", "groups", "labels", "present", "logits"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.modalities == other.modalities
    assert one.subsets.keys() == other.subsets.keys()
    for key, values in one.subsets.items():
        np.testing.assert_array_equal(values, other.subsets[key])


@pytest.mark.parametrize("mixes", [False, True])
def test_round_trip(tmp_path: Path, mixes: bool) -> None:
    written = made(mixes=mixes)
    written.write(tmp_path / "p.parquet")
    found = read_predictions(tmp_path / "p.parquet")
    assert_equal(written, found)
    assert found.facts == written.facts | {"modalities": ["audio", "text"]}
    assert found.logits.dtype == np.float32
    assert found.present.dtype == bool


def test_columns_types_and_metadata(tmp_path: Path) -> None:
    made().write(tmp_path / "p.parquet")
    schema = pq.read_schema(tmp_path / "p.parquet")
    vector = pa.list_(pa.float32(), 3)
    assert {field.name: field.type for field in schema} == {
        "id": pa.string(),
        "split": pa.string(),
        "group": pa.string(),
        "label": pa.int32(),
        "present.audio": pa.bool_(),
        "logits.audio": vector,
        "present.text": pa.bool_(),
        "logits.text": vector,
        "logits.+audio": vector,
        "logits.+text": vector,
        "logits.audio+text": vector,
    }
    facts = json.loads(schema.metadata[b"mla"])
    assert facts["classes"] == CLASSES
    assert facts["recipe_hash"] == "abc"
    assert facts["data_fingerprint"] == "def"


def test_equal_predictions_give_equal_bytes(tmp_path: Path) -> None:
    for name in "ab":
        made().write(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_fused_logits_and_the_class_they_predict(tmp_path: Path) -> None:
    fused = np.array([[0, 1, 2], [3, 1, 2], [0, 5, 2], [0, 1, 2], [0, 1, 2]], np.float32)
    made().write(tmp_path / "p.parquet", fused=fused)
    table = pq.read_table(tmp_path / "p.parquet")
    assert table.column("predicted").to_pylist() == ["owl", "cat", "dog", "owl", "owl"]
    np.testing.assert_array_equal(np.array(table.column("logits.fused").to_pylist()), fused)
    assert_equal(made(), read_predictions(tmp_path / "p.parquet"))  # `fused` is no subset


def test_join_and_of_split(tmp_path: Path) -> None:
    val, test = made(4, "val"), made(6, "test")
    both = join({"val": val, "test": test})
    assert len(both) == 10
    assert_equal(both.of_split("val"), val)
    assert_equal(both.of_split("test"), test)
    with pytest.raises(MlaError, match="no predictions for split `train`"):
        both.of_split("train")


def test_subset_names_keep_the_order_of_the_modalities() -> None:
    order = ["text", "audio", "visual"]
    assert subset_name(frozenset(order), order) == "text+audio+visual"
    assert subset_name(frozenset(("visual", "text")), order) == "text+visual"
    assert subset_name(frozenset(("audio",)), order) == "+audio"  # `logits.audio` is the modality read alone


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MlaError, match="no predictions at") as error:
        read_predictions(tmp_path / "p.parquet")
    assert "--force" in error.value.hint


@pytest.mark.parametrize("content", [b"", b"PAR1 not a parquet file", b"\0" * 100], ids=["empty", "text", "zeros"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.parquet").write_bytes(content)
    with pytest.raises(MlaError, match="cannot read"):
        read_predictions(tmp_path / "p.parquet")


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    made().write(tmp_path / "p.parquet")
    whole = (tmp_path / "p.parquet").read_bytes()
    (tmp_path / "p.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MlaError, match="cannot read"):
        read_predictions(tmp_path / "p.parquet")


def test_a_table_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "p.parquet")
    with pytest.raises(MlaError, match="cannot read"):
        read_predictions(tmp_path / "p.parquet")


def test_logits_of_another_number_of_classes_are_refused(tmp_path: Path) -> None:
    predictions = made()
    predictions.facts["classes"] = CLASSES[:2]
    predictions.write(tmp_path / "p.parquet")
    with pytest.raises(MlaError, match=r"column `logits.*` is .*not 2 float32"):
        read_predictions(tmp_path / "p.parquet")


@pytest.mark.parametrize("damage", ["no metadata", "a list", "no classes", "no label", "no logits", "labels"])
def test_a_parquet_file_that_lacks_something_is_refused(tmp_path: Path, damage: str) -> None:
    made().write(tmp_path / "p.parquet")
    table = pq.read_table(tmp_path / "p.parquet")
    if damage == "no metadata":
        table = table.replace_schema_metadata({})
    elif damage == "a list":
        table = table.replace_schema_metadata({"mla": "[]"})
    elif damage == "no classes":
        table = table.replace_schema_metadata({"mla": '{"modalities": ["audio"]}'})
    elif damage == "labels":
        place = table.schema.get_field_index("label")
        table = table.set_column(place, "label", pa.array([77] * len(table), pa.int32()))
    else:
        alone = next(n for n in table.column_names if n.startswith("logits.") and "+" not in n)
        table = table.drop_columns(["label" if damage == "no label" else alone])
    pq.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(MlaError, match="cannot read") as error:
        read_predictions(tmp_path / "p.parquet")
    assert f"--recipe {tmp_path / 'recipe.yaml'} --run-dir {tmp_path.parent} --force" in error.value.hint


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_named_when_they_are_read(value: float, tmp_path: Path) -> None:
    """Before any metric sees them; where the modality is absent they may be anything."""
    predictions = made()
    broken = predictions.present.argmax(1)
    predictions.logits[1, broken[1], 0] = value
    path = tmp_path / "predictions.parquet"
    predictions.write(path)
    with pytest.raises(
        MlaError, match=f"1 of {len(predictions)} samples have logits that are NaN or infinite"
    ) as error:
        read_predictions(path)
    assert f"(first: `{predictions.ids[1]}`)" in error.value.message and "train.lr" in error.value.hint
