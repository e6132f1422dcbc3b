"""Frozen encoders: nothing of them moves, and training on their stored features is training on the fly."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import (
    CPU,
    VIEWS,
    digits_recipe,
    emoji_recipe,
    events_and_value,
    finish,
    frozen_copy,
    mfeat_recipe,
    run_bytes,
    same_bits,
    trained,
)

from mla_cli import registry
from mla_cli.core.method import BaseMethod
from mla_cli.engine import frozen
from mla_cli.engine.assemble import move_into_place
from mla_cli.engine.data import complete, load_data, open_store
from mla_cli.engine.events import Note, Progress
from mla_cli.engine.predictions import read_predictions
from mla_cli.engine.rescore import score_dataset, score_table
from mla_cli.engine.run import Run
from mla_cli.engine.session import Session
from mla_cli.engine.train import train, validate
from mla_cli.errors import MlaError
from mla_cli.locks import FolderLock
from mla_cli.schema import Recipe

FROZEN = {"frozen": True}
KEYS: dict[str, dict[str, Any]] = {
    "unimodal": {"unimodal": {"modality": "fou"}},
    "reconboost": {"reconboost": {"epochs_alone": 1, "epochs_joint": 1}},
}
METHODS = [{"name": name, **KEYS.get(name, {})} for name in registry.names("methods")]
METHODS += [{"name": "mla", "hgm": "released"}, {"name": "mla", "hgm": "rls", "hgm_apply": "update"}]


@pytest.fixture(autouse=True)
def quick_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power fails here: do not wait for the disk."""
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture(scope="module")
def folder(mfeat_store, emoji_store, digits_store, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of the stores, to which features are added."""
    copies = tmp_path_factory.mktemp("frozen")
    for name in ("mfeat", "emoji", "digits"):
        shutil.copytree(data_dir / name, copies / name)
    return copies


def frozen_recipe(views: tuple[str, ...] = ("mor", "fou"), **changes: Any) -> Recipe:
    """`mfeat_recipe` with frozen networks, 12 wide; `shared_width` is 8, so there are adapters."""
    return mfeat_recipe(views, **{"encoders": dict.fromkeys(views, FROZEN), **changes})


def session_of(recipe: Recipe, folder: Path, stored: bool = True) -> Session:
    """A session whose features are computed, or which computes them batch by batch."""
    store = open_store(recipe, folder)
    recipe = complete(recipe, store)
    torch.set_num_threads(1)
    aligned = registry.load("methods", recipe.method.name).Method.aligned
    session = Session(recipe, load_data(recipe, store, aligned=aligned), CPU, stored=stored)
    finish(session.inputs.compute_features())
    return session


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[key].double() - other[key].double()).abs().max()) for key in one)


# ------------------------------------------------------------ the same as on the fly


def cases() -> list[Any]:
    """Every method with two modalities and its own features (12) or an adapter to 8; M = 1 and 3 of two by default."""
    found = []
    for method in METHODS:
        name = "-".join(value for value in method.values() if isinstance(value, str))
        for count in (1, 2, 3):
            for width in (8, 12):
                is_quick = (count, width) == (2, 12) or (name in ("mla", "concat") and (count == 2) != (width == 8))
                marks = () if is_quick else (pytest.mark.slow,)
                if count >= registry.load("methods", method["name"]).Method.fewest_modalities:
                    found.append(pytest.param(method, count, width, id=f"{name}-{count}-{width}", marks=marks))
    return found


@pytest.mark.parametrize(("method", "count", "width"), cases())
def test_stored_features_train_as_those_computed_on_the_fly(folder: Path, method: dict, count: int, width: int) -> None:
    """Heads, adapters, losses, diagnostics and validation over two epochs, with everything that could tell them apart:
    dropout in the frozen network, missing rows, imputed means, hidden modalities, augmentation that is off."""
    joint = registry.load("methods", method["name"]).Method.aligned
    recipe = frozen_recipe(
        VIEWS[1 : 1 + count],
        dropout=0.3,
        shared_width=width,
        method=method,
        impute="train_mean",
        augment={"fou": {"noise": 0.5}},
        train={"missing_rate": 0.2 if count > 1 else 0.0, "modality_dropout": 0.2 if joint else 0.0},
    )
    one, other = session_of(recipe, folder), session_of(recipe, folder, stored=False)
    before = {key: value.clone() for key, value in one.weights(frozen=False).items()}
    for _ in range(2):
        losses = [session.train_epoch() for session in (one, other)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
        assert largest_difference(one.weights(frozen=False), other.weights(frozen=False)) < 1e-5
        assert validate(one, "val") == pytest.approx(validate(other, "val"), abs=0.011)  # one sample of 96
        facts = [session.end_epoch() for session in (one, other)]
        assert facts[0] == pytest.approx(facts[1], rel=1e-3, abs=1e-4)
    assert largest_difference(before, one.weights(frozen=False)) > 1e-4  # and they did train


def test_convolutions_with_batch_normalisation_and_text_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features computed 7 at a time and in one go, stored or not: the size of a batch changes rounding alone."""
    recipe = emoji_recipe(
        encoders={"visual": FROZEN, "text": FROZEN}, impute="train_mean", method={"name": "concat"}, train={"epochs": 2}
    )
    sessions = [session_of(recipe, folder), session_of(recipe, folder, stored=False)]
    shutil.rmtree(folder / "emoji" / "frozen")
    monkeypatch.setattr(frozen, "BLOCK", 7)
    sessions.append(session_of(recipe, folder))
    for _ in range(2):
        for session in sessions:
            session.train_epoch()
    for session in sessions[1:]:
        assert largest_difference(sessions[0].weights(False), session.weights(False)) < 1e-5
    assert largest_difference(sessions[0].inputs.raw_blanks, sessions[1].blanks) == 0
    assert sessions[0].blanks["visual"].shape == sessions[0].inputs.features["visual"].store.shape


@pytest.mark.parametrize("stored", [True, False])
def test_nothing_of_a_frozen_network_moves(folder: Path, stored: bool) -> None:
    """Parameters, running statistics, and the optimisers, which do not even know of them."""
    session = session_of(emoji_recipe(encoders={"visual": FROZEN}), folder, stored)
    before = frozen_copy(session.method)
    session.train_epoch()
    after = session.method.state_dict()
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == {name for name in before if name.startswith("encoders.visual.network.")}
    owned = {id(p) for o in session.optimizers.values() for group in o.param_groups for p in group["params"]}
    assert owned == {id(p) for p in session.method.parameters() if p.requires_grad}
    assert not session.method.encoders["visual"].network.training  # type: ignore[union-attr]
    assert session.method.encoders["visual"].adapter.training and session.method.encoders["text"].network.training  # type: ignore[union-attr]


def test_frozen_batch_normalisation_takes_a_batch_of_one(folder: Path) -> None:
    """64 samples in batches of 63: the last one is skipped only by an encoder that trains."""
    for encoders, skipped in (({}, 1), ({"visual": FROZEN}, 0)):
        session = session_of(emoji_recipe(encoders=encoders, train={"batch_size": 63}), folder)
        session.train_epoch()
        assert session.train_loader.skipped == {"visual": skipped, "text": 0}


def test_unpaired_data_and_a_frozen_sound_encoder(folder: Path, tmp_path: Path) -> None:
    recipe = digits_recipe(encoders={"audio": FROZEN})
    run = trained(recipe, folder, tmp_path)
    assert np.isfinite(read_predictions(run.predictions).logits).all()
    one, other = session_of(recipe, folder), session_of(recipe, folder, stored=False)
    for session in (one, other):
        session.train_epoch()
    assert largest_difference(one.weights(False), other.weights(False)) < 1e-5


def test_bfloat16_features_are_what_the_network_gives(folder: Path) -> None:
    recipe = frozen_recipe(train={"precision": "bf16"})
    one, other = session_of(recipe, folder), session_of(recipe, folder, stored=False)
    for session in (one, other):
        session.train_epoch()
    assert largest_difference(one.weights(False), other.weights(False)) < 1e-5
    plain = session_of(frozen_recipe(), folder)
    assert plain.inputs.features["fou"].key != one.inputs.features["fou"].key


# ------------------------------------------------------------ the store


def features_of(recipe: Recipe, folder: Path, modality: str = "fou") -> frozen.FrozenFeatures:
    return session_of(recipe, folder).inputs.features[modality]


def test_stored_rows_are_the_networks_output_in_the_order_of_the_store(folder: Path) -> None:
    session = session_of(frozen_recipe(), folder)
    found, data = session.inputs.features["fou"], session.data
    raw = torch.from_numpy(data.store.modality("fou").take(np.arange(2000))).double()
    mean, sd = data.normalisation["fou"]
    network = session.method.encoders["fou"].network.double()  # type: ignore[union-attr]
    with torch.no_grad():
        wanted = network((raw - torch.from_numpy(mean)) / torch.from_numpy(sd))
    assert found.store.num_rows == 2000 and found.store.shape == (12,)
    torch.testing.assert_close(
        torch.from_numpy(found.store.take(np.arange(2000))).double(), wanted, rtol=1e-5, atol=1e-5
    )


def test_the_key_is_what_the_features_are_made_of(folder: Path, tmp_path: Path) -> None:
    """Another seed starts another network, so it has features of its own; with weights from a file it has not."""
    shared = features_of(frozen_recipe(), folder)
    same = {"train": {"lr": 0.1}, "method": {"name": "concat"}, "shared_width": 5, "impute": "train_mean"}
    assert features_of(frozen_recipe(**same), folder).key == shared.key
    for other in (
        {"seed": 1},
        {"encoders": {m: {**FROZEN, "activation": "tanh"} for m in ("mor", "fou")}},
        {"dataset": {"limit": 50}, "train": {"missing_rate": 0.4}},  # other rows to train on, another normalisation
    ):
        assert features_of(frozen_recipe(**other), folder).key != shared.key, other
    save_file(shared.method.encoders.get_submodule("fou.network").state_dict(), tmp_path / "fou.safetensors")
    filled = {"mor": {}, "fou": {**FROZEN, "weights": str(tmp_path / "fou.safetensors")}}
    assert {features_of(frozen_recipe(encoders=filled, seed=s), folder).key for s in (0, 7)} == {shared.key}


def texts(events: list[Any]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note)]


