"""`mla train`."""

import os
import sys
from typing import Annotated

import typer

from mla_cli.app import app, command, resuming
from mla_cli.options import (
    DATA_DIR,
    RUN_DIR,
    SMOKE,
    DataDir,
    Debug,
    Device,
    Force,
    Format,
    Loggers,
    Precision,
    Quiet,
    RecipeName,
    RunDir,
    Sets,
    Smoke,
    SplitFile,
)


@command(app, "train", "mla train --recipe emoji --no-hgm --seed 1")
def train_command(
    recipe: RecipeName = None,
    method: Annotated[str | None, typer.Option("--method", "-m", help="Training method.")] = None,
    hgm: Annotated[bool | None, typer.Option("--hgm/--no-hgm", help="Head gradient modification on or off.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of every random choice.")] = None,
    split_file: SplitFile = None,
    sets: Sets = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint, if there is one.")] = False,
    force: Force = False,
    smoke: Smoke = False,
    device: Device = "auto",
    devices: Annotated[
        int | None, typer.Option("--devices", min=1, help="Processes that train the run together, one for each device.")
    ] = None,
    precision: Precision = None,
    loggers: Loggers = None,
    output_format: Format = "table",
    data_dir: DataDir = DATA_DIR,
    run_dir: RunDir = RUN_DIR,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train one run; without --recipe on the data set prepared last, or else the built-in one."""
    from mla_cli import render, tables
    from mla_cli.engine.choose import choose_recipe
    from mla_cli.engine.loggers import check_loggers, logged
    from mla_cli.engine.together import PARENT, attend, is_rank, joined

    render.check_format(output_format)
    listeners = check_loggers(loggers or ())
    flags = {"method.name": method, "seed": seed, "dataset.split_file": split_file, "train.precision": precision}
    chosen, why = choose_recipe(recipe, data_dir, [*(sets or ()), *(SMOKE if smoke else ())], flags, hgm)
    if is_rank() and devices and PARENT not in os.environ:
        if os.environ["RANK"] != "0":  # one of them says it
            raise typer.Exit(2)
        raise typer.BadParameter("--devices: torchrun has started the processes already; leave it out")
    if devices:
        from mla_cli.engine.launch import launch, too_many

        if problem := too_many(devices, device, chosen.train.batch_size):
            raise typer.BadParameter(problem)
        if devices > 1 and not is_rank():
            words = [sys.executable, "-m", "mla_cli", *sys.argv[1:]]
            raise typer.Exit(launch(devices, words, resuming("train")))
    from mla_cli.engine.train import train

    with joined(device) as ranks:
        render.say(why, quiet or not ranks.is_first)
        training = train(chosen, data_dir, run_dir, device, resume=resume, force=force or smoke, ranks=ranks)
        if not ranks.is_first:
            attend(training)
            return
        run = render.show(logged(training, listeners), quiet)
    tables.write_markdown(run)
    tables.print_run(run, output_format)
