"""Whatever lies in `methods/`: any number of modalities trains, resumes to the bit, and leaves nothing untrained."""

import ast
import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from tiny import VIEWS, frozen_copy, make_session, mfeat_recipe, optimizer_copy, same_bits, trained

from mla_cli import registry
from mla_cli.engine.predictions import read_predictions
from mla_cli.engine.session import Session
from mla_cli.engine.train import validate
from mla_cli.errors import MlaError

# What a method cannot do without, and stages short enough to be seen whole in two epochs.
KEYS: dict[str, dict[str, Any]] = {
    "unimodal": {"unimodal": {"modality": "fou"}},
    "reconboost": {"reconboost": {"epochs_alone": 1, "epochs_joint": 1}},
}
NAMES = registry.names("methods")
CASES = [(name, {"name": name, **KEYS.get(name, {})}) for name in NAMES]
CASES += [(f"mla-{hgm}", {"name": "mla", "hgm": hgm}) for hgm in ("off", "released", "released_add")]
every = pytest.mark.parametrize("method", [method for _, method in CASES], ids=[name for name, _ in CASES])
NEEDS_TWO = ("sum", "film", "bigated", "ogm", "ogm_ge", "qmf", "mmpareto", "reconboost")


@pytest.fixture(autouse=True)
def quick_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power fails here: do not wait for the disk."""
    monkeypatch.setattr("os.fsync", lambda handle: None)


def steps(session: Session, count: int) -> None:
    """The first `count` rounds of the next epoch."""
    session.method.train()
    session.method.start_epoch(session.progress.epoch + 1)
    for batch in session.train_loader.epoch(session.progress.epoch + 1, 0, count):
        session.method.step(batch)
    session.progress.round = count


@pytest.mark.parametrize("count", [2, 3, 6])
@every
def test_any_number_of_modalities_trains_and_predicts(
    mfeat_store, data_dir: Path, tmp_path: Path, method: dict, count: int
) -> None:
    views = VIEWS[:count]
    run = trained(mfeat_recipe(views, method=method, train={"epochs": 1}), data_dir, tmp_path)
    predictions = read_predictions(run.predictions)
    assert predictions.modalities == (["fou"] if method["name"] == "unimodal" else list(views))
    assert np.isfinite(predictions.logits).all()
    assert predictions.facts["alone_readout"]
    mixes = registry.load("methods", method["name"]).Method.mixes
    assert len(predictions.subsets) == (2**count - 1 if mixes else 0)
    with (run.path / "results.csv").open(newline="") as file:
        assert {row["output"] for row in csv.DictReader(file)} == {*predictions.modalities, "fused"}


@pytest.mark.parametrize("rounds", [0, 2])
@every
def test_a_resumed_run_goes_on_bit_for_bit(mfeat_store, data_dir: Path, method: dict, rounds: int) -> None:
    """Interrupted in its second epoch, with dropout, noise, missing modalities and AdamW's moments."""
    recipe = mfeat_recipe(
        dropout=0.2,
        augment={"mor": {"noise": 0.3}},
        method=method,
        train={"optimizer": "adamw", "lr": 0.01, "missing_rate": 0.2},
    )
    one, other = make_session(recipe, data_dir), make_session(recipe, data_dir)
    one.train_epoch()
    one.method.end_epoch()
    steps(one, rounds)
    tensors, values = one.state()
    other.load_state(load(save({key: value.detach().contiguous() for key, value in tensors.items()})), values)
    for session in (one, other):
        session.train_epoch()
    assert same_bits(frozen_copy(one.method), frozen_copy(other.method))
    for name in one.optimizers:
        assert same_bits(optimizer_copy(one.optimizers[name]), optimizer_copy(other.optimizers[name]))
    assert one.method.end_epoch() == other.method.end_epoch()
    first, second = one.state(), other.state()
    assert same_bits(first[0], second[0])
    assert first[1] == second[1]


@every
def test_every_parameter_has_one_optimiser_and_moves(mfeat_store, data_dir: Path, method: dict) -> None:
    plain = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}  # then only a gradient moves anything
    session = make_session(mfeat_recipe(VIEWS[:3], method=method, train=plain), data_dir)
    parameters = dict(session.method.named_parameters())
    owned = [id(p) for o in session.optimizers.values() for group in o.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(map(id, parameters.values()))
    before = frozen_copy(session.method)
    for _ in range(2):
        session.train_epoch()
    assert [name for name, p in parameters.items() if torch.equal(before[name], p)] == []
    assert all(p.grad is None for p in parameters.values())  # a gradient that stays would move something later


@every
def test_it_learns(mfeat_store, data_dir: Path, method: dict) -> None:
    recipe = mfeat_recipe(("fou", "kar"), method=method, train={"optimizer": "adamw", "lr": 0.01, "epochs": 8})
    session = make_session(recipe, data_dir)
    for _ in range(8):
        session.train_epoch()
    assert validate(session, "val")["fused"] > 0.4  # by chance 0.1


@pytest.mark.parametrize("name", NEEDS_TWO)
def test_one_modality_is_refused_by_name(mfeat_store, data_dir: Path, name: str) -> None:
    with pytest.raises(MlaError, match=f"`{name}` needs at least 2 modalities") as error:
        make_session(mfeat_recipe(("mor",), method={"name": name}), data_dir)
    assert error.value.hint


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_names_its_source(name: str) -> None:
    text = ast.get_docstring(ast.parse((registry.PACKAGE / "methods" / f"{name}.py").read_text("utf-8"))) or ""
    assert re.search(r"arXiv \d{4}\.\d{5}|Table 1|the control", text)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"name": "ogm", "ogm": {"start_epoch": 5, "end_epoch": 2}}, "no epoch lies between"),
        ({"name": "mmpareto", "mmpareto": {"gamma": 0.0}}, "must be positive"),
        ({"name": "qmf", "qmf": {"weight": -1.0}}, "must not be negative"),
        ({"name": "ogm", "ogm": {"alpha": float("nan")}}, "must be a finite number"),
    ],
)
def test_keys_that_make_no_sense_are_refused(mfeat_store, data_dir: Path, method: dict, message: str) -> None:
    with pytest.raises(MlaError, match=message):
        make_session(mfeat_recipe(method=method), data_dir)


def test_reconboost_warns_where_its_stages_do_not_fit_the_budget(mfeat_store, data_dir: Path) -> None:
    for epochs, expected in ((15, 1), (16, 0)):
        session = make_session(mfeat_recipe(method={"name": "reconboost"}, train={"epochs": epochs}), data_dir)
        found = [w for w in session.method.context.warnings if "reconboost takes 16 epochs" in w]
        assert len(found) == len(session.method.context.warnings) == expected
