"""Whatever a user's text says: a recipe, a table, a list, a rate, a reference is read, or is one error with a hint."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from safetensors.torch import save

from mla_cli.bounded_yaml import parse_yaml
from mla_cli.core.weights import read_tensors
from mla_cli.data.manifest import PROBLEM_KINDS
from mla_cli.data.media import BadMedia, parse_ref, resolve
from mla_cli.data.rates import PATTERNS, check_request, parse_rates
from mla_cli.data.split_files import read_split_file
from mla_cli.datasets import table
from mla_cli.engine.predictions import Predictions, read_predictions
from mla_cli.errors import MlaError
from mla_cli.recipe import dump_yaml, load_recipe, parse_override, validate
from mla_cli.schema import Recipe

# The same examples every time; a folder is reused, as each example writes its files anew.
quick = settings(
    derandomize=True, deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
words = st.text(max_size=12) | st.sampled_from(["id", "label", "../x", "=1+1", "1e-3", "nan", "{0}", "%", "a.wav"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


def told(error: MlaError) -> None:
    assert error.message.strip()
    assert error.hint.strip()
    assert len(str(error)) < 20_000


def keys_of(content: dict[str, Any]) -> SearchStrategy[dict[str, Any]]:
    """Some keys of a complete recipe, their values replaced by any."""
    return st.fixed_dictionaries(
        {},
        optional={
            key: values | (keys_of(value) if isinstance(value, dict) and value else st.just(value))
            for key, value in content.items()
        },
    )


@quick
@given(keys_of(load_recipe("cremad_small").model_dump()))
def test_a_mapping_is_a_recipe_or_one_error(content: dict[str, Any]) -> None:
    try:
        recipe = validate(content, "recipe")
    except MlaError as error:
        told(error)
    else:
        assert Recipe.model_validate(parse_yaml(dump_yaml(recipe))) == recipe


@quick
@given(st.text(max_size=60) | values.map(lambda value: yaml.safe_dump(value, allow_unicode=True)))
def test_any_text_is_yaml_or_a_yaml_error(text: str) -> None:
    try:
        found = parse_yaml(text)
    except (yaml.YAMLError, ValueError):
        return
    expected = yaml.safe_load(text)
    assert found == expected or repr(found) == repr(expected)  # NaN differs from itself


@quick
@given(words, st.text(max_size=30) | values.map(repr))
def test_any_override_is_read_or_refused(key: str, value: str) -> None:
    try:
        keys, _ = parse_override(f"{key}={value}")
        load_recipe("emoji", [f"{key}={value}"])
    except MlaError as error:
        told(error)
    else:
        assert keys


@quick
@given(st.lists(st.lists(words, min_size=1, max_size=5), max_size=6), st.sampled_from([",", ";", "\t"]), st.booleans())
def test_any_table_is_a_manifest_or_one_error(
    tmp_path: Path, rows: list[list[str]], delimiter: str, headed: bool
) -> None:
    lines = [["id", "label", "words"]] * headed + rows
    path = tmp_path / "my.csv"
    path.write_bytes("\n".join(delimiter.join(row) for row in lines).encode("utf-8", "surrogatepass"))
    try:
        found = table.scan(tmp_path, path)
    except MlaError as error:
        told(error)
        return
    assert {problem.kind for problem in found.problems} <= set(PROBLEM_KINDS)
    assert found.rows["id"].is_unique
    assert set(found.rows["label"]) == set(found.classes)
    found.fingerprint()


@quick
@given(st.dictionaries(words, st.lists(st.none() | words | st.floats() | st.integers(-9, 9), min_size=2, max_size=2)))
def test_any_parquet_table_is_a_manifest_or_one_error(tmp_path: Path, columns: dict[str, list[Any]]) -> None:
    path = tmp_path / "my.parquet"
    fixed = {"id": ["1", "2"], "label": ["a", "b"], "words": ["x", "y"]}
    try:
        content = pa.table({name: pa.array(c) for name, c in {**fixed, **columns}.items()})
    except (pa.ArrowException, UnicodeError, TypeError):
        return  # columns of mixed types cannot be written
    pq.write_table(content, path)
    try:
        found = table.scan(tmp_path, path)
    except MlaError as error:
        told(error)
    else:
        assert set(found.rows["label"]) == set(found.classes)


@quick
@given(
    st.lists(st.lists(words, min_size=1, max_size=3), min_size=1, max_size=6),
    st.sampled_from([",", " ", "[split|sign]"]),
)
def test_any_split_list_is_read_or_one_error(tmp_path: Path, rows: list[list[str]], mark: str) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes("\n".join(mark.join(row) for row in rows).encode("utf-8", "surrogatepass"))
    try:
        lists = read_split_file(path)
    except MlaError as error:
        told(error)
    else:
        assert {entry.split for entry in lists.entries} <= {"train", "val", "test"}


@quick
@given(st.text(max_size=20) | st.builds("{}={}".format, st.sampled_from(["audio", "text"]), st.floats() | words))
def test_any_rates_are_fractions_or_one_error(text: str) -> None:
    try:
        rates = parse_rates(text, ["audio", "text"])
    except MlaError as error:
        told(error)
    else:
        assert all(0 <= rate <= 1 for rate in rates.values())


@quick
@given(st.sampled_from(PATTERNS) | words, st.floats() | st.integers() | st.dictionaries(words, st.floats(), max_size=3))
def test_any_request_of_absences_is_checked(pattern: str, rate: Any) -> None:
    try:
        found = check_request(pattern, rate, ["audio", "text"])
    except MlaError as error:
        told(error)
    else:
        assert all(0 <= r <= 1 for r in (found.values() if isinstance(found, dict) else [found]))


@quick
@given(st.text(max_size=40) | st.builds("x.wav#{}".format, words) | st.builds("a.npy::{}".format, words))
def test_any_reference_is_a_file_below_the_root_or_a_listed_problem(tmp_path: Path, ref: str) -> None:
    (tmp_path / "x.wav").touch()
    try:
        path = resolve(tmp_path, parse_ref(ref))
    except BadMedia as bad:
        found = bad.kind
    else:
        found = "missing"
        assert path.is_relative_to(tmp_path)
    assert found in PROBLEM_KINDS


@quick
@given(st.dictionaries(st.text(max_size=30), st.integers(0, 3), max_size=5))
def test_any_names_of_tensors_come_back(names: dict[str, int]) -> None:
    names = {name: size for name, size in names.items() if name != "__metadata__" and name.isprintable()}
    content = save({name: torch.zeros(size) for name, size in names.items()})
    if not names:
        with pytest.raises(MlaError, match="holds no state dict"):
            read_tensors(Path("x.safetensors"), content)
        return
    found = read_tensors(Path("x.safetensors"), content)
    wrapped = all(name.startswith("module.") for name in names)
    assert set(found) == {name.removeprefix("module.") if wrapped else name for name in names}


FACTS: dict[str, Any] = {
    **{"classes": ["a", "b"], "modalities": ["audio"], "recipe_hash": "0", "data_fingerprint": "0", "splits": {}},
    **{"native_rule": "entropy", "default_rule": "entropy", "alone_readout": "head", "dataset": "x", "protocol": "y"},
    **{"checkpoint": "best@1", "train_missing": None},
}
COLUMNS: dict[str, Any] = {
    **{"id": ["1", "2"], "split": ["val", "test"], "group": ["", ""], "label": pa.array([0, 1], pa.int32())},
    "present.audio": [True, False],
    "logits.audio": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(4, np.float32)), 2),
}
ODD: list[Any] = [
    *([1, 2], [1.5, None], ["x", None], [[1.0], None], [{"a": 1}, {}], [None, None], [b"\x80", b""], [True, None]),
    *(pa.array([2**31 - 1, -(2**31)], pa.int32()), pa.array(["a", "a"]).dictionary_encode()),
]


@quick
@given(
    st.sampled_from(sorted(COLUMNS)),
    st.sampled_from(range(len(ODD))) | st.none(),
    st.sampled_from(sorted(FACTS)),
    values,
)
def test_any_predictions_are_read_or_one_error(
    tmp_path: Path, column: str, odd: int | None, fact: str, value: Any
) -> None:
    columns = {**COLUMNS, column: COLUMNS[column] if odd is None else ODD[odd]}
    facts = {**FACTS, fact: value if odd is None else FACTS[fact]}
    path = tmp_path / "predictions.parquet"
    text = json.dumps(facts).encode("utf-8", "surrogatepass")
    pq.write_table(pa.table(columns).replace_schema_metadata({"mla": text}), path)
    try:
        found = read_predictions(path)
    except MlaError as error:
        told(error)
    else:
        assert isinstance(found, Predictions)
        assert found.labels.dtype.kind == "i"
        assert found.present.dtype == bool
        assert found.logits.shape == (2, 1, 2)
