"""Equal commands give equal bytes; a run that was interrupted anywhere continues to those same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import (
    digits_recipe,
    emoji_recipe,
    events_and_value,
    mfeat_recipe,
    run_bytes,
    trained,
)

from mla_cli.core.method import BaseMethod
from mla_cli.engine.events import Epoch, Finished, Note, Started
from mla_cli.engine.run import Run
from mla_cli.engine.train import train
from mla_cli.errors import MlaError
from mla_cli.files import write_sealed

NOISE = {"mor": {"noise": 0.3}, "fou": {"noise": 0.3}}
# What could make a resumed run differ: dropout, noise, running means, moments, schedule, warm-up, short last batch.
RICH = {
    "dropout": 0.3,
    "augment": NOISE,
    "dataset": {"limit": 70},
    "method": {"hgm_mean": "running"},
    "train": {"optimizer": "adamw", "lr": 0.01, "schedule": "cosine", "warmup": 0.5, "checkpoint_every": 1},
}


class Killed(BaseException):
    """Stands for the process's end: no handler of ours may swallow it."""


@pytest.fixture(autouse=True)
def quick_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power fails here: do not wait for the disk."""
    monkeypatch.setattr("os.fsync", lambda handle: None)


def rich(**changes):
    return mfeat_recipe(**{**RICH, **changes})


@pytest.fixture(scope="module")
def whole(mfeat_store, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of an uninterrupted run of `rich()`."""
    return run_bytes(trained(rich(), data_dir, tmp_path_factory.mktemp("whole")))


# ------------------------------------------------------------ the same bytes


@pytest.mark.parametrize("method", ["mla", "concat"])
def test_the_same_command_twice_gives_the_same_bytes(mfeat_store, data_dir: Path, tmp_path: Path, method: str) -> None:
    changes = {**RICH, "method": {"name": method}}
    runs = [trained(mfeat_recipe(**changes), data_dir, tmp_path / side) for side in ("one", "two")]
    one, other = map(run_bytes, runs)
    assert one == other
    assert {"predictions.parquet", "history.jsonl", "checkpoints/last.json", "checkpoints/best.json"} <= one.keys()


def test_another_seed_gives_other_bytes(mfeat_store, data_dir: Path, tmp_path: Path, whole: dict) -> None:
    other = run_bytes(trained(rich(seed=1), data_dir, tmp_path))
    assert not {file for file in whole if whole[file] == other.get(file)}


def test_checkpoints_inside_epochs_and_other_work_in_between_change_nothing(
    mfeat_store, data_dir: Path, tmp_path: Path, whole: dict
) -> None:
    """Neither how often is saved nor the state of torch's and NumPy's generators."""
    torch.manual_seed(99)
    np.random.seed(99)
    found = run_bytes(trained(rich(train={**RICH["train"], "checkpoint_every": None}), data_dir, tmp_path))
    same = [file for file in whole if file != "recipe.yaml"]
    assert {file: found[file] for file in same} == {file: whole[file] for file in same}


def test_the_saved_recipe_repeats_the_run(mfeat_store, data_dir: Path, tmp_path: Path, whole: dict) -> None:
    run = trained(rich(), data_dir, tmp_path / "one")
    again = trained(run.recipe(), data_dir, tmp_path / "two")
    assert run_bytes(again) == whole
    assert again.name == run.name


# ------------------------------------------------------------ resume


@pytest.mark.parametrize("call", [1, 4, 8, 12])
def test_killed_inside_an_epoch_and_resumed(
    mfeat_store, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict, call: int
) -> None:
    """2 epochs of 3 rounds of 2 steps: killed before the backward pass of step `call`."""
    real, calls = BaseMethod.loss, []

    def dying(self, logits, labels):
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return real(self, logits, labels)

    with monkeypatch.context() as patch:
        patch.setattr(BaseMethod, "loss", dying)
        with pytest.raises(Killed):
            trained(rich(), data_dir, tmp_path)
    (run,) = [Run(path) for path in tmp_path.iterdir()]
    assert run.state == "running"
    events, resumed = events_and_value(train(rich(), data_dir, tmp_path, "cpu", resume=True))
    assert run_bytes(resumed) == whole
    (started,) = [e for e in events if isinstance(e, Started)]
    assert started.resumed == (call > 2)  # the first checkpoint comes after the first round
    assert started.first_epoch == (1 if call <= 6 else 2)


SAVING = {"epochs": 2, "checkpoint_every": 1}
OTHERS = {
    "concat": lambda: rich(method={"name": "concat"}),
    "late": lambda: rich(method={"name": "late"}),
    # running statistics, and momentum, which nothing else keeps moving
    "batch norm, sgd": lambda: emoji_recipe(
        augment={"visual": {"shift": 1, "flip": True}}, train={**SAVING, "momentum": 0.9, "schedule": "step"}
    ),
    "unpaired, short streams": lambda: digits_recipe(train=SAVING),
    "hgm on the update": lambda: mfeat_recipe(method={"hgm_apply": "update", "hgm_reset": "epoch"}, train=SAVING),
    "missing, three views": lambda: mfeat_recipe(("mor", "fou", "zer"), train={**SAVING, "missing_rate": 0.3}),
}


