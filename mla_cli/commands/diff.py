"""`mla diff`."""

from typing import Annotated

import typer

from mla_cli.app import app, command
from mla_cli.options import DATA_DIR, RUN_DIR, DataDir, Debug, Format, Quiet, RunDir


@command(app, "diff", "mla diff emoji-mla-s0-f0-3fa9c1d2 emoji-mla-s0-f0-77aa01bc")
def diff_command(
    one: Annotated[str, typer.Argument(help="A run by name or path, finished or not.")],
    other: Annotated[str, typer.Argument(help="Another one.")],
    output_format: Format = "table",
    data_dir: DataDir = DATA_DIR,  # every command takes it; what is compared lies in the runs
    run_dir: RunDir = RUN_DIR,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show what two runs differ in: recipe, data, weights, versions, machine, command, results."""
    from mla_cli import render, tables
    from mla_cli.comparison import difference_table
    from mla_cli.engine.diff import diff_runs, find_any_run

    render.check_format(output_format)
    found = diff_runs(find_any_run(one, run_dir), find_any_run(other, run_dir))
    tables.print_tables([difference_table(found)], found.tidy(), output_format)