def test_features_are_computed_once_and_damage_is_mended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mla_cli.data.store.SHARD_BYTES", 1)  # 64 rows a shard
    found = features_of(frozen_recipe(seed=11), folder)
    shards = sorted(found.folder.glob("*.npy"))
    assert len(shards) == 32
    content = {path: path.read_bytes() for path in shards}
    assert json.loads((found.folder / "manifest.json").read_text())["rows"] == 2000

    events, _ = events_and_value(found.compute())
    assert len(events) == 1 and "are stored in" in events[0].text

    shards[3].write_bytes(content[shards[3]][:-4] + b"\0\0\0\1")
    shards[5].unlink()
    events, _ = events_and_value(found.compute())
    assert [event.text for event in events if isinstance(event, Note) and event.warning] == [
        f"`{shards[3]}` was damaged: computing it again",
        f"`{shards[5]}` was damaged: computing it again",
    ]
    progress = [event for event in events if isinstance(event, Progress)]
    assert (progress[0].done, progress[-1].done, progress[-1].total) == (2000 - 128, 2000, 2000)
    assert {path: path.read_bytes() for path in shards} == content

    (found.folder / "manifest.json").unlink()  # interrupted: whole shards stay
    shards[0].unlink()
    events, _ = events_and_value(found.compute())
    assert [e.done for e in events if isinstance(e, Progress)] == [1936, 2000]
    assert {path: path.read_bytes() for path in shards} == content

    (found.folder / "manifest.json").write_text("{")
    with pytest.raises(MlaError, match="not valid JSON") as error:
        finish(found.compute())
    assert f"remove the folder `{found.folder}`" in str(error.value.hint)


