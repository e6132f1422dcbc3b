"""Several processes train one run: gloo, `--devices`, torchrun; exact, one voice, no orphans."""

import multiprocessing as mp
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command_line import mla
from rank_cases import THREE, check_equal, outcome
from tiny import difference

from mla_cli.core.ranks import Ranks
from mla_cli.engine import together

REAL = ("mla", "mla of three", "mla with absent samples", "concat")


# ------------------------------------------------------------ two gloo processes


def one_rank(rank: int, place: str, data_dir: Path, cases: tuple[str, ...], results: Any) -> None:
    """What a spawned process does: every case in turn, on one process group."""
    import torch.distributed as dist

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{place}/store", rank=rank, world_size=2)
    calls: list[int] = []
    plain = dist.all_reduce
    dist.all_reduce = lambda *args, **keys: (calls.append(args[0].numel()), plain(*args, **keys))[1]  # type: ignore
    found = {}
    for case in cases:
        calls.clear()
        found[case] = (outcome(case, data_dir, Ranks(rank, 2)), list(calls))
    results.put((rank, found))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_gloo_processes_equal_one(mfeat_store, data_dir: Path, tmp_path: Path) -> None:
    context = mp.get_context("spawn")
    results = context.Queue()
    arguments = [(rank, str(tmp_path), data_dir, REAL, results) for rank in range(2)]
    processes = [context.Process(target=one_rank, args=given) for given in arguments]
    for process in processes:
        process.start()
    by_rank = dict(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    for case in REAL:
        check_equal(outcome(case, data_dir), [by_rank[rank][case][0] for rank in range(2)])
        one, calls = by_rank[0][case]
        steps = len(one.losses) if case == "concat" else sum(len(losses) for losses in one.losses)
        assert len(calls) == one.exchanges == steps, "one all_reduce in each step"


# ------------------------------------------------------------ the command


def command(*words: str) -> list[str]:
    keys = [f"dataset.modalities=[{', '.join(THREE)}]", "dataset.limit=100"]
    keys += [f"encoders.{m}.dropout=0" for m in THREE]
    sets = [word for key in keys for word in ("--set", key)]
    return [sys.executable, "-m", "mla_cli", "train", "--recipe", "mfeat", *sets, *words]


def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=folder, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def children(process: subprocess.Popen[str]) -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


def finish(process: subprocess.Popen[str], seconds: float = 120) -> tuple[int, str, str]:
    """Exit code, stdout, stderr; and that no process of the run is left."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def ranks_of(process: subprocess.Popen[str], count: int) -> list[int]:
    """The process of every rank, once all are there."""
    while len(found := children(process)) < count:
        assert process.poll() is None
        time.sleep(0.02)
    return found


def ended(pids: list[int]) -> bool:
    """Whether processes end by themselves within some seconds."""
    until = time.monotonic() + 20
    while any(together.is_running(pid) for pid in pids):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def epochs_done(run_dir: Path) -> int:
    return sum(path.read_text().count("\n") for path in run_dir.glob("*/history.jsonl"))


@pytest.mark.slow
def test_a_killed_rank_is_named_and_the_run_goes_on_with_another_number_of_ranks(
    mfeat_store, data_dir: Path, tmp_path: Path
) -> None:
    places = ["--data-dir", str(data_dir), "--format", "csv", "--set", "train.epochs=40", "--set", "train.threads=1"]
    process = start(command(*places, "--devices", "2", "--run-dir", "two"), tmp_path)
    pids = ranks_of(process, 2)
    while epochs_done(tmp_path / "two") < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.kill(pids[1], signal.SIGKILL)
    code, out, err = finish(process)
    errors = [line for line in err.splitlines() if line.startswith(("error", "hint", "Traceback"))]
    assert (code, out, len(errors)) == (1, "", 2), err
    assert errors[0].startswith("error: rank 1 on ")
    assert errors[0].endswith(f"(process {pids[1]}) was killed by SIGKILL")
    assert errors[1].endswith("--devices 2 --run-dir two --resume")
    assert ended(pids)
    done = epochs_done(tmp_path / "two")
    assert 2 <= done < 40

    for name, flags in {"two": ["--resume"], "one": []}.items():
        words = command(*places, "--run-dir", str(tmp_path / name), *flags)[3:]
        assert mla(*words).code == 0
    tables = [pd.read_parquet(next(tmp_path.glob(f"{name}/*/predictions.parquet"))) for name in ("one", "two")]
    assert tables[0]["id"].tolist() == tables[1]["id"].tolist()
    for m in THREE:
        one, two = (np.stack(table[f"logits.{m}"]) for table in tables)
        assert difference(one, two) < 1e-3


@pytest.mark.slow
def test_an_error_of_all_ranks_is_told_once_and_an_interruption_too(
    mfeat_store, data_dir: Path, tmp_path: Path
) -> None:
    places = ["--data-dir", str(data_dir), "--devices", "2", "--run-dir", "runs"]
    diverges = start(command(*places, "--set", "train.lr=1.0e+30"), tmp_path)
    code, out, err = finish(diverges)
    assert (code, out) == (1, "")
    assert err.count("error: loss of ") == err.count("error: ") == 1
    assert "Traceback" not in err

    process = start(command(*places, "--set", "train.epochs=500"), tmp_path)
    pids = ranks_of(process, 2)
    while not list(tmp_path.glob("runs/*/timing.jsonl")) or epochs_done(tmp_path / "runs") < 1:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    assert (code, out) == (143, "")
    assert err.count("interrupted; what is finished is kept. To go on: mla train") == 1
    assert "error" not in err
    assert "Traceback" not in err
    assert ended(pids)
