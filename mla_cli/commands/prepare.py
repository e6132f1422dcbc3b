"""`mla prepare`."""

from pathlib import Path
from typing import Annotated

import typer

from mla_cli.app import app, command
from mla_cli.options import (
    DATA_DIR,
    RUN_DIR,
    Address,
    DataDir,
    Debug,
    ExecutorName,
    Force,
    Quiet,
    RecipeName,
    RunDir,
    Sets,
    SplitFile,
)


@command(app, "prepare", "mla prepare digits")
def prepare_command(
    name: Annotated[str, typer.Argument(help="Data set; `mla recipes` lists them.")],
    root: Annotated[Path | None, typer.Option("--root", help="Raw data; else $MLA_RAW/NAME, else raw/NAME.")] = None,
    recipe: RecipeName = None,
    protocol: Annotated[str | None, typer.Option("--protocol", help="Split protocol to check and report.")] = None,
    split_file: SplitFile = None,
    sets: Sets = None,
    check: Annotated[bool, typer.Option("--check", help="Verify every raw file and list all problems.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be built, build nothing.")] = False,
    force: Force = False,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes; default all cores.")] = None,
    executor: ExecutorName = "local",
    address: Address = None,
    file_timeout: Annotated[
        float, typer.Option("--file-timeout", min=0.1, help="Seconds after which a sample counts as hanging.")
    ] = 120.0,
    max_bad: Annotated[float, typer.Option("--max-bad", min=0, max=1, help="Largest share of bad samples.")] = 0.01,
    table: Annotated[Path | None, typer.Option("--table", help="NAME table: your own table of samples.")] = None,
    store: Annotated[str | None, typer.Option("--name", help="Name of the prepared set; default: the table's.")] = None,
    modality: Annotated[
        list[str] | None, typer.Option("--modality", metavar="COLUMN=KIND", help="Kind of a table's column; repeat.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option("--classes", help="kinetics_sounds: ks31, ks32, or a file with one class a line.")
    ] = None,
    allow_outside: Annotated[bool, typer.Option("--allow-outside", help="Admit paths outside --root.")] = False,
    data_dir: DataDir = DATA_DIR,
    run_dir: RunDir = RUN_DIR,  # every command takes it; preparing makes no runs
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Verify raw data and build the feature store."""
    from mla_cli import render, tables
    from mla_cli.engine import prepare as engine
    from mla_cli.engine.choose import recipe_for_dataset, scan_options
    from mla_cli.engine.executor import choose_executor
    from mla_cli.engine.inspection import inspect, split_report

    options = scan_options(name, table, modality, allow_outside, classes)
    store, root = (store or table.stem, root or table.parent) if table else (store, root)
    flags = {"dataset.protocol": protocol, "dataset.store": store, "dataset.split_file": split_file}
    chosen = recipe_for_dataset(name, recipe, sets or (), flags)
    where = choose_executor(executor, address, workers)
    if check or dry_run:
        looking = inspect(name, data_dir, chosen, root, check, options, where, file_timeout)
        report = render.show(looking, quiet)
        render.print_lines(tables.inspection_lines(report))
        raise typer.Exit(1 if report.problems else 0)
    building = engine.prepare(name, data_dir, chosen, root, None, force, where, max_bad, options, file_timeout)
    done = render.show(building, quiet)
    render.print_lines(tables.prepared_lines(done, split_report(done.path, chosen)))