def test_one_run_computes_and_the_others_wait(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "LOOK_AGAIN", 0.001)
    found = features_of(frozen_recipe(seed=12), folder)
    shutil.rmtree(found.folder)
    lock = FolderLock(found.folder)
    assert lock.taken()
    steps = found.compute()
    assert next(steps) == Note("another run computes the features of fou: waiting for it to end")
    lock.release()
    assert "computing" in next(steps).text  # type: ignore[union-attr]
    finish(steps)
    assert (found.folder / "manifest.json").is_file()


def test_a_store_built_again_has_no_features(folder: Path) -> None:
    before = features_of(frozen_recipe(), folder)
    assert before.folder.is_dir()
    path, partial = folder / "mfeat", folder / ".mfeat.partial"
    shutil.copytree(path, partial, ignore=shutil.ignore_patterns("frozen"))
    move_into_place(partial, path)  # the end of every `mla prepare` that builds
    assert not (folder / "mfeat" / "frozen").exists()
    assert features_of(frozen_recipe(), folder).folder == before.folder


def test_features_that_are_not_finite_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: BaseMethod, modality: str, inputs: torch.Tensor) -> torch.Tensor:
        return torch.full((len(inputs), 12), float("nan"))

    before = set(folder.glob("mfeat/frozen/*/*"))
    monkeypatch.setattr(BaseMethod, "frozen_features", broken)
    with pytest.raises(MlaError, match=r"frozen encoder of `mor` gives features that are NaN or infinite"):
        trained(frozen_recipe(seed=13), folder, tmp_path)
    assert set(folder.glob("mfeat/frozen/*/*")) == before


