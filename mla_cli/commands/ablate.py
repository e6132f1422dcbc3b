"""`mla ablate`."""

from typing import Annotated

import typer

from mla_cli.app import app, command, resuming
from mla_cli.options import (
    DATA_DIR,
    RUN_DIR,
    SMOKE,
    Address,
    DataDir,
    Debug,
    Device,
    ExecutorName,
    Format,
    Loggers,
    Precision,
    Quiet,
    RecipeName,
    Reference,
    RunDir,
    Sets,
    Smoke,
)


@command(app, "ablate", "mla ablate --recipe emoji --over method.hgm=off,rls --seeds 0,1,2")
def ablate_command(
    recipe: RecipeName = None,
    sets: Sets = None,
    over: Annotated[list[str] | None, typer.Option("--over", metavar="KEY=V1,V2", help="Grid axis; repeat.")] = None,
    seeds: Annotated[str, typer.Option("--seeds", help="0,1,2 or 0..4.")] = "0,1,2",
    preset: Annotated[
        str | None, typer.Option("--preset", help="A named grid: table1, table3, hgm or missing.")
    ] = None,
    significance: Annotated[
        bool, typer.Option("--significance", help="Mark, in table1, what differs from MLA on the same test items.")
    ] = False,
    missing_rates: Annotated[str | None, typer.Option("--missing-rates", help="At test time: 0,0.2,0.4.")] = None,
    mask_seeds: Annotated[str, typer.Option("--mask-seeds", help="Draws of the absences: 0..9 or 0,1,2.")] = "0..9",
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Runs at a time; default all cores, or GPUs.")
    ] = None,
    executor: ExecutorName = "local",
    address: Address = None,
    shard: Annotated[str | None, typer.Option("--shard", metavar="I/N", help="Train only part I of N.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, train nothing.")] = False,
    smoke: Smoke = False,
    device: Device = "auto",
    precision: Precision = None,
    loggers: Loggers = None,
    reference: Reference = False,
    output_format: Format = "table",
    data_dir: DataDir = DATA_DIR,
    run_dir: RunDir = RUN_DIR,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare methods and switches over seeds; without options the whole story on built-in data."""
    from mla_cli import render, tables
    from mla_cli.engine import ablate as engine
    from mla_cli.engine.choose import choose_recipe
    from mla_cli.engine.executor import choose_executor
    from mla_cli.engine.grid_plan import parse_shard
    from mla_cli.engine.grids import parse_over
    from mla_cli.engine.loggers import check_loggers
    from mla_cli.engine.numbers import parse_numbers
    from mla_cli.ledger import print_reference

    render.check_format(output_format)
    if significance and preset != "table1":
        raise typer.BadParameter("--significance marks the table of --preset table1")
    listeners = check_loggers(loggers or ())
    flags = {"train.precision": precision}
    chosen, why = choose_recipe(recipe or "emoji", data_dir, [*(sets or ()), *(SMOKE if smoke else ())], flags)
    render.say(why, quiet)
    axes = [parse_over(text) for text in over or ()]
    numbers, draws = parse_numbers(seeds, "--seeds"), parse_numbers(mask_seeds, "--mask-seeds")
    plan = engine.Plan(
        chosen, axes, numbers, missing_rates, draws, preset, significance, parse_shard(shard), dry_run, listeners
    )
    where = choose_executor(executor, address, workers)
    done = render.show(engine.ablate(plan, data_dir, run_dir, where, device), quiet)
    if isinstance(done, engine.Pending):
        render.print_lines(done.lines(resuming("ablate", without="--shard")))
    else:
        tables.write_ablation(done)
        tables.print_ablation(done, output_format, quiet)
        if reference:
            print_reference(done.rows, output_format, done.path)
    raise typer.Exit(1 if done.failed else 0)
