"""Work on this machine: long-lived worker processes, one torch thread each."""

import contextlib
import multiprocessing as mp
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

from mla_cli.engine.tasks import (
    ONE_CORE,
    Executor,
    Item,
    Lost,
    Needs,
    Places,
    TaskDone,
    TaskEvent,
    TaskRetried,
    do_task,
    no_kin,
    try_again,
)
from mla_cli.errors import MlaError

SAVING = 10.0  # seconds that a worker has to save what it does, when the whole is interrupted


def choose_executor(name: str, address: str | None, workers: int | None) -> Executor:
    """`local` or `ray`. address: of the Ray cluster. Raises MlaError for another name, or an address of nothing."""
    if name == "ray":
        from mla_cli.engine.ray_executor import Ray

        return Ray(address or "auto", workers)
    if name != "local":
        raise MlaError(f"no executor named `{name}`", "choose local or ray")
    if address is not None:
        raise MlaError(f"`--address {address}` is of a Ray cluster", "add `--executor ray`")
    return Local(workers)


def default_workers() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Local:
    """Worker processes on this machine: one for each CUDA device where tasks may use them, else as many as cores."""

    workers: int | None = None

    def places(self, needs: Needs = ONE_CORE) -> Places:
        kind, devices = accelerators(needs.device)
        if devices:
            return Places(self.workers or len(devices), f"{len(devices)} {kind} device" + "s" * (len(devices) > 1))
        cores = default_workers()
        return Places(self.workers or max(1, cores // needs.cores), f"{cores} core" + "s" * (cores > 1))

    def run(
        self,
        function: str,
        tasks: Sequence[Any],
        needs: Needs = ONE_CORE,
        limit: float | None = None,
        replace: Callable[[Lost], Any] = try_again,
        kin: Callable[[Any], Any] = no_kin,
    ) -> Iterator[Item]:
        kind, devices = accelerators(needs.device)
        if tasks and not devices and needs.device not in ("auto", "cpu"):
            from mla_cli.engine.devices import choose_device

            choose_device(needs.device)  # one error before any work, not one for each task
        pins = [{"CUDA_VISIBLE_DEVICES": name} for name in devices] if kind == "CUDA" else [{}]
        yield from run_tasks(function, tasks, self.places(needs).count, limit, replace, kin, pins)


LOCAL = Local()


def accelerators(device: str) -> tuple[str, list[str]]:
    """(CUDA, the names of its devices), (MPS, [mps]), or (, []) where tasks on `device` compute on the CPU.

    torch, which takes a second to import, is asked only where the machine may have an accelerator at all.
    """
    drivers = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA, the same under WSL, AMD
    if device == "cpu" or (sys.platform == "linux" and not any(os.path.exists(path) for path in drivers)):
        return "", []
    from mla_cli.engine.devices import accelerators as found

    return found(device)


def run_tasks(
    function: str,
    tasks: Sequence[Any],
    workers: int | None = None,
    limit: float | None = None,
    replace: Callable[[Lost], Any] = try_again,
    kin: Callable[[Any], Any] = no_kin,
    pins: Sequence[Mapping[str, str]] = ({},),
) -> Iterator[Item]:
    """Do all tasks, yielding events and results as they come. Even one task gets a process of its own.

    A worker that dies takes only its own task with it: that one is tried again in a new worker, then reported as an
    error, and the others go on. A bug in a task (any error but MlaError) ends the whole with the worker's traceback.

    limit: seconds that a task may take after an event that is not None until it tells more; past them its worker is
    killed. replace: the task to do in place of a lost one; None reports it as an error. kin: a worker goes on with a
    task of the same kin as its last one while there is one, so that it need not import what the others need. pins: what
    the workers, in turn, get into their environment; a worker that replaces a dead one has its pin.
    """
    tasks = list(tasks)
    workers = max(1, min(workers or default_workers(), len(tasks)))
    waiting = list(range(len(tasks)))[::-1]
    tried = [0] * len(tasks)
    pool: list[_Worker] = []
    free = [dict(pins[i % len(pins)]) for i in range(workers)][::-1]
    try:
        while waiting or any(worker.busy is not None for worker in pool):
            while waiting and len(pool) < workers:
                pool.append(_Worker(function, free.pop()))
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
                    free.append(worker.pin)
                    reason = f"exit code {worker.process.exitcode}"
                    lost = Lost(index, tasks[index], worker.last, reason, killed, tried[index])
                    instead = replace(lost)
                    if instead is None:
                        yield lost.given_up()
                        continue
                    tasks[index] = instead
                    waiting.append(index)
                    yield TaskRetried(index, reason)
                    continue
                if kind == "event":
                    worker.last, worker.told = value, time.monotonic()
                    yield TaskEvent(index, value)
                    continue
                worker.busy = None
                if kind == "bug":
                    raise RuntimeError(f"a worker failed:\n{value}")
                yield TaskDone(index, value=value) if kind == "value" else TaskDone(index, error=value)
    except (KeyboardInterrupt, GeneratorExit):
        _let_save(pool)
        raise
    finally:
        for worker in pool:
            worker.stop()


class _Worker:
    """One process and the pipe to it."""

    def __init__(self, function: str, pin: dict[str, str]):
        context = mp.get_context("spawn")  # fork would copy torch's thread pools in an unusable state
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(function, other, pin), daemon=True)
        self.pin = pin
        with _ctrl_c_held_back():
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


def _let_save(pool: Sequence[_Worker]) -> None:
    """Ask all workers to end: a run that is being trained is saved first, see `signals.HeldBack`."""
    for worker in pool:
        worker.process.terminate()
    deadline, alive = time.monotonic() + SAVING, {worker.process.sentinel for worker in pool}
    while alive and (left := deadline - time.monotonic()) > 0:
        alive -= set(wait(list(alive), left))


@contextlib.contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Ctrl-C goes to all processes of a terminal: one that is being started would end with a traceback of its own."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # or starting it with the process would let Ctrl-C through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the process inherits this
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(function: str, connection: Connection, pin: dict[str, str]) -> None:
    """A worker's life: import once, then task after task until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it ends us
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    os.environ |= {"OMP_NUM_THREADS": "1", **pin}
    while True:
        try:
            task = connection.recv_bytes()
            for kind, value in do_task(function, partial(ForkingPickler.loads, task)):
                connection.send_bytes(_pickled(kind, value))
        except (EOFError, OSError):
            return  # the parent is gone


def _end_with_the_parent() -> None:
    """End this worker as soon as its parent has died (`kill -9`): it would write into what the next run takes up."""
    parent = mp.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)  # files appear whole or not at all


def _pickled(kind: str, value: Any) -> memoryview:
    """A message of a task; one that cannot be sent is a bug of the task."""
    try:
        return ForkingPickler.dumps((kind, value))
    except Exception:
        return ForkingPickler.dumps(("bug", traceback.format_exc()))
