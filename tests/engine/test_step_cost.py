"""What a training step may cost: nothing for an idle encoder, no wait for the device, O(d^2) for HGM."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import make_session, mfeat_recipe
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mla_cli import registry
from mla_cli.core.head_schedule import HeadSchedule
from mla_cli.core.hgm import VARIANTS
from mla_cli.engine.saving import Saver
from mla_cli.engine.session import Session
from mla_cli.errors import MlaError

# Each of these makes the host wait for the device: the value of a tensor, or a shape that depends on values.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim")
ON_HOST = ("cpu", "numpy", "tolist", "item", "__bool__", "__int__", "__float__", "__index__")


class NoWaiting(TorchDispatchMode):
    """Refuses every operation for which a GPU would have to be waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in WAITS or by_mask:
            raise AssertionError(f"aten.{name} waits for the device")
        return func(*args, **(kwargs or {}))


class Recorder(TorchDispatchMode):
    """Notes every operation with the shapes of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[tuple[int, ...]]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shapes = [tuple(a.shape) for a in args if isinstance(a, Tensor)]
        self.calls.append((func.overloadpacket.__name__, shapes))
        return func(*args, **(kwargs or {}))


@contextmanager
def refusing_to_wait() -> Iterator[None]:
    """Waiting fails; on the CPU a copy to the host is no operation, so those are refused by name."""

    def refuse(name: str) -> Any:
        def refused(self: Tensor, *_: Any, **__: Any) -> Any:
            raise AssertionError(f"Tensor.{name} waits for the device")

        return refused

    with pytest.MonkeyPatch.context() as patch, NoWaiting():
        for name in ON_HOST:
            patch.setattr(Tensor, name, refuse(name))
        yield


# Every method; of `mla` every variant of HGM and of how it is applied.
SETTINGS: list[dict[str, Any]] = [{"name": name} for name in registry.names("methods")] + [
    {"name": "mla", "hgm": hgm, "hgm_apply": apply, "hgm_mean": "running"}
    for hgm in VARIANTS
    for apply in ("gradient", "update")
]


def method_recipe(section: dict[str, Any], **train: Any) -> Any:
    section = {"unimodal": {"modality": "mor"}} | section if section["name"] == "unimodal" else section
    return mfeat_recipe(dropout=0.1, method=section, train={"schedule": "cosine", **train})


def one_epoch(session: Session) -> None:
    """The rounds of an epoch as `train_epoch` runs them, without its look at the losses."""
    session.method.train()
    session.method.start_epoch(1)
    batches = list(session.train_loader.epoch(1))
    for batch in batches:
        session.set_learning_rate(batch.round / batch.rounds)
        session.method.step(batch)


@pytest.mark.parametrize("section", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_no_step_of_any_method_waits_for_the_device(mfeat_store, data_dir: Path, section: dict[str, Any]) -> None:
    session = make_session(method_recipe(section, diagnostics=False), data_dir)
    before = [p.detach().clone() for p in session.method.parameters()]
    with refusing_to_wait():
        one_epoch(session)
    assert any(not torch.equal(p, old) for p, old in zip(session.method.parameters(), before, strict=True))


def test_a_step_that_waits_is_found() -> None:
    loss = torch.ones(3)
    for wait in (lambda: loss.item(), lambda: float(loss[0]), lambda: bool(loss[0] > 0), lambda: loss.cpu()):
        with pytest.raises(AssertionError, match="waits for the device"), refusing_to_wait():
            wait()
    for wait in (lambda: loss[loss > 0], lambda: torch.nonzero(loss), lambda: torch.equal(loss, loss)):
        with pytest.raises(AssertionError, match="waits for the device"), refusing_to_wait():
            wait()


@pytest.mark.parametrize("interval", [1, 2])
def test_losses_are_read_at_intervals_only(
    mfeat_store, data_dir: Path, monkeypatch: pytest.MonkeyPatch, interval: int
) -> None:
    monkeypatch.setattr("mla_cli.engine.session.LOSS_CHECK_ROUNDS", interval)
    session = make_session(mfeat_recipe(train={"diagnostics": False}), data_dir)
    read: list[int] = []
    own = session.check_losses
    monkeypatch.setattr(session, "check_losses", lambda: (read.append(session.progress.round), own())[1])
    session.train_epoch()
    assert read == [*range(interval, 4, interval), 3]


def graph_of(loss: Tensor) -> set[int]:
    """The ids of all parameters that a loss depends on."""
    found, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting += [parent for parent, _ in node.next_functions]
    return found


@pytest.mark.parametrize("hgm", VARIANTS)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_idle_encoder_costs_nothing(
    mfeat_store, data_dir: Path, monkeypatch: pytest.MonkeyPatch, hgm: str, optimizer: str
) -> None:
    views = ("mor", "fou", "zer")
    session = make_session(mfeat_recipe(views, method={"hgm": hgm}, train={"optimizer": optimizer}), data_dir)
    method, own, stepped = session.method, session.method.loss, iter(views)
    parameters = {m: {id(p) for p in method.encoders[m].parameters()} for m in views}
    seen = []

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        active, value = next(stepped), own(logits, labels)
        idle = [m for m in views if m != active]
        graph = graph_of(value)
        assert graph >= parameters[active]
        assert not any(graph & parameters[m] for m in idle)
        assert all(p.grad is None for p in method.parameters())  # cleared, not zeroed
        for m in views[views.index(active) :]:  # not yet trained: no state at all
            assert not session.optimizers[f"encoder.{m}"].state
        seen.append(active)
        return value

    monkeypatch.setattr(method, "loss", loss)
    before = {m: [p.detach().clone() for p in method.encoders[m].parameters()] for m in views}
    (batch, *_) = session.train_loader.epoch(1)
    method.step(batch)
    assert seen == list(views)
    assert all(p.grad is None for p in method.parameters())
    for m in views:
        assert any(not torch.equal(p, old) for p, old in zip(method.encoders[m].parameters(), before[m], strict=True))


@pytest.mark.parametrize("hgm", VARIANTS)
@pytest.mark.parametrize("apply", ["gradient", "update"])
def test_a_step_of_hgm_takes_the_square_of_the_width_at_most(hgm: str, apply: str) -> None:
    width, classes, count = 48, 7, 5
    schedule = HeadSchedule(width, hgm=hgm, hgm_apply=apply)
    weight = torch.nn.Parameter(torch.randn(classes, width))
    schedule.start_epoch(1)
    with Recorder() as recorder:
        for number in range(4):
            for m in ("audio", "visual"):
                weight.grad = torch.randn(classes, width)
                schedule.before_step(m, torch.randn(count, width), weight, number, 4)
                schedule.after_step(weight)
    names = {name for name, _ in recorder.calls}
    assert not names & {"linalg_inv_ex", "_linalg_eigh", "linalg_solve_ex", "_linalg_svd", "linalg_qr"}
    products = [shapes for name, shapes in recorder.calls if name in ("mm", "bmm", "matmul", "addmm")]
    for left, right in (shapes[-2:] for shapes in products):
        assert left[0] * left[1] * right[1] <= classes * width**2  # the head's gradient by P; never P by P
    assert bool(products) == (hgm != "off")


def test_a_checkpoint_never_holds_weights_that_a_finite_loss_left_broken(mfeat_store, data_dir: Path) -> None:
    session = make_session(mfeat_recipe(train={"diagnostics": False, "checkpoint_every": 2}), data_dir)
    saved: list[str] = []
    run: Any = SimpleNamespace(save_checkpoint=lambda which, *_: saved.append(which))
    step, parameter = session.method.step, next(session.method.encoders["fou"].parameters())

    def broken(batch: Any) -> dict[str, Tensor]:
        losses = step(batch)
        if batch.round == 1:
            parameter.data[0] = float("inf")  # after the step's loss was taken
        return losses

    session.method.step = broken  # type: ignore[method-assign]
    with pytest.raises(MlaError, match=r"`encoders.fou.*` are not finite after epoch 1, step 2") as error:
        Saver(session, run).train_rounds()
    assert "--set train.lr=0.005" in error.value.hint
    assert saved == []
