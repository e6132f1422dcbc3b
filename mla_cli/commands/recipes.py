"""`mla recipes`."""

from pathlib import Path
from typing import Annotated

import typer

from mla_cli.app import app, command
from mla_cli.options import DATA_DIR, DataDir, Debug, Force, Quiet

recipes_app = typer.Typer(
    help="List data sets, recipes, methods and encoders, or copy a recipe to edit it.",
    epilog="Example: mla recipes copy emoji mine.yaml",
    invoke_without_command=True,
)
app.add_typer(recipes_app, name="recipes")


@recipes_app.callback()
def recipes_list(context: typer.Context) -> None:
    """List data sets, recipes, methods and encoders, or copy a recipe to edit it."""
    if context.invoked_subcommand is None:
        from mla_cli import render, tables

        render.print_lines(tables.registry_lines())


@command(recipes_app, "copy", "mla recipes copy emoji mine.yaml")
def recipes_copy(
    name: Annotated[str, typer.Argument(help="A shipped recipe, or a prepared data set.")],
    target: Annotated[Path, typer.Argument(help="The YAML file to write.")],
    force: Force = False,
    data_dir: DataDir = DATA_DIR,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Copy a recipe, with its comments, to a file of your own."""
    from mla_cli import render
    from mla_cli.engine.choose import copy_recipe

    copy_recipe(name, target, data_dir, force)
    render.say(f"wrote {target}; run it with: mla train --recipe {target}", quiet)
