"""Imbalance diagnostics: they change no run, and are what a direct computation gives."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import frozen_copy, make_session, mfeat_recipe, optimizer_copy, same_bits, trained

from mla_cli import registry
from mla_cli.core.imbalance import certainty
from mla_cli.engine.session import Session

KEYS: dict[str, dict[str, Any]] = {
    "unimodal": {"unimodal": {"modality": "fou"}},
    "reconboost": {"reconboost": {"epochs_alone": 1, "epochs_joint": 1}},
}
CASES = [{"name": name, **KEYS.get(name, {})} for name in registry.names("methods")]
CASES += [{"name": "mla", "hgm": "rls", "hgm_apply": "update"}]
TRAIN = {"optimizer": "adamw", "lr": 0.01, "epochs": 2}


@pytest.fixture(autouse=True)
def quick_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)


def everything(session: Session) -> dict:
    """All that training moves: parameters, buffers, optimisers, and the method's own state."""
    tensors, _ = session.state()
    own = {f"own.{key}": value for key, value in tensors.items() if not key.startswith("gradient_norm.")}
    moments = {(n, *key): v for n, o in session.optimizers.items() for key, v in optimizer_copy(o).items()}
    return own | moments | frozen_copy(session.method)


@pytest.mark.parametrize("method", CASES, ids=lambda m: "-".join(str(v) for v in m.values() if isinstance(v, str)))
def test_nothing_of_a_run_changes(mfeat_store, data_dir: Path, method: dict) -> None:
    sessions = []
    for diagnostics in (True, False):
        train = TRAIN | {"missing_rate": 0.2, "diagnostics": diagnostics}
        session = make_session(mfeat_recipe(dropout=0.2, method=method, train=train), data_dir)
        for _ in range(2):
            session.train_epoch()
            facts = session.end_epoch()
        sessions.append(session)
        assert any(key.startswith("train_accuracy.") for key in facts) is diagnostics
    one, other = map(everything, sessions)
    assert same_bits(one, other)
    assert [m.training for m in sessions[0].method.modules()] == [m.training for m in sessions[1].method.modules()]


@pytest.mark.parametrize("method", CASES[:-1], ids=[m["name"] for m in CASES[:-1]])
def test_every_method_has_them_in_its_history(mfeat_store, data_dir: Path, tmp_path: Path, method: dict) -> None:
    views = ("mor", "fou", "zer")
    run = trained(mfeat_recipe(views, method=method, train=TRAIN), data_dir, tmp_path)
    rows = run.history()
    names = ["fou"] if method["name"] == "unimodal" else list(views)
    pairs = [f"{a}+{b}" for i, a in enumerate(names) for b in names[i + 1 :]]
    active = ["mor"] if method["name"] == "reconboost" else names  # of epoch 1, in which it boosts the first one
    wanted = {
        "train_accuracy": names,
        "val_accuracy": [*names, "fused"],
        "gradient_norm": active,
        "round_change": names,
        "rho": names if len(names) > 1 else [],
        "head_cosine": pairs,
        "modality_gap": pairs,
    }
    if method["name"] in ("mla", "late"):
        wanted["forgetting"] = names
    if method["name"] == "reconboost":
        wanted["forgetting"] = ["fou", "zer"]
    assert len(rows) == 2
    for key, of in wanted.items():
        assert [k.partition(".")[2] for k in rows[0] if k.startswith(f"{key}.")] == of, key
    assert ("modality_separability" in rows[0]) is (len(names) > 1)
    assert not any(key.startswith("forgetting") for key in rows[0]) or "forgetting" in wanted
    for row in rows:
        assert all(math.isfinite(value) for value in row.values()), row
        assert all(-1 <= v <= 1 for k, v in row.items() if k.startswith("head_cosine."))
        assert all(0 <= v <= 1 for k, v in row.items() if "accuracy" in k or "separability" in k)
        assert all(v > 0 for k, v in row.items() if k.startswith(("gradient_norm.", "rho.")))


def losses(session: Session) -> dict[str, float]:
    """Cross-entropy of each modality alone on the held samples, computed apart."""
    diagnostics, method = session.diagnostics, session.method
    assert diagnostics is not None
    method.eval()
    with torch.no_grad():
        found = {}
        for m in method.modalities:
            positions = diagnostics.held.positions[m]
            inputs = session.split_loader("val").modalities[m].batch(positions)
            labels = torch.from_numpy(session.data.splits["val"].labels[positions].astype(np.int64))
            found[m] = float(F.cross_entropy(method.alone(m, method.encode(m, inputs)), labels))
    method.train()
    return found


