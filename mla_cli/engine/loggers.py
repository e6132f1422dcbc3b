"""`--logger`: a run's epochs and results for a spreadsheet, TensorBoard or Weights & Biases.

A logger listens to the events of `engine.train`; it changes no number. Everything lies in the run's folder:
`history.csv`, `tensorboard/`, `wandb/` (offline unless $WANDB_MODE says otherwise). When a run starts or goes on, a
logger first writes the epochs that `history.jsonl` kept, in place of what it wrote before: every epoch is there once.
"""

import csv
import importlib.util
import io
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from mla_cli.engine.events import Epoch, Finished, Started, Steps, Value
from mla_cli.engine.run import Run
from mla_cli.errors import MlaError
from mla_cli.files import unwritable, write_text
from mla_cli.recipe import dotted
from mla_cli.registry import did_you_mean

PACKAGE = {"csv": "csv", "tensorboard": "tensorboard", "wandb": "wandb"}  # logger -> what it needs
# Weights & Biases as we start it: silent, and without code, errors or the state of the machine. Yours win.
WANDB_ENV = {
    "WANDB_MODE": "offline",
    "WANDB_PROJECT": "mla",
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
    "WANDB_DISABLE_CODE": "true",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_X_DISABLE_STATS": "true",
}


class Logger(Protocol):
    """Where epochs and results go. `epoch` takes a line of `history.jsonl`, `results` tidy rows."""

    def epoch(self, row: dict[str, Any]) -> None: ...

    def results(self, rows: Iterable[dict[str, Any]]) -> None: ...

    def close(self) -> None: ...


def check_loggers(names: Sequence[str]) -> tuple[str, ...]:
    """The loggers asked for, each once. Raises MlaError for an unknown one, or one whose package is not installed."""
    for name in names:
        if name not in PACKAGE:
            raise MlaError(f"no logger named `{name}`", did_you_mean(name, list(PACKAGE)))
        found = importlib.util.find_spec(PACKAGE[name])
        if found is None or found.origin is None:  # a folder of that name is no package
            raise MlaError(f"`--logger {name}` needs the package `{PACKAGE[name]}`", "pip install 'mla-cli[track]'")
    return tuple(dict.fromkeys(names))


def logged(steps: Steps[Value], names: Sequence[str]) -> Steps[Value]:
    """Pass on the events of a training run, and tell them to loggers."""
    loggers: list[Logger] = []
    try:
        while True:
            try:
                event = next(steps)
            except StopIteration as stop:
                return stop.value
            if isinstance(event, Started):
                loggers = started(Run(Path(event.run)), names, event.resumed)
            elif isinstance(event, Epoch):
                for logger in loggers:
                    logger.epoch(event.row)
            elif isinstance(event, Finished):
                for logger in loggers:
                    logger.results(event.rows)
            yield event
    finally:
        steps.close()
        for logger in loggers:
            logger.close()


def log_finished(run: Run, names: Sequence[str]) -> None:
    """What the loggers would have written of a finished run, where they did not."""
    for name in names:
        if not (run.path / PLACE[name]).exists():
            (logger,) = started(run, [name], resumed=False)
            try:
                with open(run.path / "results.csv", encoding="utf-8", newline="") as file:
                    logger.results(csv.DictReader(file))
            finally:
                logger.close()


def started(run: Run, names: Sequence[str], resumed: bool) -> list[Logger]:
    """Loggers of a run, that know the epochs it has already."""
    made: list[Logger] = []
    for name in names:
        if (run.path / PLACE[name]).is_dir():  # of an interrupted run, or of one that went on without a logger
            shutil.rmtree(run.path / PLACE[name])
        logger: Logger = MADE[name](run, resumed)
        made.append(logger)
        for row in run.history():
            logger.epoch(row)
    return made


def final_name(row: dict[str, Any]) -> str:
    """`test_accuracy.fused`, as in `history.jsonl`."""
    return f"{row['split']}_{row['metric']}.{row['output']}"


class CsvLogger:
    """`history.csv`: one line per epoch, one column per figure. Final results stand in `results.csv` anyway."""

    def __init__(self, run: Run, resumed: bool):
        self.path = run.path / PLACE["csv"]
        self.rows: list[dict[str, Any]] = []

    def epoch(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        out = io.StringIO()
        columns = list(dict.fromkeys(key for one in self.rows for key in one))
        writer = csv.DictWriter(out, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, out.getvalue())

    def results(self, rows: Iterable[dict[str, Any]]) -> None:
        pass

    def close(self) -> None:
        pass


class TensorBoardLogger:
    """`tensorboard/`: scalars by epoch, and the recipe as hyper-parameters of the final results."""

    def __init__(self, run: Run, resumed: bool):
        from torch.utils.tensorboard import SummaryWriter

        self.recipe = dotted(run.recipe().model_dump())
        try:
            self.writer = SummaryWriter(str(run.path / PLACE["tensorboard"]))
        except OSError as error:
            raise unwritable(run.path / PLACE["tensorboard"], error) from error

    def epoch(self, row: dict[str, Any]) -> None:
        for key, value in row.items():
            if key != "epoch":  # charts are grouped by what stands before the slash
                self.writer.add_scalar(key.replace(".", "/", 1), number(value), row["epoch"])
        self.writer.flush()

    def results(self, rows: Iterable[dict[str, Any]]) -> None:
        final = {f"final/{final_name(row)}": number(row["value"]) for row in rows}
        keys = {key: v if isinstance(v, bool | int | float | str) else str(v) for key, v in self.recipe.items()}
        self.writer.add_hparams(keys, final, run_name=".")  # in the same folder, not in one named after the time

    def close(self) -> None:
        self.writer.close()


class WandbLogger:
    """`wandb/`: metrics by epoch, the recipe as config, final results as summary; `wandb sync` uploads it."""

    def __init__(self, run: Run, resumed: bool):
        for key, value in WANDB_ENV.items():
            os.environ.setdefault(key, value)
        import wandb

        resume = "allow" if resumed else None  # online: the steps that are there already are not taken again
        config = dotted(run.recipe().model_dump())
        try:
            self.run = wandb.init(dir=str(run.path), id=run.name, name=run.name, config=config, resume=resume)
        except wandb.Error as error:
            raise MlaError(
                f"`--logger wandb`: {error}", "log in with `wandb login`, or set WANDB_MODE=offline"
            ) from error

    def epoch(self, row: dict[str, Any]) -> None:
        self.run.log({key: number(value) for key, value in row.items()}, step=row["epoch"])

    def results(self, rows: Iterable[dict[str, Any]]) -> None:
        self.run.summary.update({f"final.{final_name(row)}": number(row["value"]) for row in rows})

    def close(self) -> None:
        self.run.finish()


def number(value: Any) -> float:
    """A figure; NaN for one that overflowed."""
    return float("nan") if value is None or value == "" else float(value)


PLACE = {"csv": "history.csv", "tensorboard": "tensorboard", "wandb": "wandb"}  # in the run's folder
MADE: dict[str, Any] = {"csv": CsvLogger, "tensorboard": TensorBoardLogger, "wandb": WandbLogger}
