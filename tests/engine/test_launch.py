"""`--devices`: what starts the ranks ends with them, says once what went wrong, and refuses what makes no sense."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from command_line import mla

from mla_cli.app import resuming
from mla_cli.engine import launch as launching
from mla_cli.engine.launch import launch, too_many
from mla_cli.engine.together import end_with, is_rank, is_running, joined
from mla_cli.errors import MlaError

NOTE = "import os, sys, time; rank = os.environ['RANK']; open(rank, 'w').write(str(os.getpid()));"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", NOTE + code]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_rank_knows_its_place_and_only_the_first_has_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    code = "print(rank, os.environ['WORLD_SIZE'], os.environ['LOCAL_WORLD_SIZE'], os.environ['MLA_PARENT'])"
    assert launch(3, python(code), "again") == 0
    assert capfd.readouterr().out == f"0 3 3 {os.getpid()}\n"
    assert sorted(path.name for path in Path().iterdir()) == ["0", "1", "2"]


def test_threads_are_shared_out_unless_you_say_otherwise(monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.setattr(launching, "default_workers", lambda: 9)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    launch(2, python("print(os.environ['OMP_NUM_THREADS'])"), "again")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    launch(2, python("print(os.environ['OMP_NUM_THREADS'])"), "again")
    assert capfd.readouterr().out == "4\n7\n"


def test_a_failed_rank_ends_the_others_and_has_said_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "GRACE", 0.2)
    begin = time.monotonic()
    assert launch(2, python("sys.exit(1) if rank == '1' else time.sleep(60)"), "again") == 1
    assert time.monotonic() - begin < 30
    assert not is_running(int(Path("0").read_text()))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_named(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    monkeypatch.setattr(launching, "GRACE", 0.2)
    with pytest.raises(MlaError, match=f"rank {rank} on .* was killed by SIGKILL") as found:
        launch(2, python(f"os.kill(os.getpid(), 9) if rank == '{rank}' else time.sleep(60)"), "mla train --resume")
    assert found.value.hint == "what is finished is kept. To go on: mla train --resume"
    assert not is_running(int(Path(str(1 - rank)).read_text()))


def test_an_interruption_is_handed_to_rank_0_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = """
import signal
def stop(number, frame): open('stopped', 'a').write(rank); sys.exit(130)
signal.signal(signal.SIGINT, stop)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
while not (rank == '1' and os.path.exists('stopped')): time.sleep(0.01)
"""

    def interrupt() -> None:
        while not (Path("0").exists() and Path("1").exists()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        threading.Thread(target=interrupt).start()
        assert launch(2, python(answer), "again") == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert Path("stopped").read_text() == "0"


def test_a_rank_whose_parent_is_gone_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr("os._exit", told.append)
    end_with(os.getppid() + 1)
    assert told == [1]


def test_a_process_alone_joins_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_rank()
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert not is_rank()
    with joined("cpu") as ranks:
        assert ranks.is_alone


REFUSED = [
    (["--devices", "0"], "greater than or equal to 1"),
    (["--devices", "65"], "a batch has 64 samples"),
    (["--devices", "2", "--device", "mps"], "there is one mps device"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_devices_that_make_no_sense_are_usage_errors(words: list[str], message: str) -> None:
    found = mla("train", "--recipe", "mfeat", *words)
    assert (found.code, found.stdout) == (2, "")
    assert message in " ".join(found.stderr.replace("│", " ").split())
    assert not Path("runs").exists()


def test_a_missing_device_is_told_before_anything_is_prepared() -> None:
    found = mla("train", "--recipe", "mfeat", "--device", "tpu")
    assert found.code == 1
    assert "no device named `tpu`" in found.stderr
    assert list(Path().iterdir()) == []


def test_more_processes_than_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "accelerators", lambda device: ("CUDA", ["0", "1"]))
    assert too_many(3, "auto", 64) == "--devices 3: this machine has 2 CUDA devices"
    assert too_many(2, "auto", 64) == ""
    monkeypatch.setattr(launching, "accelerators", lambda device: ("MPS", ["mps"]))
    assert "add --device cpu" in too_many(2, "auto", 64)


def test_devices_are_torchruns_where_it_started_us(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    found = mla("train", "--recipe", "mfeat", "--devices", "2")
    assert found.code == 2
    assert "torchrun has started the processes already" in " ".join(found.stderr.replace("│", " ").split())


def test_torchrun_stands_in_the_command_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["mla", "train", "--force"])
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert resuming("train") == "torchrun --nproc-per-node 4 -m mla_cli train --resume"
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert resuming("train") == "torchrun --nnodes 2 --nproc-per-node 4 -m mla_cli train --resume"
