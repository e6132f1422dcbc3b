"""The grid and `prepare` on a Ray cluster of two nodes that this file starts on this machine.

The second node lives in a mount namespace of its own, in which the folder of the test is empty: as a machine without a
shared disk. Where that is not allowed, it sees what the first one sees.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import raw_trees
from command_line import mla

from mla_cli.engine.ray_executor import gpus
from mla_cli.engine.run import Run
from mla_cli.engine.tasks import Needs
from mla_cli.locks import FolderLock

GRID = ("ablate", "--recipe", "mfeat", "--over", "method.name=mla,late", "--missing-rates", "0,0.2", "-q")
SMALL = ("--set", "dataset.modalities=[mor, fou]", "--set", "dataset.limit=400", "--set", "encoders.mor.hidden=16")
SMALL_SHARDS = "import sys; from mla_cli.data import store; store.SHARD_BYTES = 1; from mla_cli.cli import main; main()"
OBJECTS = 80 * 1024**2  # bytes of each node's object store, the least that Ray takes


def command(*words: object) -> list[str]:
    return [sys.executable, "-c", SMALL_SHARDS, *map(str, words)]


@dataclass
class Cluster:
    """address: of the head; work: the folder that the second node sees empty, if `hidden`."""

    address: str
    work: Path
    hidden: bool
    second: subprocess.Popen[bytes]

    def options(self) -> tuple[str, ...]:
        return "--executor", "ray", "--address", self.address


def ray_start(log: Path, *words: str, before: tuple[str, ...] = (), **more: str) -> subprocess.Popen[bytes]:
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", "1"]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.pathsep.join(sys.path), **more}
    with open(log, "wb") as out:
        return subprocess.Popen(
            [*before, *start, "--object-store-memory", str(OBJECTS), *words],
            stdout=out,
            stderr=out,
            env=environment,
            start_new_session=True,
            cwd="/",
        )


def alive(address: str) -> int:
    """Nodes of the cluster."""
    code = "import logging, ray, sys; ray.init(sys.argv[1], logging_level=logging.ERROR, log_to_driver=False); "
    code += "print(sum(n['Alive'] for n in ray.nodes()))"
    done = subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else 0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    pytest.importorskip("ray", reason="needs the extra `ray`", exc_type=ImportError)
    work = tmp_path_factory.mktemp("work")
    short = Path(tempfile.mkdtemp(prefix="ray"))  # paths of sockets have little room
    with socket.socket() as free:
        free.bind(("", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    head = ("--head", "--node-ip-address", "127.0.0.1", "--port", address.split(":")[1], "--temp-dir", str(short))
    nodes = [ray_start(short / "head.log", *head, "--include-dashboard=false", "--disable-usage-stats")]
    namespace = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(work))
    hidden = bool(shutil.which("unshare")) and not subprocess.run([*namespace, "true"], capture_output=True).returncode
    try:
        until(lambda: alive(address) == 1)
        cache = {"XDG_CACHE_HOME": str(work / "cache")}
        second = ray_start(short / "2.log", "--address", address, before=namespace if hidden else (), **cache)
        nodes.append(second)
        until(lambda: alive(address) == 2)
        yield Cluster(address, work, hidden, second)
    finally:
        for node in reversed(nodes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGTERM)
        for node in nodes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.wait(3)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()
        shutil.rmtree(short, ignore_errors=True)


def until(condition: Any, seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


def running(run_dir: Path) -> list[Run]:
    """Runs that are being trained where we see it."""
    runs = [Run(file.parent) for file in run_dir.glob("mfeat-*/run.json")]
    return [run for run in runs if FolderLock.is_held(run.path) and run.state == "running"]


@pytest.fixture(scope="module")
def grid(cluster: Cluster) -> tuple[tuple[str, ...], Path]:
    """Words of a grid of six runs, and the folder of the same runs trained here."""
    words = (*GRID, "--seeds", "0..2", "--set", "train.epochs=8", *SMALL, "--data-dir", str(cluster.work / "data"))
    here = cluster.work / "alone"
    subprocess.run(command(*words, "--run-dir", here), check=True, stdout=subprocess.DEVNULL)
    return words, here


def same_runs(one: Path, other: Path) -> None:
    (here,), (there,) = one.glob("ablate-*/results.csv"), other.glob("ablate-*/results.csv")
    assert there.read_bytes() == here.read_bytes()
    names = {path.name for path in one.iterdir()}
    assert {path.name for path in other.iterdir()} == names  # nothing of ours is left
    for name in (name for name in names if name.startswith("mfeat-")):
        for file in ("predictions.parquet", "history.jsonl", "results.csv", "recipe.yaml"):
            assert (other / name / file).read_bytes() == (one / name / file).read_bytes()


@pytest.mark.slow
def test_a_grid_on_two_nodes_gives_the_bytes_of_one_machine_though_a_worker_dies(cluster: Cluster, grid: Any) -> None:
    words, here = grid
    there = cluster.work / "there"
    process = subprocess.Popen(
        command(*words, "--run-dir", there, *cluster.options()), stdout=-3, stderr=subprocess.PIPE, text=True
    )
    run = until(lambda: running(there))[0]
    os.kill(int(run.info()["pid"]), signal.SIGKILL)
    err = process.communicate(timeout=300)[1]
    assert process.returncode == 0, err
    assert f"warning: {run.name}: its worker was lost (its process crashed); trying once more" in err
    same_runs(here, there)
    stores = {Run(path.parent).info()["data_dir"] for path in there.glob("mfeat-*/run.json")}
    assert len(stores) == (2 if cluster.hidden else 1)  # ours, and the cache of the node that does not see it


@pytest.mark.slow
def test_preparing_on_two_nodes_makes_the_same_store(cluster: Cluster, tmp_path: Path) -> None:
    raw_trees.make_cremad(tmp_path / "raw", actors=20, odd_names=True, truncated=True)  # 2 shards a modality
    how = ("prepare", "cremad", "--root", tmp_path / "raw", "--max-bad", "1", "-q")
    for place, options in (("here", ()), ("there", cluster.options())):
        done = subprocess.run(
            command(*how, "--data-dir", cluster.work / place, *options), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    here, there = cluster.work / "here" / "cremad", cluster.work / "there" / "cremad"
    files = {path.relative_to(here) for path in here.rglob("*") if path.is_file()}
    assert {path.relative_to(there) for path in there.rglob("*") if path.is_file()} == files
    assert len([file for file in files if file.suffix == ".npy"]) == 4
    for file in files:
        assert (there / file).read_bytes() == (here / file).read_bytes(), file
    if cluster.hidden:  # raw data are not sent
        raw_trees.make_cremad(cluster.work / "raw", actors=2)
        unseen = ("prepare", "cremad", "--root", cluster.work / "raw", "--data-dir", cluster.work / "unseen")
        done = subprocess.run(command(*unseen, *cluster.options()), capture_output=True, text=True)
        assert done.returncode == 1
        assert f"does not see the raw data `{cluster.work / 'raw'}`" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_ctrl_c_ends_the_tasks_on_the_nodes(cluster: Cluster) -> None:
    words = (*GRID, "--seeds", "0", "--set", "train.epochs=5000", *SMALL, "--data-dir", cluster.work / "data")
    process = subprocess.Popen(
        command(*words, "--run-dir", cluster.work / "stopped", *cluster.options()),
        stdout=-3,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: running(cluster.work / "stopped"))
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "To go on: " in err and "Traceback" not in err
    until(lambda: not running(cluster.work / "stopped"), 30)


@pytest.mark.slow
def test_a_node_that_dies_takes_its_runs_to_the_other_one(cluster: Cluster, grid: Any) -> None:
    """The last test: it leaves a cluster of one node."""
    words, here = grid
    there = cluster.work / "survived"
    process = subprocess.Popen(
        command(*words, "--run-dir", there, *cluster.options()), stdout=-3, stderr=subprocess.PIPE, text=True
    )
    until(lambda: list(there.glob("mfeat-*/predictions.parquet")))
    os.killpg(cluster.second.pid, signal.SIGKILL)
    err = process.communicate(timeout=300)[1]
    assert process.returncode == 0, err
    same_runs(here, there)


def test_mistakes_are_told_in_two_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def error(*words: str) -> list[str]:
        found = mla("ablate", "--recipe", "mfeat", "--data-dir", tmp_path / "d", "--run-dir", tmp_path / "r", *words)
        assert (found.code, found.stdout) == (1, "")
        return [line for line in found.stderr.splitlines() if line.startswith(("error:", "hint:"))]

    assert error("--executor", "slurm") == ["error: no executor named `slurm`", "hint: choose local or ray"]
    assert error("--address", "a:1") == ["error: `--address a:1` is of a Ray cluster", "hint: add `--executor ray`"]
    monkeypatch.setitem(sys.modules, "ray", None)
    assert error("--executor", "ray") == [
        "error: `--executor ray` needs Ray",
        "hint: install it: `pip install 'mla-cli[ray]'`",
    ]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "error: no Ray cluster at `127.0.0.1:1`: Connection refused"),
        ("head", "error: no Ray cluster at `head`: no port"),
        ("ray://127.0.0.1:10001", "error: `ray://127.0.0.1:10001` is for Ray Client, which tells no events"),
    ],
)
def test_a_cluster_that_is_not_there_is_told_at_once(tmp_path: Path, address: str, message: str) -> None:
    pytest.importorskip("ray", reason="needs the extra `ray`", exc_type=ImportError)
    found = mla("ablate", "--recipe", "mfeat", "--executor", "ray", "--address", address, "--data-dir", tmp_path)
    assert (found.code, found.stdout) == (1, "")
    assert message in found.stderr and "hint: " in found.stderr
    assert not list(tmp_path.iterdir())


def test_a_gpu_for_each_run_where_the_cluster_has_some() -> None:
    plain, fast = [{"CPU": 4.0}], [{"CPU": 4.0}, {"CPU": 4.0, "GPU": 2.0}]
    found = [gpus(nodes, Needs(device=device)) for nodes in (plain, fast) for device in ("auto", "cpu", "cuda")]
    assert found == [False, False, True, True, False, True]
