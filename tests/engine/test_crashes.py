"""A whole experiment, prepare + train + eval: killed, without power, on a full disk, out of memory; the same bytes in
the end."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import mla
from lives import AIMS, STORY, Kills, Lives, begin, outcome
from power_loss import Disk, restore, states
from tiny import mfeat_recipe, run_bytes, trained

from mla_cli.core.method import BaseMethod
from mla_cli.engine import train as engine
from mla_cli.engine.run import Run
from mla_cli.errors import MlaError
from mla_cli.recipe import dump_yaml

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc and fork")


@pytest.fixture(scope="module")
def lives() -> Iterator[Lives]:
    with Lives() as server:
        yield server


# ---------------------------------------------------------------- killed


@pytest.mark.slow
def test_fifty_kills_at_any_instant(lives: Lives, tmp_path: Path) -> None:
    """`tests/long/kills.py` does hundreds."""
    kills = Kills(lives, tmp_path, np.random.default_rng(9))
    while len(kills.places) < 50:
        kills.one_story(50)
    assert {(step, phase) for step, phases in AIMS.items() for phase in phases} <= set(kills.places)


@pytest.mark.slow
@pytest.mark.parametrize(("numbers", "code"), [((2,), 130), ((15,), 143), ((2, 15), 143)])
def test_signals_at_any_operation_and_the_same_words_go_on(
    lives: Lives, tmp_path: Path, numbers: tuple[int, ...], code: int
) -> None:
    """SIGINT (2), SIGTERM (15), and one after the other, in prepare, train and eval: saved, and told what goes on."""
    whole, folder = begin(tmp_path / "whole"), begin(tmp_path / "stopped")
    rng = np.random.default_rng(sum(numbers))
    for step, words in STORY.items():
        undisturbed = lives.live(words.split(), whole)
        points = rng.choice(np.arange(1, undisturbed.operations + 1), min(3, undisturbed.operations), replace=False)
        for point in points:
            life = lives.live(words.split(), folder, at=int(point), signals=numbers)
            if life.code == 0:  # too late: all was done
                continue
            assert (life.code, life.stdout) == (code, ""), (step, point, life.doing, life.stderr)
            assert "Traceback" not in life.stderr
            if len(numbers) == 1:
                told, _, again = life.stderr.splitlines()[-1].partition("To go on: mla ")
                assert told == "interrupted; what is finished is kept. "
                assert sorted(again.split()) == sorted(words.split())
        life = lives.live(words.split(), folder)
        assert life.code == 0, life.stderr
    assert outcome(folder) == outcome(whole)
    assert life.stdout == undisturbed.stdout


# ---------------------------------------------------------------- power loss


@pytest.mark.slow
def test_any_disk_that_a_power_loss_leaves_goes_on_to_the_same_bytes(lives: Lives, tmp_path: Path) -> None:
    place, start, records = begin(tmp_path / "whole"), begin(tmp_path / "start"), []
    for step in ("prepare", "train"):
        records.append(tmp_path / f"record-{step}")
        assert lives.live(STORY[step].split(), place, record=str(records[-1])).code == 0
    whole = lives.story(place)
    rng = np.random.default_rng(9)
    found = list(states(start, records, rng))
    assert len(found) > 100
    for index in sorted(rng.permutation(len(found))[:16]):
        doing, tree = found[index]
        assert lives.story(restore(tree, tmp_path / f"state{index}")) == whole, doing


def test_the_disk_of_a_power_loss_is_pessimistic(tmp_path: Path) -> None:
    """The model itself: what is not synced may be lost, half there, or there without its content."""
    (tmp_path / "start").mkdir()
    record = tmp_path / "record"
    record.mkdir()
    (record / "1").write_bytes(b"content")
    (record / "log.jsonl").write_text(
        '{"kind": "mkdir", "names": ["new"]}\n'
        '{"kind": "open", "names": ["new/.x.tmp"]}\n'
        '{"kind": "sync", "names": ["new/.x.tmp"], "content": "1"}\n'
        '{"kind": "rename", "names": ["new/.x.tmp", "new/x"]}\n'
        '{"kind": "sync", "names": ["new"]}\n'
        '{"kind": "sync", "names": ["."]}\n'
    )
    disk = Disk(tmp_path / "start", [record])
    trees = [
        tuple(disk.after_power_loss(lambda kept=kept: kept, lambda file: file.content) for kept in (False, True))
        for _ in disk.play()
    ]
    assert [few for few, _ in trees] == [{}, {}, {}, {}, {}, {"new": None, "new/x": b"content"}]
    assert trees[1][1] == {"new": None, "new/.x.tmp": b""}
    assert trees[2][1] == {"new": None, "new/.x.tmp": b"content"}
    assert trees[3][1] == {"new": None, "new/x": b"content"}
    assert not disk.unsynced_renames


# ---------------------------------------------------------------- disk full


# What comes after the story: figures and tables. The one run of the grid is finished already.
LATER = {
    "ablate": "ablate --recipe tiny.yaml --over method.name=mla --seeds 0 --missing-rates 0,0.3 --mask-seeds 0 -q",
    "report": "report --force -q",
}
MADE = {"prepare": "data/*", "train": "runs/*", "ablate": "runs/ablate-*", "report": "runs/*/report*"}
FULL = "hint: free some space and run the same command again; what was finished is kept\n"


@pytest.mark.slow
def test_a_disk_full_at_any_point_is_one_clear_error_and_the_same_words_go_on(lives: Lives, tmp_path: Path) -> None:
    """Points spread over all writes of each command; each begins anew, fails, and goes on when there is space."""
    folder, hit = begin(tmp_path / "full"), []
    for step, points in {"prepare": 6, "train": 9, "ablate": 4, "report": 2}.items():
        words = (STORY | LATER)[step].split()
        whole = lives.live(words, folder, full=0)
        assert whole.code == 0, whole.stderr
        files = outcome(folder)
        for number in np.unique(np.linspace(1, whole.writes, points).astype(int)):
            for path in folder.glob(MADE[step]):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            life = lives.live(words, folder, full=int(number))
            hit.append(life.full)
            assert life.code == 1 and life.stdout == "", (hit, life.stderr)
            assert life.stderr.count("error: cannot write `") == 1 and "No space left on device" in life.stderr
            assert life.stderr.endswith(FULL) and "Exception" not in life.stderr
            again = lives.live(words, folder)
            assert again.code == 0, (hit, again.stderr)
            assert again.stdout == whole.stdout or step == "prepare"  # that one may say that all was done already
            assert outcome(folder) == files, hit
    assert len(hit) >= 20, hit


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_does_not_fit_is_one_clear_error() -> None:
    command = [sys.executable, "-m", "mla_cli", "recipes"]
    with open("/dev/full", "w") as full:
        found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert found.returncode == 1
    assert found.stderr == "error: cannot write `standard output`: No space left on device\n" + FULL


# ---------------------------------------------------------------- out of memory

SAYINGS = {
    "python": MemoryError(),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: not enough memory: you tried ..."),
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
}


@pytest.mark.parametrize("says", list(SAYINGS))
def test_out_of_memory_in_a_step_names_what_to_set_and_loses_nothing(
    mfeat_store, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str
) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)
    recipe = mfeat_recipe(train={"checkpoint_every": 1})
    real, calls = BaseMethod.loss, []

    def starving(self, logits, labels):
        calls.append(1)
        if len(calls) == 9:  # the fifth round of two steps: epoch 2, round 2
            raise SAYINGS[says]
        return real(self, logits, labels)

    with monkeypatch.context() as patch:
        patch.setattr(BaseMethod, "loss", starving)
        with pytest.raises(MlaError) as caught:
            trained(recipe, data_dir, tmp_path / "runs")
    (run,) = [Run(path) for path in (tmp_path / "runs").iterdir()]
    assert caught.value.message == "out of memory at epoch 2, round 2, `train.batch_size` 32"
    assert caught.value.hint == (
        f"free some memory and go on with `mla train --recipe {run.recipe_file} --run-dir {tmp_path / 'runs'} "
        f"--data-dir {data_dir} --resume`; a smaller one (`--set train.batch_size=16`) needs less and is another run"
    )
    assert (run.state, run.checkpoint_values("last")["round"]) == ("failed", 1)
    words = caught.value.hint.partition("`mla ")[2].partition("`")[0].split()
    resumed = mla(*words, "--device", "cpu")
    assert resumed.code == 0, resumed.stderr
    assert run_bytes(run) == run_bytes(trained(run.recipe(), data_dir, tmp_path / "whole"))


def test_out_of_memory_while_scoring_says_so(
    mfeat_store, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BaseMethod, "predict", lambda *_: None)

    def starving(session, split, every_subset):
        session.method.eval()
        raise MemoryError

    monkeypatch.setattr(engine, "score", starving)
    with pytest.raises(MlaError, match="out of memory while scoring, 256 samples at a time") as caught:
        trained(mfeat_recipe(), data_dir, tmp_path)
    assert "--resume`; or choose another --device" in caught.value.hint


def test_another_runtime_error_keeps_its_traceback(
    mfeat_store, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(BaseMethod, "loss", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        trained(mfeat_recipe(), data_dir, tmp_path)


# ---------------------------------------------------------------- checkpoints by time


def test_checkpoints_by_time_change_no_byte(
    mfeat_store, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)
    now, saved = [0.0], []
    monkeypatch.setattr("mla_cli.engine.saving.time.monotonic", lambda: now[0])
    real_loss, real_save = BaseMethod.loss, Run.save_checkpoint

    def slow(self, logits, labels):
        now[0] += 25  # seconds: a round of two steps takes 50
        return real_loss(self, logits, labels)

    def save(self, which, tensors, values):
        saved.append((which, values["epoch"], values["round"]))
        real_save(self, which, tensors, values)

    recipe = mfeat_recipe(train={"batch_size": 16})  # six rounds
    whole = run_bytes(trained(recipe, data_dir, tmp_path / "whole"))
    monkeypatch.setattr(BaseMethod, "loss", slow)
    monkeypatch.setattr(Run, "save_checkpoint", save)
    timed = recipe.model_copy(update={"train": recipe.train.model_copy(update={"checkpoint_every": "2min"})})
    found = run_bytes(trained(timed, data_dir, tmp_path / "timed"))
    last = [(epoch, number) for which, epoch, number in saved if which == "last"]
    assert last == [(0, 3), (1, 0), (1, 3), (2, 0)]  # not after round 6: that is the epoch's end
    assert found == whole | {"recipe.yaml": found["recipe.yaml"]}
    assert "checkpoint_every: 2min" in dump_yaml(timed)


def test_a_history_with_a_gap_is_not_gone_on_with(mfeat_store, data_dir: Path, tmp_path: Path) -> None:
    """Such as a backup or another program may leave; the lines cannot be made again without training."""
    run = trained(mfeat_recipe(), data_dir, tmp_path)
    run.update(state="running")
    lines = (run.path / "history.jsonl").read_text().splitlines(keepends=True)
    (run.path / "history.jsonl").write_text(lines[1])
    with pytest.raises(MlaError, match=r"history.jsonl` lacks some of the 2 epochs trained") as caught:
        trained(mfeat_recipe(), data_dir, tmp_path, resume=True)
    assert caught.value.hint == run.start_again


def test_what_an_interrupted_force_left_is_not_gone_on_with(mfeat_store, data_dir: Path, tmp_path: Path) -> None:
    """`--force` removes `run.json` first of all: without it nothing there counts."""
    run = trained(mfeat_recipe(), data_dir, tmp_path)
    expected = run_bytes(run)
    (run.path / "run.json").unlink()
    (run.path / "checkpoints" / "last.json").write_text('{"epoch": 1, "tensors": "gone"}')
    again = trained(mfeat_recipe(), data_dir, tmp_path, resume=True)
    assert run_bytes(again) == expected