# ------------------------------------------------------------ runs


def test_a_run_keeps_the_frozen_networks_once_and_needs_no_weights_file(folder: Path, tmp_path: Path) -> None:
    """Every way of scoring works after the weights file is gone, and gives the logits of training."""
    start = session_of(frozen_recipe(seed=5), folder).method.encoders.get_submodule("fou.network")
    weights = tmp_path / "fou.safetensors"
    save_file(start.state_dict(), weights)
    recipe = frozen_recipe(
        encoders={"mor": {}, "fou": {**FROZEN, "weights": str(weights)}},
        dataset={"limit": None},
        method={"name": "concat"},
        impute="train_mean",
        train={"batch_size": 256, "epochs": 1},
    )
    run = trained(recipe, folder, tmp_path / "runs")
    weights.unlink()
    for file in run.path.glob("checkpoints/*-e*.safetensors"):
        names = load_file(file).keys()
        assert "model.encoders.fou.adapter.weight" in names and "model.encoders.mor.network.layers.0.weight" in names
        assert not any(name.startswith("model.encoders.fou.network.") for name in names)
    assert same_bits(
        load_file(run.frozen_file),
        {f"model.encoders.fou.network.{name}": value for name, value in start.state_dict().items()},
    )
    own = read_predictions(run.predictions)
    found = finish(score_dataset(run, "mfeat", folder))
    np.testing.assert_allclose(found.logits, own.logits, rtol=0, atol=1e-5)
    for subset in own.subsets:
        np.testing.assert_allclose(found.subsets[subset], own.subsets[subset], rtol=0, atol=1e-5)
    assert "warnings" not in run.info()


def test_new_rows_of_a_table(folder: Path, tmp_path: Path) -> None:
    run = trained(frozen_recipe(train={"epochs": 1}), folder, tmp_path / "runs")
    index = open_store(frozen_recipe(), folder).index.head(4)
    own = read_predictions(run.predictions)
    rows = [f"{i},{m},{f}" for i, m, f in zip(index["id"], index["ref.mor"], index["ref.fou"], strict=True)]
    (tmp_path / "new.csv").write_text("\n".join(["id,mor,fou", *rows]) + "\n")
    finish(score_table(run, tmp_path / "new.csv", registry.PACKAGE / "demo" / "mfeat", tmp_path / "out.parquet"))
    found = read_predictions(tmp_path / "out.parquet")
    assert found.ids.tolist() == index["id"].tolist() and found.logits.shape == (4, 2, own.logits.shape[2])


