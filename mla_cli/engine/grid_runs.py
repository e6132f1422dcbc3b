"""The runs of a grid, trained by an executor: finished ones are skipped, interrupted ones go on, and a run that another
process is training is left to that one."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mla_cli.engine.events import Epoch, Note, Progress, Running, Started, Steps
from mla_cli.engine.grid_plan import GridPlan
from mla_cli.engine.loggers import logged
from mla_cli.engine.run import Held, Run
from mla_cli.engine.tasks import Executor, Folders, Needs, TaskDone, TaskEvent, TaskRetried
from mla_cli.errors import MlaError
from mla_cli.locks import FolderLock
from mla_cli.recipe import validate
from mla_cli.schema import Recipe

WORK = "mla_cli.engine.grid_runs:train_one"  # what workers do
LOOK_AGAIN = 0.5  # seconds between two looks whether another process has ended


@dataclass(frozen=True)
class RunTask:
    """One run to train. wait: for another process that is training it; else it is left to that one."""

    name: str
    recipe: dict[str, Any]
    store: str
    data_dir: str
    run_dir: str
    device: str
    loggers: tuple[str, ...] = ()
    wait: bool = False

    def folders(self) -> Folders:
        return Folders(reads=f"{self.data_dir}/{self.store}", writes=self.run_dir, made=(self.name,))

    def moved(self, reads: Path, writes: Path) -> "RunTask":
        return replace(self, data_dir=str(reads.parent), run_dir=str(writes))


def threads_of(recipes: Sequence[Recipe]) -> int:
    """Cores that a run of these takes: its torch threads, one where the recipe does not say."""
    return max((recipe.train.threads or 1 for recipe in recipes), default=1)


def train_all(
    plan: GridPlan, data_dir: Path, run_dir: Path, executor: Executor, device: str, loggers: tuple[str, ...] = ()
) -> Steps[list[str]]:
    """Train what a plan has to do; the value is the list of names that failed.

    Runs that another process is training are waited for at the end, when there is nothing else to do.
    """
    if not plan.todo:
        return []
    jobs = {name: plan.jobs[name] for name in plan.todo}
    todo = [
        RunTask(name, recipe.model_dump(), recipe.store, str(data_dir), str(run_dir), device, loggers)
        for name, recipe in jobs.items()
    ]
    needs = Needs(threads_of(list(jobs.values())), device)
    budget = {name: recipe.train.epochs for name, recipe in jobs.items()}
    epochs = dict.fromkeys(budget, 0)
    failed: list[str] = []
    ended: set[str] = set()
    yield Progress("epochs", 0, sum(budget.values()))
    while todo:
        held = []
        for item in executor.run(WORK, todo, needs):
            name = todo[item.index].name
            if isinstance(item, TaskEvent):
                event = item.event
                if isinstance(event, Started):
                    epochs[name] = event.first_epoch - 1
                    yield Running(name, epochs[name], budget[name])
                elif isinstance(event, Epoch):
                    epochs[name] = event.number
                    split = "val" if "val_accuracy.fused" in event.row else "test"
                    found = event.row.get(f"{split}_accuracy.fused")
                    yield Running(name, event.number, budget[name], split, found)
                elif isinstance(event, Note):
                    yield Note(f"{name}: {event.text}", event.warning)
                yield Progress("epochs", sum(epochs.values()), sum(budget.values()))
            elif isinstance(item, TaskRetried):
                yield Note(f"{name}: its worker was lost ({item.reason}); trying once more", warning=True)
            elif isinstance(item, TaskDone):
                yield Running(name, epochs[name], budget[name], ended=True)
                ended.add(name)
                if item.error is not None:
                    failed.append(name)
                    hint = f" ({item.error.hint})" if item.error.hint else ""
                    yield Note(f"{name} failed: {item.error.message}{hint}", warning=True)
                elif not item.value:
                    held.append(todo[item.index])
                    yield Note(f"{name} is being trained by another process: left to that one")
                    continue
                else:
                    yield Note(f"{name} finished")
                    if plan.seconds is None and len(ended) < len(jobs):
                        plan.learn(Run(run_dir / name), [other for other in jobs if other not in ended])
                        yield Note(plan.time_line())
                epochs[name] = budget[name]
                yield Progress("epochs", sum(epochs.values()), sum(budget.values()))
        todo = [replace(task, wait=True) for task in held]
    return failed


def train_one(task: RunTask) -> Steps[bool]:
    """One run in a worker: one torch thread, going on where an interrupted one stopped.

    The value says whether it is finished; it is not where another process holds it and the task does not wait.
    """
    recipe = validate(task.recipe, task.recipe["name"])
    run, told = Run(Path(task.run_dir) / task.name), False
    while run.state != "finished":  # another process may have done it since the plan was made
        if not FolderLock.is_held(run.path):
            from mla_cli.engine.train import train  # torch: not for runs of other processes

            steps = train(
                recipe,
                Path(task.data_dir),
                Path(task.run_dir),
                task.device,
                threads=recipe.train.threads or 1,
                resume=True,
            )
            try:
                for event in logged(steps, task.loggers):
                    if isinstance(event, Started | Epoch) or (isinstance(event, Note) and event.warning):
                        yield event
            except Held:
                pass  # taken since we looked
            except MlaError:
                if run.state != "finished":  # it is, where another process has done it since we looked
                    raise
            else:
                return True
        if not task.wait:
            return False
        lock = FolderLock.held(run.path)
        if lock is not None and lock.how_to_go_on("") and not told:
            told = True
            yield Note(f"held by {lock.holder}: {lock.waiting()}", warning=True)
        time.sleep(LOOK_AGAIN)
    return True
