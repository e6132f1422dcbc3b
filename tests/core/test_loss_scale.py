"""float16: HGM and the optimisers see unscaled gradients, an overflow moves nothing, a checkpoint keeps the scale."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import frozen_copy, make_session, mfeat_recipe, optimizer_copy, run_bytes, same_bits, trained

from mla_cli.core.hgm import HeadGradientModifier
from mla_cli.core.loss_scale import LossScale
from mla_cli.engine.devices import check_precision
from mla_cli.engine.session import Session
from mla_cli.errors import MlaError

HALF = {"train": {"precision": "16"}}


def half_session(data_dir: Path, **changes) -> Session:
    return make_session(mfeat_recipe(train={"precision": "16"}, **changes), data_dir)


def test_a_scale_of_any_size_gives_the_same_step(mfeat_store, data_dir: Path) -> None:
    """Powers of two change no bit of a gradient that neither vanishes nor overflows: P saw them unscaled."""
    weights = []
    for scale in (2.0**8, 2.0**12):
        session = half_session(data_dir)
        session.method.scale.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        for batch in session.train_loader.epoch(1):
            session.method.step(batch)
        weights.append(frozen_copy(session.method))
        assert session.method.scale.end_epoch() == {"loss_scale": scale, "overflows": 0.0}
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=2e-3, atol=2e-4)


def test_hgm_modifies_gradients_of_the_size_of_float32(
    mfeat_store, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[float]] = []
    plain = HeadGradientModifier.modify
    monkeypatch.setattr(
        HeadGradientModifier, "modify", lambda self, g: (seen[-1].append(float(g.norm())), plain(self, g))[1]
    )
    for precision in ("32", "16"):
        session = make_session(mfeat_recipe(train={"precision": precision}), data_dir)
        seen.append([])
        session.method.step(next(session.train_loader.epoch(1)))
    assert len(seen[0]) == 1
    assert seen[1] == pytest.approx(seen[0], rel=0.01)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_overflow_moves_nothing_and_halves_the_scale(mfeat_store, data_dir: Path, optimizer: str) -> None:
    session = make_session(mfeat_recipe(train={"precision": "16", "optimizer": optimizer}), data_dir)
    session.method.scale.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    before = frozen_copy(session.method)
    session.method.step(next(session.train_loader.epoch(1)))
    assert same_bits(frozen_copy(session.method), before)
    assert session.method.scale.end_epoch() == {"loss_scale": 2.0**58, "overflows": 4.0}  # two steps of two optimisers
    for name in session.optimizers:  # torch's fused SGD would leave its momentum uninitialised
        state = optimizer_copy(session.optimizers[name])
        assert all(not value.any() for (_, key), value in state.items() if key != "step")


@pytest.mark.parametrize("name", ["mla", "ogm_ge", "mmpareto", "qmf", "reconboost"])
def test_every_method_learns_as_in_float32(mfeat_store, data_dir: Path, name: str) -> None:
    losses = []
    for precision in ("32", "16"):
        recipe = mfeat_recipe(method={"name": name}, train={"precision": precision})
        losses.append(make_session(recipe, data_dir).train_epoch())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_a_resumed_run_ends_with_the_same_bytes(
    mfeat_store, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mla_cli.core.loss_scale.START", 2.0**40)  # so that some steps overflow
    recipe = mfeat_recipe(train={"precision": "16", "checkpoint_every": 1})
    whole = run_bytes(trained(recipe, data_dir, tmp_path / "whole"))
    assert b'"overflows": 0.0' not in whole["history.jsonl"].splitlines()[0]
    rounds = Session.train_rounds

    def stop(self: Session, after_round: Callable[[], None]) -> dict[str, float]:
        def save_and_stop() -> None:
            after_round()
            raise KeyboardInterrupt

        return rounds(self, save_and_stop)

    monkeypatch.setattr(Session, "train_rounds", stop)
    with pytest.raises(KeyboardInterrupt):
        trained(recipe, data_dir, tmp_path / "cut")
    monkeypatch.setattr(Session, "train_rounds", rounds)
    assert run_bytes(trained(recipe, data_dir, tmp_path / "cut", resume=True)) == whole


def test_state_of_a_scale_never_used() -> None:
    one, other = (LossScale(torch.device("cpu"), []) for _ in range(2))
    other.load_state(one.state())
    assert same_bits(one.state(), other.state())


def test_mps_does_not_train_in_float16() -> None:
    with pytest.raises(MlaError, match="does not train on mps"):
        check_precision("16", torch.device("mps"))
    check_precision("16", torch.device("cpu"))
    check_precision("bf16", torch.device("mps"))