@pytest.mark.parametrize("hgm_apply", ["gradient", "update"])
def test_forgetting_is_what_the_steps_of_the_others_added(mfeat_store, data_dir: Path, hgm_apply: str) -> None:
    """The middle round of an epoch, done by hand: one modality at a time, losses taken in between."""
    method = {"name": "mla", "hgm": "rls", "hgm_apply": hgm_apply}
    recipe = mfeat_recipe(method=method, train={"lr": 0.2, "epochs": 2})
    watched, byhand = make_session(recipe, data_dir), make_session(recipe, data_dir)
    watched.train_epoch()
    facts = watched.end_epoch()
    byhand.method.train()
    byhand.method.start_epoch(1)
    first, middle, _ = byhand.train_loader.epoch(1)
    byhand.method.step(first)
    start = losses(byhand)
    order, added = byhand.method.order, {}
    between = dict(start)
    for modality in order:
        byhand.method.order = [modality]
        byhand.method.step(middle)
        now = losses(byhand)
        for other in (m for m in order if m != modality):
            added[other] = added.get(other, 0.0) + now[other] - between[other]
        between = now
    assert added.keys() == {"mor", "fou"}
    for m in order:
        assert facts[f"forgetting.{m}"] == pytest.approx(added[m], abs=1e-6)
        assert facts[f"round_change.{m}"] == pytest.approx(between[m] - start[m], abs=1e-6)
    assert any(abs(value) > 1e-5 for value in added.values())


def test_separate_heads_forget_nothing(mfeat_store, data_dir: Path) -> None:
    session = make_session(mfeat_recipe(method={"name": "late"}, train={"lr": 0.2}), data_dir)
    session.train_epoch()
    facts = session.end_epoch()
    assert facts["forgetting.mor"] == facts["forgetting.fou"] == 0.0
    assert facts["round_change.mor"] != 0.0


def test_gradient_norms_are_those_the_optimiser_gets(mfeat_store, data_dir: Path) -> None:
    """OGM's are the scaled ones."""
    recipe = mfeat_recipe(method={"name": "ogm", "ogm": {"alpha": 0.8}}, train={"lr": 0.2})
    watched, byhand = make_session(recipe, data_dir), make_session(recipe, data_dir)
    watched.train_epoch()
    facts = watched.end_epoch()
    seen: dict[str, list[float]] = {"mor": [], "fou": []}
    update = byhand.method.update

    def spy(*names: str) -> None:
        for m in seen:
            squares = sum(p.grad.double().square().sum() for p in byhand.method.encoders[m].parameters())
            seen[m].append(float(squares) ** 0.5)
        update(*names)

    byhand.method.update = spy  # type: ignore[method-assign]
    byhand.method.train()
    byhand.method.start_epoch(1)
    for batch in byhand.train_loader.epoch(1):
        byhand.method.step(batch)
    stride = max(1, len(seen["mor"]) // 8)
    for m, norms in seen.items():
        sampled = norms[::-1][::stride]
        assert facts[f"gradient_norm.{m}"] == pytest.approx(np.mean(sampled), rel=1e-5)


def test_the_probe_is_the_training_samples_that_have_the_modality(mfeat_store, data_dir: Path) -> None:
    session = make_session(mfeat_recipe(train={"missing_rate": 0.4}), data_dir)
    session.train_epoch()
    facts = session.end_epoch()
    assert session.diagnostics is not None
    certainties = {}
    for i, m in enumerate(("mor", "fou")):
        positions = session.diagnostics.probe.positions[m]
        assert session.data.train_present[positions, i].all()
        assert len(positions) == min(256, int(session.data.train_present[:, i].sum()))
        labels = torch.from_numpy(session.data.splits["train"].labels[positions].astype(np.int64))
        session.method.eval()
        with torch.no_grad():
            inputs = session.split_loader("train").modalities[m].batch(positions)
            logits = session.method.alone(m, session.method.encode(m, inputs))
        assert facts[f"train_accuracy.{m}"] == float((logits.argmax(1) == labels).double().mean())
        certainties[m] = certainty(logits, labels)
    assert facts["rho.mor"] == pytest.approx(certainties["mor"] / certainties["fou"])


def test_unpaired_sources_are_measured_each_on_its_own(digits_store, data_dir: Path, features_of) -> None:
    from mla_cli.recipe import validate

    content = {
        "dataset": {"name": "digits", "limit": 30},
        "features": features_of["digits"],
        "method": {"batching": "independent"},
        "train": {"batch_size": 16},
        "shared_width": 8,
        "encoders": {m: {"name": "mlp", "hidden": 8} for m in ("audio", "visual")},
    }
    session = make_session(validate(content, "test"), data_dir)
    session.train_epoch()
    facts = session.end_epoch()
    assert {"train_accuracy.audio", "train_accuracy.visual", "forgetting.audio", "modality_separability"} <= set(facts)


def test_the_history_of_a_resumed_epoch_is_the_same(mfeat_store, data_dir: Path) -> None:
    """Norms of the rounds before the interruption are in the checkpoint."""
    recipe = mfeat_recipe(train={"batch_size": 8, "epochs": 1})
    one = make_session(recipe, data_dir)
    states: list = []

    def save() -> None:
        tensors, values = one.state()
        states.append(({key: value.clone() for key, value in tensors.items()}, json.dumps(values)))

    one.train_rounds(lambda: save() if one.progress.round in (5, 10) else None)
    one.close_epoch()
    facts = one.end_epoch()
    assert len(states) == 2  # after rounds 5 and 10 of 12, before and after the middle one
    assert ["measured.forgetting.mor" in tensors for tensors, _ in states] == [False, True]
    for tensors, values in states:
        assert any(key.startswith("gradient_norm.") for key in tensors)
        other = make_session(recipe, data_dir)
        other.load_state(tensors, json.loads(values))
        other.train_epoch()
        assert list(other.end_epoch().items()) == list(facts.items())
