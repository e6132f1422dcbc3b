"""`mla import`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from mla_cli.app import app, command
from mla_cli.options import (
    DATA_DIR,
    RUN_DIR,
    DataDir,
    Debug,
    Device,
    Force,
    Format,
    Quiet,
    RecipeName,
    RunDir,
    Sets,
    SplitFile,
)


@command(app, "import", "mla import best.pth --layout mla-released --dataset cremad")
def import_command(
    checkpoint: Annotated[Path, typer.Argument(help="The file: .pt, .pth or .safetensors; nothing in it is run.")],
    layout: Annotated[str, typer.Option("--layout", help="mla-released (a model), m3ae or cav-mae (encoder weights).")],
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="What the model was trained on: cremad or kinetics_sounds.")
    ] = None,
    recipe: RecipeName = None,
    sets: Sets = None,
    split_file: SplitFile = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="The seed it was trained with, where known.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option("--classes", help="Order of the head's classes: A,B,C or a file with one a line.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Encoder weights: the .safetensors file to write.")] = None,
    force: Force = False,
    device: Device = "auto",
    output_format: Format = "table",
    data_dir: DataDir = DATA_DIR,
    run_dir: RunDir = RUN_DIR,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Turn a checkpoint of the released code into a run to evaluate, or encoder weights into a file to start from."""
    from mla_cli import render, tables
    from mla_cli.core.layouts import find_layout

    render.check_format(output_format)
    chosen = find_layout(layout)
    if not chosen.becomes:
        from mla_cli.engine.encoder_files import import_encoder

        model = {"--dataset": dataset, "--recipe": recipe, "--set": sets, "--split-file": split_file, "--seed": seed}
        refuse(layout, model | {"--classes": classes}, "which are encoder weights and need no data")
        render.print_lines(import_encoder(checkpoint, chosen, out, force).lines())
        return
    from mla_cli.engine.imports import import_recipe, import_run

    refuse(layout, {"--out": out}, "which becomes a run below --run-dir")
    if dataset is None and recipe is None:
        raise typer.BadParameter(f"--layout {layout} needs --dataset: {' or '.join(chosen.datasets)}")
    flags = {"seed": seed, "dataset.split_file": split_file}
    built = import_recipe(chosen, dataset, recipe, sets or (), flags)
    again = ["mla", *sys.argv[1:], *([] if force else ["--force"])]
    run = render.show(import_run(checkpoint, chosen, built, data_dir, run_dir, device, classes, force, again), quiet)
    tables.write_markdown(run)
    tables.print_run(run, output_format)


def refuse(layout: str, options: Mapping[str, object], why: str) -> None:
    """Options that do not go with a layout are wrong usage."""
    for name, value in options.items():
        if value is not None:
            raise typer.BadParameter(f"{name} does not go with --layout {layout}, {why}")
