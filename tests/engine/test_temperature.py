"""Temperatures: the best ones are found, 1 changes nothing, predictions of a modality alone stay, val alone is used."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss
from tiny import mfeat_recipe, trained

from mla_cli.core.fusion import Fuser, softmax
from mla_cli.engine.evaluate import Evaluator, evaluate, fit_temperatures
from mla_cli.engine.predictions import read_predictions
from mla_cli.engine.request import Request, notes_of, parse_request
from mla_cli.engine.run import Run
from mla_cli.engine.temperature import HIGHEST, LOWEST, fit_temperature, scale_modalities, scaled
from mla_cli.errors import MlaError


def calibrated(seed: int, samples: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the true distribution of the labels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(samples, 5))
    labels = (rng.random((samples, 1)) > softmax(logits).cumsum(1)).sum(1)
    return logits, labels


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_a_known_temperature_is_found(temperature: float) -> None:
    logits, labels = calibrated(0)
    assert fit_temperature(temperature * logits, labels) == pytest.approx(temperature, rel=0.05)


def test_it_is_the_minimum_of_scikit_learns_log_loss() -> None:
    logits, labels = calibrated(1, 200)
    found = minimize_scalar(
        lambda t: log_loss(labels, softmax(2.5 * logits / t), labels=range(5)), bounds=(0.1, 10), method="bounded"
    )
    assert fit_temperature(2.5 * logits, labels) == pytest.approx(found.x, rel=1e-3)


def test_the_range_ends_where_nothing_is_best() -> None:
    labels = np.arange(50) % 5
    assert fit_temperature(np.eye(5)[labels], labels) == pytest.approx(LOWEST, rel=0.01)  # all right: surer is better
    assert fit_temperature(-np.eye(5)[labels], labels) == pytest.approx(HIGHEST, rel=0.01)


@given(st.floats(LOWEST, HIGHEST), st.integers(0, 2**32 - 1))
def test_no_largest_logit_changes(temperature: float, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(scale=5, size=(50, 4)).astype(np.float32)
    np.testing.assert_array_equal(scaled(logits, temperature).argmax(1), logits.argmax(1))
    np.testing.assert_array_equal(scaled(logits, 1.0), logits)


@pytest.fixture(scope="module")
def runs(mfeat_store, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("temperature")
    return {
        name: trained(mfeat_recipe(method={"name": name}, train={"epochs": 2}), data_dir, folder)
        for name in ("mla", "concat")
    }


def test_rows_before_and_after(runs) -> None:
    rows = evaluate(runs["mla"], Request(metrics=["accuracy", "nll", "ece"], temperature=True))
    after = rows["temperature"].notna()
    assert after.sum() == len(rows) / 2
    before = evaluate(runs["mla"], Request(metrics=["accuracy", "nll", "ece"]))
    columns = [c for c in rows if c != "temperature"]
    assert rows[~after][columns].reset_index(drop=True).equals(before[columns])
    wide = rows.assign(after=after).pivot(index=["output", "metric"], columns="after", values="value")
    for modality in ("mor", "fou"):
        assert wide.loc[modality, "accuracy"].nunique() == 1  # alone nothing changes
    fitted = fit_temperatures(runs["mla"], runs["mla"].recipe(), ["entropy"])
    stored = rows[after].drop_duplicates("output").set_index("output")["temperature"].to_dict()
    assert stored == {**fitted.modalities, "fused": fitted.fused["entropy"]}


def test_they_are_fitted_on_val_modality_by_modality_and_applied_before_fusion(runs) -> None:
    run = runs["mla"]
    p = read_predictions(run.predictions)
    val, test = p.of_split("val"), p.of_split("test")
    own = [fit_temperature(val.logits[:, i], val.labels) for i in range(2)]
    fitted = fit_temperatures(run, run.recipe(), ["entropy"])
    assert list(fitted.modalities.values()) == own
    divided = Fuser(test.logits.astype(float) / np.array(own)[:, None]).fuse(test.present, "entropy")
    rows = evaluate(run, Request(metrics=["nll"], temperature=True))
    found = rows[(rows["output"] == "fused") & rows["temperature"].notna()]["value"].item()
    assert found == pytest.approx(log_loss(test.labels, softmax(divided / fitted.fused["entropy"]), labels=range(10)))
    on_val = [log_loss(val.labels, softmax(x), labels=range(10)) for x in (val.logits[:, 0], val.logits[:, 0] / own[0])]
    assert on_val[1] < on_val[0]


def test_logits_mixed_inside_get_the_fused_temperature_only(runs) -> None:
    run = runs["concat"]
    rows = evaluate(run, Request(metrics=["accuracy", "nll"], rates=(0.0, 0.3), temperature=True))
    fused = rows[rows["output"] == "fused"].assign(after=lambda t: t["temperature"].notna())
    accuracy = fused[fused["metric"] == "accuracy"]
    keys = ["missing_rate", "mask_seed"]
    before, after = (accuracy[accuracy["after"] == which].set_index(keys)["value"] for which in (False, True))
    assert before.tolist() == after.tolist()
    assert fused["temperature"].nunique() == 1  # at every missing rate
    assert set(rows["metric"]) >= {"area_nll"}
    areas = rows[rows["metric"] == "area_nll"]
    assert len(areas) == 2 and areas["temperature"].notna().sum() == 1


def test_temperature_1_is_the_identity(runs) -> None:
    p = read_predictions(runs["mla"].predictions).of_split("test")
    same = scale_modalities(p, {"mor": 1.0})  # a modality without a temperature keeps its logits
    np.testing.assert_array_equal(same.logits, p.logits)
    recipe = runs["mla"].recipe()
    found, plain = (Evaluator(x, recipe, {}).fused("entropy", p.present) for x in (same, p))
    np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-6)


def test_val_would_praise_it() -> None:
    with pytest.raises(MlaError, match="fitted on val") as error:
        parse_request("val", None, None, "0", None, temperature=True)
    assert error.value.hint


def test_an_edge_is_told(runs) -> None:
    request = Request(temperature=True)
    rows = evaluate(runs["mla"], request)
    assert not any("edge" in note for note in notes_of(request, rows))
    (note,) = notes_of(request, rows.assign(temperature=HIGHEST))
    assert "edge of [0.05, 20]" in note
