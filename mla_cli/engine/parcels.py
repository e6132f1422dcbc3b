"""Folders that travel: a feature store to a machine that does not see ours, and what a task made there back to us.

A parcel is a list of (file name, piece of its content); a file of many pieces stands in it many times. Files appear
whole or not at all: a parcel is unpacked beside its place, then moved there. Nothing here knows how pieces travel.
"""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mla_cli.engine.tasks import Folders
from mla_cli.errors import MlaError
from mla_cli.files import make_folder, real_path, sha256, sync_folder, sync_tree, unwritable
from mla_cli.locks import FolderLock

PIECE = 16 * 1024**2  # bytes; small beside any memory, large beside the cost of a message
LOOK_AGAIN = 0.2  # seconds between two looks whether another process has ended


# ---------------------------------------------------------------- what a machine sees


@dataclass(frozen=True)
class Marks:
    """How a machine finds out whether it sees our folders: by what is in them, as a path alone may be another's.

    seen: names in the folder of raw data, hashed. reads: hash of the store's manifest. writes: name of a file that lies
    where results go, while the tasks are done. None where a task has no such folder.
    """

    seen: str | None
    reads: str | None
    writes: str | None


def marks_of(folders: Folders, writes: str | None) -> Marks:
    """The marks of a task's folders on this machine; `writes` was put there by the caller."""
    return Marks(
        folders.seen and names_in(folders.seen),
        folders.reads and sha256(Path(folders.reads) / "manifest.json"),
        folders.writes and writes,
    )


@lru_cache(maxsize=16)
def names_in(folder: str) -> str:
    """Hash of the names in a folder; empty where there is none."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return ""
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()


def sees_store(folders: Folders, marks: Marks) -> bool:
    """Whether the store that a task reads is here, the same one."""
    manifest = Path(folders.reads or "") / "manifest.json"
    return folders.reads is None or (manifest.is_file() and sha256(manifest) == marks.reads)


def sees_results(folders: Folders, marks: Marks) -> bool:
    """Whether what is written here appears where it is wanted."""
    return folders.writes is None or (Path(folders.writes) / (marks.writes or "")).is_file()


# ---------------------------------------------------------------- packing and unpacking


def pieces_of(folder: Path, names: Iterable[str] | None = None) -> Iterator[tuple[str, bytes]]:
    """The pieces of all files in a folder, or of the files and folders named; never of half-written ones and locks."""
    for name in sorted(os.listdir(folder)) if names is None else names:
        top = folder / name
        files = sorted(path for path in top.rglob("*") if path.is_file()) if top.is_dir() else [top]
        for file in files:
            if not file.is_file() or file.name.endswith((".tmp", ".lock")):
                continue
            with open(file, "rb") as content:
                piece = content.read(PIECE)
                while True:
                    yield file.relative_to(folder).as_posix(), piece
                    if not (piece := content.read(PIECE)):
                        break


def add_piece(folder: Path, name: str, piece: bytes) -> None:
    """Write the next piece of a file. Raises MlaError where that is not possible."""
    target = folder / name
    if not real_path(target).is_relative_to(real_path(folder)):
        raise MlaError(f"a parcel names `{name}`, which is outside of it", "was it made by another version of mla?")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "ab") as file:
            file.write(piece)
    except OSError as error:
        raise unwritable(target, error) from error


def take_in(inbox: Path, folder: Path, names: Iterable[str]) -> None:
    """Move what arrived in `inbox` into its place, in the order of `names`, and remove the inbox.

    A folder that another process holds is waited for; it is then replaced, whatever it holds.
    """
    sync_tree(inbox)
    for name in names:
        source, target = inbox / name, folder / name
        if not source.exists():
            continue
        if not source.is_dir():
            os.replace(source, target)
            sync_folder(folder)  # the next file may promise that this one is there
            continue
        lock = FolderLock(target)
        while not lock.taken():
            time.sleep(LOOK_AGAIN)
        with lock:
            old = inbox / f".old-{name}"
            os.rename(target, old)
            os.rename(source, target)
            sync_folder(folder)
    shutil.rmtree(inbox)


# ---------------------------------------------------------------- on the other machine


def cache_folder() -> Path:
    """Where stores that were sent are kept: $XDG_CACHE_HOME/mla or ~/.cache/mla."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mla"


def unpacked_store(folders: Folders, marks: Marks, parcel: Iterable[tuple[str, bytes]]) -> Path:
    """The store of a task, from this machine's cache or else from the parcel; tasks at once unpack it once."""
    place = cache_folder() / "stores" / str(marks.reads)[:16]
    store = place / Path(str(folders.reads)).name
    lock = FolderLock(place)
    while not lock.taken():
        time.sleep(LOOK_AGAIN)
    with lock:
        if not store.is_dir():
            with tempfile.TemporaryDirectory(dir=make_folder(place), prefix=".partial-") as partial:
                for name, piece in parcel:
                    add_piece(Path(partial) / store.name, name, piece)
                sync_tree(Path(partial))
                os.rename(Path(partial) / store.name, store)
                sync_folder(place)
    return store


@contextmanager
def workshop(begun: Iterable[tuple[str, bytes]]) -> Iterator[Path]:
    """A folder of a task's own, with what was made of it before; it goes when the task ends."""
    with tempfile.TemporaryDirectory(prefix="mla-") as folder:
        for name, piece in begun:
            add_piece(Path(folder), name, piece)
        yield Path(folder)
