import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest

from mla_cli.engine.executor import Local, accelerators, default_workers, run_tasks
from mla_cli.engine.tasks import Needs, Places, TaskDone, TaskEvent, TaskRetried
from mla_cli.errors import MlaError

# ---------------------------------------------------------------- what workers do


def work(task: dict[str, Any]) -> Any:
    """Do as the task says."""
    match task["do"]:
        case "square":
            return task["x"] ** 2
        case "sleep":
            time.sleep(task["x"])
            return task["x"]
        case "refuse":
            raise MlaError(f"`{task['x']}` is bad", "mend it")
        case "bug":
            raise ZeroDivisionError(f"bug number {task['x']}")
        case "unpicklable":
            return lambda: None
        case "broken pipe":
            raise BrokenPipeError("of the task's own")
        case "pin, die once":
            pin = os.environ.get("CUDA_VISIBLE_DEVICES")
            marker = Path(task["marker"])
            if not marker.exists():
                marker.write_text(str(pin))
                os.kill(os.getpid(), signal.SIGKILL)
            return pin
        case "sleep, pin":
            time.sleep(1.0)
            return os.environ.get("CUDA_VISIBLE_DEVICES")
        case "pid":
            return os.getpid(), os.environ["OMP_NUM_THREADS"]
        case "pid, then sleep":
            Path(task["file"]).write_text(str(os.getpid()))
            time.sleep(60)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "die once":
            marker = Path(task["marker"])
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return "second try"
    return None


