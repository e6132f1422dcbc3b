"""Linear probes: scikit-learn's logistic regression agrees, and the data are those of the run."""

import json
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import mla
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from tiny import emoji_recipe, events_and_value, finish, mfeat_recipe, trained, unsealed

from mla_cli.core.metrics import accuracy
from mla_cli.engine import probe as probes
from mla_cli.engine.events import Note, Progress
from mla_cli.engine.predictions import read_predictions
from mla_cli.engine.probe import READOUT, STRENGTHS, Probed, fit, probe, run_data
from mla_cli.engine.rescore import scoring_session
from mla_cli.engine.run import Run
from mla_cli.errors import MlaError
from mla_cli.probing import probe_table
from mla_cli.render import markdown


@pytest.fixture(scope="module")
def folder(mfeat_store, emoji_store, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copies = tmp_path_factory.mktemp("probe")
    for name in ("mfeat", "emoji"):
        shutil.copytree(data_dir / name, copies / name)
    return copies


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = mfeat_recipe(encoders={"fou": {"frozen": True}}, train={"missing_rate": 0.2})
    return trained(recipe, folder, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def probed(run: Run, folder: Path) -> Probed:
    return finish(probe(run, folder))


def value(found: Probed, modality: str, metric: str) -> float:
    (row,) = [r for r in found.rows if (r["output"], r["alone_readout"], r["metric"]) == (modality, READOUT, metric)]
    return row["value"]


# ------------------------------------------------------------ the classifier


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(1, 6), st.sampled_from(STRENGTHS[:4]))
def test_scikit_learn_gives_the_same_logits(seed: int, classes: int, width: int, l2: float) -> None:
    draw = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), draw.integers(0, classes, 60)])
    features = draw.normal(3.0, 5.0, (len(labels), width)) + 2.0 * labels[:, None]
    ours = fit(features, labels, l2)
    scaled = StandardScaler().fit(features)
    # of two classes it penalises one vector, the difference of ours
    theirs = LogisticRegression(C=(2 if classes == 2 else 1) / (l2 * len(labels)), tol=1e-9, max_iter=10_000)
    theirs.fit(scaled.transform(features), labels)
    logits = ours.logits(features, classes)
    wanted = theirs.predict_log_proba(scaled.transform(features))
    assert ours.converged
    np.testing.assert_allclose(np.exp(logits - np.logaddexp.reduce(logits, 1)[:, None]), np.exp(wanted), atol=2e-3)


def test_constant_columns_and_absent_classes_do_no_harm() -> None:
    features = np.column_stack([np.linspace(-1, 1, 40), np.full(40, 7.3)])
    labels = np.where(features[:, 0] > 0, 3, 1)
    found = fit(features, labels, 1e-3)
    logits = found.logits(features, 5)
    assert (logits.argmax(1) == labels).all()
    assert np.isneginf(logits[:, [0, 2, 4]]).all() and np.isfinite(logits[:, [1, 3]]).all()
    np.testing.assert_allclose(found.weight[:, 1], 0.0, rtol=0, atol=1e-12)
    assert fit(features, np.ones(40, int), 1e-3).logits(features, 5).argmax(1).tolist() == [1] * 40


def test_the_start_does_not_decide_the_end() -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 3, 90)
    features = draw.normal(size=(90, 4)) + labels[:, None]
    cold, warm = fit(features, labels, 1e-3), fit(features, labels, 1e-3, fit(features, labels, 1.0))
    np.testing.assert_allclose(cold.logits(features, 3), warm.logits(features, 3), atol=1e-2)


def test_val_chooses_the_strength_and_of_equal_ones_the_largest() -> None:
    draw = np.random.default_rng(1)
    labels = draw.integers(0, 3, 60)
    train, val = ((draw.normal(size=(60, 30)) + 0.5 * labels[:, None], labels) for _ in range(2))
    events, found = events_and_value(probes.choose(train, val, 3, "audio"))
    scores = [accuracy(fit(*train, l2).logits(val[0], 3), val[1]) for l2 in STRENGTHS]
    assert found.l2 == STRENGTHS[int(np.argmax(scores))]
    assert [e.done for e in events if isinstance(e, Progress)] == [1, 2, 3, 4, 5, 6]
    apart = (labels[:, None] == np.arange(3)).astype(float)
    assert finish(probes.choose((apart, labels), (apart, labels), 3, "audio")).l2 == 1.0  # all are perfect