@pytest.mark.parametrize("case", list(OTHERS))
def test_killed_inside_an_epoch_other_methods(
    mfeat_store, emoji_store, digits_store, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    recipe = OTHERS[case]()
    expected = run_bytes(trained(recipe, data_dir, tmp_path / "whole"))
    real, calls = BaseMethod.loss, []

    def dying(self, logits, labels):
        calls.append(1)
        if len(calls) == 5:
            raise Killed
        return real(self, logits, labels)

    with monkeypatch.context() as patch:
        patch.setattr(BaseMethod, "loss", dying)
        with pytest.raises(Killed):
            trained(recipe, data_dir, tmp_path / "cut")
    assert run_bytes(trained(recipe, data_dir, tmp_path / "cut", resume=True)) == expected


def test_stopped_between_epochs_and_resumed(mfeat_store, data_dir: Path, tmp_path: Path, whole: dict) -> None:
    steps = train(rich(), data_dir, tmp_path, "cpu")
    for event in steps:
        if isinstance(event, Epoch):
            break
    steps.close()
    (run,) = [Run(path) for path in tmp_path.iterdir()]
    assert run.state == "running"
    assert len(run.history()) == 1
    assert run_bytes(trained(rich(), data_dir, tmp_path, resume=True)) == whole


def killed_at_replace(monkeypatch: pytest.MonkeyPatch, number: int, after: bool) -> list[str]:
    """Make the `number`-th rename of a file raise, before or just after it is done; the names renamed so far."""
    real, names = os.replace, []

    def replace(source, target):
        names.append(Path(target).name)
        if len(names) == number and not after:
            raise Killed
        real(source, target)
        if len(names) == number:
            raise Killed

    monkeypatch.setattr("mla_cli.files.os.replace", replace)
    return names


def killed_and_resumed(data_dir: Path, run_dir: Path, number: int, after: bool) -> tuple[list[str], dict[str, bytes]]:
    with pytest.MonkeyPatch.context() as patch:
        names = killed_at_replace(patch, number, after)
        with pytest.raises(Killed):
            trained(rich(), data_dir, run_dir)
    return names, run_bytes(trained(rich(), data_dir, run_dir, resume=True))


def count_of_writes(data_dir: Path, run_dir: Path) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        names = killed_at_replace(patch, -1, False)
        trained(rich(), data_dir, run_dir)
    return names


def test_killed_at_any_write_and_resumed(mfeat_store, data_dir: Path, tmp_path: Path, whole: dict) -> None:
    """Every kind of file once: before its rename (odd ones) or just after (even ones). The slow test does them all."""
    names = count_of_writes(data_dir, tmp_path / "count")
    assert len(names) > 20
    firsts = {name.split("-")[0]: place + 1 for place, name in reversed(list(enumerate(names)))}
    assert {"recipe.yaml", "run.json", "last", "last.json", "best", "best.json", "predictions.parquet"} <= set(firsts)
    for number in sorted(firsts.values()):
        _, found = killed_and_resumed(data_dir, tmp_path / str(number), number, after=number % 2 == 0)
        assert found == whole, f"killed at write {number}, {names[number - 1]}"


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_every_write_and_resumed(
    mfeat_store, data_dir: Path, tmp_path: Path, whole: dict, after: bool
) -> None:
    names = count_of_writes(data_dir, tmp_path / "count")
    for number in range(1, len(names) + 1):
        _, found = killed_and_resumed(data_dir, tmp_path / str(number), number, after)
        assert found == whole, f"killed at write {number}, {names[number - 1]}"


def test_a_line_of_history_cut_short_is_written_again(
    mfeat_store, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict
) -> None:
    real = Run.append

    def torn(self, file, row):
        if row["epoch"] == 2:
            with open(self.path / file, "a", encoding="utf-8") as lines:
                lines.write(json.dumps(row)[:40])
            raise Killed
        real(self, file, row)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "append", torn)
        with pytest.raises(Killed):
            trained(rich(), data_dir, tmp_path)
    assert run_bytes(trained(rich(), data_dir, tmp_path, resume=True)) == whole


def test_a_full_disk_fails_the_run_with_a_hint_and_it_resumes(
    mfeat_store, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict
) -> None:
    real = os.replace

    def full(source, target):
        if Path(target).name.startswith("best-e0002"):
            raise OSError(28, "No space left on device")
        if Path(target).name.startswith("last-e0001-r000001"):
            raise OSError(28, "No space left on device")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("mla_cli.files.os.replace", full)
        with pytest.raises(MlaError, match="No space left") as error:
            trained(rich(), data_dir, tmp_path)
    assert "free some space" in error.value.hint
    (run,) = [Run(path) for path in tmp_path.iterdir()]
    assert run.state == "failed"
    assert "No space left" in run.info()["error"]
    done = trained(rich(), data_dir, tmp_path, resume=True)
    assert run_bytes(done) == whole
    assert "error" not in done.info()


