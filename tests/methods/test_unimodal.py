"""`unimodal`: one encoder and its own head; which one must be said where there are several."""

from pathlib import Path

import pytest
from tiny import make_session, mfeat_recipe, trained

from mla_cli.engine.evaluate import Request, evaluate
from mla_cli.errors import MlaError
from mla_cli.recipe import load_recipe


def test_it_builds_one_encoder_and_one_head(mfeat_store, data_dir: Path) -> None:
    session = make_session(mfeat_recipe(method={"name": "unimodal", "unimodal": {"modality": "fou"}}), data_dir)
    assert list(session.method.encoders) == ["fou"]
    assert list(session.method.heads) == ["fou"]
    assert list(session.optimizers) == ["encoder.fou", "head.fou"]
    batch = next(iter(session.train_loader.epoch(1)))
    assert list(batch.inputs) == ["fou"]


@pytest.mark.parametrize("keys", [{}, {"unimodal": {"modality": "zer"}}], ids=["none", "unknown"])
def test_a_modality_must_be_named(mfeat_store, data_dir: Path, keys: dict) -> None:
    with pytest.raises(MlaError, match=r"`method\.unimodal\.modality`") as error:
        make_session(mfeat_recipe(method={"name": "unimodal", **keys}), data_dir)
    assert "--set method.unimodal.modality=mor" in error.value.hint


def test_a_single_modality_needs_no_name(mfeat_store, data_dir: Path) -> None:
    session = make_session(mfeat_recipe(("fou",), method={"name": "unimodal"}), data_dir)
    assert list(session.method.encoders) == ["fou"]


def test_a_misspelt_key_is_found_without_building_a_model() -> None:
    with pytest.raises(MlaError, match=r"method\.unimodal\.modalty"):
        load_recipe(None, base={"method": {"name": "unimodal", "unimodal": {"modalty": "audio"}}})


def test_its_rows_hold_one_modality_and_no_missing_rate_can_be_met(mfeat_store, data_dir: Path, tmp_path: Path) -> None:
    recipe = mfeat_recipe(method={"name": "unimodal", "unimodal": {"modality": "mor"}})
    run = trained(recipe, data_dir, tmp_path)
    rows = evaluate(run, Request())
    assert set(rows["output"]) == {"mor", "fused"}
    values = rows[rows["metric"] == "accuracy"].set_index("output")["value"]
    assert values["mor"] == values["fused"]
    with pytest.raises(MlaError, match="cannot be met"):
        evaluate(run, Request(rates=(0.3,)))