def test_a_fit_that_was_stopped_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "MOST_STEPS", 2)
    draw = np.random.default_rng(1)
    features, labels = draw.normal(size=(50, 6)), draw.integers(0, 3, 50)
    events, found = events_and_value(probes.choose((features, labels), (features, labels), 3, "audio"))
    assert not found.converged
    assert "stopped after 2 steps" in next(e for e in events if isinstance(e, Note)).text


# ------------------------------------------------------------ of a run


def test_the_probe_of_a_run_is_scikit_learns_on_what_the_head_sees(run: Run, folder: Path, probed: Probed) -> None:
    """Features taken by hand from the selected checkpoint; only the training rows that the missing rate left."""
    recipe, data = run_data(run, folder, read_predictions(run.predictions))
    session = scoring_session(run, recipe, data.store, data.splits, data.classes)
    session.method.eval()
    for i, m in enumerate(("mor", "fou")):
        has = np.flatnonzero(data.train_present[:, i])
        assert probed.num_train[m] == len(has) < 96
        features = {}
        for split, where in {"train": has, "test": np.arange(96)}.items():
            inputs = session.split_loader(split).modalities[m].batch(where)
            with torch.no_grad():
                features[split] = session.method.encoders[m](inputs).double().numpy()
        assert features["train"].shape == (len(has), 8)  # the shared width
        scaled = StandardScaler().fit(features["train"])
        theirs = LogisticRegression(C=1 / (probed.strengths[m] * len(has)), tol=1e-8, max_iter=10_000)
        theirs.fit(scaled.transform(features["train"]), data.splits["train"].labels[has])
        score = theirs.score(scaled.transform(features["test"]), data.splits["test"].labels)
        assert value(probed, m, "accuracy") == pytest.approx(score, abs=0.011)  # one sample of 96
        assert m == "fou" or score > 0.2  # by chance 0.1, which random features of `fou` hardly pass


def test_rows_are_tidy_and_stand_beside_the_runs_own(run: Run, probed: Probed) -> None:
    own = pd.read_csv(run.path / "results.csv")
    for m in ("mor", "fou"):
        for metric in ("accuracy", "macro_f1"):
            rows = [r for r in probed.rows if r["output"] == m and r["metric"] == metric]
            assert [r["alone_readout"] for r in rows] == ["shared head", READOUT]
            stored = own[(own["output"] == m) & (own["metric"] == metric) & (own["split"] == "test")]
            assert rows[0]["value"] == stored["value"].item()
            assert rows[1]["num_samples"] == 96 and rows[1]["selected_on"] == "val" and rows[1]["split"] == "test"
    assert set(probed.strengths) == {"mor", "fou"} and set(probed.strengths.values()) <= set(STRENGTHS)


def test_the_same_command_gives_the_same_numbers(run: Run, folder: Path, probed: Probed) -> None:
    assert finish(probe(run, folder)).rows == probed.rows


@pytest.mark.parametrize(
    "method", [{"name": "concat"}, {"name": "unimodal", "unimodal": {"modality": "text"}}], ids=["concat", "unimodal"]
)
def test_other_methods_and_encoders(folder: Path, tmp_path: Path, method: dict) -> None:
    run = trained(emoji_recipe(method=method, train={"select_on": "test"}), folder, tmp_path)
    found = finish(probe(run, folder, "val"))
    wanted = ["text"] if method["name"] == "unimodal" else ["visual", "text"]
    assert list(found.strengths) == wanted
    assert {row["output"] for row in found.rows} == set(wanted)
    assert {row["selected_on"] for row in found.rows} == {"test"}  # its checkpoint was chosen there


# ------------------------------------------------------------ the run's data


