"""Where work runs: long-lived local worker processes, one torch thread each.

A task is a picklable value; the function that does it is named as `module:function`, so that workers import it, and
torch with it, once. If the function is a generator, what it yields arrives here as events while it runs, and what it
returns is the task's value. A task that is tried again tells its events again.
"""

import contextlib
import importlib
import inspect
import multiprocessing as mp
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

from mla_cli.errors import MlaError

TRIES = 2  # a task whose worker died is tried once more, then reported


@dataclass(frozen=True)
class TaskEvent:
    """Something a running task yielded."""

    index: int
    event: Any


@dataclass(frozen=True)
class TaskDone:
    """A finished task: its value, or the error that ended it."""

    index: int
    value: Any = None
    error: MlaError | None = None


@dataclass(frozen=True)
class Lost:
    """A task that did not end: `last` is its last event (None: it had told none or no longer counts as reading).

    exit_code: of the worker that died, or None for one that told nothing for longer than the limit and was killed.
    tries: how often the task was begun.
    """

    index: int
    task: Any
    last: Any
    exit_code: int | None
    tries: int


def default_workers() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def try_again(lost: Lost) -> Any:
    """The task to do in place of a lost one: itself, once."""
    return lost.task if lost.tries < TRIES else None


def run_tasks(
    function: str,
    tasks: Sequence[Any],
    workers: int | None = None,
    limit: float | None = None,
    replace: Callable[[Lost], Any] = try_again,
    kin: Callable[[Any], Any] = lambda task: None,
) -> Iterator[TaskEvent | TaskDone]:
    """Do all tasks, yielding events and results as they come. Even one task gets a process of its own.

    A worker that dies takes only its own task with it: that one is tried again in a new worker, then reported as an
    error, and the others go on. A bug in a task (any error but MlaError) ends the whole with the worker's traceback.

    limit: seconds that a task may take after an event that is not None until it tells more; past them its worker is
    killed. replace: the task to do in place of a lost one; None reports it as an error. kin: a worker goes on with a
    task of the same kin as its last one while there is one, so that it need not import what the others need.
    """
    tasks = list(tasks)
    workers = max(1, min(workers or default_workers(), len(tasks)))
    waiting = list(range(len(tasks)))[::-1]
    tried = [0] * len(tasks)
    pool: list[_Worker] = []
    try:
        while waiting or any(worker.busy is not None for worker in pool):
            while waiting and len(pool) < workers:
                pool.append(_Worker(function))
            for worker in pool:
                if worker.busy is None and waiting:
                    near = (i for i in reversed(waiting) if worker.kin is not None and kin(tasks[i]) == worker.kin)
                    index = next(near, waiting[-1])
                    waiting.remove(index)
                    worker.kin = kin(tasks[index])
                    tried[index] += 1
                    worker.start(index, tasks[index])
            wait(
                [worker.connection for worker in pool if worker.busy is not None],
                min((worker.patience(limit) for worker in pool if worker.watched(limit)), default=None),
            )
            for worker in list(pool):
                if worker.busy is None:
                    continue
                index, killed = worker.busy, False
                try:
                    if not worker.connection.poll():
                        if not worker.watched(limit) or worker.patience(limit) > 0:
                            continue
                        killed = True
                        raise EOFError
                    kind, value = worker.connection.recv()
                except (EOFError, OSError):
                    pool.remove(worker)
                    worker.stop()
                    code = None if killed else worker.process.exitcode
                    instead = replace(Lost(index, tasks[index], worker.last, code, tried[index]))
                    if instead is not None:
                        tasks[index] = instead
                        waiting.append(index)
                    else:
                        reason = f"its worker process died {tried[index]} times (exit code {worker.process.exitcode})"
                        yield TaskDone(index, error=MlaError(reason, "out of memory? use fewer workers"))
                    continue
                if kind == "event":
                    worker.last, worker.told = value, time.monotonic()
                    yield TaskEvent(index, value)
                    continue
                worker.busy = None
                if kind == "bug":
                    raise RuntimeError(f"a worker failed:\n{value}")
                yield TaskDone(index, value=value) if kind == "value" else TaskDone(index, error=value)
    finally:
        for worker in pool:
            worker.stop()


class _Worker:
    """One process and the pipe to it."""

    def __init__(self, function: str):
        context = mp.get_context("spawn")  # fork would copy torch's thread pools in an unusable state
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(function, other), daemon=True)
        self.process.start()
        other.close()
        self.busy: int | None = None
        self.last: Any = None  # the last event of its task, told at monotonic time `told`
        self.told = 0.0
        self.kin: Any = None

    def start(self, index: int, task: Any) -> None:
        self.busy, self.last = index, None
        with contextlib.suppress(OSError):  # died before its first task: the read that follows notices
            self.connection.send(task)

    def watched(self, limit: float | None) -> bool:
        """Whether its task is at something that must not take longer than `limit`."""
        return limit is not None and self.busy is not None and self.last is not None

    def patience(self, limit: float | None) -> float:
        """Seconds left of `limit`, at least 0."""
        return max(0.0, self.told + (limit or 0.0) - time.monotonic())

    def stop(self) -> None:
        self.connection.close()
        self.process.kill()  # what hangs in a decoder need not listen to a milder signal; files appear whole or not
        self.process.join()


def _serve(function: str, connection: Connection) -> None:
    """A worker's life: import once, then task after task until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it ends us
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = "1"
    while True:
        try:
            for message in _messages(function, connection.recv_bytes()):
                connection.send_bytes(message)
        except (EOFError, OSError):
            return  # the parent is gone


def _end_with_the_parent() -> None:
    """End this worker as soon as its parent has died (`kill -9`): it would write into what the next run takes up."""
    parent = mp.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)  # files appear whole or not at all


def _messages(function: str, pickled: bytes) -> Iterator[memoryview]:
    """What one task has to say, pickled: its events, then its value, the error that ended it, or the bug."""
    try:
        module, name = function.split(":")
        work, task = getattr(importlib.import_module(module), name), ForkingPickler.loads(pickled)
        if inspect.isgeneratorfunction(work):
            steps = work(task)
            while True:
                try:
                    event = next(steps)
                except StopIteration as stop:
                    value = stop.value
                    break
                yield ForkingPickler.dumps(("event", event))
        else:
            value = work(task)
        last = ForkingPickler.dumps(("value", value))
    except MlaError as error:
        last = ForkingPickler.dumps(("error", error))
    except Exception:
        last = ForkingPickler.dumps(("bug", traceback.format_exc()))
    yield last
