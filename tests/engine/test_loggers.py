"""Loggers: they change no number, hold every epoch once after an interruption too, and stay on this machine."""

import csv
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import mla
from tiny import finish, mfeat_recipe, run_bytes, trained

from mla_cli.engine import loggers as engine
from mla_cli.engine.ablate import Plan, ablate
from mla_cli.engine.events import Epoch
from mla_cli.engine.loggers import WANDB_ENV, check_loggers, logged
from mla_cli.engine.run import Run
from mla_cli.engine.train import train
from mla_cli.errors import MlaError

RECIPE = mfeat_recipe(train={"diagnostics": False, "epochs": 3})
FAKE_WANDB = """
Error = type("Error", (Exception,), {})
calls = []

class Run:
    summary = {}
    def log(self, values, step):
        calls.append(("log", step, values))
    def finish(self):
        calls.append(("finish", dict(self.summary)))

def init(**options):
    if options["name"].endswith("refused"):
        raise Error("no API key")
    calls.append(("init", options))
    return Run()
"""


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package `wandb` that remembers what it was told (the real one takes 100 MB)."""
    (tmp_path / "site/wandb").mkdir(parents=True)
    (tmp_path / "site/wandb/__init__.py").write_text(FAKE_WANDB, "utf-8")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(os, "environ", dict(os.environ))
    import wandb

    yield wandb
    del sys.modules["wandb"]


def scalars(run: Run) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads: tag -> (step, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run.path / "tensorboard"))
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def hyper_parameters(run: Run) -> Any:
    """The recipe as TensorBoard's own plugin reads it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    found = EventAccumulator(str(run.path / "tensorboard"))
    found.Reload()
    content = found.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    return HParamsPluginData.FromString(content).session_start_info.hparams


