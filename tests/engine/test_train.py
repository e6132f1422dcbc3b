"""`train`: any number of modalities, unpaired data, failures that say why, the documented checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import (
    VIEWS,
    digits_recipe,
    emoji_recipe,
    events_and_value,
    finish,
    make_session,
    mfeat_recipe,
    trained,
)

from mla_cli.core.method import BaseMethod
from mla_cli.engine import train as engine
from mla_cli.engine.evaluate import Request, evaluate
from mla_cli.engine.events import Epoch, Finished, Note, Started
from mla_cli.engine.latest import latest
from mla_cli.engine.predictions import read_predictions
from mla_cli.engine.run import Run
from mla_cli.engine.scoring import score
from mla_cli.engine.train import train
from mla_cli.errors import MlaError


@pytest.fixture(autouse=True)
def quick_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power fails here: do not wait for the disk."""
    monkeypatch.setattr("os.fsync", lambda handle: None)


# ------------------------------------------------------------ any number of modalities


@pytest.mark.parametrize("count", [1, 2, 3, 6])
@pytest.mark.parametrize("method", ["mla", "late", "concat", "unimodal"])
def test_any_number_of_modalities_trains_and_evaluates(
    mfeat_store, data_dir: Path, tmp_path: Path, method: str, count: int
) -> None:
    keys = {"unimodal": {"modality": VIEWS[count - 1]}} if method == "unimodal" else {}
    recipe = mfeat_recipe(VIEWS[:count], method={"name": method, **keys}, train={"epochs": 1})
    run = trained(recipe, data_dir, tmp_path)
    used = [VIEWS[count - 1]] if method == "unimodal" else list(VIEWS[:count])
    predictions = read_predictions(run.predictions)
    assert predictions.modalities == used
    assert predictions.logits.shape == (2 * 96, len(used), 10)
    assert len(predictions.subsets) == (2**count - 1 if method == "concat" else 0)
    assert np.isfinite(predictions.logits).all()
    rates = (0.0, 0.3) if len(used) > 1 else (0.0,)
    rows = evaluate(run, Request(rates=rates, mask_seeds=(0, 1)))
    assert set(rows["output"]) == {*used, "fused"}
    assert set(rows[rows["metric"] == "accuracy"]["missing_rate"]) == set(rates)
    assert rows["value"].between(0, 1).all()


# ------------------------------------------------------------ unpaired data


def test_digits_train_from_disjoint_sets_of_different_length(digits_store, data_dir: Path, tmp_path: Path) -> None:
    session = make_session(digits_recipe(), data_dir)
    present = session.data.train_present
    assert (present.sum(1) == 1).all()  # no sample has both
    assert present.sum(0).tolist() == [50, 60]
    seen: dict[str, list[int]] = {"audio": [], "visual": []}
    for chosen in session.train_loader.rounds.epoch(1):
        for m, positions in chosen.items():
            assert present[positions, session.data.modalities.index(m)].all()
            seen[m] += positions.tolist()
    assert len(set(seen["audio"])) == 50
    assert len(set(seen["visual"])) == 60
    assert not set(seen["audio"]) & set(seen["visual"])
    run = trained(digits_recipe(), data_dir, tmp_path)
    assert np.isfinite(read_predictions(run.predictions).logits).all()


def test_test_pairs_come_from_the_pair_seed_and_their_recordings_are_counted(
    digits_store, data_dir: Path, tmp_path: Path
) -> None:
    fold = {"protocol": "speaker_fold", "fold": 0}  # its person speaks two languages, so there is a choice of pairs
    runs = [
        trained(digits_recipe(dataset=fold, seed=0), data_dir, tmp_path),
        trained(digits_recipe(dataset=fold, seed=1), data_dir, tmp_path),
        trained(digits_recipe(dataset=fold | {"pair_seed": 5}), data_dir, tmp_path),
    ]
    first, second, other = [read_predictions(run.predictions) for run in runs]
    assert first.ids.tolist() == second.ids.tolist()
    assert first.ids.tolist() != other.ids.tolist()
    assert [i.split("+")[0] for i in first.ids] == [i.split("+")[0] for i in other.ids]
    assert not np.array_equal(first.logits, second.logits)
    assert first.present.all()
    for sample, label in zip(first.ids, first.labels, strict=True):
        visual, audio = sample.split("+")
        assert visual.startswith("visual-")
        assert audio.startswith("audio-")
        index = digits_store.index.set_index("id")["label"]
        assert index[visual] == index[audio] == str(label)
    info = runs[0].info()
    assert info["data"]["pair_seed"] == 0
    test = first.of_split("test")
    halves = [sample.split("+") for sample in test.ids]
    distinct = {"visual": len({v for v, _ in halves}), "audio": len({a for _, a in halves})}
    assert info["data"]["test"] == {"samples": 60, "distinct": distinct}
    assert 10 < distinct["audio"] <= 20  # ten digits, two voices
    assert first.facts["splits"]["test"] == {"samples": 60, "distinct": distinct, "pair_seed": 0}


