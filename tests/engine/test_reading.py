"""Files that hang or kill their decoder, in real worker processes: they end as listed problems, the others are built.

The traps are set inside the workers: the work they import by name is this module's, which replaces the decoder.
"""

import os
import resource
import signal
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import raw_trees
from tiny import events_and_value
from typer.testing import CliRunner

from mla_cli.cli import app
from mla_cli.data import features
from mla_cli.data.store import Store
from mla_cli.engine import inspection, reading, shards
from mla_cli.engine.executor import Local
from mla_cli.engine.reading import Batch, run_batches
from mla_cli.engine.tasks import TRIES
from mla_cli.errors import MlaError

LIMIT = "2"  # seconds; a busy machine may take half a second for the first picture
NAMES = ["a0", "b hang", "c0", "d crash", "e0", "f hang", "g0", "h trip", *(f"good {i}" for i in range(16))]


def spring(ref: str) -> None:
    """What the file's name says."""
    if "hang" in ref:
        time.sleep(600)
    if "crash" in ref:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), signal.SIGSEGV)
    if "trip" in ref and not Path("tripped").exists():
        Path("tripped").touch()
        os.kill(os.getpid(), signal.SIGKILL)


def trapped_shard(task: shards.ShardTask) -> Generator[Any, None, Any]:
    def compute(spec: Any, kind: str, root: Path, ref: str, *how: Any) -> Any:
        spring(ref)
        return features.compute(spec, kind, root, ref, *how)

    shards.compute = compute  # type: ignore[assignment]
    return (yield from shards.shard_steps(task))


def trapped_check(batch: Batch) -> Generator[Any, None, Any]:
    real = features.check

    def check(kind: str, root: Path, ref: str, *how: Any) -> None:
        spring(ref)
        real(kind, root, ref, *how)

    features.check = check
    try:
        return (yield from reading.check_batch(batch))
    finally:
        features.check = real


def deaf(batch: Batch) -> Generator[Any, None, Any]:
    """Dies before it has told anything."""
    os.kill(os.getpid(), signal.SIGKILL)
    yield 0


def slow_writer(batch: Batch) -> Generator[Any, None, Any]:
    yield 0
    yield None
    time.sleep(0.8)  # longer than the limit, which is for reading
    return "written"


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of pictures, some of them traps."""
    monkeypatch.chdir(tmp_path)
    lines = ["id,label,visual"]
    for i, name in enumerate(NAMES):
        raw_trees.write_jpeg(tmp_path / f"{name}.jpg", i)
        lines.append(f"{i:02d},{'xy'[i // 2 % 2]},{name}.jpg")
    (tmp_path / "my.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "my.csv"


def mla(*arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments])


EXPECTED = {
    "01": ("timeout", "b hang.jpg", f"not read within {LIMIT} s"),
    "03": ("undecodable", "d crash.jpg", f"its decoder crashed (exit code {-signal.SIGSEGV}; out of memory?)"),
    "05": ("timeout", "f hang.jpg", f"not read within {LIMIT} s"),
}


@pytest.mark.slow
def test_what_hangs_or_crashes_is_listed_and_the_rest_is_built(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "WORK", f"{__name__}:trapped_shard")
    begun = time.monotonic()
    done = mla("prepare", "table", "--table", str(table), "--file-timeout", LIMIT, "--max-bad", "1", "--workers", "1")
    assert time.monotonic() - begun < 120  # no trap was waited for
    assert "3 of 24 samples cannot be used (2 timeout, 1 undecodable)" in done.stderr
    assert done.exit_code == 0
    listed = pd.read_csv("data/my/problems.csv", dtype=str).set_index("id")
    assert {i: tuple(listed.loc[i, ["kind", "file", "reason"]]) for i in listed.index} == EXPECTED
    store = Store.open(Path("data/my"))
    assert list(store.index["id"]) == [f"{i:02d}" for i in range(24) if i not in (1, 3, 5)]  # 7 killed one worker only
    pictures = store.modality("visual").take(store.positions(["visual"])[:, 0])
    for i, name in ((0, "a0"), (4, "h trip"), (20, "good 15")):
        again = features.compute(store.spec("visual"), "image", table.parent, f"{name}.jpg")
        np.testing.assert_array_equal(pictures[i], again.array)


@pytest.mark.slow
def test_a_check_survives_them_too(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "CHECK_WORK", f"{__name__}:trapped_check")
    done = mla("prepare", "table", "--table", str(table), "--file-timeout", LIMIT, "--check")
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    found = lines[lines.index("3 problems") + 1 :]
    texts = {i: f"  {i} visual {file}: {reason}" for i, (_, file, reason) in EXPECTED.items()}
    assert found == ["timeout: 2", texts["01"], texts["05"], "undecodable: 1", texts["03"]]


def batches(kind: str, count: int = 1) -> list[Batch]:
    return [Batch("m", kind, ".", [("0", "x"), ("1", "y")]) for _ in range(count)]


def run(function: str, tasks: list[Batch]) -> tuple[list[Any], list[Any]]:
    steps = run_batches(f"{__name__}:{function}", tasks, Local(1), 0.5, "read", 0, 2 * len(tasks))
    return events_and_value(steps)


def test_a_worker_that_dies_before_its_first_sample_is_an_error() -> None:
    with pytest.raises(MlaError, match=f"its worker process died {TRIES} times"):
        run("deaf", batches("image"))


def test_the_limit_is_for_reading_not_for_writing() -> None:
    events, values = run("slow_writer", batches("image", 2))
    assert values == ["written", "written"]
    assert (events[-1].done, events[-1].total) == (4, 4)