def table(run: Run) -> list[dict[str, str]]:
    with open(run.path / "history.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def check_complete(run: Run) -> None:
    """Every figure of every epoch once, in both files."""
    history = run.history()
    rows = table(run)
    assert [int(row["epoch"]) for row in rows] == [row["epoch"] for row in history] == [1, 2, 3]
    assert [{k: float(v) for k, v in row.items()} for row in rows] == history
    found = scalars(run)
    for key in history[0].keys() - {"epoch"}:
        wanted = [(row["epoch"], pytest.approx(row[key], rel=1e-6)) for row in history]
        assert found[key.replace(".", "/", 1)] == wanted
    with open(run.path / "results.csv", encoding="utf-8", newline="") as file:
        final = {f"{r['split']}_{r['metric']}.{r['output']}": float(r["value"]) for r in csv.DictReader(file)}
    assert "test_macro_f1.fused" in final
    assert {tag: values for tag, values in found.items() if tag.startswith("final/")} == {
        f"final/{name}": [(0, pytest.approx(value, rel=1e-6))] for name, value in final.items()
    }


def test_loggers_hold_all_figures_and_change_none(data_dir: Path, mfeat_store: Any, tmp_path: Path) -> None:
    plain = trained(RECIPE, data_dir, tmp_path / "plain")
    steps = logged(train(RECIPE, data_dir, tmp_path / "logged", "cpu"), ["csv", "tensorboard"])
    run = finish(steps)
    assert run_bytes(run) == run_bytes(plain)
    check_complete(run)
    assert hyper_parameters(run)["train.epochs"].number_value == 3
    assert hyper_parameters(run)["method.hgm"].string_value == "rls"


@pytest.mark.parametrize("first", [("csv", "tensorboard"), ()], ids=["logged before", "not logged before"])
def test_a_resumed_run_has_every_epoch_once(
    first: tuple[str, ...], data_dir: Path, mfeat_store: Any, tmp_path: Path
) -> None:
    steps = logged(train(RECIPE, data_dir, tmp_path, "cpu"), first)
    for event in steps:
        if isinstance(event, Epoch) and event.number == 2:
            break
    steps.close()
    run = finish(logged(train(RECIPE, data_dir, tmp_path, "cpu", resume=True), ["csv", "tensorboard"]))
    check_complete(run)


def test_an_epoch_that_was_logged_and_lost_is_logged_once(data_dir: Path, mfeat_store: Any, tmp_path: Path) -> None:
    """The files of loggers are ahead of the checkpoint: power failed between two writes to disk."""
    steps = logged(train(RECIPE, data_dir, tmp_path, "cpu"), ["csv", "tensorboard"])
    for event in steps:
        if isinstance(event, Epoch) and event.number == 1:
            (run,) = (Run(path) for path in tmp_path.iterdir() if path.name.startswith("tiny"))
            kept = {file: file.read_bytes() for file in [*run.path.glob("checkpoints/*"), run.path / "history.jsonl"]}
        if isinstance(event, Epoch) and event.number == 2:
            break
    steps.close()
    for file in run.path.glob("checkpoints/*"):
        file.unlink()
    for file, content in kept.items():
        file.write_bytes(content)
    run = finish(logged(train(RECIPE, data_dir, tmp_path, "cpu", resume=True), ["csv", "tensorboard"]))
    check_complete(run)


def test_wandb_gets_the_same_figures_offline(wandb: Any, data_dir: Path, mfeat_store: Any, tmp_path: Path) -> None:
    steps = logged(train(RECIPE, data_dir, tmp_path / "runs", "cpu"), ["wandb"])
    for event in steps:
        if isinstance(event, Epoch) and event.number == 1:
            break
    steps.close()
    assert [call[0] for call in wandb.calls] == ["init", "log", "finish"]
    wandb.calls.clear()
    run = finish(logged(train(RECIPE, data_dir, tmp_path / "runs", "cpu", resume=True), ["wandb"]))
    (_, options), *logs, (_, summary) = wandb.calls
    assert options["id"] == options["name"] == run.name and options["dir"] == str(run.path)
    assert options["resume"] == "allow" and options["config"]["train.epochs"] == 3
    assert [(step, values) for _, step, values in logs] == [(row["epoch"], row) for row in run.history()]
    assert set(summary) >= {"final.val_accuracy.fused", "final.test_accuracy.mor"}
    assert {key: os.environ[key] for key in WANDB_ENV} == WANDB_ENV


def test_what_the_user_set_up_for_wandb_stands(wandb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.environ["WANDB_MODE"] = "online"
    run = Run(tmp_path / "refused")
    run.path.mkdir()
    (run.path / "recipe.yaml").write_text("name: x\n", "utf-8")
    with pytest.raises(MlaError, match="`--logger wandb`: no API key") as error:
        engine.started(run, ["wandb"], resumed=False)
    assert "wandb login" in error.value.hint
    assert os.environ["WANDB_MODE"] == "online"


def test_what_is_not_there_is_an_error_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    for command in ("train", "ablate"):
        output = mla(command, "--logger", "wandb")
        assert (output.code, output.stdout) == (1, "")
        assert output.stderr == (
            "error: `--logger wandb` needs the package `wandb`\nhint: pip install 'mla-cli[track]'\n"
        )
        assert mla(command, "--logger", "tensorbord").stderr == (
            "error: no logger named `tensorbord`\nhint: did you mean `tensorboard`?\n"
        )
    assert list(tmp_path.iterdir()) == []


def test_loggers_are_taken_once_and_csv_needs_nothing() -> None:
    assert check_loggers(["csv", "csv"]) == ("csv",)
    assert check_loggers([]) == ()
    assert math.isnan(engine.number(None)) and engine.number("0.5") == 0.5


def test_a_grid_logs_every_run_and_those_that_were_finished(
    in_process: list[str], data_dir: Path, mfeat_store: Any, tmp_path: Path
) -> None:
    recipe = mfeat_recipe(train={"diagnostics": False, "epochs": 1})
    plan = Plan(recipe, [("method.hgm", ["off"])], [0], "0", [0])
    finish(ablate(plan, data_dir, tmp_path))
    plan = Plan(recipe, [("method.hgm", ["off", "rls"])], [0], "0", [0], loggers=("csv",))
    done = finish(ablate(plan, data_dir, tmp_path))
    assert done.reused == 1
    for run in done.runs:
        assert [{k: float(v) for k, v in row.items()} for row in table(run)] == run.history()
    before = {run.name: (run.path / "history.csv").stat().st_mtime_ns for run in done.runs}
    finish(ablate(plan, data_dir, tmp_path))
    assert {run.name: (run.path / "history.csv").stat().st_mtime_ns for run in done.runs} == before
