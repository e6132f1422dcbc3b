"""What executors agree on: tasks, what is told of them, and how one is done. `executor.py` does them on this machine,
`ray_executor.py` on a Ray cluster; whoever has tasks takes an `Executor` and need not know which.

A task is a picklable value; the function that does it is named as `module:function`, so that workers import it, and
torch with it, once. If the function is a generator, what it yields arrives here as events while it runs, and what it
returns is the task's value. A task that is tried again tells its events again.
"""

import importlib
import inspect
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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
class TaskRetried:
    """A task whose worker was lost, for this reason, is done again."""

    index: int
    reason: str


Item = TaskEvent | TaskDone | TaskRetried


@dataclass(frozen=True)
class Lost:
    """A task that did not end: `last` is its last event (None: it had told none or no longer counts as reading).

    reason: how its worker died. late: it told nothing for longer than the limit and was killed for that.
    tries: how often the task was begun.
    """

    index: int
    task: Any
    last: Any
    reason: str
    late: bool
    tries: int

    def given_up(self) -> TaskDone:
        """The report of a task that is not tried again."""
        times = "once" if self.tries == 1 else f"{self.tries} times"
        return TaskDone(
            self.index,
            error=MlaError(f"its worker process died {times} ({self.reason})", "out of memory? use fewer workers"),
        )


@dataclass(frozen=True)
class Needs:
    """What a task takes: cores, and the device it computes on (`auto`: an accelerator where there is one)."""

    cores: int = 1
    device: str = "cpu"


ONE_CORE = Needs()


@dataclass(frozen=True)
class Places:
    """Room for `count` tasks at a time; where: in words, such as `2 cores`."""

    count: int
    where: str


def try_again(lost: Lost) -> Any:
    """The task to do in place of a lost one: itself, once."""
    return lost.task if lost.tries < TRIES else None


def no_kin(task: Any) -> None:
    """Any worker is as good as another."""


@dataclass(frozen=True)
class Folders:
    """The folders of a task, for machines that do not see ours; a task with folders has this as `task.folders()`.

    seen: must be there, such as raw data. reads: is sent where it is not there; its `manifest.json` says what is in it.
    writes: below it appears what the task has made, `made`, files or folders, in this order. Where `reads` or `writes`
    lie elsewhere, the task that is done is `task.moved(reads, writes)`.
    """

    seen: str | None = None
    reads: str | None = None
    writes: str | None = None
    made: tuple[str, ...] = ()


class Executor(Protocol):
    """Where tasks are done; whoever has tasks needs to know no more."""

    def places(self, needs: Needs = ...) -> Places:
        """How many tasks are done at a time."""

    def run(
        self,
        function: str,
        tasks: Sequence[Any],
        needs: Needs = ...,
        limit: float | None = ...,
        replace: Callable[[Lost], Any] = ...,
        kin: Callable[[Any], Any] = ...,
    ) -> Iterator[Item]:
        """Do all tasks, see `run_tasks`."""


def do_task(function: str, load: Callable[[], Any]) -> Iterator[tuple[str, Any]]:
    """What a task has to say: its events, then its `value`, the `error` that ended it, or the `bug` as a traceback.

    load: gives the task; importing what it is made of belongs to doing it.
    """
    try:
        module, name = function.split(":")
        work, task = getattr(importlib.import_module(module), name), load()
        if not inspect.isgeneratorfunction(work):
            yield "value", work(task)
            return
        steps = work(task)
        while True:
            try:
                event = next(steps)
            except StopIteration as stop:
                yield "value", stop.value
                return
            yield "event", event
    except MlaError as error:
        yield "error", error
    except Exception:
        yield "bug", traceback.format_exc()
