"""One task on a machine that may not see our folders: what its worker says, as (kind, value).

`event`, `value`, `error` and `bug` as in `tasks.do_task`; `piece`: part of a file that was made where nobody else sees
it; `unseen`: the task needs its parcels, send it again with them.
"""

import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mla_cli.engine.packages import versions
from mla_cli.engine.parcels import (
    Marks,
    names_in,
    pieces_of,
    sees_results,
    sees_store,
    unpacked_store,
    workshop,
)
from mla_cli.engine.tasks import do_task
from mla_cli.errors import MlaError

ALIKE = ("python", "mla-cli", "torch", "numpy")  # what must be the same for the same numbers


@dataclass(frozen=True)
class Order:
    """A task as it is sent: what to do, the marks of its folders, and the versions it is to be done with.

    folder: where we are, and the worker too if it can, as paths may be relative.
    """

    function: str
    task: bytes
    marks: Marks | None
    versions: dict[str, str]
    folder: str


Parcel = Iterable[tuple[str, bytes]]


Opener = Callable[[], Parcel]


def carry_out(order: Order, store: Opener | None, begun: Opener) -> Iterator[tuple[str, Any]]:
    """Do a task. store: opens the parcel of its store, None where none was sent; begun: of what was made before."""
    mine = versions(("mla-cli", "torch", "numpy"))
    for package in ALIKE:
        if mine[package] != order.versions[package]:
            yield (
                "error",
                MlaError(
                    f"{node()} has {package} `{mine[package]}`, this machine `{order.versions[package]}`",
                    "install the same versions on every node: the same numbers are promised for the same versions only",
                ),
            )
            return
    if os.path.isdir(order.folder):
        os.chdir(order.folder)
    if order.marks is None:
        yield from do_task(order.function, partial(pickle.loads, order.task))
        return
    task, marks = pickle.loads(order.task), order.marks  # noqa: S301  from the same user's own cluster
    folders = task.folders()
    if folders.seen and names_in(folders.seen) != marks.seen:
        yield (
            "error",
            MlaError(
                f"{node()} does not see the raw data `{os.path.join(order.folder, folders.seen)}`",
                "mount the folder at the same path on every node; raw data are not sent",
            ),
        )
        return
    with ExitStack() as stack:
        reads, writes = folders.reads, folders.writes
        here = sees_results(folders, marks)
        if not (here and sees_store(folders, marks)):
            if store is None:
                yield "unseen", None
                return
            if not sees_store(folders, marks):
                reads = str(unpacked_store(folders, marks, store()))
            if not here:
                writes = str(stack.enter_context(workshop(begun())))
            task = task.moved(Path(reads or ""), Path(writes or ""))
        for kind, value in do_task(order.function, lambda: task):
            if kind in ("value", "error") and not here:
                for piece in pieces_of(Path(str(writes)), folders.made):
                    yield "piece", piece
            yield kind, value


def node() -> str:
    """What to call this machine in a message."""
    import platform

    return f"node `{platform.node()}`"
