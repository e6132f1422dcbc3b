"""Alternation: a step moves one encoder and the shared head, and nothing else; HGM changes the head's weight alone."""

from pathlib import Path

import pytest
import torch
from tiny import emoji_recipe, frozen_copy, make_session, mfeat_recipe, one_modality, optimizer_copy, same_bits

from mla_cli.core.method import Batch
from mla_cli.engine.data import complete, open_store
from mla_cli.engine.session import Session
from mla_cli.errors import MlaError

PLAIN = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}
OPTIMIZERS = [
    {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1},
]


def batches(session: Session, epoch: int = 1) -> list[Batch]:
    session.method.train()
    session.method.start_epoch(epoch)
    return list(session.train_loader.epoch(epoch))


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["sgd", "adamw"])
@pytest.mark.parametrize("moved", ["visual", "text"])
def test_a_step_of_one_modality_leaves_every_bit_of_the_other_alone(
    emoji_store, data_dir: Path, optimizer: dict, moved: str
) -> None:
    session = make_session(emoji_recipe(train=optimizer), data_dir)
    first, second = batches(session)
    session.method.step(first)  # so that momentum and moments are there, and could move an idle encoder
    idle = "text" if moved == "visual" else "visual"
    encoders, optimizers = session.method.encoders, session.optimizers
    before = {m: frozen_copy(encoders[m]) for m in encoders}
    states = {name: optimizer_copy(optimizers[name]) for name in optimizers}
    head = frozen_copy(session.method.heads)
    assert any("running_mean" in name for name in before["visual"])
    assert states[f"encoder.{idle}"], "the idle encoder's optimiser has a state to move it with"

    session.method.step(one_modality(second, moved))

    assert same_bits(before[idle], frozen_copy(encoders[idle]))
    assert same_bits(states[f"encoder.{idle}"], optimizer_copy(optimizers[f"encoder.{idle}"]))
    assert not any(torch.equal(head[name], value) for name, value in frozen_copy(session.method.heads).items())
    assert not same_bits(before[moved], frozen_copy(encoders[moved]))
    assert not same_bits(states[f"encoder.{moved}"], optimizer_copy(optimizers[f"encoder.{moved}"]))
    assert not same_bits(states["head.shared"], optimizer_copy(optimizers["head.shared"]))
    if moved == "visual":
        names = [name for name in before["visual"] if "running_mean" in name]
        assert not any(torch.equal(before["visual"][n], encoders["visual"].state_dict()[n]) for n in names)


def test_gradients_are_cleared_not_zeroed(mfeat_store, data_dir: Path) -> None:
    session = make_session(mfeat_recipe(), data_dir)
    session.method.step(batches(session)[0])
    assert all(parameter.grad is None for parameter in session.method.parameters())


def twins(data_dir: Path, **changes) -> tuple[Session, Session]:
    on = make_session(mfeat_recipe(method={"hgm": "rls"}, train=PLAIN | changes), data_dir)
    return on, make_session(mfeat_recipe(method={"hgm": "off"}, train=PLAIN | changes), data_dir)


def test_the_first_step_equals_that_without_hgm_and_the_second_changes_the_head_weight_alone(
    mfeat_store, data_dir: Path
) -> None:
    on, off = twins(data_dir)
    batch = batches(on)[0]
    off.method.start_epoch(1)
    for session in (on, off):
        session.method.step(one_modality(batch, "mor"))
    assert same_bits(frozen_copy(on.method), frozen_copy(off.method))
    for session in (on, off):
        session.method.step(one_modality(batch, "fou"))
    one, other = frozen_copy(on.method), frozen_copy(off.method)
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    assert changed == {"heads.shared.weight"}  # the bias and the encoders got their own gradients