def test_a_checkpoint_that_lacks_something_is_refused(mfeat_store, data_dir: Path, tmp_path: Path) -> None:
    """As one written by another version might."""
    steps = train(rich(), data_dir, tmp_path, "cpu")
    next(e for e in steps if isinstance(e, Epoch))
    steps.close()
    (run,) = [Run(path) for path in tmp_path.iterdir()]
    tensors, values = run.load_checkpoint("last")
    for key, wrong in {
        "epoch": [1],
        "round": -1,
        "best_accuracy": "x",
        "outputs": {},
        "skipped": {"mor": None},
    }.items():
        run.save_checkpoint("last", tensors, values)
        path = run.path / "checkpoints" / "last.json"
        write_sealed(path, json.loads(path.read_text()) | {key: wrong})
        with pytest.raises(MlaError, match=rf"checkpoint `last` of .*: `{key}") as error:
            trained(rich(), data_dir, tmp_path, resume=True)
        assert error.value.hint == run.start_again
    del tensors["extra.matrix"]
    run.save_checkpoint("last", tensors, values)
    with pytest.raises(MlaError, match=r"checkpoint `last` of .* lacks 'matrix'") as error:
        trained(rich(), data_dir, tmp_path, resume=True)
    assert error.value.hint == run.start_again


def test_resume_with_nothing_to_resume_starts_the_run(mfeat_store, data_dir: Path, tmp_path: Path, whole: dict) -> None:
    run = trained(rich(), data_dir, tmp_path, resume=True)
    assert run.state == "finished"
    assert run_bytes(run) == whole


def test_an_interrupted_run_asks_for_resume_or_force(mfeat_store, data_dir: Path, tmp_path: Path, whole: dict) -> None:
    steps = train(rich(), data_dir, tmp_path, "cpu")
    next(e for e in steps if isinstance(e, Epoch))
    steps.close()
    with pytest.raises(MlaError, match="interrupted run") as error:
        trained(rich(), data_dir, tmp_path)
    assert "--resume" in error.value.hint
    assert "--force" in error.value.hint
    assert run_bytes(trained(rich(), data_dir, tmp_path, force=True)) == whole


def test_a_finished_run_is_not_repeated_without_force(mfeat_store, data_dir: Path, tmp_path: Path, whole: dict) -> None:
    run = trained(rich(), data_dir, tmp_path)
    with pytest.raises(MlaError, match="already holds a finished run") as error:
        trained(rich(), data_dir, tmp_path)
    assert f"mla eval {run.path}" in error.value.hint
    (run.path / "stray").touch()
    again = trained(rich(), data_dir, tmp_path, force=True)
    assert not (again.path / "stray").exists()
    assert run_bytes(again) == whole


def test_a_finished_run_has_nothing_to_resume(mfeat_store, data_dir: Path, tmp_path: Path, whole: dict) -> None:
    """It may have been killed after its last write: then what comes after it is still to be done."""
    run = trained(rich(), data_dir, tmp_path)
    written = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    (tmp_path / ".last").unlink()
    events, again = events_and_value(train(rich(), data_dir, tmp_path, "cpu", resume=True))
    assert [e.text for e in events if isinstance(e, Note)] == [f"{run.path} is finished already"]
    assert isinstance(events[-1], Finished) and events[-1].rows
    assert again.path == run.path
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == written
    assert (tmp_path / ".last").read_text() == run.name + "\n"


@pytest.mark.slow
def test_kill_9_inside_an_epoch_and_resume(mfeat_store, data_dir: Path, tmp_path: Path) -> None:
    recipe = rich(train={**RICH["train"], "epochs": 60})
    path = tmp_path / "recipe.yaml"
    from mla_cli.recipe import dump_yaml

    path.write_text(dump_yaml(recipe))
    runs = tmp_path / "runs"
    command = [sys.executable, "-m", "mla_cli", "train", "--recipe", str(path), "--device", "cpu"]
    command += ["--data-dir", str(data_dir), "--run-dir", str(runs)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = list(runs.glob("*/checkpoints/last.json"))
        if found:
            values = json.loads(found[0].read_text())
            if values["epoch"] >= 3 and values["round"] > 0:
                break
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    (run,) = [Run(p) for p in runs.iterdir() if p.is_dir()]
    assert run.state == "running"
    assert 3 <= len(run.history()) < 60
    done = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert run_bytes(run) == run_bytes(trained(recipe, data_dir, tmp_path / "whole"))
    assert not list(run.path.rglob("*.tmp"))
