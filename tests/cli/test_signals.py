"""Ctrl-C and SIGTERM: the first saves and unwinds the command, the second leaves at once."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import mla
from tiny import mfeat_recipe, run_bytes, trained

from mla_cli.app import resuming
from mla_cli.core.method import BaseMethod
from mla_cli.engine import ablate as engine
from mla_cli.engine import train as training
from mla_cli.engine.run import Run
from mla_cli.recipe import dump_yaml
from mla_cli.signals import HeldBack


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """An interrupted command leaves its handlers, as its process ends."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_unwinds_and_the_second_leaves_at_once(
    number: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []

    def ablate(*_):
        try:
            os.kill(os.getpid(), number)
            yield pytest.fail("it went on")
        finally:
            told.append("unwound")
            os.kill(os.getpid(), number)

    monkeypatch.setattr(engine, "ablate", ablate)
    monkeypatch.setattr("os._exit", lambda status: told.append(status))
    monkeypatch.setattr("sys.argv", ["mla", "ablate", "--recipe", "my recipe.yaml"])
    found = mla("ablate", "--recipe", "mfeat")
    assert (found.code, found.stdout) == (code, "")
    assert told[:2] == ["unwound", code]
    assert found.stderr.endswith(
        "interrupted; what is finished is kept. To go on: mla ablate --recipe 'my recipe.yaml'\n"
    )


def test_handlers_are_put_back_where_nothing_happened() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert mla("recipes").code == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_command_that_goes_on_can_leave_an_option_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["mla", "ablate", "--shard", "1/4", "--seeds", "0..4", "--shard=2/4"])
    assert resuming("ablate") == "mla ablate --shard 1/4 --seeds 0..4 --shard=2/4"
    assert resuming("ablate", without="--shard") == "mla ablate --seeds 0..4"


# ---------------------------------------------------------------- a run is saved first


RICH = {"optimizer": "adamw", "lr": 0.01, "schedule": "cosine", "warmup": 0.5}
# the signal comes in this step of 2 epochs of 3 rounds of 2 steps -> epoch and round of the checkpoint
STEPS = {1: (0, 1), 6: (0, 3), 10: (1, 2)}


class Left(BaseException):
    """Stands for `os._exit`."""


def leave(code: int) -> None:
    raise Left(code)


def signal_in_step(monkeypatch: pytest.MonkeyPatch, call: int, *numbers: int) -> list[int]:
    """Send signals in the middle of a training step; the steps begun."""
    real, calls = BaseMethod.loss, []

    def loss(self, logits, labels):
        calls.append(1)
        if len(calls) == call:
            for number in numbers:
                os.kill(os.getpid(), number)
        return real(self, logits, labels)

    monkeypatch.setattr(BaseMethod, "loss", loss)
    return calls


def words_of(tmp_path: Path, data_dir: Path, **changes) -> list[str]:
    (tmp_path / "my.yaml").write_text(dump_yaml(mfeat_recipe(dropout=0.3, train=RICH, **changes)))
    where = ["--data-dir", str(data_dir), "--run-dir", str(tmp_path / "runs")]
    return ["train", "--recipe", str(tmp_path / "my.yaml"), "--device", "cpu", "-q", *where]


def the_run(tmp_path: Path) -> Run:
    (run,) = [Run(path.parent) for path in (tmp_path / "runs").glob("*/run.json")]
    return run


