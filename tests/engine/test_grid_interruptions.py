"""`mla ablate` as a real process: workers killed, Ctrl-C, SIGTERM, two at once."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mla_cli.engine.run import Run
from mla_cli.locks import FolderLock

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")

SMALL = ("--set", "dataset.modalities=[mor, fou]", "--set", "dataset.limit=400", "--set", "encoders.mor.hidden=16")
LONG = ("--over", "train.lr=0.05,0.06", "--seeds", "0", "--set", "train.epochs=2000", *SMALL)


def words(*more: str) -> list[str]:
    return [sys.executable, "-m", "mla_cli", "ablate", "--recipe", "mfeat", "--missing-rates", "0,0.2", *more]


def start(*more: str, **options: Any) -> subprocess.Popen[str]:
    """`mla ablate` in a process group of its own, as a terminal would start it."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen(words(*more), **{**pipes, **options})


def running(run_dir: Path) -> dict[str, int]:
    """Runs that are being trained, and the processes that do it."""
    found = {}
    for file in run_dir.glob("*/run.json"):
        if FolderLock.is_held(file.parent) and Run(file.parent).state == "running":
            found[file.parent.name] = int(Run(file.parent).info()["pid"])
    return found


def until(condition: Any, seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def members(group: int) -> list[int]:
    """Processes of a group that are alive."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] not in "ZX":
                found.append(int(stat.parent.name))
    return found


@pytest.fixture
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    yield
    for process in members_of_test:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
    members_of_test.clear()


members_of_test: list[int] = []


@pytest.mark.slow
@pytest.mark.usefixtures("_in_empty_folder")
def test_a_grid_of_24_runs_with_two_workers_killed_ends_with_the_same_bytes(tmp_path: Path) -> None:
    grid = ("--over", "method.name=mla,late", "--over", "train.lr=0.05,0.02", "--seeds", "0..5", "--workers", "2")
    grid += ("--set", "train.epochs=6", *SMALL)
    subprocess.run(words(*grid, "--run-dir", "whole", "-q"), check=True, stdout=subprocess.DEVNULL)
    process = start(*grid, "--run-dir", "killed")
    members_of_test.append(process.pid)
    rng, killed = np.random.default_rng(7), dict[str, int]()
    for _ in range(2):
        time.sleep(float(rng.uniform(0, 3)))
        victims = until(lambda: {name: pid for name, pid in running(Path("killed")).items() if name not in killed})
        name = sorted(victims)[int(rng.integers(len(victims)))]
        time.sleep(float(rng.uniform(0, 0.3)))
        os.kill(victims[name], signal.SIGKILL)
        killed[name] = victims[name]
    err = process.communicate(timeout=300)[1]
    assert process.returncode == 0, err
    assert err.count("its worker was lost (exit code -9); trying once more") == 2
    (whole,), (other,) = Path("whole").glob("ablate-*/results.csv"), Path("killed").glob("ablate-*/results.csv")
    assert other.read_bytes() == whole.read_bytes()
    assert len({name.name for name in Path("whole").glob("mfeat-*")}) == 24
    for folder in Path("whole").glob("mfeat-*"):
        for file in ("predictions.parquet", "history.jsonl", "results.csv"):
            assert (Path("killed") / folder.name / file).read_bytes() == (folder / file).read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("_in_empty_folder")
def test_every_way_to_interrupt_leaves_a_grid_that_goes_on() -> None:
    """Ctrl-C (to all processes of the terminal), SIGINT and SIGTERM to the parent alone."""
    ways = [(os.killpg, signal.SIGINT, 130), (os.kill, signal.SIGINT, 130), (os.kill, signal.SIGTERM, 143)]
    epochs = 0
    for send, number, code in ways:
        process = start(*LONG)
        members_of_test.append(process.pid)
        until(lambda: len(running(Path("runs"))) == 2)
        until(lambda done=epochs: sum(len(Run(p.parent).history()) for p in Path("runs").glob("*/run.json")) > done)
        send(process.pid, number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == code, err
        assert out == ""
        assert "Traceback" not in err
        assert err.count("interrupted; what is finished is kept. To go on: mla ablate --recipe mfeat") == 1
        # the tracker of multiprocessing ends a moment after its parent
        until(lambda group=process.pid: not members(group))
        assert {Run(p.parent).state for p in Path("runs").glob("*/run.json")} == {"running"}
        now = sum(len(Run(p.parent).history()) for p in Path("runs").glob("*/run.json"))
        assert now > epochs  # it went on, and lost nothing
        epochs = now


@pytest.mark.slow
@pytest.mark.usefixtures("_in_empty_folder")
def test_two_at_once_train_each_run_once() -> None:
    grid = ("--over", "train.lr=0.05,0.04,0.03,0.02", "--seeds", "0", "--set", "train.epochs=12", *SMALL)
    one, two = start(*grid, "--workers", "1"), start(*grid, "--workers", "1")
    members_of_test.extend([one.pid, two.pid])
    results = [process.communicate(timeout=300) for process in (one, two)]
    assert (one.returncode, two.returncode) == (0, 0), results
    assert results[0][0].replace("\n", "") == results[1][0].replace("\n", "")
    assert "is being trained by another process: left to that one" in results[0][1] + results[1][1]
    for run in (Run(path.parent) for path in Path("runs").glob("*/run.json")):
        assert [row["epoch"] for row in run.history()] == list(range(1, 13))
        assert [row["epoch"] for row in run.history("timing.jsonl")] == list(range(1, 13))
