"""Many processes on the same run or prepared set at the same moment: one does the work, nobody reads half a file."""

import os
import re
from pathlib import Path

import pytest
from command_line import mla
from forks import at_once, work

from mla_cli.engine.run import Run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
RECIPE = """\
dataset: {name: mfeat, modalities: [mor, fou], limit: 96}
encoders:
  mor: {name: mlp, hidden: 12}
  fou: {name: mlp, hidden: 12}
shared_width: 8
train: {epochs: 5, batch_size: 32, lr: 0.05, threads: 1}
"""
NEVER = re.compile(
    r"Traceback|damaged|not valid JSON|cannot read (?!.*No such file)|checksum differs|is missing|has lost"
)


@pytest.mark.slow
def test_eight_at_once_on_one_prepared_set_and_on_one_run(tmp_path: Path) -> None:
    """Eight `mla prepare` and eight `mla train`, which prepares too: each work is done once, all end cleanly."""
    (tmp_path / "mine.yaml").write_text(RECIPE)
    commands = [["prepare", "mfeat", "--workers", "1"], ["train", "--recipe", "mine.yaml"]]
    found = at_once(tmp_path, [words for words in commands for _ in range(8)])
    prepared, trained = found[:8], found[8:]
    builds = [entry for entry in work(tmp_path) if entry[0].startswith("build")]
    epochs = [entry for entry in work(tmp_path) if entry[0].startswith("epoch")]

    assert [output.code for output in prepared] == [0] * 8, prepared
    assert sum("nothing to do" not in output.stdout for output in prepared) <= 1  # 0: one of `train` has built it
    assert [what for what, _ in builds] == ["build data/mfeat"]
    told = [line for output in found for line in output.stderr.splitlines() if "is building" in line]
    for line in told:
        assert re.search(r"another process is building data/mfeat \(process \d+ on .+: mla .+\): waiting", line)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [".last", "mfeat"]

    assert sorted(output.code for output in trained) == [0] + [1] * 7, trained
    assert [what for what, _ in epochs] == [f"epoch {number}" for number in range(1, 6)]
    (path,) = (tmp_path / "runs").glob("mine-*")
    run = Run(path)
    assert (run.state, {run.info()["pid"]}) == ("finished", {pid for _, pid in epochs})
    assert [row["epoch"] for row in run.history()] == [row["epoch"] for row in run.history("timing.jsonl")]
    for output in trained:
        if output.code:
            held = f"`{path.relative_to(tmp_path)}` is being trained by another process (process {epochs[0][1]} on "
            assert held in output.stderr or "already holds a finished run" in output.stderr, output.stderr
            assert "hint: " in output.stderr
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [".last", run.name]
    for folder in ("runs", "data"):
        assert mla("check", tmp_path / folder).code == 0


@pytest.mark.slow
def test_who_reads_while_another_writes_never_sees_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`status`, `eval`, `diff` and `check` again and again, while the run is trained anew and the set built anew."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(RECIPE)
    train = ["train", "--recipe", "mine.yaml"]
    assert mla(*train).code == 0
    (path,) = Path("runs").glob("mine-*")
    readers = [["status"], ["eval", path.name], ["diff", path.name, path.name], ["check", "."]]
    writers = [[*train, "--force"], ["prepare", "mfeat", "--force", "--workers", "1"]]
    found = at_once(tmp_path, [*writers, *(["repeat", *words] for words in readers)])
    assert found[1].code == 0, found[1]
    assert found[0].code == 0 or "built again meanwhile" in found[0].stderr, found[0]
    for words, output in zip(readers, found[2:], strict=True):
        shown = output.stdout + output.stderr
        assert not NEVER.search(shown), (words, shown[-3000:])
        assert output.code in (0, 1)
    assert mla("check", "data").code == 0
    assert mla(*train, "--force").code == 0
    assert mla("check", "runs").code == 0