def test_hgm_hands_on_the_gradients_of_bias_and_encoder_as_they_are(
    mfeat_store, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every gradient just before the optimisers step, with HGM and without, in the second step."""
    found: list[dict[str, torch.Tensor]] = []

    def update(self, *names: str) -> None:
        found.append({n: p.grad.clone() for n, p in self.named_parameters() if p.grad is not None})
        for name in names:
            self.optimizers[name].step()
            self.optimizers[name].zero_grad(set_to_none=True)

    monkeypatch.setattr("mla_cli.core.method.BaseMethod.update", update)
    for session in twins(data_dir):
        session.method.step(batches(session)[0])
    (_, on), (_, off) = found[:2], found[2:]
    assert {name.split(".")[1] for name in on} == {"fou", "shared"}
    assert [name for name in on if not torch.equal(on[name], off[name])] == ["heads.shared.weight"]
    assert on["heads.shared.weight"].norm() < off["heads.shared.weight"].norm()  # a projection


@pytest.mark.parametrize("hgm", ["rls", "released", "released_add"])
def test_every_variant_differs_from_off_after_a_round(mfeat_store, data_dir: Path, hgm: str) -> None:
    sessions = [make_session(mfeat_recipe(method={"hgm": variant}), data_dir) for variant in (hgm, "off")]
    for session in sessions:
        session.method.step(batches(session)[0])
    heads = [session.method.heads["shared"].weight for session in sessions]
    assert not torch.equal(*heads)


def test_the_update_mode_projects_what_the_optimiser_did(mfeat_store, data_dir: Path) -> None:
    """`hgm_apply: update` under momentum and decay: after the second step the head moved as P allows."""
    changes = {"momentum": 0.9, "weight_decay": 0.1}
    session = make_session(mfeat_recipe(method={"hgm_apply": "update"}, train=PLAIN | changes), data_dir)
    batch = batches(session)[0]
    session.method.step(one_modality(batch, "mor"))
    h = session.method.schedule.previous_h
    before = session.method.head.weight.detach().double().clone()
    session.method.step(one_modality(batch, "fou"))
    change = session.method.head.weight.detach().double() - before
    plain = make_session(mfeat_recipe(method={"hgm": "off"}, train=PLAIN | changes), data_dir)
    for m in ("mor", "fou"):
        start = plain.method.head.weight.detach().double().clone()
        plain.method.step(one_modality(batch, m))
    free = plain.method.head.weight.detach().double() - start
    torch.testing.assert_close(change, free @ session.method.schedule.modifier.matrix, rtol=1e-4, atol=1e-7)
    assert (change @ h).norm() < 0.5 * (free @ h).norm()


def test_an_order_may_repeat_a_modality(mfeat_store, data_dir: Path) -> None:
    changes = {"method": {"order": ["fou", "mor", "fou"]}, "train": {"optimizer": "adamw"}}
    session = make_session(mfeat_recipe(**changes), data_dir)
    rounds = batches(session)
    for batch in rounds:
        session.method.step(batch)
    steps = {
        name: float(next(iter(optimizer.state_dict()["state"].values()))["step"])
        for name, optimizer in session.optimizers.items()
    }
    count = len(rounds)
    assert steps == {"encoder.mor": count, "encoder.fou": 2 * count, "head.shared": 3 * count}


def test_the_order_decides_which_modality_meets_the_untouched_head(mfeat_store, data_dir: Path) -> None:
    heads = []
    for order in (["mor", "fou"], ["fou", "mor"]):
        session = make_session(mfeat_recipe(method={"order": order}), data_dir)
        session.method.step(batches(session)[0])
        assert session.method.schedule.previous == order[-1]
        heads.append(session.method.head.weight.detach())
    assert not torch.equal(*heads)


@pytest.mark.parametrize("order", [["mor"], ["mor", "fou", "zer"]])
def test_an_order_that_misses_or_invents_a_modality_is_refused(mfeat_store, data_dir: Path, order: list[str]) -> None:
    recipe = mfeat_recipe(method={"order": order})
    with pytest.raises(MlaError, match=r"`method\.order`") as error:
        complete(recipe, open_store(recipe, data_dir))
    assert "every modality" in error.value.hint


def test_one_modality_alone_never_changes_the_projection(mfeat_store, data_dir: Path) -> None:
    session = make_session(mfeat_recipe(("mor",)), data_dir)
    for batch in batches(session):
        session.method.step(batch)
    assert session.method.schedule.modifier.untouched
    twin = make_session(mfeat_recipe(("mor",), method={"hgm": "off"}), data_dir)
    for batch in batches(twin):
        twin.method.step(batch)
    assert same_bits(frozen_copy(session.method), frozen_copy(twin.method))


def test_a_repeated_step_reports_a_loss_per_modality(mfeat_store, data_dir: Path) -> None:
    session = make_session(mfeat_recipe(), data_dir)
    batch = batches(session)[0]
    losses = session.method.step(batch)
    assert list(losses) == ["mor", "fou"]
    assert all(loss.shape == () and not loss.requires_grad for loss in losses.values())
