"""Tasks on their way to other machines, seen from here: orders, the parcels that go along, and what comes back."""

import os
import pickle
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import Any

from mla_cli.engine.packages import versions
from mla_cli.engine.parcels import Marks, add_piece, marks_of, pieces_of, take_in
from mla_cli.engine.remote import Order
from mla_cli.engine.tasks import Lost
from mla_cli.files import make_folder, write_bytes


class Flight:
    """A task on its way, and what has come back of it. parcelled: it goes with its parcels."""

    def __init__(self, index: int, task: Any):
        self.index, self.task, self.tries, self.parcelled = index, task, 0, False
        self.last: Any = None  # its last event, told at monotonic time `when`
        self.when = 0.0
        self.inbox: Path | None = None

    def begin(self) -> None:
        self.tries, self.last = self.tries + 1, None

    def told(self, event: Any) -> None:
        self.last, self.when = event, time.monotonic()

    def is_late(self, limit: float | None) -> bool:
        return limit is not None and self.last is not None and time.monotonic() - self.when > limit

    def lost(self, reason: str, late: bool) -> Lost:
        return Lost(self.index, self.task, self.last, reason, late, self.tries)

    def receive(self, name: str, piece: bytes) -> None:
        """A piece of what was made."""
        if self.inbox is None:
            folder = make_folder(Path(self.task.folders().writes))
            self.inbox = Path(tempfile.mkdtemp(dir=folder, prefix=".arriving-", suffix=".tmp"))
        add_piece(self.inbox, name, piece)

    def land(self) -> None:
        """Move what arrived into its place."""
        if self.inbox is not None:
            folders = self.task.folders()
            take_in(self.inbox, Path(folders.writes), folders.made)
            self.inbox = None

    def forget(self) -> None:
        """Drop the half of it that arrived."""
        if self.inbox is not None:
            rmtree(self.inbox, ignore_errors=True)
            self.inbox = None


class Sender:
    """Makes orders of tasks, and parcels for machines that need them; each store is put where they can get it once.

    put: gives a piece to whatever carries it there, and returns what stands for it.
    """

    def __init__(self, function: str, token: str, put: Callable[[bytes], Any]):
        self.function, self.token, self.put = function, token, put
        self.versions = versions(("mla-cli", "torch", "numpy"))
        self.stores: dict[str, list[tuple[str, Any]]] = {}
        self.marks: dict[Any, Marks] = {}

    def order(self, flight: Flight) -> tuple[Order, Any, Any]:
        """The order of a task, the parcel of its store (None: not sent), and that of what was made of it before."""
        task, marks, store, begun = flight.task, None, None, []
        if hasattr(task, "folders"):
            folders = task.folders()
            key = (folders.seen, folders.reads, folders.writes)
            marks = self.marks[key] = self.marks.get(key) or marks_of(folders, self.token)
            if flight.parcelled:
                if folders.reads and folders.reads not in self.stores:
                    self.stores[folders.reads] = self.parcel(pieces_of(Path(folders.reads)))
                store = self.stores.get(folders.reads or "", [])
                begun = self.parcel(pieces_of(Path(folders.writes), folders.made)) if folders.writes else []
        return Order(self.function, pickle.dumps(task), marks, self.versions, os.getcwd()), store, begun

    def parcel(self, pieces: Iterator[tuple[str, bytes]]) -> list[tuple[str, Any]]:
        return [(name, self.put(piece)) for name, piece in pieces]


@contextmanager
def tokens(tasks: Sequence[Any]) -> Iterator[str]:
    """Put a file of a random name where results go: machines that see it see our folders. Gone with the tasks."""
    name = f".seen-{secrets.token_hex(8)}.tmp"
    folders = {task.folders().writes for task in tasks if hasattr(task, "folders")} - {None}
    try:
        for folder in folders:
            write_bytes(Path(folder) / name, b"")
        yield name
    finally:
        for folder in folders:
            (Path(folder) / name).unlink(missing_ok=True)