def steps(task: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """A generator: events, then a value."""
    for number in range(task["count"]):
        if number == task.get("refuse_at"):
            raise MlaError(f"stopped at `{number}`", "go on")
        yield task["name"], number
    return task["name"] * 2


WORK, STEPS = f"{__name__}:work", f"{__name__}:steps"


def results(tasks: list[dict[str, Any]], workers: int, function: str = WORK) -> dict[int, TaskDone]:
    done = [item for item in run_tasks(function, tasks, workers) if isinstance(item, TaskDone)]
    found = {item.index: item for item in done}
    assert len(found) == len(done), "a task was reported twice"
    return found


def squares(count: int) -> list[dict[str, Any]]:
    return [{"do": "square", "x": x} for x in range(count)]


# ---------------------------------------------------------------- tests


def test_each_task_gets_its_own_result_however_many_workers() -> None:
    for workers in (1, 2):
        found = results(squares(7), workers)
        assert {index: item.value for index, item in found.items()} == {x: x**2 for x in range(7)}
        assert all(item.error is None for item in found.values())
    assert not active_children()


def test_a_slow_task_holds_nobody_up() -> None:
    order = [item.index for item in run_tasks(WORK, [{"do": "sleep", "x": 1.0}, *squares(4)[1:]], 2)]
    assert sorted(order) == [0, 1, 2, 3]
    assert order[-1] == 0


def test_no_tasks_no_workers() -> None:
    assert list(run_tasks("no.such.module:x", [], 4)) == []


def test_workers_are_kept_and_have_one_thread() -> None:
    found = [item.value for item in results([{"do": "pid"}] * 6, 2).values()]
    pids, threads = zip(*found, strict=True)
    assert len(set(pids)) <= 2
    assert os.getpid() not in pids
    assert set(threads) == {"1"}
    assert default_workers() >= 1


def test_events_arrive_in_order_before_the_value() -> None:
    items = list(run_tasks(STEPS, [{"name": "a", "count": 3}, {"name": "b", "count": 2}, {"name": "c", "count": 0}], 2))
    for index, (name, count) in enumerate([("a", 3), ("b", 2), ("c", 0)]):
        mine = [item for item in items if item.index == index]
        assert mine[:-1] == [TaskEvent(index, (name, number)) for number in range(count)]
        assert mine[-1] == TaskDone(index, value=name * 2)


def test_our_errors_arrive_whole_and_the_others_go_on() -> None:
    found = results([{"do": "refuse", "x": 7}, *squares(3)], 1)
    error = found[0].error
    assert isinstance(error, MlaError)
    assert (error.message, error.hint) == ("`7` is bad", "mend it")
    assert [found[i].value for i in (1, 2, 3)] == [0, 1, 4]
    items = list(run_tasks(STEPS, [{"name": "a", "count": 3, "refuse_at": 1}], 1))
    assert items[0] == TaskEvent(0, ("a", 0))
    assert items[1].error.message == "stopped at `1`"
    assert len(items) == 2


def test_a_killed_worker_is_replaced_and_its_task_tried_again(tmp_path: Path) -> None:
    tasks = [{"do": "die once", "marker": str(tmp_path / "tried")}, *squares(3)]
    items = list(run_tasks(WORK, tasks, 2))
    assert [item for item in items if isinstance(item, TaskRetried)] == [TaskRetried(0, "exit code -9")]
    found = {item.index: item for item in items if isinstance(item, TaskDone)}
    assert found[0].value == "second try"
    assert [found[i].value for i in (1, 2, 3)] == [0, 1, 4]
    assert not active_children()


def test_a_task_that_kills_every_worker_is_given_up_alone() -> None:
    found = results([{"do": "die"}, *squares(3)], 2)
    error = found[0].error
    assert isinstance(error, MlaError)
    assert error.message == "its worker process died 2 times (exit code -9)"
    assert error.hint
    assert [found[i].value for i in (1, 2, 3)] == [0, 1, 4]
    assert not active_children()


@pytest.mark.parametrize(
    ("task", "traceback"),
    [
        ({"do": "bug", "x": 4}, "ZeroDivisionError: bug number 4"),
        ({"do": "unpicklable"}, "pickle"),
        ({"do": "broken pipe"}, "BrokenPipeError: of the task's own"),  # not taken for the end of the parent
    ],
)
def test_a_bug_ends_all_with_the_workers_traceback(task: dict[str, Any], traceback: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        results([task, {"do": "sleep", "x": 60}], 2)
    text = str(caught.value)
    assert text.startswith("a worker failed:\nTraceback")
    assert traceback in text
    assert not active_children()  # the sleeper is not waited for


def test_a_function_that_cannot_be_imported_is_a_bug_too() -> None:
    with pytest.raises(RuntimeError, match="ModuleNotFoundError"):
        results(squares(1), 1, "mla_cli.no_such_module:work")


def test_leaving_early_ends_the_workers() -> None:
    running = run_tasks(STEPS, [{"name": "a", "count": 1000}], 1)
    assert next(running) == TaskEvent(0, ("a", 0))
    assert active_children()
    running.close()  # type: ignore[attr-defined]
    assert not active_children()


# ---------------------------------------------------------------- devices


@pytest.fixture
def _two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("os.path.exists", lambda path: path == "/dev/nvidiactl")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("_two_gpus")
def test_one_run_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for device in ("auto", "cuda"):
        assert Local().places(Needs(device=device)) == Places(2, "2 CUDA devices")
    assert Local(1).places(Needs(device="auto")).count == 1
    assert accelerators("auto") == ("CUDA", ["0", "1"])
    assert accelerators("cpu") == ("", [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    assert accelerators("cuda") == ("CUDA", ["3", "GPU-5"])
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert Local().places(Needs(device="auto")) == Places(1, "1 CUDA device")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert Local().places(Needs(device="auto")) == Places(1, "1 MPS device")


def test_a_device_that_is_not_there_is_one_error_before_any_work() -> None:
    with pytest.raises(MlaError, match="no device named `gpu`"):
        next(Local(2).run("no.module:function", [1, 2], Needs(device="gpu")))
    assert not active_children()
    assert list(Local(2).run("no.module:function", [], Needs(device="gpu"))) == [], "nothing to do, nothing to ask for"


def test_cores_are_shared_by_the_threads_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mla_cli.engine.executor.default_workers", lambda: 8)
    counts = [Local().places(Needs(cores)).count for cores in (1, 3, 4, 9)]
    assert counts == [8, 2, 2, 1]
    assert Local(5).places(Needs(4)).count == 5  # asked for


def test_a_worker_is_pinned_to_its_gpu_and_so_is_the_one_that_replaces_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mla_cli.engine.executor.accelerators", lambda device: ("CUDA", ["0", "1"]))
    marker = tmp_path / "died"
    tasks = [{"do": "pin, die once", "marker": str(marker)}, {"do": "sleep, pin"}]
    found = {item.index: item for item in Local().run(WORK, tasks, Needs(device="cuda")) if isinstance(item, TaskDone)}
    assert sorted(item.value for item in found.values()) == ["0", "1"]
    assert found[0].value == marker.read_text()


def is_running(pid: int) -> bool:
    """Whether a process does anything; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_killed_parent_takes_its_workers_along(tmp_path: Path) -> None:
    """`kill -9` of `mla prepare` alone: a worker that went on would write beside the next run."""
    files = [tmp_path / "one", tmp_path / "two"]
    tasks = [{"do": "pid, then sleep", "file": str(file)} for file in files]
    code = f"from mla_cli.engine.executor import run_tasks; list(run_tasks({WORK!r}, {tasks!r}, 2))"
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    deadline = time.monotonic() + 60
    while not all(file.exists() and file.read_text() for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = [int(file.read_text()) for file in files]
    assert all(is_running(pid) for pid in workers)
    parent.kill()
    parent.wait()
    while any(is_running(pid) for pid in workers):
        assert time.monotonic() < deadline, "the workers go on"
        time.sleep(0.05)
