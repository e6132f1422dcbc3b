"""Locks on folders: one holder at a time, who is named; stale ones taken over, those of other machines never."""

import errno
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mla_cli import locks
from mla_cli.errors import MlaError
from mla_cli.locks import FolderLock, Holder, note_of, read_holder, this_process

GONE = 2**22 + 1  # larger than any process number
HOLD = "import time; from pathlib import Path; from mla_cli.locks import FolderLock; "


def write(note: Path, holder: Holder) -> None:
    note.write_text(json.dumps(asdict(holder)))


@pytest.fixture(params=["flock", "note"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the kernel's locks, and on a file system that has none."""
    if request.param == "note":
        monkeypatch.setattr(locks.fcntl, "flock", refuse)
    return request.param


def refuse(*_: object) -> None:
    raise OSError(errno.ENOLCK, "no locks")


def test_a_folder_is_locked_for_everybody_else(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "new" / "folder"
    one, other = FolderLock(folder), FolderLock(folder)
    assert not FolderLock.is_held(folder)
    assert one.taken()
    assert one.ended is None
    with one:
        assert not other.taken()
        assert other.holder == read_holder(note_of(folder)) == one.mine
        assert (other.holder.pid, other.holder.host) == (os.getpid(), platform.node())
        assert other.told().startswith(f" (process {os.getpid()} on {platform.node()} since 2")
        assert other.how_to_go_on("wait") == "wait"
        assert FolderLock.is_held(folder)
        assert list(folder.iterdir()) == []  # nothing of ours is in it
    assert not FolderLock.is_held(folder)
    assert [file.name for file in folder.parent.iterdir()] == ["folder"]
    with other:
        assert other.taken()
        if kind == "flock":
            folder.rename(tmp_path / "moved")  # what waits must not believe that it holds what is gone
            assert FolderLock(folder).taken()
            assert list((tmp_path / "moved").iterdir()) == []


def test_asking_whether_it_is_held_disturbs_nobody(tmp_path: Path) -> None:
    asking = FolderLock(tmp_path / "run")
    asking.folder.mkdir()
    with asking:
        assert asking._flock(exclusive=False)
        assert not FolderLock.is_held(asking.folder)  # two may ask at once
        with pytest.MonkeyPatch.context() as patch:  # and whoever wants it looks again
            patch.setattr("time.sleep", lambda seconds: asking.release())
            with FolderLock(asking.folder) as lock:
                assert lock.taken()


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code = HOLD + f"lock = FolderLock(Path({str(folder)!r})); print(lock.taken(), flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "True\n"
        waiting = FolderLock(folder)
        assert not waiting.taken()
        assert waiting.holder.pid == holder.pid
        holder.kill()
    assert note_of(folder).is_file()  # it had no time to remove it
    assert not FolderLock.is_held(folder)
    with FolderLock(folder) as lock:
        assert lock.taken()
        assert lock.ended.pid == holder.pid
        assert f"{folder} was left by a process that is gone (process {holder.pid} on " in lock.taken_over()
        assert read_holder(note_of(folder)).pid == os.getpid()
    assert not note_of(folder).exists()


@pytest.mark.parametrize(
    ("facts", "ended"),
    [
        ({}, False),
        ({"pid": GONE}, True),
        ({"started": 1}, True),  # its number belongs to another process now
        ({"boot": "another start of this machine"}, True),
        ({"boot": None, "started": None}, True),
        ({"host": "elsewhere", "boot": "another"}, False),  # nobody can know
        ({"host": "elsewhere", "boot": None}, False),
        ({"host": "a container here", "pid": GONE}, True),  # the same kernel under another name
    ],
)
def test_which_holders_have_ended(facts: dict[str, object], ended: bool) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc")
    assert replace(this_process(), **facts).has_ended == ended


def test_without_proc_only_the_process_number_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "boot_id", lambda: None)
    holder = replace(this_process(), boot=None, started=None)
    assert not holder.has_ended
    assert replace(holder, pid=GONE).has_ended
    assert not replace(holder, host="elsewhere").has_ended


def test_a_stale_lock_is_taken_over_and_told(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    left = replace(this_process(), pid=GONE, command="mla train --seed 7")
    write(note_of(folder), left)
    assert not FolderLock.is_held(folder)
    with FolderLock(folder) as lock:
        assert lock.taken()
        assert lock.ended == left
        assert "mla train --seed 7" in lock.taken_over()
        assert not FolderLock(folder).taken()
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_a_lock_of_another_machine_is_never_taken_over(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    left = replace(this_process(), pid=77, host="node7", boot="another")
    write(note_of(folder), left)
    lock = FolderLock(folder)
    assert FolderLock.is_held(folder)
    assert not lock.taken()
    assert lock.holder == left
    assert "process 77 on node7" in lock.told()
    hint = lock.how_to_go_on("wait")
    assert "`ssh node7 ps -p 77`" in hint
    assert "waiting for it to end; that is another machine" in lock.waiting()
    assert read_holder(note_of(folder)) == left  # untouched
    command = hint.split("`")[3]
    assert command == f"rm {note_of(folder)}"
    subprocess.run(command.split(), check=True)  # what the hint says helps
    with lock:
        assert lock.taken()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"{}", b'{"pid": "x"}'])
def test_a_note_that_cannot_be_read_names_nobody(tmp_path: Path, kind: str, content: bytes) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    note_of(folder).write_bytes(content)
    with FolderLock(folder) as lock:
        assert lock.taken() == (kind == "flock")  # where the note is the lock, it might be being written
        assert lock.holder is None
        assert lock.told() == ""


def test_a_stale_note_that_somebody_replaced_meanwhile_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    folder = tmp_path / "run"
    folder.mkdir()
    left = replace(this_process(), pid=GONE)
    write(note_of(folder), left)
    new, rename = replace(this_process(), command="mla ablate"), os.rename

    def late(source: Path, target: Path) -> None:
        write(note_of(folder), new)  # the other one was faster
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    lock = FolderLock(folder)
    assert not lock.taken()
    assert lock.holder == new == read_holder(note_of(folder))
    assert sorted(file.name for file in tmp_path.iterdir()) == [".run.lock", "run"]


def test_a_note_that_cannot_be_written(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    lock = FolderLock(tmp_path / "run")
    with lock:
        if kind == "flock":  # the kernel's lock is enough
            assert lock.taken()
            assert not FolderLock(tmp_path / "run").taken()
        else:
            with pytest.raises(MlaError, match=r"cannot write `.*\.run\.lock`: No space left"):
                lock.taken()
    assert [file.name for file in tmp_path.iterdir()] == ["run"]
