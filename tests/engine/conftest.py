"""Fixtures of the engine's tests."""

from collections.abc import Iterator

import pytest

from mla_cli.engine import ablate as engine
from mla_cli.engine.executor import TaskDone, TaskEvent
from mla_cli.errors import MlaError


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Work in this process in place of workers; the names of the recipes' methods, one for each task done."""
    done: list[str] = []

    def run_tasks(function: str, tasks: list, workers: int | None = None) -> Iterator[TaskEvent | TaskDone]:
        assert function == "mla_cli.engine.ablate:train_one"
        for index, task in enumerate(tasks):
            done.append(task[0]["method"]["name"])
            try:
                for event in engine.train_one(task):
                    yield TaskEvent(index, event)
            except MlaError as error:
                yield TaskDone(index, error=error)
            else:
                yield TaskDone(index)

    monkeypatch.setattr(engine, "run_tasks", run_tasks)
    monkeypatch.setattr("os.fsync", lambda handle: None)
    return done
