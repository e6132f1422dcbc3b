"""Fixtures of the engine's tests."""

from collections.abc import Iterator
from copy import copy
from functools import partial

import pytest

from mla_cli.engine.executor import Local
from mla_cli.engine.grid_runs import RunTask
from mla_cli.engine.tasks import Item, Needs, TaskDone, TaskEvent, do_task


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Work in this process in place of workers; the names of the recipes' methods, one for each task done."""
    done: list[str] = []

    def run(self: Local, function: str, tasks: list[RunTask], needs: Needs) -> Iterator[Item]:
        assert function == "mla_cli.engine.grid_runs:train_one"
        for index, task in enumerate(tasks):
            done.append(task.recipe["method"]["name"])
            for kind, value in do_task(function, partial(copy, task)):
                if kind == "event":
                    yield TaskEvent(index, value)
                elif kind == "value":
                    yield TaskDone(index, value)
                else:
                    assert kind == "error", value
                    yield TaskDone(index, error=value)

    monkeypatch.setattr(Local, "run", run)
    monkeypatch.setattr("os.fsync", lambda handle: None)
    return done