def test_a_lost_or_damaged_network_is_named(folder: Path, tmp_path: Path) -> None:
    run = trained(frozen_recipe(train={"epochs": 1}), folder, tmp_path)
    content = run.frozen_file.read_bytes()
    run.frozen_file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(MlaError, match=r"frozen.safetensors` is damaged") as error:
        finish(score_dataset(run, "mfeat", folder))
    assert "--force" in str(error.value.hint)
    run.frozen_file.unlink()
    with pytest.raises(MlaError, match=r"cannot read `.*frozen.safetensors`"):
        finish(score_dataset(run, "mfeat", folder))


@pytest.mark.parametrize("method", ["mla", "concat"])
def test_an_interrupted_run_ends_with_the_same_bytes(folder: Path, tmp_path: Path, method: str) -> None:
    """Killed while features are computed, and after an epoch; leftovers of both."""
    rich = {"train": {"optimizer": "adamw", "checkpoint_every": 1, "missing_rate": 0.1}, "impute": "train_mean"}
    recipe = frozen_recipe(method={"name": method}, seed=21, **rich)
    whole = run_bytes(trained(recipe, folder, tmp_path / "whole"))
    assert "checkpoints/frozen.safetensors" in whole
    shutil.rmtree(folder / "mfeat" / "frozen")
    for stop in (Progress, "epoch"):
        steps = train(recipe, folder, tmp_path / "cut", "cpu", resume=stop == "epoch")
        for event in steps:
            if (stop == "epoch" and type(event).__name__ == "Epoch") or (stop is Progress and isinstance(event, stop)):
                break
        steps.close()
    (run,) = map(Run, (tmp_path / "cut").iterdir())
    (run.path / "checkpoints" / "last-e0009-r000000.safetensors").write_bytes(b"left over")
    (run.path / "checkpoints" / ".frozen.safetensors.1.tmp").write_bytes(b"left over")
    assert run_bytes(trained(recipe, folder, tmp_path / "cut", resume=True)) == whole


def test_a_run_that_began_with_other_networks_is_not_resumed(folder: Path, tmp_path: Path) -> None:
    run = trained(frozen_recipe(train={"epochs": 1}), folder, tmp_path)
    run.update(state="running", frozen_sha256="0" * 64)
    with pytest.raises(MlaError, match="began with other frozen encoders"):
        trained(frozen_recipe(train={"epochs": 1}), folder, tmp_path, resume=True)


def test_a_mistyped_key_is_recognised() -> None:
    with pytest.raises(MlaError, match=r"unknown key `encoders.fou.frozn`") as error:
        frozen_recipe(encoders={"fou": {"frozn": True}})
    assert error.value.hint == "did you mean `encoders.fou.frozen`?"


def test_what_is_off_is_said_and_kept(folder: Path, tmp_path: Path) -> None:
    noisy = frozen_recipe(augment={"fou": {"noise": 0.5}}, train={"epochs": 1})
    events, run = events_and_value(train(noisy, folder, tmp_path, "cpu"))
    warned = [
        "the encoder of mor is frozen as it starts, at random: no `encoders.mor.weights` is given",
        "augment.fou is off: the encoder is frozen, and its features are computed once",
        "the encoder of fou is frozen as it starts, at random: no `encoders.fou.weights` is given",
    ]
    assert [e.text for e in events if isinstance(e, Note) and e.warning] == run.info()["warnings"] == warned
    plain = trained(frozen_recipe(train={"epochs": 1}), folder, tmp_path)
    assert plain.predictions.read_bytes() != run.predictions.read_bytes()  # the recipe's hash stands in both
    np.testing.assert_array_equal(read_predictions(plain.predictions).logits, read_predictions(run.predictions).logits)
