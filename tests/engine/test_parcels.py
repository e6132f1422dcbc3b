"""What travels between machines: packed, sent, unpacked and moved into place, here without a network."""

import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import mfeat_recipe, run_bytes, trained

from mla_cli.engine import parcels
from mla_cli.engine.data import complete, run_fingerprint
from mla_cli.engine.flights import Flight, Sender, tokens
from mla_cli.engine.grid_runs import WORK, RunTask
from mla_cli.engine.parcels import add_piece, pieces_of, take_in
from mla_cli.engine.remote import Order, carry_out
from mla_cli.engine.run import Run, run_name
from mla_cli.errors import MlaError
from mla_cli.locks import FolderLock

NAMES = st.sampled_from(["a", "b.npy", "deep/c", "deep/er/d.json"])


@given(files=st.dictionaries(NAMES, st.binary(max_size=40)), size=st.integers(1, 50))
def test_any_files_arrive_byte_for_byte(files: dict[str, bytes], size: int, tmp_path_factory) -> None:
    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    for name, content in files.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(content)
    (here / ".half.1.tmp").write_bytes(b"half-written")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parcels, "PIECE", size)
        for name, piece in pieces_of(here):
            assert len(piece) <= size
            add_piece(there, name, piece)
    found = {p.relative_to(there).as_posix(): p.read_bytes() for p in there.rglob("*") if p.is_file()}
    assert found == files


def test_a_parcel_cannot_leave_its_folder(tmp_path: Path) -> None:
    for name in ("../x", "/etc/x", "a/../../x"):
        with pytest.raises(MlaError, match="outside"):
            add_piece(tmp_path / "in", name, b"")
    assert not (tmp_path / "x").exists()


def test_what_arrived_replaces_what_was_there_once_nobody_works_in_it(tmp_path: Path) -> None:
    inbox, old = tmp_path / ".in", tmp_path / "run"
    (inbox / "run").mkdir(parents=True)
    (inbox / "run" / "new").touch()
    (inbox / "1.npy").write_bytes(b"1")
    old.mkdir()
    (old / "old").touch()
    lock = FolderLock(old)
    assert lock.taken()
    waiting = threading.Thread(target=take_in, args=(inbox, tmp_path, ["1.npy", "run", "not made"]))
    waiting.start()
    time.sleep(2 * parcels.LOOK_AGAIN)
    assert (tmp_path / "1.npy").read_bytes() == b"1"
    assert [p.name for p in old.iterdir()] == ["old"]
    lock.release()
    waiting.join()
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["new"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.npy", "run"]


# ---------------------------------------------------------------- a run on a machine that does not see our folders


def sent(order: Order, store: Any, begun: Any) -> Iterator[tuple[str, Any]]:
    """As a Ray worker does it, every message pickled."""
    steps = carry_out(order, None if store is None else lambda: store, lambda: begun)
    return (pickle.loads(pickle.dumps(message)) for message in steps)  # noqa: S301


@pytest.fixture
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that sees neither the store nor the runs, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("os.chdir", lambda folder: None)
    monkeypatch.setattr("mla_cli.engine.remote.sees_store", lambda folders, marks: False)
    monkeypatch.setattr("mla_cli.engine.remote.sees_results", lambda folders, marks: False)


def task_of(recipe: Any, store: Any, data_dir: Path, run_dir: Path) -> RunTask:
    name = run_name(complete(recipe, store), run_fingerprint(recipe, store))
    return RunTask(name, recipe.model_dump(), recipe.store, str(data_dir), str(run_dir), "cpu")


@pytest.mark.usefixtures("_elsewhere")
def test_a_run_made_elsewhere_comes_back_with_the_same_bytes(mfeat_store, data_dir: Path, tmp_path: Path) -> None:
    whole = trained(mfeat_recipe(), data_dir, tmp_path / "whole")
    runs = tmp_path / "runs"
    flight = Flight(0, task_of(mfeat_recipe(), mfeat_store, data_dir, runs))
    with tokens([flight.task]) as token:
        sender = Sender(WORK, token, bytes)
        assert list(sent(*sender.order(flight))) == [("unseen", None)]
        flight.parcelled = True
        epochs = []
        for kind, value in sent(*sender.order(flight)):
            if kind == "piece":
                flight.receive(*value)
            elif kind == "event":
                epochs.append(value)
                assert not Run(runs / flight.task.name).path.exists()  # nothing half
            else:
                assert (kind, value) == ("value", True)
        flight.land()
    assert len(epochs) == 3  # Started and two epochs
    assert run_bytes(Run(runs / whole.name)) == run_bytes(whole)
    assert [p.name for p in runs.iterdir()] == [whole.name]
    assert len(list((tmp_path / "cache" / "mla" / "stores").glob("*/mfeat/manifest.json"))) == 1
    again = list(sent(*sender.order(flight)))  # what was made of it goes along: it is finished
    assert ("value", True) in again
    assert not [value for kind, value in again if kind == "event"]


@pytest.mark.usefixtures("_elsewhere")
def test_other_versions_and_unseen_raw_data_are_refused(mfeat_store, data_dir: Path, tmp_path: Path) -> None:
    task = task_of(mfeat_recipe(), mfeat_store, data_dir, tmp_path)
    order, store, begun = Sender(WORK, "token", bytes).order(Flight(0, task))
    other = Order(order.function, order.task, order.marks, {**order.versions, "torch": "0.1"}, order.folder)
    ((kind, error),) = sent(other, store, begun)
    assert kind == "error"
    assert "has torch `" in error.message and "`0.1`" in error.message
    assert "install the same versions" in error.hint


def test_a_task_that_is_lost_leaves_nothing(tmp_path: Path) -> None:
    task = RunTask("run", {}, "s", str(tmp_path), str(tmp_path / "runs"), "cpu")
    flight = Flight(0, task)
    flight.receive("run/run.json", b"{")
    assert [p.name.startswith(".arriving-") for p in (tmp_path / "runs").iterdir()] == [True]
    flight.forget()
    assert not list((tmp_path / "runs").iterdir())
