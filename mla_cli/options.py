"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

DataDir = Annotated[Path, typer.Option("--data-dir", help="Folder of the prepared data.")]
RunDir = Annotated[Path, typer.Option("--run-dir", help="Folder of the runs.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings, errors and results.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe; repeat.")
]
SplitFile = Annotated[str | None, typer.Option("--split-file", help="Published lists: a file, a folder, or FILE,FILE.")]
RecipeName = Annotated[str | None, typer.Option("--recipe", "-r", help="Recipe name or YAML file.")]
Force = Annotated[bool, typer.Option("--force", help="Start again, replacing what is there.")]
Format = Annotated[str, typer.Option("--format", help="table, markdown, latex, csv or json.")]
Loggers = Annotated[
    list[str] | None,
    typer.Option("--logger", help="csv, tensorboard or wandb (offline), into the run's folder; repeat."),
]
Reference = Annotated[
    bool, typer.Option("--reference", help="Published numbers for the data set, in tables of their own.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Precision = Annotated[
    str | None, typer.Option("--precision", help="32, bf16 or 16 (float16); the recipe's `train.precision`.")
]
Smoke = Annotated[bool, typer.Option("--smoke", help="1 epoch, 2 batches, 64 rows: does it run? Not a result.")]
ExecutorName = Annotated[str, typer.Option("--executor", help="Where work runs: local, or ray (a Ray cluster).")]
Address = Annotated[
    str | None, typer.Option("--address", metavar="HOST:PORT", help="Of the Ray cluster; default the one running here.")
]

DATA_DIR, RUN_DIR = Path("data"), Path("runs")
SMOKE = ("train.epochs=1", "train.max_rounds=2", "train.batch_size=32", "dataset.limit=64")