@pytest.fixture(scope="module")
def undisturbed(mfeat_store, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return run_bytes(trained(mfeat_recipe(dropout=0.3, train=RICH), data_dir, tmp_path_factory.mktemp("runs")))


@pytest.mark.parametrize("call", STEPS)
def test_a_signal_saves_after_the_round_and_resuming_gives_the_same_bytes(
    mfeat_store, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict, call: int
) -> None:
    number, code = ((signal.SIGINT, 130), (signal.SIGTERM, 143))[call % 2]
    words = words_of(tmp_path, data_dir)
    monkeypatch.setattr("sys.argv", ["mla", *words])
    monkeypatch.setattr("os.fsync", lambda handle: None)
    with monkeypatch.context() as patch:
        calls = signal_in_step(patch, call, number)
        found = mla(*words)
    assert (found.code, found.stdout) == (code, "")
    assert found.stderr == f"interrupted; what is finished is kept. To go on: {resuming('train')}\n"
    epoch, rounds = STEPS[call]
    assert len(calls) == 6 * epoch + 2 * rounds  # the round was done, and no other begun
    run = the_run(tmp_path)
    saved = run.checkpoint_values("last")
    assert (run.state, saved["epoch"], saved["round"]) == ("running", epoch, rounds)
    assert mla(*words, "--resume").code == 0
    assert run_bytes(run) == undisturbed | {"recipe.yaml": run.recipe_file.read_bytes()}


@pytest.mark.parametrize("when", ["validate", "history", "finish"])
def test_a_signal_between_epochs_loses_nothing(
    mfeat_store, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict, when: str
) -> None:
    words = words_of(tmp_path, data_dir)
    monkeypatch.setattr("os.fsync", lambda handle: None)
    owner, name = {"validate": (training, "validate"), "history": (Run, "append"), "finish": (training, "join")}[when]
    real, sent = getattr(owner, name), []

    def interrupted(*args):
        if not sent:
            sent.append(os.kill(os.getpid(), signal.SIGINT))
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        assert mla(*words).code == 130
    run = the_run(tmp_path)
    saved = run.checkpoint_values("last")
    wanted = {"validate": (0, 3), "history": (1, 0), "finish": (2, 0)}
    assert (saved["epoch"], saved["round"]) == wanted[when]
    assert mla(*words, "--resume").code == 0
    assert run_bytes(run) == undisturbed | {"recipe.yaml": run.recipe_file.read_bytes()}


def test_a_second_signal_leaves_in_the_middle_of_a_step_and_keeps_what_was_saved(
    mfeat_store, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict
) -> None:
    words = words_of(tmp_path, data_dir)
    monkeypatch.setattr("os.fsync", lambda handle: None)
    with monkeypatch.context() as patch:
        calls = signal_in_step(patch, 9, signal.SIGINT, signal.SIGTERM)
        patch.setattr("mla_cli.signals.os._exit", leave)
        with pytest.raises(Left) as left:
            mla(*words)
    assert left.value.args == (143,)
    assert len(calls) == 9
    run = the_run(tmp_path)
    saved = run.checkpoint_values("last")
    assert (saved["epoch"], saved["round"]) == (1, 0)
    assert mla(*words, "--resume").code == 0
    assert run_bytes(run) == undisturbed | {"recipe.yaml": run.recipe_file.read_bytes()}


def test_a_loss_that_is_nan_is_not_saved_by_a_signal(
    mfeat_store, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = BaseMethod.loss

    def loss(self, logits, labels):
        os.kill(os.getpid(), signal.SIGINT)
        return real(self, logits, labels) * float("nan")

    monkeypatch.setattr(BaseMethod, "loss", loss)
    monkeypatch.setattr("mla_cli.signals.os._exit", lambda code: None)
    found = mla(*words_of(tmp_path, data_dir))
    assert found.code == 1
    assert "is nan at epoch 1, step 1" in found.stderr
    assert not list((tmp_path / "runs").glob("*/checkpoints/*"))


def test_a_block_holds_back_and_puts_handlers_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    told: list[str] = []

    def block() -> None:
        with HeldBack(lambda: told.append("prepared")) as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.asked == signal.SIGINT
            told.append("done")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert told == ["done", "prepared"]
    assert signal.getsignal(signal.SIGINT) is before
    with HeldBack(lambda: told.append("never")):
        pass
    with pytest.raises(ValueError, match="its own"), HeldBack():
        raise ValueError("its own")
    assert signal.getsignal(signal.SIGINT) is before
    assert told == ["done", "prepared"]


def test_what_the_caller_ignores_or_handles_stays_so() -> None:
    told: list[int] = []
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the workers of a grid
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    with HeldBack() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert told == []
        stop.answer()
        assert told == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGTERM)  # held back again
        assert told == [signal.SIGTERM]
    assert told == [signal.SIGTERM] * 2


def test_another_thread_holds_nothing_back() -> None:
    found: list[dict] = []

    def work() -> None:
        with HeldBack() as stop:
            found.append(dict(stop.before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [{}]