def changed(folder: Path, target: Path, **changes: Any) -> Path:
    """The folder of data with keys of the manifest of `mfeat` changed."""
    shutil.copytree(folder / "mfeat", target / "mfeat")
    unsealed(target / "mfeat")
    path = target / "mfeat" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return target


def test_data_that_are_not_the_runs_are_named(run: Run, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MlaError, match="not what the run was trained on: the ids, labels, groups or values") as error:
        finish(probe(run, changed(folder, tmp_path / "one", fingerprint="0")))
    command = f"`mla prepare mfeat --recipe {run.recipe_file} --data-dir {tmp_path / 'one'}`"
    assert command in str(error.value.hint)
    with pytest.raises(MlaError, match="trained on: the classes"):
        finish(probe(run, changed(folder, tmp_path / "two", classes=list("abcdefghij"))))
    modalities = json.loads((folder / "mfeat" / "manifest.json").read_text())["modalities"]
    modalities["fou"]["spec"]["width"] = 75
    with pytest.raises(MlaError, match=r"another feature spec for `fou` \(width=75\)") as error:
        finish(probe(run, changed(folder, tmp_path / "three", modalities=modalities)))
    assert f"--recipe {run.recipe_file}" in str(error.value.hint)
    with pytest.raises(MlaError, match="the run's data are not under") as error:
        finish(probe(run, tmp_path / "none"))
    assert str(error.value.hint).endswith(f"add --data-dir {folder}")
    with pytest.raises(MlaError, match="no predictions for split `train`"):
        finish(probe(run, folder, "train"))


def test_other_splits_are_named(run: Run, folder: Path, tmp_path: Path) -> None:
    copy = Run(Path(shutil.copytree(run.path, tmp_path / run.name)))
    facts = copy.info()["data"]
    copy.update(data=facts | {"train": facts["train"] | {"samples": 95}})
    with pytest.raises(MlaError, match="split `train` has 96 samples, not 95"):
        finish(probe(copy, folder))
    copy.update(data=facts)
    unsealed(copy.path)
    own = read_predictions(copy.predictions)
    own.ids = own.ids.copy()
    own.ids[0] = "somebody else"
    own.write(copy.predictions)
    with pytest.raises(MlaError, match="split `val` has other samples"):
        finish(probe(copy, folder))


def test_a_run_of_an_earlier_version_is_compared_by_its_whole_fingerprint(
    run: Run, folder: Path, tmp_path: Path, probed: Probed
) -> None:
    copy = Run(Path(shutil.copytree(run.path, tmp_path / run.name)))
    info = copy.info()
    del info["store_fingerprint"]
    (copy.path / "run.json").write_text(json.dumps(info))
    assert finish(probe(copy, folder)).rows == probed.rows
    copy.update(data_fingerprint="0")
    with pytest.raises(MlaError, match="ids, labels, groups or values"):
        finish(probe(copy, folder))


# ------------------------------------------------------------ the command


def test_the_command_shows_a_table_or_its_rows(run: Run, folder: Path, probed: Probed) -> None:
    words = ("eval", run.path, "--linear-probe", "--data-dir", folder)
    table = mla(*words)
    assert table.code == 0 and "probes of fou: 6 of 6" in table.stderr
    assert "linear probe: accuracy" in table.stdout and f"{100 * value(probed, 'fou', 'accuracy'):.1f}" in table.stdout
    assert "chosen on val" in table.stdout and "n train" in table.stdout
    rows = pd.read_csv(StringIO(mla(*words, "--format", "csv").stdout))
    assert rows["value"].tolist() == [row["value"] for row in probed.rows]
    assert markdown(probe_table(probed)).count("\n| fou |") == 1


def test_what_does_not_go_with_it_is_a_usage_error(run: Run, folder: Path) -> None:
    for words in (("--missing-rate", "0.3"), ("--dataset", "mfeat"), ("--fusion", "uniform"), ("--diagnostics",)):
        found = mla("eval", run.path, "--linear-probe", *words)
        assert found.code == 2 and "--linear-probe" in found.stderr
