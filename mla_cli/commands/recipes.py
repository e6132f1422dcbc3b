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
    gpus: Annotated[
        list[int] | None,
        typer.Option("--gpus", min=1, help="With --cost: a round on so many GPUs, by arithmetic; repeat."),
    ] = None,
    tflops: Annotated[
        float | None, typer.Option("--tflops", min=1e-6, help="Assumed TFLOP/s that a GPU sustains; default 10.")
    ] = None,
    gbps: Annotated[
        float | None, typer.Option("--gbps", min=1e-6, help="Assumed Gbit/s of a GPU's link, each way; default 100.")
    ] = None,
    latency: Annotated[
        float | None, typer.Option("--latency", min=0, help="Assumed microseconds of an all_reduce; default 50.")
    ] = None,
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
    if gpus and not cost:
        raise typer.BadParameter("--gpus is for --cost")
    assumed = {"tflops": tflops, "gbps": gbps, "latency": None if latency is None else latency / 1e6}
    given = {name: value for name, value in assumed.items() if value is not None}
    if given and not gpus:
        raise typer.BadParameter(f"--{next(iter(given))} is for --gpus: add, for example, --cost --gpus 8")
    if not cost:
        if output_format in ("markdown", "csv"):
            raise typer.BadParameter(f"--format {output_format} is for --cost; a recipe is YAML, or --format json")
        text = recipe_text(name, data_dir, sets or (), output_format == "json")
        render.print_lines(text.rstrip("\n").split("\n"))
        return
    from mla_cli.costs import print_cost
    from mla_cli.engine.cluster import Cluster
    from mla_cli.engine.measure import cost as reckon

    cluster = Cluster(tuple(gpus), **given) if gpus else None
    found = reckon(named_recipe(name, data_dir, sets or ()), data_dir, measure, cluster)
    print_cost(render.show(found, quiet), output_format)