def test_shared_batches_of_unpaired_data_are_refused(digits_store, data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(MlaError, match="shared") as error:
        trained(digits_recipe(method={"batching": "shared"}), data_dir, tmp_path)
    assert "method.batching=independent" in error.value.hint
    assert not list(tmp_path.iterdir())  # nothing was started, so nothing has to be resumed or forced


# ------------------------------------------------------------ failures


@pytest.mark.parametrize(
    ("call", "where"), [(1, "`mor` is nan at epoch 1, step 1"), (4, "`fou` is nan at epoch 1, step 2"), (9, "")]
)
def test_the_first_loss_that_is_not_finite_stops_the_run_and_is_named(
    mfeat_store, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, where: str
) -> None:
    """Through the shared head one modality's NaN reaches the other one step later: the first is the one to name."""
    real, calls = BaseMethod.loss, []

    def broken(self, logits, labels):
        calls.append(1)
        return real(self, logits, labels) * (float("nan") if len(calls) == call else 1.0)

    monkeypatch.setattr(BaseMethod, "loss", broken)
    where = where or "`mor` is nan at epoch 2, step 2"
    with pytest.raises(MlaError) as error:
        trained(mfeat_recipe(), data_dir, tmp_path)
    assert f"{where} (lr 0.05)" in error.value.message
    assert "--set train.lr=0.005" in error.value.hint
    (run,) = [Run(path) for path in tmp_path.iterdir()]
    assert run.state == "failed"
    assert where in run.info()["error"]
    assert not run.predictions.exists()
    assert latest(tmp_path) is None


@pytest.mark.parametrize("method", ["mla", "late", "concat"])
def test_a_learning_rate_far_too_high_ends_with_a_failed_run(
    mfeat_store, data_dir: Path, tmp_path: Path, method: str
) -> None:
    recipe = mfeat_recipe(method={"name": method}, train={"lr": 1e30})
    with pytest.raises(MlaError, match=r"at epoch 1, step \d \(lr 1e\+30\)") as error:
        trained(recipe, data_dir, tmp_path)
    output = {"mla": "mor|fou", "late": "mor|fou", "concat": "fused"}[method]
    assert any(f"loss of `{name}`" in error.value.message for name in output.split("|"))


@pytest.mark.parametrize("method", ["mla", "concat"])
def test_a_model_that_diverged_in_the_last_step_is_never_finished(
    mfeat_store, data_dir: Path, tmp_path: Path, method: str
) -> None:
    """One round: its loss is finite, the weights after it are not."""
    recipe = mfeat_recipe(
        ("fou",) if method == "mla" else ("mor", "fou"),
        method={"name": method},
        dataset={"limit": 32},
        train={"lr": 1e38, "epochs": 1},
    )
    with pytest.raises(MlaError, match="NaN or infinite") as error:
        trained(recipe, data_dir, tmp_path)
    assert "train.lr" in error.value.hint
    (run,) = [Run(path) for path in tmp_path.iterdir()]
    assert run.state == "failed"


# ------------------------------------------------------------ selection


def scripted(monkeypatch: pytest.MonkeyPatch, accuracies: list[float]) -> list[str]:
    """Give the epochs these validation accuracies; the splits they were asked of."""
    asked: list[str] = []

    def validate(session, split):
        asked.append(split)
        return {"mor": 0.1, "fused": accuracies[session.progress.epoch - 1]}

    monkeypatch.setattr(engine, "validate", validate)
    return asked


@pytest.mark.parametrize(
    ("select_on", "chosen"), [("val", "best@2"), ("test", "best@2"), ("last", "last@4")], ids=lambda v: str(v)
)
def test_the_documented_checkpoint_is_chosen_and_every_row_says_so(
    mfeat_store, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, select_on: str, chosen: str
) -> None:
    recipe = mfeat_recipe(train={"epochs": 4, "select_on": select_on})
    with monkeypatch.context() as patch:
        asked = scripted(patch, [0.5, 0.7, 0.7, 0.6])  # an equal accuracy later is no improvement
        events, run = events_and_value(train(recipe, data_dir, tmp_path, "cpu"))
    assert asked == ["test" if select_on == "test" else "val"] * 4
    assert [e.is_best for e in events if isinstance(e, Epoch)] == [True, True, False, False]
    info = run.info()
    assert info["checkpoint"] == chosen
    assert info["best_epoch"] == 2
    assert json.loads((run.path / "checkpoints" / "best.json").read_text())["epoch"] == 2
    rows = evaluate(run, Request())
    assert set(rows["selected_on"]) == {select_on}
    assert set(rows["checkpoint"]) == {chosen}
    prefix = "test" if select_on == "test" else "val"
    assert [row[f"{prefix}_accuracy.fused"] for row in run.history()] == [0.5, 0.7, 0.7, 0.6]
    warned = [e.text for e in events if isinstance(e, Note) and "select_on" in e.text]
    assert bool(warned) == (select_on == "test")

    session = make_session(recipe, data_dir)  # the predictions are those of that checkpoint and no other
    session.load_model(run.load_checkpoint(chosen.split("@")[0])[0])
    stored = read_predictions(run.predictions).of_split("val")
    np.testing.assert_array_equal(score(session, "val", True).logits, stored.logits)
    session.load_model(run.load_checkpoint("last" if chosen.startswith("best") else "best")[0])
    assert not np.array_equal(score(session, "val", True).logits, stored.logits)


def test_validation_accuracies_in_the_history_are_those_of_that_epoch(
    mfeat_store, data_dir: Path, tmp_path: Path
) -> None:
    run = trained(mfeat_recipe(train={"select_on": "last"}), data_dir, tmp_path)
    rows = evaluate(run, Request(split="val"))
    last = run.history()[-1]
    accuracy = rows[rows["metric"] == "accuracy"].set_index("output")["value"]
    for output in ("mor", "fou", "fused"):
        assert last[f"val_accuracy.{output}"] == accuracy[output]
        assert last[f"val_accuracy.{output}"] > 0.1
    assert [row["epoch"] for row in run.history()] == [1, 2]
    assert all(np.isfinite(list(row.values())).all() for row in run.history())


# ------------------------------------------------------------ events, facts, precision


def test_events_and_facts_of_a_run(mfeat_store, data_dir: Path, tmp_path: Path) -> None:
    events, run = events_and_value(train(mfeat_recipe(), data_dir, tmp_path, "cpu"))
    kinds = [type(event) for event in events]
    assert kinds.count(Started) == 1
    assert kinds.count(Epoch) == 2
    assert kinds[-1] is Finished
    assert events[-1].rows
    started = next(e for e in events if isinstance(e, Started))
    assert (started.epochs, started.rounds, started.first_epoch, started.resumed) == (2, 3, 1, False)
    info = run.info()
    assert info["state"] == "finished"
    assert info["threads"] == 1
    assert info["device"] == "cpu"
    assert info["protocol"] == "shipped"
    assert info["data_fingerprint"]
    assert info["data"]["train"] == {"samples": 96, "distinct": {"mor": 96, "fou": 96}}
    assert latest(tmp_path) == run.name
    times = [json.loads(line) for line in (run.path / "timing.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in times] == [1, 2]


def test_training_with_missing_modalities_is_recorded(mfeat_store, data_dir: Path, tmp_path: Path) -> None:
    recipe = mfeat_recipe(train={"missing_rate": 0.25, "missing_seed": 4, "epochs": 1})
    run = trained(recipe, data_dir, tmp_path)
    drawn = run.info()["data"]["train_missing"]
    assert drawn["realised"] == 0.25
    assert drawn["seed"] == 4
    rows = evaluate(run, Request())
    assert set(rows["train_missing_rate"]) == {0.25}
    assert set(rows["train_missing_pattern"]) == {"kept_one"}


@pytest.mark.parametrize("method", ["mla", "late", "concat"])
def test_bf16_runs_and_stays_finite(mfeat_store, data_dir: Path, tmp_path: Path, method: str) -> None:
    recipe = mfeat_recipe(method={"name": method}, train={"precision": "bf16"})
    run = trained(recipe, data_dir, tmp_path)
    full = trained(mfeat_recipe(method={"name": method}), data_dir, tmp_path)
    assert run.name != full.name  # the precision is part of the hash
    found, exact = read_predictions(run.predictions), read_predictions(full.predictions)
    assert found.logits.dtype == np.float32
    assert np.isfinite(found.logits).all()
    gap = np.abs(found.logits - exact.logits).max()
    assert 0 < gap < 0.5  # not the same arithmetic, but the same model
    state, _ = run.load_checkpoint("last")
    assert all(v.dtype != torch.bfloat16 for v in state.values())


def test_an_unknown_device_is_refused(mfeat_store, data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(MlaError, match="no device named `gpu`"):
        finish(train(mfeat_recipe(), data_dir, tmp_path, "gpu"))
    assert not list(tmp_path.iterdir())


def test_a_built_in_set_is_prepared_on_demand(tmp_path: Path) -> None:
    features = {"visual": {"kind": "image", "size": 8}, "text": {"kind": "text", "length": 16, "buckets": 64}}
    run = trained(emoji_recipe(features=features), tmp_path / "data", tmp_path / "runs")
    assert (tmp_path / "data" / "emoji" / "manifest.json").is_file()
    assert run.state == "finished"
