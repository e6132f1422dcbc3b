"""A session: optimisers, schedules, devices, and a state from which training goes on bit for bit."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from tiny import frozen_copy, make_session, mfeat_recipe, optimizer_copy, same_bits

from mla_cli.engine.devices import choose_device
from mla_cli.engine.learning_rate import learning_rate_factor
from mla_cli.engine.session import Session
from mla_cli.errors import MlaError
from mla_cli.schema import TrainSection


def steps(session: Session, count: int) -> None:
    """`count` rounds of the epoch under way."""
    epoch, progress = session.progress.epoch + 1, session.progress
    session.method.train()
    session.method.start_epoch(epoch)
    for batch in session.train_loader.epoch(epoch, progress.round, progress.round + count):
        for output, loss in session.method.step(batch).items():
            progress.losses.setdefault(output, []).append(loss)
            progress.loss_rounds.setdefault(output, []).append(batch.round)
        progress.round = batch.round + 1


@pytest.mark.parametrize("optimizer", [{"optimizer": "sgd"}, {"optimizer": "adamw", "lr": 0.01}, {"momentum": 0.0}])
@pytest.mark.parametrize("method", ["mla", "late", "concat"])
def test_the_state_goes_through_a_file_and_training_goes_on_bit_for_bit(
    mfeat_store, data_dir: Path, optimizer: dict, method: str
) -> None:
    recipe = mfeat_recipe(dropout=0.2, method={"name": method, "hgm_mean": "running"}, train=optimizer)
    one, other = make_session(recipe, data_dir), make_session(recipe, data_dir)
    steps(one, 2)
    tensors, values = one.state()
    other.load_state(load(save({key: value.detach().contiguous() for key, value in tensors.items()})), values)
    assert one.train_epoch() == other.train_epoch()
    for session in (one, other):
        session.train_epoch()
    assert same_bits(frozen_copy(one.method), frozen_copy(other.method))
    for name in one.optimizers:
        assert same_bits(optimizer_copy(one.optimizers[name]), optimizer_copy(other.optimizers[name]))
    assert one.method.end_epoch() == other.method.end_epoch()


def test_a_resumed_epoch_reports_the_mean_loss_of_the_whole_epoch_in_the_same_order(
    mfeat_store, data_dir: Path
) -> None:
    recipe = mfeat_recipe()
    one, other = make_session(recipe, data_dir), make_session(recipe, data_dir)
    steps(one, 1)
    other.load_state(*one.state())
    means = other.train_epoch()
    assert list(means) == ["mor", "fou"]
    whole = make_session(recipe, data_dir)
    assert whole.train_epoch() == means


def test_each_group_has_its_optimiser_and_the_head_its_own_settings(mfeat_store, data_dir: Path) -> None:
    changes = {"head": {"optimizer": "sgd", "lr": 0.2, "momentum": 0.0, "weight_decay": 0.3}}
    session = make_session(mfeat_recipe(train={"optimizer": "adamw", "lr": 0.01}, **changes), data_dir)
    kinds = {"encoder.mor": torch.optim.AdamW, "encoder.fou": torch.optim.AdamW, "head.shared": torch.optim.SGD}
    assert list(session.optimizers) == list(kinds)
    assert all(isinstance(session.optimizers[name], kind) for name, kind in kinds.items())
    head = session.optimizers["head.shared"].param_groups[0]
    assert (head["lr"], head["momentum"], head["weight_decay"]) == (0.2, 0.0, 0.3)
    owned = [id(p) for o in session.optimizers.values() for group in o.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in session.method.parameters())  # every parameter once


@pytest.mark.parametrize(
    ("settings", "progress", "factor"),
    [
        ({}, 7.0, 1.0),
        ({"schedule": "step", "step_epochs": 2, "step_factor": 0.5}, 1.99, 1.0),
        ({"schedule": "step", "step_epochs": 2, "step_factor": 0.5}, 2.0, 0.5),
        ({"schedule": "step", "step_epochs": 2, "step_factor": 0.5}, 5.5, 0.25),
        ({"schedule": "cosine", "epochs": 4}, 0.0, 1.0),
        ({"schedule": "cosine", "epochs": 4}, 2.0, 0.5),
        ({"schedule": "cosine", "epochs": 4}, 3.0, (1 + math.cos(0.75 * math.pi)) / 2),
        ({"warmup": 2.0}, 0.5, 0.25),
        ({"warmup": 2.0}, 3.0, 1.0),
        ({"warmup": 2.0, "schedule": "cosine", "epochs": 4}, 1.0, 0.5 * (1 + math.cos(math.pi / 4)) / 2),
    ],
)
def test_schedules(settings: dict, progress: float, factor: float) -> None:
    assert learning_rate_factor(TrainSection(**settings), progress) == pytest.approx(factor)


def test_the_rate_follows_the_schedule_within_an_epoch(mfeat_store, data_dir: Path) -> None:
    recipe = mfeat_recipe(train={"schedule": "cosine", "lr": 0.1, "epochs": 2}, head={"lr": 0.4})
    session = make_session(recipe, data_dir)
    session.train_epoch()
    last = 2 / 3  # the epoch's third and last round starts after two thirds of it
    factor = (1 + math.cos(math.pi * last / 2)) / 2
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in session.optimizers.items()}
    assert rates == pytest.approx(
        {"encoder.mor": 0.1 * factor, "encoder.fou": 0.1 * factor, "head.shared": 0.4 * factor}
    )


def test_the_mean_loss_is_that_of_the_rounds(mfeat_store, data_dir: Path) -> None:
    session = make_session(mfeat_recipe(train={"lr": 1e-12}), data_dir)  # the weights stay: each loss can be computed
    means = session.train_epoch()
    losses = []
    session.method.eval()
    for batch in session.train_loader.epoch(1):
        logits = session.method.alone("mor", session.method.encode("mor", batch.inputs["mor"]))
        losses.append(torch.nn.functional.cross_entropy(logits, batch.labels["mor"]).item())
    assert means["mor"] == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_smoke_runs_stop_after_max_rounds(mfeat_store, data_dir: Path) -> None:
    session = make_session(mfeat_recipe(train={"max_rounds": 2}), data_dir)
    batches = list(session.train_loader.epoch(1, 0, 2))
    assert [batch.round for batch in batches] == [0, 1]
    assert {batch.rounds for batch in batches} == {2}  # alpha and schedule run over what there is


def test_a_checkpoint_of_another_model_is_refused(mfeat_store, data_dir: Path) -> None:
    small, large = (make_session(mfeat_recipe(shared_width=width), data_dir) for width in (8, 9))
    with pytest.raises(MlaError, match="does not fit this recipe"):
        large.load_model(small.model_state())


def test_an_augmentation_that_does_nothing_is_refused(mfeat_store, data_dir: Path) -> None:
    with pytest.raises(MlaError, match=r"augment\.mor\.flip"):
        make_session(mfeat_recipe(augment={"mor": {"flip": True}}), data_dir)


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(MlaError, match="no device named `gpu`"):
        choose_device("gpu")


def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MlaError, match="`cuda` is not available") as error:
        choose_device("cuda")
    assert "--device cpu" in error.value.hint


def test_one_modality_starts_equal_whatever_else_the_model_holds(mfeat_store, data_dir: Path) -> None:
    alone = make_session(mfeat_recipe(("fou",)), data_dir)
    among = make_session(mfeat_recipe(("mor", "fou", "zer")), data_dir)
    assert same_bits(frozen_copy(alone.method.encoders["fou"]), frozen_copy(among.method.encoders["fou"]))
    other = make_session(mfeat_recipe(("fou",), seed=1), data_dir)
    assert not same_bits(frozen_copy(alone.method.encoders["fou"]), frozen_copy(other.method.encoders["fou"]))
