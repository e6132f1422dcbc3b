"""An empty folder to type commands in, and one with a finished run that tests only read."""

from pathlib import Path
from typing import NamedTuple

import pytest
from command_line import mla

from mla_cli.data.store import Store

RECIPE = """\
# Two views of mfeat, small enough for tests. Run: mla train --recipe mine.yaml
dataset: {name: mfeat, modalities: [mor, fou], limit: 96}
encoders:
  mor: {name: mlp, hidden: 12}
  fou: {name: mlp, hidden: 12}
shared_width: 8
train: {epochs: 2, batch_size: 32, lr: 0.05, threads: 1}
"""
TABLE = """\
id,label,title,note
a1,dog [audio],barks at the door,loud
a2,dog [audio],barks at night,
a3,dog [audio],barks again,loud and long
a4,dog [audio],a bark,
a5,dog [audio],barking in the yard,loud
a6,dog [audio],barks and barks,loud
b1,cat,meows softly,
b2,cat,meows at noon,quiet
b3,cat,meowing,quiet
b4,cat,purrs and meows,quiet
b5,cat,meows twice,quiet
b6,cat,a meow,
"""


class Finished(NamedTuple):
    """Options that name the shared folders, the recipe's file and the finished run."""

    places: tuple[str, ...]
    recipe: Path
    run: Path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with `mine.yaml`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLA_RAW", raising=False)
    (tmp_path / "mine.yaml").write_text(RECIPE, "utf-8")
    return tmp_path


@pytest.fixture
def prepared(data_dir: Path, mfeat_store: Store) -> tuple[str, str]:
    """The option that names the folder where mfeat is prepared."""
    return ("--data-dir", str(data_dir))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, data_dir: Path, mfeat_store: Store) -> Finished:
    """A finished run of `mine.yaml`: read it, do not change it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "mine.yaml").write_text(RECIPE, "utf-8")
    places = ("--data-dir", str(data_dir), "--run-dir", str(folder / "runs"))
    output = mla("train", "--recipe", folder / "mine.yaml", *places)
    assert output.code == 0, output.stderr
    (run,) = (folder / "runs").glob("mine-*")
    return Finished(places, folder / "mine.yaml", run)


@pytest.fixture
def own_table(folder: Path) -> Path:
    """`my.csv`: twelve rows, two classes, two texts, one of them not always there; prepared as `my`."""
    (folder / "my.csv").write_text(TABLE, "utf-8")
    output = mla("prepare", "table", "--table", "my.csv", "--workers", 1)
    assert output.code == 0, output.stderr
    return folder / "my.csv"
