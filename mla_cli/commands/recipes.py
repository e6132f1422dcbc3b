"""`mla recipes`."""

from pathlib import Path
from typing import Annotated

import typer

from mla_cli.app import app, command, guarded
from mla_cli.options import DATA_DIR, DataDir, Debug, Force, Format, Quiet, Sets

recipes_app = typer.Typer(
    help="List data sets, recipes, methods and encoders; show a recipe and its cost, or copy it to edit.",
    epilog="Example: mla recipes copy emoji mine.yaml",
    invoke_without_command=True,
)
app.add_typer(recipes_app, name="recipes")


@recipes_app.callback()
@guarded("recipes")
def recipes_list(context: typer.Context) -> None:
    """List data sets, recipes, methods and encoders; show a recipe and its cost, or copy it to edit."""
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
    from mla_cli.engine.recipe_files import copy_recipe

    copy_recipe(name, target, data_dir, force)
    render.say(f"wrote {target}; run it with: mla train --recipe {target}", quiet)


@command(recipes_app, "show", "mla recipes show cremad --cost")
def recipes_show(
    name: Annotated[str, typer.Argument(help="A recipe, its YAML file, or a prepared data set.")],
    cost: Annotated[
        bool, typer.Option("--cost", help="Parameters, memory and FLOPs on paper, and time measured here.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="With --cost: time small batches on this CPU.")
    ] = True,
    sets: Sets = None,
    output_format: Format = "table",
    data_dir: DataDir = DATA_DIR,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show a recipe, or with --cost what a step of it takes."""
    from mla_cli import render
    from mla_cli.engine.recipe_files import named_recipe, recipe_text

    render.check_format(output_format)
    if not cost:
        if output_format in ("markdown", "csv"):
            raise typer.BadParameter(f"--format {output_format} is for --cost; a recipe is YAML, or --format json")
        text = recipe_text(name, data_dir, sets or (), output_format == "json")
        render.print_lines(text.rstrip("\n").split("\n"))
        return
    from mla_cli.costs import print_cost
    from mla_cli.engine.measure import cost as reckon

    print_cost(render.show(reckon(named_recipe(name, data_dir, sets or ()), data_dir, measure), quiet), output_format)
